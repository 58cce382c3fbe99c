"""The whole path, for real: agprof run -> ranks under DeepSpeed -> run folder -> report."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import PHASES
from agprof.store import layout
from agprof.store.frames import StreamFollower
from agprof.store.reader import Run, read_run

STEPS = 6
RANKS = 2


def agprof(*args: str) -> list[str]:
    return [sys.executable, "-m", "agprof", *args]


def tiny(out: Path, *extra: str, ranks: int = RANKS, steps: int = STEPS) -> list[str]:
    """A short run of the bundled workload."""
    sets = [f"launch.ranks_per_node={ranks}", f"args.steps={steps}", f"profile.total_steps={steps}", *extra]
    return agprof("run", "anomalygpt", "--plain", "--out", str(out), *[word for s in sets for word in ("--set", s)])


def only_run(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def losses(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    assert len(lines) == STEPS * 2, "one line per micro-step"
    return lines


@pytest.fixture(scope="module")
def reference_losses(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The workload's loss trace without any trace of agprof: plain torchrun, nothing of ours in the environment."""
    log = tmp_path_factory.mktemp("reference") / "loss.txt"
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("AGPROF_") or name == "AGPROF_CACHE"
    }
    env |= {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(extensions_dir())}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}", "--standalone", "-m",
               "agprof_workloads.anomalygpt.train", "--preset", "tiny", "--steps", str(STEPS), "--accumulation", "2",
               "--zero-stage", "2", "--loss-log", str(log)]  # fmt: skip
    done = run(command, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(log)


def extensions_dir() -> Path:
    from agprof.launch import host

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or host.extensions_dir(os.environ))


