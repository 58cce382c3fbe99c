"""Rank trees found in the run folder and read; processes that end, are replaced, or refuse."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.processes import Procfs, RankTrees
from agprof.sampler.states import SECOND_NS, States
from agprof.store import layout
from agprof.store.writer import StreamWriter

COLUMNS = [column.name for column in BY_NAME["process_samples"].columns]
BOOT_NS = 500 * SECOND_NS


class Process:
    """A stand-in for psutil.Process."""

    def __init__(self, pid: int, parent: int = 1, started_ns: int = 0) -> None:
        self.pid, self.parent, self.started_ns = pid, parent, started_ns
        self.cpu, self.rss, self.read, self.state = 1.0, 100, 0, psutil.STATUS_RUNNING
        self.running, self.denies, self.vanishes = True, False, False
        self.pss_reads = 0

    def is_running(self) -> bool:
        return self.running

    def oneshot(self) -> Any:
        return nullcontext()

    def status(self) -> str:
        return self.state

    def cpu_times(self) -> Any:
        return SimpleNamespace(user=self.cpu, system=0.5)

    def memory_info(self) -> Any:
        if self.vanishes:
            raise psutil.NoSuchProcess(self.pid)
        return SimpleNamespace(rss=self.rss)

    def num_threads(self) -> int:
        return 3

    def io_counters(self) -> Any:
        if self.denies:
            raise psutil.AccessDenied(self.pid)
        return SimpleNamespace(read_bytes=self.read, write_bytes=0)


class System:
    """A stand-in for psutil and /proc with processes to add and take away."""

    def __init__(self, *processes: Process) -> None:
        self.processes = {process.pid: process for process in processes}
        self.scans = 0

    def Process(self, pid: int) -> Process:
        if pid not in self.processes:
            raise psutil.NoSuchProcess(pid)
        return self.processes[pid]

    def started_boottime_ns(self, pid: int) -> int:
        if pid not in self.processes:
            raise FileNotFoundError(pid)
        return self.processes[pid].started_ns

    def parents(self) -> dict[int, int]:
        self.scans += 1
        return {pid: process.parent for pid, process in self.processes.items()}

    def pss_bytes(self, pid: int) -> int:
        process = self.processes[pid]
        process.pss_reads += 1
        if process.denies:
            raise PermissionError(pid)
        return process.rss // 2


class Rig:
    def __init__(self, run: Path, *processes: Process) -> None:
        self.run = run
        (run / layout.RANKS).mkdir(parents=True, exist_ok=True)
        self.system = System(*processes)
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        procfs: Any = self.system
        self.trees = RankTrees(run, 0, append, States(append), self.system, procfs)
        self.now = 1000 * SECOND_NS

    def rank(self, rank: int, pid: int, node: int = 0, attempt: int = 0, monotonic_ns: int = 0) -> StreamWriter:
        header = {
            "kind": "rank", "rank": rank, "pid": pid, "node": node,
            "clock": {"boottime_ns": BOOT_NS, "monotonic_ns": monotonic_ns},
        }  # fmt: skip
        return StreamWriter(layout.rank_stream(self.run, rank, attempt), header)

    def sample(self, seconds: int = 1) -> list[dict[str, Any]]:
        self.now += seconds * SECOND_NS
        begin = len(self.rows)
        self.trees.sample(self.now)
        return [dict(zip(COLUMNS, row, strict=True)) for name, row in self.rows[begin:] if name == "process_samples"]

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]


def test_a_rank_is_found_when_its_stream_appears_and_read_from_then_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10))
    assert rig.sample() == []
    rig.rank(3, 10)
    (first,) = rig.sample()
    assert (first["rank"], first["role"], first["processes"], first["rss_bytes"]) == (3, "rank", 1, 100)
    assert (first["period_ns"], first["cpu_cores"], first["read_bytes_per_s"]) == (0, None, None)
    assert (first["pss_bytes"], first["threads"]) == (50, 3)
    rig.system.processes[10].cpu += 3.0
    rig.system.processes[10].read += 400
    (second,) = rig.sample(2)
    assert (second["period_ns"], second["cpu_cores"], second["read_bytes_per_s"]) == (2 * SECOND_NS, 1.5, 200)
    assert second["pss_bytes"] is None


def test_children_are_summed_and_looked_for_every_two_seconds_at_most(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10), Process(11, 10), Process(12, 11), Process(99, 1))
    rig.rank(0, 10)
    rank, workers = rig.sample()
    assert (rank["processes"], workers["role"], workers["processes"], workers["rss_bytes"]) == (1, "worker", 2, 200)
    rig.system.processes[13] = Process(13, 10)
    rig.system.processes[11].cpu += 0.5
    rig.system.processes[12].cpu += 0.25
    assert rig.sample()[1]["cpu_cores"] == 0.75
    assert rig.system.scans == 1
    rig.sample()
    assert rig.system.scans == 2
    rig.system.processes[13].cpu += 1
    third = rig.sample()[1]
    assert (third["processes"], third["cpu_cores"]) == (3, 1.0)


def test_two_ranks_on_a_node_keep_their_children_apart_and_other_nodes_are_left_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10), Process(20, 10), Process(21, 20), Process(30))
    rig.rank(0, 10)
    rig.rank(1, 20)
    rig.rank(2, 30, node=1)
    rows = rig.sample()
    assert [(row["rank"], row["role"], row["processes"]) for row in rows] == [
        (0, "rank", 1),
        (1, "rank", 1),
        (1, "worker", 1),
    ]


def test_a_process_that_ends_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10), Process(11, 10), Process(20))
    rig.rank(0, 10)
    rig.rank(1, 20)
    rig.sample()
    rig.system.processes[11].vanishes = True
    assert [(row["rank"], row["role"]) for row in rig.sample()] == [(0, "rank"), (1, "rank")]
    rig.system.processes[10].vanishes = True
    assert [row["rank"] for row in rig.sample()] == [1]
    assert [row["rank"] for row in rig.sample()] == [1]
    assert rig.states() == [("process.0", "unsupported")]


@pytest.mark.parametrize("change", [{"running": False}, {"state": psutil.STATUS_ZOMBIE}])
def test_a_zombie_and_a_reused_process_id_are_no_sample(tmp_path: Path, change: dict[str, Any]) -> None:
    rig = Rig(tmp_path, Process(10))
    rig.rank(0, 10)
    assert len(rig.sample()) == 1
    for name, value in change.items():
        setattr(rig.system.processes[10], name, value)
    assert rig.sample() == []
    assert rig.states() == [("process.0", "unsupported")]


def test_a_process_younger_than_the_stream_is_not_the_rank(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10, started_ns=BOOT_NS + SECOND_NS))
    rig.rank(0, 10)
    assert rig.sample() == []
    assert rig.states() == [("process.0", "unsupported")]


def test_a_restarted_rank_takes_the_place_of_its_older_attempt(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10), Process(20))
    rig.rank(0, 20, attempt=1, monotonic_ns=50)
    rig.rank(0, 10, attempt=0, monotonic_ns=5)
    rig.sample()
    rig.system.processes[10].vanishes = True
    assert [row["rank"] for row in rig.sample()] == [0]


def test_what_is_denied_is_none_with_a_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10))
    rig.system.processes[10].denies = True
    rig.rank(0, 10)
    rig.sample()
    (row,) = rig.sample()
    assert (row["read_bytes_per_s"], row["pss_bytes"], row["rss_bytes"]) == (None, None, 100)
    assert rig.states() == [("process.0.io", "unsupported"), ("process.0.pss", "unsupported")]


def test_pss_is_read_every_five_seconds_at_most(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Process(10))
    rig.rank(0, 10)
    for _ in range(11):
        rig.sample()
    assert rig.system.processes[10].pss_reads == 3


@pytest.mark.parametrize(
    "header", [{}, {"rank": "0", "pid": 10}, {"rank": 0, "pid": -1}, {"rank": 0, "pid": 10, "clock": 5}]
)
def test_odd_headers_do_no_harm(tmp_path: Path, header: dict[str, Any]) -> None:
    rig = Rig(tmp_path, Process(10))
    StreamWriter(layout.rank_stream(tmp_path, 0), {"node": 0, **header})
    layout.rank_stream(tmp_path, 1).write_bytes(b"not a stream")
    layout.rank_stream(tmp_path, 2).write_bytes(layout.PREAMBLE + b"\xff" * 40)
    assert len(rig.sample()) == ("clock" in header)
    assert ("process.rank-00001.0.agp", "unsupported") in rig.states()


def test_the_real_proc_tells_about_this_process() -> None:
    import os
    import time

    procfs = Procfs()
    assert 0 < procfs.started_boottime_ns(os.getpid()) <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert procfs.parents()[os.getpid()] == os.getppid()
    assert procfs.pss_bytes(os.getpid()) > 0
    with pytest.raises(FileNotFoundError):
        procfs.started_boottime_ns(2**22 + 1)


def test_a_process_name_with_parentheses_is_read_rightly(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b (c)) S 3 " + " ".join("0" * 17) + " 250 0 0\n")
    procfs = Procfs(tmp_path)
    assert procfs.parents() == {7: 3}
    assert procfs.started_boottime_ns(7) == 2_500_000_000
