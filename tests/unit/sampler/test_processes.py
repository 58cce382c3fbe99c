"""Rank trees found in the run folder and read; processes that end, are replaced, or refuse."""

from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.processes import RankTrees
from agprof.sampler.states import SECOND_NS, States
from agprof.store import layout
from agprof.store.writer import StreamWriter
from proc_tree import FakeProcess, ProcTree

COLUMNS = [column.name for column in BY_NAME["process_samples"].columns]
BOOT_S = 500
KIB = 1024


class Rig:
    def __init__(self, folder: Path, root_pid: int | None = None) -> None:
        self.run = folder / "run"
        (self.run / layout.RANKS).mkdir(parents=True, exist_ok=True)
        self.tree = ProcTree(folder / "root")
        self.processes: dict[int, FakeProcess] = {}
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.trees = RankTrees(self.run, 0, append, States(append), root_pid=root_pid, root=self.tree.root)
        self.now = 1000 * SECOND_NS

    def process(self, pid: int, parent: int = 1, **others: Any) -> FakeProcess:
        self.processes[pid] = FakeProcess(self.tree, pid, parent, **others)
        return self.processes[pid]

    def rank(self, rank: int, pid: int, node: int = 0, attempt: int = 0, monotonic_ns: int = 0) -> StreamWriter:
        header = {
            "kind": "rank", "rank": rank, "pid": pid, "node": node,
            "clock": {"boottime_ns": BOOT_S * SECOND_NS, "monotonic_ns": monotonic_ns},
        }  # fmt: skip
        return StreamWriter(layout.rank_stream(self.run, rank, attempt), header)

    def sample(self, seconds: int = 1) -> list[dict[str, Any]]:
        self.now += seconds * SECOND_NS
        begin = len(self.rows)
        for process in self.processes.values():
            process.save()
        self.trees.sample(self.now)
        return [dict(zip(COLUMNS, row, strict=True)) for name, row in self.rows[begin:] if name == "process_samples"]

    def end(self, pid: int) -> None:
        self.processes.pop(pid).end()

    def environment(self, rank: int | None) -> dict[str, str]:
        own = {"PATH": "/bin", "AGPROF_RUN_DIR": str(self.run)}
        return own if rank is None else own | {"RANK": str(rank)}

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]


def test_a_rank_is_found_when_its_stream_appears_and_read_from_then_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rank = rig.process(10)
    assert rig.sample() == []
    rig.rank(3, 10)
    (first,) = rig.sample()
    assert (first["rank"], first["role"], first["processes"], first["rss_bytes"]) == (3, "rank", 1, 100 * KIB)
    assert (first["pss_bytes"], first["threads"], first["loaders"]) == (50 * KIB, 3, 0)
    rates = [name for name in COLUMNS if name.endswith(("_per_s", "_cores", "_ratio"))]
    assert first["period_ns"] == 0
    assert [first[name] for name in rates] == [None] * 7
    rank.cpu_ticks += 300
    rank.read, rank.written = 400, 600
    rank.voluntary, rank.involuntary, rank.wait_ns = 20, 30, SECOND_NS // 2
    (second,) = rig.sample(2)
    assert (second["period_ns"], second["cpu_cores"]) == (2 * SECOND_NS, 1.5)
    assert (second["read_bytes_per_s"], second["write_bytes_per_s"]) == (200, 300)
    assert (second["voluntary_switches_per_s"], second["involuntary_switches_per_s"]) == (10, 15)
    assert second["cpu_wait_ratio"] == 0.25
    assert (second["pss_bytes"], second["loader_cpu_cores"]) == (None, None)


