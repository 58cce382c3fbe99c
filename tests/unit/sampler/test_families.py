"""Which process belongs to which rank: by descent, and by the environment where descent was lost."""

from pathlib import Path
from typing import Any

import pytest

from agprof.sampler import families
from agprof.sampler.families import Families
from proc_tree import FakeProcess, ProcTree


class Rig:
    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.run.mkdir()
        self.tree = ProcTree(folder / "root")
        self.families = Families(self.run, str(self.tree.root / "proc"))
        self.processes: dict[int, FakeProcess] = {}

    def process(self, pid: int, parent: int = 1, rank: int | None = None, **environment: str) -> FakeProcess:
        process = self.processes[pid] = FakeProcess(self.tree, pid, parent)
        process.environment = environment
        if rank is not None:
            process.environment |= {"AGPROF_RUN_DIR": str(self.run), "RANK": str(rank)}
        process.save()
        return process

    def end(self, pid: int) -> None:
        self.processes.pop(pid).end()

    def children(self, key: int | None) -> list[int]:
        self.families.scan()
        return sorted(self.families.children(key))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_descent_goes_to_the_nearest_root(rig: Rig) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 12), (14, 13), (99, 1)):
        rig.process(pid, parent)
    rig.families.add(10, 0)
    rig.families.add(12, 1)
    assert rig.children(0) == [11]
    assert rig.children(1) == [13, 14]


def test_a_child_whose_parent_ends_stays(rig: Rig) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11)):
        rig.process(pid, parent)
    rig.families.add(10, 0)
    assert rig.children(0) == [11, 12]
    rig.end(11)
    rig.processes[12].parent = 1
    rig.processes[12].save()
    rig.process(13, 12)
    assert rig.children(0) == [12, 13]
    # A root that comes later makes all be looked at again.
    rig.process(20), rig.process(21, 20)
    rig.families.add(20, 1)
    assert (rig.children(0), rig.children(1)) == ([12, 13], [21])


def test_a_daemon_is_known_by_its_environment_and_so_is_what_it_starts(rig: Rig) -> None:
    rig.process(10), rig.process(20)
    rig.families.add(10, 0)
    rig.families.add(20, 1)
    rig.process(50, parent=1, rank=1)
    rig.process(51, parent=50)
    rig.process(52, parent=1, RANK="1")
    assert (rig.children(0), rig.children(1)) == ([], [50, 51])


def test_another_runs_daemon_is_a_stranger(rig: Rig, tmp_path: Path) -> None:
    rig.process(10)
    rig.families.add(10, 0)
    rig.process(50, RANK="0", AGPROF_RUN_DIR=str(tmp_path / "other"))
    rig.process(51, RANK="0", OLD_AGPROF_RUN_DIR=str(rig.run))
    rig.process(52, RANK="-1", AGPROF_RUN_DIR=str(rig.run))
    assert rig.children(0) == []


