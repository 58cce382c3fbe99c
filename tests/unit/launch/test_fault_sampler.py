"""A sampler that is killed, stopped, hangs or fails is started again (fault F4). The samplers here are plain Python.

Its effect on a real job is in tests/integration/test_fault_sampler_job.py.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agprof.launch import processes
from agprof.launch.sampler import NOTED_RESTARTS, Patience, SupervisedSampler

# Attempt k of the node behaves as the k-th word says, the last word for all later ones. It writes its own stream, as
# the real one does, and ends with its stdin.
FAKE = """
import json, os, select, sys, time
folder, words = sys.argv[1], json.loads(sys.argv[2])
nvml = sys.argv[sys.argv.index("--nvml") + 1]
attempt = len(os.listdir(folder + "/nodes"))
how = words[min(attempt, len(words) - 1)]
stream = open(f"{folder}/nodes/node-00000.{attempt}.agp", "ab", buffering=0)
stream.write(b"header")
open(f"{folder}/pid.{attempt}~", "w").write(f"{os.getpid()} {nvml}")
os.rename(f"{folder}/pid.{attempt}~", f"{folder}/pid.{attempt}")
if how == "fails":
    sys.exit(1)
if how == "wrong usage":
    sys.exit(2)
if how == "fails with NVML" and nvml != "off":
    sys.exit(1)
if how == "aborts":
    os.abort()
while not select.select([0], [], [], 0.02)[0]:
    if how == "hangs":
        time.sleep(600)
    stream.write(b"sample")