@pytest.fixture(scope="module", params=["torchrun", "deepspeed"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One finished run per launcher."""
    out = tmp_path_factory.mktemp(request.param)
    log = out.parent / f"{request.param}-loss.txt"
    done = run(tiny(out, f"launch.launcher={request.param}", f"args.loss-log={log}"))
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    folder = only_run(out)
    report = json.loads((folder / layout.REPORT_JSON).read_text())
    return {"folder": folder, "report": report, "run": read_run(folder), "losses": losses(log), "stdout": done.stdout}


def test_losses_are_bit_equal_to_a_run_without_agprof(finished: dict[str, Any], reference_losses: list[str]) -> None:
    assert finished["losses"] == reference_losses


def test_every_rank_is_there_with_every_step(finished: dict[str, Any]) -> None:
    run: Run = finished["run"]
    assert run.problems == ()
    assert {stream.number: stream.ended for stream in run.streams if stream.scope == "rank"} == {0: "clean", 1: "clean"}
    assert run.tables["faults"].rows() == []
    for rank in range(RANKS):
        steps = run.tables["steps"].filter(rank=rank)
        assert steps["step"].to_list() == list(range(STEPS))
        assert steps["micro_steps"].to_list() == [2] * STEPS


def test_recorded_losses_are_the_losses_of_the_training(finished: dict[str, Any]) -> None:
    recorded = finished["run"].tables["micro_steps"].filter(rank=0)["loss"].to_list()
    assert [repr(loss) for loss in recorded] == finished["losses"]


def test_phases_add_up_to_the_step(finished: dict[str, Any]) -> None:
    rows = finished["report"]["time"]["steps"]
    assert len(rows) == RANKS * STEPS
    for row in rows:
        assert set(row["parts_ns"]) == set(PHASES)
        assert sum(row["parts_ns"].values()) == row["duration_ns"]
        assert min(row["parts_ns"].values()) >= 0
        for phase in ("forward", "backward", "optimizer", "communication"):
            assert row["parts_ns"][phase] > 0, f"{phase} in step {row['step']} of rank {row['rank']}"


def test_communication_has_operations_sizes_and_groups(finished: dict[str, Any]) -> None:
    communication = finished["report"]["communication"]
    rows = {row["op"]: row for row in communication["rows"]}
    assert "all_reduce" in rows and "all_gather" in rows, "ZeRO-2 reduces gradients and gathers parameters"
    for row in rows.values():
        assert row["group_size"] == RANKS
    gather = rows["all_gather"]
    assert gather["bytes_per_call"]["value"] > 0
    assert gather["calls_per_step"] >= 1
    assert communication["bytes_per_step"]["value"] > 0
    assert communication["unseen"] == []


def test_the_summary_ends_with_the_path_of_the_report(finished: dict[str, Any]) -> None:
    assert finished["stdout"].rstrip().splitlines()[-1] == str(finished["folder"] / layout.REPORT_HTML)


def test_modules_and_flops_are_there(finished: dict[str, Any]) -> None:
    compute = finished["report"]["compute"]
    assert compute["forward_flops_per_micro_step"]["value"] > 1e6
    paths = {row["path"] for row in compute["modules"]}
    assert any("llama" in path or "llm" in path for path in paths)


def test_the_sampler_saw_the_ranks(finished: dict[str, Any]) -> None:
    samples = finished["run"].tables["process_samples"].filter(role="rank")
    assert set(samples["rank"].to_list()) == {0, 1}
    assert finished["run"].tables["host_samples"].height > 0


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)


class Follower:
    """Follows one rank's stream of a run that is under way."""

    def __init__(self, out: Path, rank: int) -> None:
        self.out, self.rank, self.steps = out, rank, 0
        self._stream: StreamFollower | None = None

    def reached(self, step: int) -> bool:
        if self._stream is None:
            found = list(self.out.glob(f"*/{layout.RANKS}/{layout.rank_stem(self.rank)}.0{layout.SUFFIX}"))
            if not found:
                return False
            self._stream = StreamFollower(found[0])
        for table, rows in self._stream.poll():
            if table == "steps":
                self.steps = rows[-1][0] + 1
        return self.steps >= step

    @property
    def pid(self) -> int:
        assert self._stream is not None and self._stream.header is not None
        return int(self._stream.header["pid"])


@pytest.fixture
def started(tmp_path: Path) -> Iterator["tuple[subprocess.Popen[str], Path]"]:
    """A long run under way; ended with the test."""
    process = subprocess.Popen(
        tiny(tmp_path / "out", steps=5000), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process, tmp_path / "out"
    process.kill()
    process.communicate()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_rank_ends_the_job_and_loses_nothing(started: "tuple[subprocess.Popen[str], Path]") -> None:
    process, out = started
    ranks = [Follower(out, rank) for rank in range(RANKS)]
    wait_until(lambda: all(rank.reached(5) for rank in ranks), "five steps")
    killed_ns = time.monotonic_ns()
    os.kill(ranks[1].pid, signal.SIGKILL)
    _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL, stderr
    assert "rank 1 killed by SIGKILL" in stderr
    assert all(gone(rank.pid) for rank in ranks)

    folder = only_run(out)
    again = run(agprof("report", str(folder), "--plain"))
    assert again.returncode == 0, again.stderr
    report = json.loads((folder / layout.REPORT_JSON).read_text())
    assert "rank 1" in report["identity"]["status_sentence"] and "killed" in report["identity"]["status_sentence"]
    data = read_run(folder)
    last = data.tables["spans"].filter(rank=1)["end_ns"].max()
    assert isinstance(last, int)
    assert killed_ns - last < 1_000_000_000, "at most the last second is lost"
    steps = data.tables["steps"].filter(rank=1)["step"].to_list()
    assert steps == list(range(len(steps))), "no hole in what was kept"


def test_everything_killed_at_once_still_gives_a_report(started: "tuple[subprocess.Popen[str], Path]") -> None:
    process, out = started
    ranks = [Follower(out, rank) for rank in range(RANKS)]
    wait_until(lambda: all(rank.reached(4) for rank in ranks), "four steps")
    for pid in (process.pid, *(rank.pid for rank in ranks)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)
    wait_until(lambda: all(gone(rank.pid) for rank in ranks), "the ranks' end", timeout_s=15)
    folder = only_run(out)
    done = run(agprof("report", str(folder), "--plain"))
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / layout.REPORT_JSON).read_text())
    assert report["identity"]["status"] in ("killed", "unknown")
    assert {row["rank"] for row in report["ranks"]} == {0, 1}
    assert (folder / layout.REPORT_HTML).stat().st_size > 10_000


def test_ctrl_c_keeps_the_data_and_writes_the_report(started: "tuple[subprocess.Popen[str], Path]") -> None:
    process, out = started
    rank = Follower(out, 0)
    wait_until(lambda: rank.reached(3), "three steps")
    process.send_signal(signal.SIGINT)
    _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    folder = only_run(out)
    report = json.loads((folder / layout.REPORT_JSON).read_text())
    assert report["identity"]["status"] == "interrupted"
    assert report["time"]["steady_steps"] >= 1
    assert gone(rank.pid)


SCRIPT = """
import sys
import torch
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(9):
    model(torch.ones(4, 8)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 7:
        print("about to fail", file=sys.stderr)
        sys.exit(7)
"""


def test_a_script_that_knows_nothing_of_agprof_and_fails(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    workload = tmp_path / "mine.yaml"
    workload.write_text("name: mine\nscript: train.py\n")
    done = run(agprof("run", str(workload), "--plain", "--out", str(tmp_path / "out")))
    assert done.returncode == 7, done.stderr
    assert "about to fail" in done.stderr
    data = read_run(only_run(tmp_path / "out"))
    assert data.tables["steps"]["step"].to_list() == list(range(8))
    assert data.tables["steps"]["micro_steps"].to_list() == [1] * 8


def test_dry_run_starts_nothing(tmp_path: Path) -> None:
    done = run([*tiny(tmp_path / "out"), "--dry-run"])
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    assert "--nproc" in done.stdout
    assert "RANK=1" in done.stdout


def test_light_level_has_steps_and_phases_only(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.replace("sys.exit(7)", "break"))
    (tmp_path / "mine.yaml").write_text("name: mine\nscript: train.py\nprofile: {level: light}\n")
    done = run(agprof("run", str(tmp_path / "mine.yaml"), "--plain", "--out", str(tmp_path / "out")))
    assert done.returncode == 0, done.stderr
    tables = read_run(only_run(tmp_path / "out")).tables
    assert tables["steps"].height == 8
    assert tables["spans"].height > 0
    assert tables["collectives"].height == tables["memory"].height == tables["modules"].height == 0