def test_children_are_summed_and_looked_for_every_two_seconds_at_most(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10)
    child, grandchild = rig.process(11, 10), rig.process(12, 11)
    rig.process(99)
    rig.rank(0, 10)
    rank, workers = rig.sample()
    assert (rank["processes"], workers["role"], workers["processes"]) == (1, "worker", 2)
    assert (workers["rss_bytes"], workers["threads"]) == (200 * KIB, 6)
    late = rig.process(13, 10)
    child.cpu_ticks += 50
    grandchild.cpu_ticks += 25
    child.wait_ns = SECOND_NS
    second = rig.sample()[1]
    assert (second["processes"], second["cpu_cores"], second["cpu_wait_ratio"]) == (2, 0.75, 0.5)
    # Its time before it was first read is not known: it counts from the next sample on.
    assert rig.sample()[1]["cpu_cores"] == 0
    late.cpu_ticks += 100
    third = rig.sample()[1]
    assert (third["processes"], third["cpu_cores"]) == (3, 1.0)


def test_dataloader_workers_are_known_by_the_name_that_torch_gives_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10)
    loader, other = rig.process(11, 10, name="pt_data_worker"), rig.process(12, 10, name="resource_tracker")
    late = rig.process(13, 10)
    rig.rank(0, 10)
    assert rig.sample()[1]["loaders"] == 1
    late.name = "pt_data_worker"
    loader.cpu_ticks += 70
    other.cpu_ticks += 20
    workers = rig.sample()[1]
    assert (workers["loaders"], workers["loader_cpu_cores"], workers["cpu_cores"]) == (2, 0.7, 0.9)


@pytest.mark.parametrize(
    ("command", "loaders"),
    [
        ("python\0job.py\0", None),
        ("python\0-c\0from multiprocessing.spawn import spawn_main; spawn_main(pipe_handle=7)\0", None),
        ("tokenizer\0--serve\0", 0),
        ("", 0),
    ],
)
def test_workers_without_a_name_are_not_said_to_be_none(tmp_path: Path, command: str, loaders: int | None) -> None:
    """torch before 2.5 gives a worker no name: a fork of the rank may be one or not."""
    rig = Rig(tmp_path)
    rig.process(10).command = "python\0job.py\0"
    rig.process(11, 10).command = command
    rig.rank(0, 10)
    assert rig.sample()[1]["loaders"] == loaders


def test_a_fork_that_became_another_program_is_no_unnamed_worker(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10).command = "python\0job.py\0"
    child = rig.process(11, 10)
    child.command = "python\0job.py\0"
    rig.rank(0, 10)
    assert rig.sample()[1]["loaders"] is None
    child.command = "ls\0"
    assert [rig.sample()[1]["loaders"] for _ in range(2)] == [None, 0]


def test_two_ranks_on_a_node_keep_their_children_apart_and_other_nodes_are_left_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10), rig.process(20, 10), rig.process(21, 20), rig.process(30)
    rig.rank(0, 10)
    rig.rank(1, 20)
    rig.rank(2, 30, node=1)
    rows = rig.sample()
    assert [(row["rank"], row["role"], row["processes"]) for row in rows] == [
        (0, "rank", 1), (1, "rank", 1), (1, "worker", 1),
    ]  # fmt: skip
    assert rig.trees.pids() == {10: (0, "rank"), 20: (1, "rank"), 21: (1, "child")}


def test_a_process_that_ends_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10), rig.process(11, 10), rig.process(20)
    rig.rank(0, 10)
    rig.rank(1, 20)
    rig.sample()
    rig.end(11)
    assert [(row["rank"], row["role"]) for row in rig.sample()] == [(0, "rank"), (1, "rank")]
    rig.end(10)
    assert [row["rank"] for row in rig.sample()] == [1]
    assert [row["rank"] for row in rig.sample()] == [1]
    assert rig.states() == [("process.0", "unsupported")]
    assert rig.trees.pids() == {20: (1, "rank")}


