"""Fault F4 on a real job and the real sampler: it is killed, stopped, or its NVML library ends it in mid-job.

The job counts to its end with the same output and exit code as without a sampler; the sampler is back within five
seconds; both attempts can be read, and the gap between them shows.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.run import analyse
from agprof.config.workload import Workload
from agprof.launch import processes
from agprof.launch.execute import execute
from agprof.launch.folder import create_run_folder, write_manifest
from agprof.launch.plan import plan_launch
from agprof.model.outcome import Outcome
from agprof.store.reader import Run, read_run

# Ends when it is told to, and in any case; says what it computed.
JOB = """
import os, sys, time
total, deadline = 0, time.monotonic() + 40
while not os.path.exists("enough") and time.monotonic() < deadline:
    total += sum(range(1000))
    time.sleep(0.01)
print("counted", total % 499500)
sys.exit(7)
"""
RESTART_S = 5.0


class Fault:
    """Does `act` to the sampler's process once it has written some rows, then ends the job when it is back."""

    def __init__(self, folder: Path, run_dir: Path, act: Callable[[int], None] | None, attempts: int = 2) -> None:
        self.folder, self.nodes, self.act, self.attempts = folder, run_dir / "nodes", act, attempts
        self.acted_at: float | None = None
        self.back_after_s: float | None = None
        self.seen: set[tuple[int, int]] = set()
        """(streams, size of the newest)."""

    def tick(self) -> None:
        streams = sorted(self.nodes.iterdir())
        if not streams:
            return
        self.seen.add((len(streams), streams[-1].stat().st_size))
        # The newest sampler has written its first samples, and some more.
        if sum(number == len(streams) for number, _ in self.seen) < 2:
            return
        if self.act is not None and self.acted_at is None:
            self.acted_at = time.monotonic()
            self.act(_samplers()[0])
        elif len(streams) >= self.attempts:
            self.back_after_s = time.monotonic() - (self.acted_at or 0.0)
            (self.folder / "enough").touch()


def _samplers() -> list[int]:
    """Samplers below this process."""
    found = []
    for pid in processes.descendants(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"agprof.sampler" in words:
            found.append(pid)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Any:
    before = set(processes.descendants(os.getpid()))
    yield
    assert set(processes.descendants(os.getpid())) <= before


def run_job(folder: Path, act: Callable[[int], None] | None, attempts: int = 2) -> tuple[Outcome, Run, Fault]:
    (folder / "job.py").write_text(JOB)
    workload = Workload.model_validate(
        {
            "name": "job",
            "command": [sys.executable, "job.py"],
            "profile": {"level": "off"},
            "monitor": {"period_s": 0.1},
        }
    )
    run_dir = create_run_folder(folder / "runs", workload.name)
    plan = plan_launch(
        workload, run_dir=run_dir, base_dir=folder, environ=os.environ, python=sys.executable, cores=1, master_port=1,
        cwd=folder,
    )  # fmt: skip
    write_manifest(run_dir, workload, plan)
    fault = Fault(folder, run_dir, act, attempts)
    outcome = execute(plan, run_dir, on_tick=fault.tick)
    assert "counted 0" in (run_dir / "launcher.log").read_text(), "the job's output is its own"
    assert outcome.exit_code == 7
    return outcome, read_run(run_dir), fault


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_the_sampler_is_back_within_five_seconds_and_the_gap_shows(tmp_path, number):
    outcome, run, fault = run_job(tmp_path, lambda pid: os.kill(pid, number))
    assert fault.back_after_s is not None, "the sampler did not come back"
    assert fault.back_after_s < RESTART_S
    how = "was stopped (SIGSTOP)" if number == signal.SIGSTOP else f"was killed ({number.name})"
    notes = [note for note in outcome.notes if "sampler" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"the sampler {how} and was started again after ")
    assert outcome.sampler_exit_code == 0
    # Both attempts are there and whole up to their last frame.
    streams = {stream.attempt: stream for stream in run.streams if stream.scope == "node"}
    assert sorted(streams) == [0, 1]
    assert (streams[0].ended, streams[1].ended) == (None, "clean")
    assert all(stream.damage is None for stream in streams.values())
    times = run.tables["host_samples"]["time_ns"].sort()
    assert times.len() > 4
    gap_ns = int(str(times.diff().drop_nulls().max()))
    assert 0.1e9 < gap_ns < RESTART_S * 1e9
    answers = analyse(run)
    gap = next(gap for gap in answers.system.gaps if gap.reason == notes[0])
    assert gap.end_ns - gap.start_ns == pytest.approx(gap_ns, abs=1e6)
    assert notes[0] in answers.quality.notes
    shown = next(curve for curve in answers.system.curves if curve.label == "host CPU")
    assert None in [y for x, y in zip(shown.x_ns, shown.y, strict=True) if gap.start_ns < x <= gap.end_ns]


def test_a_look_alike_of_nvml_that_exits_costs_the_gpus_and_nothing_else(tmp_path, monkeypatch, fake_nvml):
    """Some machines have a stub of libnvidia-ml.so.1 that ends the process that calls it."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_nvml.build(exits="init")))
    outcome, run, fault = run_job(tmp_path, None, attempts=3)
    assert fault.back_after_s is not None, "the sampler did not come back"
    first, second = (note for note in outcome.notes if "sampler" in note)
    assert first.startswith("the sampler ended with exit code 1 and was started again after ")
    assert "runs without NVML from here on: nothing is known of the GPUs" in second
    assert outcome.sampler_exit_code == 0
    attempts = [stream.attempt for stream in run.streams if stream.scope == "node"]
    assert attempts == [0, 1, 2]
    reasons = run.tables["sampler_state"].filter(field="gpu", state="unsupported")["reason"].to_list()
    assert any("--nvml off" in reason for reason in reasons)
    assert run.tables["host_samples"].height > 2
