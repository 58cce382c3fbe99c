"""Fault F11 with torch: DataLoader workers, forked and spawned, under the real recorder and before the real /proc."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agprof.instruments import bootstrap
from agprof.model.settings import ENV_HOME, ENV_RUN_DIR, ENV_SETTINGS, InstrumentSettings
from agprof.model.tables import BY_NAME
from agprof.sampler.processes import RankTrees
from agprof.sampler.states import SECOND_NS, States
from agprof.store import layout
from agprof.store.reader import read_run

PACKAGE = Path(bootstrap.__file__).resolve().parents[1]
COLUMNS = [column.name for column in BY_NAME["process_samples"].columns]
DEADLINE_S = 120
SCRIPT = """
import os, sys, time
import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        value = torch.full((4,), index / 64)
        return {"x": value, "y": value.pow(2).sum()}

def train(context):
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    workers = 3 if context == "fork" else 2
    loader = DataLoader(Squares(), batch_size=16, num_workers=workers, multiprocessing_context=context,
                        persistent_workers=True)
    for batch in loader:
        optimizer.zero_grad()
        (model(batch["x"]).squeeze(1) - batch["y"]).pow(2).mean().backward()
        optimizer.step()
    print(context, flush=True)
    sys.stdin.readline()
    return loader

if __name__ == "__main__":
    loader = train("fork")
    del loader
    loader = train("spawn")
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    (tmp_path / "run" / layout.RANKS).mkdir(parents=True)
    script = tmp_path / "loaders.py"
    script.write_text(SCRIPT)
    settings = InstrumentSettings(level="default", capture_output=False, profile_step=None)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGPROF_")} | {
        "PYTHONPATH": str(PACKAGE / "instruments" / "bootstrap_path"),
        ENV_RUN_DIR: str(tmp_path / "run"),
        ENV_HOME: str(PACKAGE.parent),
        ENV_SETTINGS: settings.to_json(),
        "RANK": "0",
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def test_dataloader_workers_are_known_as_such_and_write_nothing(rank: "subprocess.Popen[str]", tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows: list[tuple[str, tuple[Any, ...]]] = []
    append = lambda table, row: rows.append((table, row))  # noqa: E731
    trees = RankTrees(run, 0, append, States(append))
    assert rank.stdin is not None
    assert rank.stdout is not None
    now = time.monotonic_ns()
    seen = {}
    for context, workers in (("fork", 3), ("spawn", 2)):
        assert rank.stdout.readline() == f"{context}\n"
        deadline = time.monotonic() + DEADLINE_S
        while True:
            # Each sample is taken to be two seconds after the one before, so that children are looked for every time.
            now += 2 * SECOND_NS
            begin = len(rows)
            trees.sample(now)
            found = [dict(zip(COLUMNS, row, strict=True)) for table, row in rows[begin:] if table == "process_samples"]
            worker = next((row for row in found if row["role"] == "worker"), None)
            if worker is not None and worker["loaders"] == workers and worker["loader_cpu_cores"] is not None:
                break
            assert time.monotonic() < deadline, found
            time.sleep(0.02)
        seen[context] = worker
        assert {row["rank"] for row in found} == {0}
        assert worker["loader_cpu_cores"] <= worker["cpu_cores"]
        rank.stdin.write("\n")
        rank.stdin.flush()
    # A spawn has multiprocessing's resource tracker beside it, which loads nothing.
    assert seen["fork"]["processes"] == 3
    assert seen["spawn"]["processes"] >= 2
    assert rank.wait(DEADLINE_S) == 0

    read = read_run(run)
    (stream,) = [stream for stream in read.streams if stream.scope == "rank"]
    assert (stream.ended, stream.header["pid"]) == ("clean", rank.pid)
    steps, spans = read.tables["steps"], read.tables["spans"]
    assert steps["step"].to_list() == list(range(8))
    assert spans["span"].n_unique() == len(spans)
    assert len(read.tables["faults"]) == 0