def test_a_zombie_and_a_reused_process_id_are_no_sample(tmp_path: Path) -> None:
    changes: tuple[dict[str, Any], ...] = ({"start_ticks": 700}, {"state": "Z"})
    for number, change in enumerate(changes):
        rig = Rig(tmp_path / str(number))
        rank, child = rig.process(10), rig.process(11, 10)
        rig.rank(0, 10)
        assert len(rig.sample()) == 2
        for name, value in change.items():
            setattr(child, name, value)
        assert len(rig.sample()) == 1
        for name, value in change.items():
            setattr(rank, name, value)
        assert rig.sample() == []
        assert rig.states() == [("process.0", "unsupported")]


def test_a_number_that_went_to_a_stranger_is_no_child_any_more(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10), rig.process(11, 10)
    rig.rank(0, 10)
    rig.sample()
    rig.end(11)
    rig.process(11, parent=1, started_s=7)
    for _ in range(4):
        rows = rig.sample()
        assert [row["role"] for row in rows] == ["rank"]
    assert 11 not in rig.trees.pids()


def test_a_process_younger_than_the_stream_is_not_the_rank(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10, started_s=BOOT_S + 1)
    rig.rank(0, 10)
    assert rig.sample() == []
    assert rig.states() == [("process.0", "unsupported")]


def test_a_restarted_rank_takes_the_place_of_its_older_attempt(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10), rig.process(20)
    rig.rank(0, 20, attempt=1, monotonic_ns=50)
    rig.rank(0, 10, attempt=0, monotonic_ns=5)
    rig.sample()
    rig.end(10)
    assert [row["rank"] for row in rig.sample()] == [0]
    assert rig.trees.pids() == {20: (0, "rank")}


def test_a_rank_that_becomes_another_program_keeps_its_counters(tmp_path: Path) -> None:
    """os.execv: the same process writes a second attempt."""
    rig = Rig(tmp_path)
    rank = rig.process(10)
    rig.rank(0, 10, monotonic_ns=5)
    rig.sample()
    rig.rank(0, 10, attempt=1, monotonic_ns=50)
    rank.cpu_ticks += 80
    rows = rig.sample()
    assert [(row["rank"], row["cpu_cores"]) for row in rows] == [(0, 0.8)]


def test_what_is_denied_is_none_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.process(10)
    read = KernelFile.read_short

    def read_short(file: KernelFile) -> bytes:
        if file.path.endswith("/io"):
            raise PermissionError(13, "Permission denied")
        return read(file)

    def refuse(*_arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(KernelFile, "read_short", read_short)
    monkeypatch.setattr("agprof.sampler.processes.pss_bytes", refuse)
    rig.rank(0, 10)
    rig.sample()
    (row,) = rig.sample()
    assert (row["read_bytes_per_s"], row["pss_bytes"], row["rss_bytes"]) == (None, None, 100 * KIB)
    assert row["voluntary_switches_per_s"] == 0
    assert rig.states() == [("process.0.io", "unsupported"), ("process.0.pss", "unsupported")]


def test_a_kernel_without_schedstat_and_io_gives_none_for_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10)
    rig.rank(0, 10)
    for name in ("io", "schedstat"):
        (rig.tree.root / "proc/10" / name).unlink()
    rig.processes.clear()
    rig.sample()
    (row,) = rig.sample()
    assert (row["read_bytes_per_s"], row["cpu_wait_ratio"], row["cpu_cores"]) == (None, None, 0)