def test_the_run_folder_is_known_by_another_path_too(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(rig.run)
    rig.process(10)
    rig.families.add(10, 3)
    rig.process(50, OMPI_COMM_WORLD_RANK="3", AGPROF_RUN_DIR=str(tmp_path / "link"))
    assert rig.children(3) == [50]


def test_a_daemon_knows_its_rank_by_the_number_of_its_process_too(rig: Rig) -> None:
    """A process that is the only rank of its command has no RANK."""
    rig.process(10), rig.process(20)
    rig.families.add(10, 0)
    rig.families.add(20, 1)
    rig.process(50, AGPROF_RUN_DIR=str(rig.run), AGPROF_RANK_PID="20", RANK="0")
    rig.process(51, AGPROF_RUN_DIR=str(rig.run), AGPROF_FOREIGN="10")
    rig.process(52, AGPROF_RUN_DIR=str(rig.run), AGPROF_RANK_PID="77")
    assert (rig.children(0), rig.children(1)) == ([51], [50])


def test_a_daemon_that_is_seen_before_its_rank_is_given_to_it_later(rig: Rig) -> None:
    rig.process(10), rig.process(20)
    rig.families.add(10, 0)
    rig.process(50, rank=1)
    assert rig.children(0) == []
    rig.families.add(20, 1)
    assert rig.children(1) == [50]


def test_a_launcher_with_a_number_of_its_own_is_no_child_of_what_it_starts(rig: Rig) -> None:
    """Under srun or mpirun, torchrun has PMI_RANK or the like: its number among launchers."""
    launcher = rig.process(5)
    launcher.environment = {"AGPROF_RUN_DIR": str(rig.run), "PMI_RANK": "0"}
    launcher.save()
    rig.process(6, 5), rig.process(10, 5), rig.process(11, 10)
    rig.families.add(10, 0)
    assert rig.children(0) == [11]


def test_a_daemon_without_a_rank_belongs_to_the_command(rig: Rig) -> None:
    rig.process(10)
    rig.process(50, AGPROF_RUN_DIR=str(rig.run))
    assert rig.children(None) == []
    rig.families.add(10, None)
    assert rig.children(None) == [50]


def test_a_root_that_is_gone_gives_its_children_to_the_one_above(rig: Rig) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11)):
        rig.process(pid, parent)
    rig.families.add(10, None)
    rig.families.add(11, 0)
    assert (rig.children(None), rig.children(0)) == ([], [12])
    rig.families.remove(0)
    assert (rig.children(None), rig.children(0)) == ([11, 12], [])


def test_each_environment_is_read_once_and_kernel_threads_never(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    read = Families._environment

    def environment(self: Families, pid: int) -> Any:
        asked.append(pid)
        return read(self, pid)

    monkeypatch.setattr(Families, "_environment", environment)
    rig.process(2, 0), rig.process(3, 2)
    rig.process(10), rig.process(11, 10), rig.process(30, A="1"), rig.process(31)
    rig.families.add(10, 0)
    for _ in range(3):
        assert rig.children(0) == [11]
    # 31 has an empty one, as a process has while its program is replaced: asked again each time.
    assert sorted(asked) == [30, 31, 31, 31]


def test_each_process_is_looked_at_once_and_a_share_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    read = Families._stat

    def stat(self: Families, pid: int) -> Any:
        looks.append(pid)
        return read(self, pid)

    monkeypatch.setattr(Families, "_stat", stat)
    for pid in range(100, 100 + 150):
        rig.process(pid, A="1")
    rig.families.add(100, 0)
    rig.children(0)
    assert len(looks) == 150
    for _ in range(15):
        rig.children(0)
    assert len(looks) <= 150 + 15 * 11
    assert set(looks[150:]) == set(range(100, 250))


def test_a_number_that_went_to_another_process_is_found_out(rig: Rig) -> None:
    rig.process(10), rig.process(11, 10)
    rig.families.add(10, 0)
    assert rig.children(0) == [11]
    rig.processes[11].parent, rig.processes[11].start_ticks = 1, 999
    rig.processes[11].save()
    for _ in range(families.LOOK_AGAIN_SHARE + 1):
        found = rig.children(0)
    assert found == []


def test_parents_in_a_circle_end(rig: Rig) -> None:
    """A number may have gone to another process between two looks, so that parents seem to be their own children."""
    rig.process(10)
    rig.process(30, 31), rig.process(31, 30)
    rig.families.add(10, 0)
    rig.families.add(30, 1)
    assert rig.children(0) == []
    assert rig.children(1) == [31]


@pytest.mark.parametrize("content", ["", "7 (x", "7 (x) S", "7 (x) S a b c"])
def test_odd_files_are_no_processes(rig: Rig, content: str) -> None:
    rig.process(10), rig.process(11, 10)
    rig.families.add(10, 0)
    rig.tree.write("proc/77/stat", content)
    rig.tree.write("proc/self/stat", "x")
    assert rig.children(0) == [11]
