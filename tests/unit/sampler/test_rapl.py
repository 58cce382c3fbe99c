"""Energy of the host's CPUs by RAPL: sums, wraps, resets, zones that hold one another, permissions."""

from pathlib import Path
from typing import Any

import pytest

from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.rapl import PLAUSIBLE_W, HostEnergy, Rapl
from agprof.sampler.states import SECOND_NS, States
from proc_tree import ProcTree

RANGE_UJ = 262_143_328_850


class Rig:
    def __init__(self, root: Path) -> None:
        self.tree = ProcTree(root)
        self.rows: list[tuple[Any, ...]] = []
        self.rapl = Rapl(States(lambda _table, row: self.rows.append(row)), root)
        self.now = 100 * SECOND_NS

    def read(self, seconds: int = 1) -> HostEnergy:
        self.now += seconds * SECOND_NS
        return self.rapl.read(self.now)

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for row in self.rows]


def test_packages_and_their_memory_are_summed_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def put(joules: int) -> HostEnergy:
        energy = joules * 10**6
        rig.tree.rapl("intel-rapl:0", "package-0", energy)
        rig.tree.rapl("intel-rapl:0:0", "core", energy)
        rig.tree.rapl("intel-rapl:0:1", "dram", energy // 10)
        rig.tree.rapl("intel-rapl:1", "package-1-die-0", 2 * energy)
        rig.tree.rapl("intel-rapl:1:0", "dram", energy // 10)
        rig.tree.rapl("intel-rapl:2", "psys", 9 * energy)
        rig.tree.rapl("intel-rapl-mmio:0", "package-0", energy)
        return rig.read()

    assert put(1000) == HostEnergy(None, None)
    assert put(1200) == HostEnergy(600_000_000, 40_000_000)
    assert rig.states() == []


def test_a_wrap_is_counted_exactly(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.rapl("intel-rapl:0", "package-0", RANGE_UJ - 70_000_000, RANGE_UJ)
    rig.read()
    rig.tree.rapl("intel-rapl:0", "package-0", 80_000_000, RANGE_UJ)
    assert rig.read().cpu_uj == 150_000_000


def test_many_wraps_in_a_row_add_up(tmp_path: Path) -> None:
    """A day at 300 W: the sum of the differences is the energy, to the microjoule."""
    rig = Rig(tmp_path)
    minutes, total_uj = 24 * 60, 0
    for minute in range(minutes + 1):
        rig.tree.rapl("intel-rapl:0", "package-0", 300 * 60 * 10**6 * minute % RANGE_UJ, RANGE_UJ)
        total_uj += rig.read(60).cpu_uj or 0
    assert total_uj == 300 * 60 * 10**6 * minutes


def test_a_reset_is_no_energy(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for uj, expected in ((200_000_000_000, None), (5_000_000, None), (105_000_000, 100_000_000)):
        rig.tree.rapl("intel-rapl:0", "package-0", uj)
        assert rig.read().cpu_uj == expected


def test_after_a_gap_in_which_it_may_have_gone_round_there_is_no_figure(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    longest_s = RANGE_UJ // (PLAUSIBLE_W * 10**6)
    for uj, seconds, expected in ((0, 1, None), (10, longest_s, 10), (20, longest_s + 1, None), (30, 1, 10)):
        rig.tree.rapl("intel-rapl:0", "package-0", uj)
        assert rig.read(seconds).cpu_uj == expected


def test_without_memory_zones_only_these_are_missing(tmp_path: Path) -> None:
    """AMD's CPUs, and Intel's for desktops."""
    rig = Rig(tmp_path)
    for uj in (0, 50):
        rig.tree.rapl("intel-rapl:0", "package-0", uj)
        energy = rig.read()
    assert energy == HostEnergy(50, None)
    assert rig.states() == [("host.rapl.dram", "unsupported")]


def test_a_host_without_powercap_says_so_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for _ in range(3):
        assert rig.read() == HostEnergy(None, None)
    assert rig.states() == [("host.rapl.cpu", "unsupported"), ("host.rapl.dram", "unsupported")]


def test_a_refusal_tells_what_an_administrator_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    rig.tree.rapl("intel-rapl:0", "package-0", 5)

    def refuse(file: KernelFile) -> bytes:
        raise PermissionError(13, "Permission denied", file.path)

    monkeypatch.setattr(KernelFile, "read_short", refuse)
    for _ in range(3):
        assert rig.read().cpu_uj is None
    (reason,) = (row[3] for row in rig.rows if row[1] == "host.rapl.cpu")
    assert "intel-rapl:0/energy_uj" in reason
    assert "chgrp" in reason
    assert rig.states()[0] == ("host.rapl.cpu", "unsupported")
