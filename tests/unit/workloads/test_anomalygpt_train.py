"""The loop in processes of its own, without DeepSpeed's C++ operators so that nothing is compiled."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agprof_workloads.anomalygpt import train
from agprof_workloads.anomalygpt.build import check_checkpoints

MODULE = "agprof_workloads.anomalygpt.train"
SOURCES = [str(Path(train.__file__).parents[2])]


def start(cache: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    environment |= {"AGPROF_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*SOURCES, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, *launcher, "-m", MODULE, "--no-native-ops", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def cache(miniature_root: Path) -> Path:
    return miniature_root.parent


def test_the_same_seed_gives_the_same_losses(cache: Path, tmp_path: Path) -> None:
    # the second run is other in what must not matter: where images are prepared, and that weights are saved
    choices = (
        ("--loss-log", str(tmp_path / "a"), "--workers", "1"),
        ("--loss-log", str(tmp_path / "b"), "--workers", "0", "--save-dir", str(tmp_path / "w")),
    )
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda choice: start(cache, "--steps", "4", *choice), choices))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    first, second = ((tmp_path / name).read_text().splitlines() for name in "ab")
    assert first == second
    assert len(first) == 8
    assert all(math.isfinite(float(loss)) for loss in first)
    # an MVTec micro-step carries the pixel losses, an instruction micro-step does not
    assert min(map(float, first[::2])) > max(map(float, first[1::2]))
    lines = runs[0].stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/4", "2/4", "3/4", "4/4"]
    assert any("opt_level removed" in line for line in lines)
    assert any("C++ operators are not used" in line for line in lines)
    assert any("66,360 trained" in line for line in lines)
    assert (tmp_path / "w" / "pytorch_model.pt").is_file()


def test_two_ranks_under_torchrun(cache: Path, tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run = start(cache, "--steps", "2", "--loss-log", str(tmp_path / "log"), "--zero-stage", "2", launcher=launcher)
    assert run.returncode == 0, run.stderr
    ours, other = (tmp_path / "log").read_text(), (tmp_path / "log.rank1").read_text()
    assert len(ours.splitlines()) == len(other.splitlines()) == 4
    assert ours != other
    # one line a step, from one rank only
    assert run.stdout.count("step 2/2") == 1


def test_full_preset_names_what_is_missing(tmp_path: Path) -> None:
    options = train.parse(["--preset", "full"])
    with pytest.raises(ValueError, match=r"--preset full needs --imagebind: .*imagebind_huge.pth.*--random-weights"):
        check_checkpoints(options)
    there = [str(tmp_path)] * 3
    given = ["--preset", "full", "--imagebind", there[0], "--llama", there[1], "--pandagpt-delta", there[2]]
    with pytest.raises(ValueError, match="--preset full needs --clip-vocabulary"):
        check_checkpoints(train.parse(given))
    with pytest.raises(ValueError, match=r"--clip-vocabulary /nowhere: no such file"):
        check_checkpoints(train.parse([*given, "--clip-vocabulary", "/nowhere"]))
    check_checkpoints(train.parse(["--preset", "full", "--random-weights"]))


def test_checkpoints_belong_to_the_full_preset() -> None:
    with pytest.raises(ValueError, match="--llama belongs to --preset full"):
        check_checkpoints(train.parse(["--llama", "/tmp"]))


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main(["--preset", "full"])
    assert str(stopped.value).startswith("anomalygpt: --preset full needs --imagebind")
    with pytest.raises(SystemExit):
        train.parse(["--steps", "0"])
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err


def test_presets_fill_in_what_was_not_given() -> None:
    assert train.parse([]).accumulation == 2
    assert train.parse(["--preset", "full"]).dtype == "fp16"
    assert train.parse(["--preset", "full", "--dtype", "bf16"]).dtype == "bf16"


def test_the_deepspeed_launchers_local_rank_is_taken() -> None:
    assert train.parse(["--local_rank=1"]).local_rank == 1


def test_schedule_is_the_originals() -> None:
    options = train.parse(["--preset", "full", "--micro-batch", "1", "--accumulation", "8"])
    assert train.schedule_steps(options, ranks=2, items=3629) == 22_681
