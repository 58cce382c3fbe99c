"""Pressure by differences of the kernel's microseconds; a host that does not give it."""

import errno
from pathlib import Path
from typing import Any

import pytest

from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.pressure import Pressure, PressureShares
from agprof.sampler.states import SECOND_NS, States
from proc_tree import ProcTree


class Rig:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = ProcTree(root)
        self.rows: list[tuple[Any, ...]] = []
        self.pressure = Pressure(States(lambda _table, row: self.rows.append(row)), root)
        self.now = 100 * SECOND_NS

    def read(self, seconds: int = 1) -> PressureShares:
        self.now += seconds * SECOND_NS
        return self.pressure.read(self.now)

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for row in self.rows]


def test_shares_are_microseconds_of_waiting_over_the_time_that_passed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for name in ("cpu", "memory", "io"):
        rig.tree.pressure(name, 10**9, 10**9)
    assert rig.read() == PressureShares()
    rig.tree.pressure("cpu", 10**9 + 500_000, 10**9)
    rig.tree.pressure("memory", 10**9 + 200_000, 10**9 + 100_000)
    rig.tree.pressure("io", 10**9 + 2_000_100, 10**9 + 1_000_000)
    # Read a little after the clock: not more than the whole.
    assert rig.read(2) == PressureShares(cpu=0.25, memory=0.1, memory_stall=0.05, io=1.0, io_stall=0.5)


def test_an_old_kernel_has_no_full_for_cpus_and_needs_none(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for total in (0, 250_000):
        rig.tree.write("proc/pressure/cpu", f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n")
        shares = rig.read()
    assert shares.cpu == 0.25


def test_a_kernel_without_pressure_says_so_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for _ in range(3):
        assert rig.read() == PressureShares()
    assert rig.states() == [(f"host.pressure.{name}", "unsupported") for name in ("cpu", "memory", "io")]


def test_pressure_that_is_switched_off_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    calls = []

    def refuse(file: KernelFile) -> bytes:
        calls.append(file.path)
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(KernelFile, "read_short", refuse)
    for _ in range(100):
        assert rig.read() == PressureShares()
    assert len(calls) == 3
    assert {state for _, state in rig.states()} == {"unsupported"}


def test_the_cgroups_pressure_takes_the_place_of_the_hosts_and_is_said_to(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.write("proc/self/cgroup", "0::/job\n")
    rig.tree.write("sys/fs/cgroup/cgroup.controllers", "cpu memory io\n")
    folder = "sys/fs/cgroup/job"
    for total in (0, 100_000):
        for name in ("cpu", "memory", "io"):
            rig.tree.pressure(name, total, total // 2, folder=folder, suffix=".pressure")
        shares = rig.read()
    assert shares == PressureShares(cpu=0.1, memory=0.1, memory_stall=0.05, io=0.1, io_stall=0.05)
    assert rig.states() == [(f"host.pressure.{name}.host", "unsupported") for name in ("cpu", "memory", "io")]


def test_counting_that_begins_anew_gives_none_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for total, expected in ((500_000, None), (100, None), (300_100, 0.3)):
        rig.tree.pressure("io", total, total)
        assert rig.read().io == expected


def test_a_file_that_is_not_what_it_should_be_is_tried_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.write("proc/pressure/cpu", "some avg10=0.00\n")
    assert rig.read().cpu is None
    assert ("host.pressure.cpu", "retry") in rig.states()
    rig.tree.pressure("cpu", 5, 5)
    rig.read(5)
    assert ("host.pressure.cpu", "ok") in rig.states()