def test_pss_is_read_every_five_seconds_at_most(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.process(10)
    rig.rank(0, 10)
    read = [rig.sample()[0]["pss_bytes"] is not None for _ in range(11)]
    assert read == [True, False, False, False, False] * 2 + [True]


def test_where_pss_is_expensive_trees_take_turns_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    for rank in range(3):
        rig.process(10 + rank)
        rig.rank(rank, 10 + rank)
    clock = iter(range(0, 10**15, 10_000_000))
    monkeypatch.setattr("agprof.sampler.processes.time.thread_time_ns", lambda: next(clock))
    read = [[row["rank"] for row in rig.sample() if row["pss_bytes"] is not None] for _ in range(81)]
    # 10 ms each time at 0.05 % of a core: one tree every 20 s.
    assert {second: ranks for second, ranks in enumerate(read) if ranks} == {
        0: [0], 20: [1], 40: [2], 60: [0], 80: [1],
    }  # fmt: skip
    assert rig.states() == [("process.pss", "slowed")]


def test_a_process_number_more_than_descriptors_allow_is_read_all_the_same(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for pid in range(10, 16):
        rig.process(pid, 1 if pid == 10 else 10)
    rig.trees._kept_open = 3
    rig.rank(0, 10)
    rig.sample()
    for process in rig.processes.values():
        process.cpu_ticks += 10
    rank, workers = rig.sample()
    assert (rank["cpu_cores"], workers["cpu_cores"], workers["processes"]) == (0.1, 0.5, 5)


def test_the_snapshot_of_process_ids_is_never_changed_under_a_reader(tmp_path: Path) -> None:
    """Another thread may be going through it: a later one takes its place."""
    rig = Rig(tmp_path)
    rig.process(10)
    rig.rank(0, 10)
    rig.sample()
    before = rig.trees.pids()
    rig.process(11, 10)
    rig.sample(2)
    rig.end(10)
    rig.sample()
    assert before == {10: (0, "rank")}
    assert rig.trees.pids() == {}


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"rank": "0", "pid": 10},
        {"rank": 0, "pid": -1},
        {"rank": True, "pid": 10},
        {"rank": 0, "pid": 10, "clock": 5},
    ],
)
def test_odd_headers_do_no_harm(tmp_path: Path, header: dict[str, Any]) -> None:
    rig = Rig(tmp_path)
    rig.process(10)
    StreamWriter(layout.rank_stream(rig.run, 0), {"node": 0, **header})
    layout.rank_stream(rig.run, 1).write_bytes(b"not a stream")
    layout.rank_stream(rig.run, 2).write_bytes(layout.PREAMBLE + b"\xff" * 40)
    assert len(rig.sample()) == ("clock" in header)
    assert ("process.rank-00001.0.agp", "unsupported") in rig.states()


# -- the command of `agprof monitor` -----------------------------------------------------------------------------------


def test_the_command_of_monitor_is_found_at_once_with_its_children(tmp_path: Path) -> None:
    rig = Rig(tmp_path, root_pid=10)
    rig.process(10), rig.process(11, 10), rig.process(12, 11)
    rank, workers = rig.sample()
    assert (rank["rank"], rank["role"], rank["processes"]) == (None, "rank", 1)
    assert (workers["rank"], workers["role"], workers["processes"]) == (None, "worker", 2)
    assert rig.trees.pids() == {10: (None, "rank"), 11: (None, "child"), 12: (None, "child")}


def test_ranks_below_the_command_are_not_part_of_its_tree(tmp_path: Path) -> None:
    rig = Rig(tmp_path, root_pid=10)
    for pid, parent in ((10, 1), (11, 10), (20, 11), (21, 20)):
        rig.process(pid, parent)
    assert rig.sample()[1]["processes"] == 3
    rig.rank(0, 20)
    rows = rig.sample()
    assert sorted((row["rank"] is None, row["role"], row["processes"]) for row in rows) == [
        (False, "rank", 1), (False, "worker", 1), (True, "rank", 1), (True, "worker", 1),
    ]  # fmt: skip
    assert rig.trees.pids() == {10: (None, "rank"), 11: (None, "child"), 20: (0, "rank"), 21: (0, "child")}


def test_a_command_that_has_ended_is_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path, root_pid=10)
    assert rig.sample() == []
    assert rig.states() == [("process.command", "unsupported")]


def test_the_command_is_found_without_a_folder_of_ranks(tmp_path: Path) -> None:
    rig = Rig(tmp_path, root_pid=10)
    (rig.run / layout.RANKS).rmdir()
    rig.process(10)
    assert [row["rank"] for row in rig.sample()] == [None]
