"""The job's cgroup of both versions: memory, limits, quota, throttling, kills."""

from pathlib import Path
from typing import Any

import pytest

from agprof.sampler.cgroup import Cgroup, CgroupReading, read_quota
from agprof.sampler.states import SECOND_NS, States
from proc_tree import ProcTree


class Rig:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = ProcTree(root)
        self.rows: list[tuple[Any, ...]] = []
        self.now = 100 * SECOND_NS
        self._cgroup: Cgroup | None = None

    def version_2(self, path: str = "/job/step") -> str:
        self.tree.write("proc/self/cgroup", f"0::{path}\n")
        self.tree.write("sys/fs/cgroup/cgroup.controllers", "cpu memory io\n")
        return f"sys/fs/cgroup{path}"

    def version_1(self, path: str = "/job") -> tuple[str, str]:
        """(folder of memory, folder of cpu)"""
        self.tree.write("proc/self/cgroup", f"5:memory:{path}\n4:cpu,cpuacct:{path}\n0::/\n")
        return f"sys/fs/cgroup/memory{path}", f"sys/fs/cgroup/cpu,cpuacct{path}"

    def read(self, seconds: int = 1) -> CgroupReading:
        self.now += seconds * SECOND_NS
        if self._cgroup is None:
            self._cgroup = Cgroup(States(lambda _table, row: self.rows.append(row)), self.root)
        return self._cgroup.read(self.now)

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for row in self.rows]


def test_version_2_memory_limits_of_those_above_and_kills(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    folder = rig.version_2()
    rig.tree.write(f"{folder}/memory.current", "123456789\n")
    rig.tree.write(f"{folder}/memory.max", "max\n")
    rig.tree.write("sys/fs/cgroup/job/memory.max", "2000000000\n")
    rig.tree.write(f"{folder}/memory.events", "low 0\nhigh 0\nmax 9\noom 5\noom_kill 3\noom_group_kill 0\n")
    reading = rig.read()
    assert (reading.memory_bytes, reading.memory_limit_bytes, reading.oom_kills) == (123456789, 2 * 10**9, 3)
    rig.tree.write(f"{folder}/memory.events", "low 0\nhigh 0\nmax 9\noom 5\noom_kill 4\n")
    assert rig.read().oom_kills == 4
    assert rig.states() == []


def test_version_1_memory_limits_and_kills(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    memory, _ = rig.version_1()
    rig.tree.write(f"{memory}/memory.usage_in_bytes", "777\n")
    rig.tree.write(f"{memory}/memory.limit_in_bytes", "9223372036854771712\n")
    rig.tree.write(f"{memory}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    reading = rig.read()
    assert (reading.memory_bytes, reading.memory_limit_bytes, reading.oom_kills) == (777, None, 2)


def test_the_tightest_quota_counts_and_its_throttling(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    folder = rig.version_2()
    rig.tree.write(f"{folder}/cpu.max", "max 100000\n")
    rig.tree.write(f"{folder}/cpu.stat", "usage_usec 1\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n")
    rig.tree.write("sys/fs/cgroup/job/cpu.max", "350000 100000\n")
    stat = "usage_usec 9\nnr_periods {}\nnr_throttled {}\nthrottled_usec {}\n"
    rig.tree.write("sys/fs/cgroup/job/cpu.stat", stat.format(10, 2, 10**9))
    first = rig.read()
    assert (first.cpu_limit_cores, first.throttled_ratio) == (3.5, None)
    # The time of throttling is that of all CPUs together, more than has passed; of 20 periods 5 were used up.
    rig.tree.write("sys/fs/cgroup/job/cpu.stat", stat.format(30, 7, 10**9 + 24_000_000))
    assert rig.read(2).throttled_ratio == pytest.approx(0.25)
    rig.tree.write("sys/fs/cgroup/job/cpu.stat", stat.format(41, 18, 10**9))
    assert rig.read(1).throttled_ratio == 1.0


def test_version_1_quota(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    _, cpu = rig.version_1()
    rig.tree.write(f"{cpu}/cpu.cfs_quota_us", "-1\n")
    rig.tree.write(f"{cpu}/cpu.cfs_period_us", "100000\n")
    assert read_quota(tmp_path) is None
    rig.tree.write(f"{cpu}/cpu.cfs_quota_us", "50000\n")
    quota = read_quota(tmp_path)
    assert quota is not None
    assert quota.cores == 0.5
    for throttled in (0, 3):
        rig.tree.write(f"{cpu}/cpu.stat", f"nr_periods 50\nnr_throttled {throttled}\nthrottled_time 99999999999\n")
        reading = rig.read()
    assert reading.throttled_ratio == pytest.approx(0.3)


def test_a_limit_that_is_set_later_is_seen_within_ten_seconds(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    folder = rig.version_2()
    assert rig.read().cpu_limit_cores is None
    rig.tree.write(f"{folder}/cpu.max", "200000 100000\n")
    rig.tree.write(f"{folder}/memory.max", "5000\n")
    assert rig.read(10).cpu_limit_cores == 2.0
    assert rig.read().memory_limit_bytes == 5000


def test_in_a_container_the_mount_is_its_own_cgroup(tmp_path: Path) -> None:
    """The path is that of the host, and leads nowhere inside."""
    rig = Rig(tmp_path)
    rig.version_2("/system.slice/docker-1234.scope")
    rig.tree.write("sys/fs/cgroup/memory.current", "55\n")
    rig.tree.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
    reading = rig.read()
    assert (reading.memory_bytes, reading.cpu_limit_cores) == (55, 1.5)


def test_a_host_without_cgroups_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for _ in range(3):
        assert rig.read() == CgroupReading(None, None, None, None, None)
    assert rig.states() == [("host.cgroup.memory", "unsupported"), ("host.cgroup.oom_kills", "unsupported")]


def test_an_old_kernel_that_does_not_count_kills_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    memory, _ = rig.version_1()
    rig.tree.write(f"{memory}/memory.usage_in_bytes", "777\n")
    rig.tree.write(f"{memory}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    reading = rig.read()
    assert (reading.memory_bytes, reading.oom_kills) == (777, None)
    assert rig.states() == [("host.cgroup.oom_kills", "unsupported")]


@pytest.mark.parametrize("content", ["", "max\n", "0 0\n", "a b\n", "100000\n"])
def test_an_odd_quota_is_none(tmp_path: Path, content: str) -> None:
    rig = Rig(tmp_path)
    rig.tree.write(f"{rig.version_2()}/cpu.max", content)
    assert read_quota(tmp_path) is None
