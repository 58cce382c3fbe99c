"""Executing: exit codes, Ctrl-C, killed processes, and nothing left behind. The launchers here are plain Python."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agprof.launch import processes
from agprof.launch.execute import execute
from agprof.launch.plan import LaunchPlan
from agprof.launch.supervisor import Deadlines
from agprof.model.outcome import Outcome

# Starts one rank per argument, each in a session of its own, as torchrun does. As patient as torchrun: when a rank
# fails, the others get SIGTERM and 30 s.
LAUNCHER = """
import os, subprocess, sys, time
ranks = [
    subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RANK": str(n), "LOCAL_RANK": str(n)},
                     start_new_session=True)
    for n, code in enumerate(sys.argv[1:])
]
while any(rank.poll() is None for rank in ranks):
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
        for rank in ranks:
            rank.wait(30)
        sys.exit(1)
    time.sleep(0.05)
sys.exit(max(rank.returncode for rank in ranks))
"""
# Every rank first waits until the supervisor holds a pidfd of it.
SEEN = """
import glob, os, signal, sys, time
def seen():
    for path in glob.glob(f"/proc/{os.environ['WATCHER']}/fdinfo/*"):
        try:
            if f"Pid:\\t{os.getpid()}\\n" in open(path).read():
                return True
        except OSError:
            pass
while not seen():
    time.sleep(0.01)
"""
HANG = (
    SEEN
    + """
signal.signal(signal.SIGINT, signal.SIG_DFL)
open(READY, "w").close()
time.sleep(600)
"""
)
STUBBORN = (
    SEEN
    + """
for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, signal.SIG_IGN)
open(READY, "w").close()
time.sleep(600)
"""
)
AFTER = (
    SEEN
    + """
while not os.path.exists(READY): time.sleep(0.01)
"""
)


def with_ready(code: str, ready: Path) -> str:
    return f"READY = {str(ready)!r}\n{code}"


def make_plan(folder: Path, *ranks: str, argv: tuple[str, ...] | None = None, launcher="torchrun") -> LaunchPlan:
    env = {**os.environ, "AGPROF_RUN_DIR": str(folder), "WATCHER": str(os.getpid())}
    return LaunchPlan(
        launcher=launcher,
        argv=argv if argv is not None else (sys.executable, "-c", LAUNCHER, *ranks),
        env=env,
        env_added={},
        cwd=folder,
        ranks=max(1, len(ranks)),
        master_port=1,
        sampler_argv=None,
    )


@pytest.fixture
def run_dir(tmp_path) -> Path:
    (tmp_path / "ranks").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = set(processes.descendants(os.getpid()))
    reaper = processes.is_child_subreaper()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    files = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert set(processes.descendants(os.getpid())) <= before
    assert processes.is_child_subreaper() == reaper
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert len(list(Path("/proc/self/fd").iterdir())) <= files


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_job_that_ends_well(run_dir):
    ticks = []
    outcome = execute(make_plan(run_dir, "print('hello')", "pass"), run_dir, on_tick=lambda: ticks.append(1))
    assert (outcome.reason, outcome.exit_code, outcome.failures) == ("finished", 0, ())
    assert outcome.started_realtime_ns < outcome.ended_realtime_ns
    assert ticks
    assert "hello" in (run_dir / "launcher.log").read_text()
    assert Outcome.from_dict(json.loads((run_dir / "outcome.json").read_text())) == outcome


def test_the_first_failed_ranks_code_is_passed_on_and_not_the_launchers(run_dir):
    ready = run_dir / "ready"
    failing = with_ready(AFTER + "raise SystemExit(7)", ready)
    (run_dir / "ranks" / "rank-00001.stderr.log").write_text("".join(f"line {n}\n" for n in range(100)))
    outcome = execute(make_plan(run_dir, with_ready(HANG, ready), failing), run_dir)
    assert (outcome.reason, outcome.exit_code, outcome.launcher_exit_code) == ("failed", 7, 1)
    first, second = outcome.failures
    assert (first.rank, first.exit_code, first.signal, first.stopped) == (1, 7, None, False)
    assert first.last_lines == tuple(f"line {n}" for n in range(80, 100))
    assert (second.rank, second.signal, second.stopped) == (0, "SIGTERM", True)


def test_a_killed_rank_is_128_plus_its_signal(run_dir):
    ready = run_dir / "ready"
    dying = with_ready(AFTER + "os.kill(os.getpid(), 9)", ready)
    outcome = execute(make_plan(run_dir, with_ready(HANG, ready), dying), run_dir)
    assert (outcome.reason, outcome.exit_code, outcome.signal) == ("killed", 137, "SIGKILL")
    assert outcome.failures[0].rank == 1


def test_a_rank_that_ignores_sigterm_ends_within_the_deadline(run_dir):
    ready = run_dir / "ready"
    failing = with_ready(AFTER + "raise SystemExit(5)", ready)
    begin = time.monotonic()
    outcome = execute(
        make_plan(run_dir, with_ready(STUBBORN, ready), failing), run_dir, deadlines=Deadlines(failure_s=1.0)
    )
    assert time.monotonic() - begin < 5
    assert (outcome.reason, outcome.exit_code, outcome.failures[0].rank) == ("failed", 5, 1)
    assert any("killed" in note for note in outcome.notes)


def test_the_default_deadline_keeps_a_failed_job_under_ten_seconds():
    assert Deadlines().failure_s < 10


def test_processes_that_a_rank_lets_go_end_with_the_job(run_dir):
    pidfile = run_dir / "pid"
    loose = f"""