"""
QUICK = Patience(look_s=0.02, quiet_periods=1.0, backoff_s=(0.0, 0.02, 0.04, 0.06))


@pytest.fixture
def run_dir(tmp_path) -> Path:
    (tmp_path / "nodes").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before, files = set(processes.descendants(os.getpid())), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    assert set(processes.descendants(os.getpid())) <= before
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208


@pytest.fixture
def sampler_of(run_dir) -> Iterator[Callable[..., SupervisedSampler]]:
    made = []

    def start(*words: str, patience: Patience = QUICK) -> SupervisedSampler:
        argv = (sys.executable, "-c", FAKE, str(run_dir), json.dumps(words), "--nvml", "auto")
        made.append(SupervisedSampler(argv, run_dir, cwd=run_dir, patience=patience))
        made[-1].start()
        return made[-1]

    yield start
    for sampler in made:
        sampler.end(5.0)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def pid_of(run_dir: Path, attempt: int, *, within_s: float = 10.0) -> int:
    """The process of an attempt, as soon as it writes samples."""
    stream = run_dir / "nodes" / f"node-00000.{attempt}.agp"
    until(lambda: (run_dir / f"pid.{attempt}").exists() and stream.stat().st_size > len(b"header"), within_s)
    return int((run_dir / f"pid.{attempt}").read_text().split()[0])


def attempts(run_dir: Path) -> int:
    return len(list((run_dir / "nodes").iterdir()))


def test_one_that_is_well_is_left_alone(run_dir, sampler_of):
    sampler = sampler_of("well")
    pid = pid_of(run_dir, 0)
    size = (run_dir / "nodes" / "node-00000.0.agp").stat().st_size
    until(lambda: (run_dir / "nodes" / "node-00000.0.agp").stat().st_size > size + 20 * len(b"sample"))
    assert processes.is_running(pid)
    assert sampler.end(5.0) == 0
    assert sampler.notes == []
    assert attempts(run_dir) == 1
    assert sampler.end(5.0) == 0


def test_one_that_is_killed_is_started_again(run_dir, sampler_of):
    sampler = sampler_of("well", patience=Patience())
    os.kill(pid_of(run_dir, 0), signal.SIGKILL)
    begin = time.monotonic()
    second = pid_of(run_dir, 1, within_s=5.0)
    assert time.monotonic() - begin < 5
    assert processes.is_running(second)
    until(lambda: sampler.notes)
    assert sampler.end(5.0) == 0
    (note,) = sampler.notes
    assert note.startswith("the sampler was killed (SIGKILL) and was started again after ")
    assert note.endswith(" s: a gap in GPU and host curves")


def test_one_that_is_stopped_is_replaced(run_dir, sampler_of):
    sampler = sampler_of("well", patience=Patience())
    first = pid_of(run_dir, 0)
    os.kill(first, signal.SIGSTOP)
    pid_of(run_dir, 1, within_s=5.0)
    assert not processes.is_running(first)
    assert sampler.end(5.0) == 0
    assert "was stopped (SIGSTOP)" in sampler.notes[0]


def test_one_that_hangs_is_replaced(run_dir, sampler_of):
    sampler = sampler_of("hangs", "well")
    until((run_dir / "pid.0").exists)
    first = int((run_dir / "pid.0").read_text().split()[0])
    pid_of(run_dir, 1, within_s=5.0)
    assert not processes.is_running(first)
    assert sampler.end(5.0) == 0
    assert "the sampler wrote nothing for " in sampler.notes[0]


def test_by_default_a_sampler_that_hangs_is_found_in_time_for_a_restart_within_five_seconds(run_dir):
    patience = Patience()
    sampler = SupervisedSampler(("unused",), run_dir, cwd=run_dir, period_s=1.0)
    sampler._grew_at = 0.0
    assert sampler._allowed_s() + 2 * patience.look_s + patience.backoff_s[0] < 4.5
    # And one that was asked to sample once a minute is not taken for one that hangs.
    slow = SupervisedSampler(("unused",), run_dir, cwd=run_dir, period_s=60.0)
    slow._grew_at = 0.0
    assert slow._allowed_s() > 2 * 60 * 1.2
    # Nor is one that slowed down by itself: its last gap counts, and the next may be twice as long.
    sampler._gaps.append(9.6)
    assert sampler._allowed_s() > 2 * 9.6


def test_a_full_disk_is_no_fault_of_the_sampler(run_dir, sampler_of, monkeypatch):
    asked = []
    monkeypatch.setattr("agprof.launch.sampler._takes_writes", lambda folder: asked.append(folder) is not None)
    sampler = sampler_of("hangs", patience=Patience(look_s=0.02, quiet_periods=0.1))
    until(lambda: len(asked) >= 2)
    assert attempts(run_dir) == 1
    os.kill(int((run_dir / "pid.0").read_text().split()[0]), signal.SIGKILL)
    sampler.end(5.0)


@pytest.mark.parametrize("state", ["R", "D"], ids=["a CPU", "a disk"])
def test_one_that_waits_for_a_cpu_or_a_disk_is_not_taken_for_one_that_hangs(run_dir, sampler_of, monkeypatch, state):
    looks = []
    monkeypatch.setattr("agprof.launch.sampler._state", lambda pid: (looks.append(pid), state)[1])
    sampler = sampler_of("hangs", patience=Patience(look_s=0.01, quiet_periods=0.1))
    until(lambda: len(looks) > 60)  # five times as long as a stream may be quiet
    assert attempts(run_dir) == 1
    os.kill(looks[0], signal.SIGKILL)
    sampler.end(5.0)


def test_one_that_fails_is_started_again(run_dir, sampler_of):
    sampler = sampler_of("fails", "well")
    pid_of(run_dir, 1, within_s=5.0)
    assert sampler.end(5.0) == 0
    assert "the sampler ended with exit code 1 and was started again" in sampler.notes[0]


def test_one_that_always_fails_is_given_up_with_one_more_note(run_dir, sampler_of):
    sampler = sampler_of("fails")
    until(lambda: "not started again" in " ".join(sampler.notes))
    assert attempts(run_dir) == 5
    assert sampler.end(5.0) == 1
    assert sampler.notes[-1] == (
        "the sampler failed 5 times in a row (the last time it ended with exit code 1) and is not started again; "
        "see sampler.log"
    )
    assert len(sampler.notes) == 5


def test_a_wrong_option_is_not_tried_twice(run_dir, sampler_of):
    sampler = sampler_of("wrong usage")
    until(lambda: sampler.notes)
    assert sampler.notes == [
        "the sampler ended with exit code 2 and is not started again; see sampler.log"
    ]  # fmt: skip
    assert (attempts(run_dir), sampler.end(5.0)) == (1, 2)


@pytest.mark.parametrize("how", ["fails with NVML", "aborts"])
def test_after_two_ends_at_the_very_beginning_nvml_is_left_out(run_dir, sampler_of, how):
    sampler = sampler_of(how, how, "fails with NVML")
    pid_of(run_dir, 2, within_s=5.0)
    modes = [(run_dir / f"pid.{attempt}").read_text().split()[1] for attempt in range(3)]
    assert modes == ["auto", "auto", "off"]
    until(lambda: len(sampler.notes) == 2)
    assert "without NVML" not in sampler.notes[0]
    assert "runs without NVML from here on: nothing is known of the GPUs" in sampler.notes[1]
    assert sampler.end(5.0) == 0


def test_being_killed_by_others_says_nothing_against_nvml(run_dir, sampler_of):
    sampler = sampler_of("well")
    for attempt in range(3):
        os.kill(pid_of(run_dir, attempt), signal.SIGKILL)
    pid_of(run_dir, 3)
    assert (run_dir / "pid.3").read_text().split()[1] == "auto"
    assert sampler.end(5.0) == 0


def test_failures_in_a_row_are_counted_anew_after_one_that_lived(run_dir, sampler_of):
    settled = Patience(look_s=0.02, quiet_periods=1.0, backoff_s=(0.0, 0.0), settled_s=0.2)
    sampler = sampler_of("well", patience=settled)
    for attempt in range(NOTED_RESTARTS + 2):
        pid = pid_of(run_dir, attempt)
        until(lambda: sampler._clock() - sampler._begun > 0.3 and sampler._process.pid == pid)  # noqa: B023
        os.kill(pid, signal.SIGKILL)
    pid_of(run_dir, NOTED_RESTARTS + 2)
    assert sampler.end(5.0) == 0
    assert len(sampler.notes) == NOTED_RESTARTS + 1
    assert sampler.notes[-1] == "the sampler was started again 2 more times"


def test_time_in_which_the_watch_itself_did_not_run_is_nobodys_fault(run_dir):
    """agprof was stopped with Ctrl-Z, or the virtual machine was."""
    now = [0.0]
    argv = (sys.executable, "-c", "import sys; sys.stdin.read()")
    sampler = SupervisedSampler(
        argv, run_dir, cwd=run_dir, patience=Patience(look_s=0.01, start_s=100.0), clock=lambda: now[0]
    )
    sampler.start()
    until(lambda: sampler._thread is not None and sampler._thread.is_alive())
    now[0] = 1e6
    until(lambda: sampler._alive_at == 1e6)
    assert sampler._quiet_s <= 0.03
    assert sampler.end(5.0) == 0
    assert sampler.notes == []


def test_it_ends_with_the_job_though_it_is_stopped(run_dir, sampler_of):
    sampler = sampler_of("well", patience=Patience(look_s=60.0))
    os.kill(pid_of(run_dir, 0), signal.SIGSTOP)
    begin = time.monotonic()
    assert sampler.end(5.0) == 0
    assert time.monotonic() - begin < 4


def test_one_that_does_not_end_is_killed(run_dir):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    sampler = SupervisedSampler((sys.executable, "-c", code), run_dir, cwd=run_dir)
    sampler.start()
    until((run_dir / "sampler.log").read_text)
    assert sampler.end(0.2) == 137
    assert [note.rpartition(" ")[2] for note in sampler.notes] == ["SIGTERM", "SIGKILL"]


def test_a_program_that_is_not_there_is_a_note(run_dir):
    sampler = SupervisedSampler(("/nothing/here",), run_dir, cwd=run_dir)
    sampler.start()
    assert sampler.end(1.0) is None
    assert "could not be started" in sampler.notes[0]


def test_none_is_asked_for(run_dir):
    sampler = SupervisedSampler(None, run_dir, cwd=run_dir)
    sampler.start()
    assert (sampler.end(1.0), sampler.notes) == (None, [])
