"""Fault F11: ranks that fork, spawn, exec and daemonise, as real processes before the real /proc.

No row twice, no deadlock at fork, no descriptor of ours in a program that a rank or the sampler starts, and every
process is counted for its rank. What needs torch is in tests/integration/test_fault_dataloaders.py.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.processes import RankTrees
from agprof.sampler.states import SECOND_NS, States
from agprof.store import layout
from agprof.store.frames import StreamFollower

COLUMNS = [column.name for column in BY_NAME["process_samples"].columns]
PREFIX = """
import os, signal, subprocess, sys, time
from pathlib import Path
from agprof.store.clocks import read_clocks
from agprof.store.writer import StreamWriter

def stream(rank=0, attempt=0):
    header = {"kind": "rank", "rank": rank, "pid": os.getpid(), "node": 0, "clock": read_clocks()}
    writer = StreamWriter(Path(sys.argv[1]) / "ranks" / f"rank-{rank:05d}.{attempt}.agp", header, flush_period_s=0.002)
    writer.start()
    return writer

def say(*what):
    print(*what, flush=True)
"""


def wait_for(condition: Callable[[], Any], seconds: float = 5) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
    return found


class Job:
    """One rank in a process of its own, and the sampler's trees in this one."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        (self.run / layout.RANKS).mkdir(parents=True)
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.trees = RankTrees(self.run, 0, append, States(append))
        self._now = time.monotonic_ns()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, code: str) -> "subprocess.Popen[str]":
        environment = os.environ | {"AGPROF_RUN_DIR": str(self.run), "RANK": "0"}
        process = subprocess.Popen(
            [sys.executable, "-c", PREFIX + code, str(self.run)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def close(self) -> None:
        for pid in [process.pid for process in self._processes] + list(self.trees.pids()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self._processes:
            process.communicate()

    def sample(self) -> dict[str, dict[str, Any]]:
        """Role -> its row of a sample now; each is taken to be two seconds after the one before."""
        self._now += 2 * SECOND_NS
        begin = len(self.rows)
        self.trees.sample(self._now)
        rows = [dict(zip(COLUMNS, row, strict=True)) for table, row in self.rows[begin:] if table == "process_samples"]
        assert len({(row["rank"], row["role"]) for row in rows}) == len(rows)
        return {row["role"]: row for row in rows}

    def find(self, *pids: int) -> dict[str, dict[str, Any]]:
        """Sample until exactly these are the children of rank 0."""

        def found() -> dict[str, dict[str, Any]] | None:
            rows = self.sample()
            mine = {pid for pid, owner in self.trees.pids().items() if owner == (0, "child")}
            return rows if mine == set(pids) and "rank" in rows else None

        rows: dict[str, dict[str, Any]] = wait_for(found)
        return rows


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.close()


def numbers(process: "subprocess.Popen[str]") -> list[int]:
    """The next line that the rank prints."""
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def marks_of(path: Path) -> list[list[Any]]:
    follower = StreamFollower(path)
    rows = [row for table, rows in follower.poll() if table == "marks" for row in rows]
    assert follower.damage is None
    return rows


def test_forks_while_the_flusher_writes_hang_nowhere_and_write_no_row_twice(job: Job) -> None:
    """A lock that another thread holds at the fork stays held for ever in the child."""
    rank = job.start("""
writer, children = stream(), []
append = writer.rows("marks")
for number in range(150):
    append((number,))
    child = os.fork()
    if child == 0:
        for own in range(20):
            append((-1,))
        writer.append("other", (-1,))
        writer.flush(); writer.sync(); writer.close("child")
        sys.exit(0)
    children.append(child)
codes = {os.waitpid(child, 0)[1] for child in children}
append((1000,))
writer.close("clean")
say(*codes)
""")
    assert numbers(rank) == [0]
    assert rank.wait(10) == 0
    assert marks_of(layout.rank_stream(job.run, 0)) == [[number] for number in (*range(150), 1000)]


def test_forked_and_spawned_children_are_counted_for_their_rank(job: Job) -> None:
    rank = job.start("""
import multiprocessing
writer = stream()
if __name__ == "__main__":
    forked = os.fork()
    if forked == 0:
        time.sleep(60)
    spawned = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    grandchild = os.popen("sleep 60 & echo $!")
    say(forked, spawned.pid, int(grandchild.readline()))
    time.sleep(60)
""")
    forked, spawned, grandchild = numbers(rank)
    rows = job.find(forked, spawned, grandchild)
    assert (rows["rank"]["processes"], rows["worker"]["processes"]) == (1, 3)
    assert job.trees.pids()[rank.pid] == (0, "rank")
    os.kill(spawned, signal.SIGKILL)
    # A zombie, as the rank does not wait for it.
    assert job.find(forked, grandchild)["worker"]["processes"] == 2


def test_a_rank_that_execs_keeps_its_tree_and_writes_a_second_stream(job: Job) -> None:
    rank = job.start("""
attempt = int(os.environ.get("ATTEMPT", "0"))
writer = stream(attempt=attempt)
writer.append("marks", (attempt,))
writer.flush()
say(os.getpid())
sys.stdin.readline()
if attempt == 0:
    os.environ["ATTEMPT"] = "1"
    os.execv(sys.executable, sys.orig_argv)
writer.close()
""")
    assert rank.stdin is not None
    assert numbers(rank) == [rank.pid]
    first = job.find()["rank"]
    assert first["period_ns"] >= 0
    rank.stdin.write("go on\n")
    rank.stdin.flush()
    assert numbers(rank) == [rank.pid]
    row = job.find()["rank"]
    # Its counters went on: it is the same process, and has used CPU since.
    assert row["period_ns"] > 0
    assert row["cpu_cores"] is not None
    rank.stdin.write("end\n")
    rank.stdin.flush()
    assert rank.wait(5) == 0
    assert [marks_of(layout.rank_stream(job.run, 0, attempt)) for attempt in (0, 1)] == [[[0]], [[1]]]


def test_a_daemon_is_counted_for_the_rank_that_started_it(job: Job) -> None:
    """Forked twice, in a session of its own, its parent gone before anybody looked."""
    rank = job.start("""
writer = stream()
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        os.write(write_end, f"{os.getpid()} {grandchild.pid}".encode())
        time.sleep(60)
    os._exit(0)
os.wait()
say(os.read(read_end, 100).decode())
time.sleep(60)
""")
    daemon, below = numbers(rank)
    rows = job.find(daemon, below)
    assert rows["worker"]["processes"] == 2


def test_a_child_whose_parent_ends_later_stays_with_its_rank(job: Job) -> None:
    rank = job.start("""
writer = stream()
between = subprocess.Popen(["env", "-i", "sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
say(between.pid, int(between.stdout.readline()))
sys.stdin.readline()
between.kill()
between.wait()
say(0)
time.sleep(60)
""")
    assert rank.stdin is not None
    between, below = numbers(rank)
    job.find(between, below)
    rank.stdin.write("kill it\n")
    rank.stdin.flush()
    numbers(rank)
    # Nothing in its environment says whose it is.
    assert b"RANK" not in Path(f"/proc/{below}/environ").read_bytes()
    job.find(below)


def test_a_program_that_a_rank_becomes_or_starts_has_none_of_our_descriptors(job: Job) -> None:
    look = "import os; print(*(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if fd != '3'))"
    rank = job.start(f"""
writer = stream()
writer.append("marks", (1,))
child = os.fork()
if child == 0:
    os.execv(sys.executable, [sys.executable, "-c", {look!r}])
os.waitpid(child, 0)
subprocess.run([sys.executable, "-c", {look!r}], close_fds=False, check=True)
os.execv(sys.executable, [sys.executable, "-c", {look!r}])
""")
    out, _ = rank.communicate(timeout=10)
    lines = out.splitlines()
    assert len(lines) == 3
    assert not [name for line in lines for name in line.split() if ".agp" in name or str(job.run) in name]


def test_every_descriptor_of_the_sampler_is_closed_at_an_exec(job: Job, tmp_path: Path) -> None:
    """Those of /proc/PID that are kept open among them."""
    rank = job.start("writer = stream(); say(os.getpid()); time.sleep(60)")
    numbers(rank)
    argv = [sys.executable, "-m", "agprof.sampler", "--run-dir", str(job.run), "--period", "0.05", "--nvml", "off"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as sampler:
        folder = Path(f"/proc/{sampler.pid}/fd")

        def descriptors() -> dict[int, str]:
            found = {}
            for link in folder.iterdir():
                try:
                    found[int(link.name)] = str(link.readlink())
                except FileNotFoundError:
                    continue
            return found

        try:
            wait_for(lambda: any(name == f"/proc/{rank.pid}/stat" for name in descriptors().values()))
            for descriptor, name in descriptors().items():
                if descriptor > 2:
                    try:
                        info = Path(f"/proc/{sampler.pid}/fdinfo/{descriptor}").read_text()
                    except FileNotFoundError:
                        continue
                    flags = int(next(line.split()[1] for line in info.splitlines() if line.startswith("flags:")), 8)
                    assert flags & os.O_CLOEXEC, f"{descriptor} is {name}"
        finally:
            sampler.kill()