import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({str(pidfile)!r} + "~", "w").write(str(os.getpid()))
        os.rename({str(pidfile)!r} + "~", {str(pidfile)!r})
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
import time
while not os.path.exists({str(pidfile)!r}): time.sleep(0.01)
"""
    outcome = execute(make_plan(run_dir, loose), run_dir)
    assert outcome.reason == "finished"
    assert not processes.is_running(int(pidfile.read_text()))


def test_a_killed_launcher_is_no_success(run_dir):
    ready = run_dir / "ready"
    killer = with_ready(AFTER + "os.kill(os.getppid(), 9); time.sleep(600)", ready)
    outcome = execute(make_plan(run_dir, with_ready(HANG, ready), killer), run_dir)
    assert (outcome.reason, outcome.exit_code, outcome.signal) == ("killed", 137, "SIGKILL")
    assert any("launcher" in note for note in outcome.notes)


def test_a_killed_guard_leaves_no_orphan(run_dir):
    ready = run_dir / "ready"
    killer = with_ready(
        AFTER
        + "stat = open(f'/proc/{os.getppid()}/stat').read()\n"
        + "os.kill(int(stat.rpartition(')')[2].split()[1]), 9); time.sleep(600)",
        ready,
    )
    outcome = execute(make_plan(run_dir, with_ready(STUBBORN, ready), killer), run_dir)
    assert (outcome.reason, outcome.exit_code) == ("killed", 137)


def test_a_launcher_that_does_not_exist(run_dir):
    outcome = execute(make_plan(run_dir, argv=(str(run_dir / "nothing"), "x")), run_dir)
    assert (outcome.reason, outcome.exit_code) == ("launch-failed", 3)
    assert "No such file" in (run_dir / "launcher.log").read_text()


def test_a_launcher_that_ends_before_any_rank(run_dir):
    outcome = execute(make_plan(run_dir, argv=(sys.executable, "-c", "raise SystemExit(9)")), run_dir)
    assert (outcome.reason, outcome.exit_code, outcome.launcher_exit_code) == ("launch-failed", 3, 9)


def test_a_broken_display_does_not_end_the_job(run_dir):
    def broken() -> None:
        raise RuntimeError("no terminal")

    outcome = execute(make_plan(run_dir, "pass"), run_dir, on_tick=broken)
    assert outcome.reason == "finished"
    assert any("no terminal" in note for note in outcome.notes)


def test_the_sampler_ends_with_its_stdin_and_its_failure_is_a_note(run_dir):
    from dataclasses import replace

    good = "import sys; sys.stdin.read(); open('sampled', 'w').close()"
    plan = replace(make_plan(run_dir, "pass"), sampler_argv=(sys.executable, "-c", good))
    assert execute(plan, run_dir).sampler_exit_code == 0
    assert (run_dir / "sampled").exists()
    plan = replace(plan, sampler_argv=(sys.executable, "-c", "raise SystemExit(4)"))
    outcome = execute(plan, run_dir)
    assert (outcome.reason, outcome.sampler_exit_code) == ("finished", 4)
    assert any("sampler" in note for note in outcome.notes)
    outcome = execute(replace(plan, sampler_argv=("/nothing/here",)), run_dir)
    assert (outcome.reason, outcome.sampler_exit_code) == ("finished", None)


# --------------------------------------------------------------------- agprof is signalled: in a process of its own

DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_launch_execute import make_plan
from agprof.launch.execute import execute
from agprof.launch.supervisor import Deadlines
folder = Path(sys.argv[1])
outcome = execute(make_plan(folder, *sys.argv[2:]), folder, deadlines=Deadlines(interrupt_s=1.0, terminate_s=0.5))
sys.exit(outcome.exit_code)
"""


def start_driver(folder: Path, *ranks: str) -> subprocess.Popen[bytes]:
    code = textwrap.dedent(DRIVER).format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code, str(folder), *ranks], start_new_session=True)


def ranks_below(driver: subprocess.Popen[bytes]) -> list[int]:
    below = processes.descendants(driver.pid)
    return [pid for pid in below if "RANK" in processes.environment(pid)]


def start_and_wait(folder: Path, code: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    files = [folder / "ready0", folder / "ready1"]
    driver = start_driver(folder, *(with_ready(code, file) for file in files))
    until(lambda: all(file.exists() for file in files))
    ranks = ranks_below(driver)
    assert len(ranks) == 2
    return driver, ranks


@pytest.mark.parametrize("code", [HANG, STUBBORN], ids=["willing", "stubborn"])
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_agprof_ends_the_job_and_keeps_the_outcome(run_dir, code, number, expected):
    driver, ranks = start_and_wait(run_dir, code)
    driver.send_signal(number)
    assert driver.wait(15) == expected
    assert not any(processes.is_running(pid) for pid in ranks)
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert (outcome["reason"], outcome["signal"]) == ("interrupted", number.name)


def test_a_second_ctrl_c_kills_at_once(run_dir):
    driver, ranks = start_and_wait(run_dir, STUBBORN)
    launcher = int((processes.stat_fields(ranks[0]) or [])[1])
    begin = time.monotonic()
    driver.send_signal(signal.SIGINT)
    until(lambda: not processes.is_running(launcher))  # the first one has done what it can
    driver.send_signal(signal.SIGINT)
    assert driver.wait(15) == 130
    assert time.monotonic() - begin < 1.4
    assert not any(processes.is_running(pid) for pid in ranks)


def test_killing_agprof_ends_the_ranks(run_dir):
    driver, ranks = start_and_wait(run_dir, STUBBORN)
    below = processes.descendants(driver.pid)
    driver.kill()
    driver.wait()
    until(lambda: not any(processes.is_running(pid) for pid in [*ranks, *below]))
