"""The account of real DeepSpeed ranks against the formulas, where parameters are offloaded or in 16 bits too."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agprof.instruments import bootstrap
from agprof.model.settings import ENV_HOME, ENV_RUN_DIR, ENV_SETTINGS, InstrumentSettings
from agprof.model.tables import BY_NAME
from agprof.model.zero import MODEL_STATES, ModelStates, held_memory
from agprof.store import layout
from agprof.store.frames import StreamFollower

SCRIPT = Path(__file__).parent / "scripts" / "zero_memory.py"
PACKAGE = Path(bootstrap.__file__).resolve().parents[1]
LAYER = 256 * 256
TRAINED, FROZEN = 5 * LAYER, LAYER
PROFILE_STEP = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run(folder: Path, *arguments: str) -> list[dict[tuple[str, str], int]]:
    """Bytes by (moment, part) of each rank; space host."""
    (folder / "ranks").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGPROF_")}
    environment |= {
        "PYTHONPATH": str(PACKAGE / "instruments" / "bootstrap_path"),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "AGPROF_NO_DS_OPS": "1",
        ENV_RUN_DIR: str(folder),
        ENV_HOME: str(PACKAGE.parent),
        ENV_SETTINGS: InstrumentSettings(profile_step=PROFILE_STEP).to_json(),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments], env=environment | {"RANK": rank, "LOCAL_RANK": rank}, cwd=folder
        )
        for rank in ("0", "1")
    ]
    codes = [rank.wait(timeout=280) for rank in ranks]
    assert codes == [0, 0], layout.rank_log(folder, 0, "stderr").read_text()[-3000:]
    return [sums(layout.rank_stream(folder, rank, 0)) for rank in (0, 1)]


def sums(stream: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    names = [column.name for column in BY_NAME["memory_parts"].columns]
    for table, rows in StreamFollower(stream).poll():
        assert table != "faults" or not [row for row in rows if "memory" in row[1]]
        for row in rows if table == "memory_parts" else ():
            at, space, part, size = (row[names.index(name)] for name in ("at", "space", "part", "bytes"))
            assert space == "host"
            found[at, part] = found.get((at, part), 0) + size
    return found


@pytest.mark.parametrize(
    ("stage", "dtype", "offload"),
    [(1, "bf16", "none"), (2, "fp32", "optimizer"), (3, "fp32", "none"), (3, "bf16", "optimizer+param")],
)
def test_standing_parts_are_the_formulas_and_the_peak_closes(
    tmp_path: Path, stage: int, dtype: str, offload: str
) -> None:
    ranks = run(tmp_path, str(stage), dtype, offload)
    states = ModelStates(
        trainable=TRAINED,
        frozen=FROZEN,
        stage=stage,
        ranks=2,
        parameter_bytes=2 if dtype == "bf16" else 4,
        offload_optimizer="optimizer" in offload,
        offload_param="param" in offload,
        accumulates=True,
        owned=3 * LAYER,  # the border between the ranks cuts the third of five layers
        bucket=100_000,
    )
    formula = held_memory(states, "standing")
    for found in ranks:
        for part in MODEL_STATES:
            expected = formula.part(part).total
            assert found.get(("standing", part), 0) == pytest.approx(expected, rel=0.02, abs=1024), part
        for moment in ("standing", "peak"):
            total = found[moment, "total"]
            told = sum(size for (at, part), size in found.items() if at == moment and part != "total")
            assert 0 <= total - told < 0.1 * total, moment
