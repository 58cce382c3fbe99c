"""Rows of core_samples: cores that are busy, come and go."""

import os
from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.cores import Cores
from agprof.sampler.cpu_times import CpuTimes, cores_of, whole_of
from agprof.sampler.states import SECOND_NS, States
from proc_tree import ProcTree

COLUMNS = [column.name for column in BY_NAME["core_samples"].columns]


class Rig:
    def __init__(self, root: Path) -> None:
        self.tree = ProcTree(root)
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.cores = Cores(append, States(append), root)
        self.now = 100 * SECOND_NS

    def sample(self, *cores: tuple[int, ...]) -> list[tuple[int, int, float | None]]:
        """(core, period, busy) of each row, for these ticks."""
        self.now += 5 * SECOND_NS
        self.tree.cpu((0,) * 10, *cores)
        begin = len(self.rows)
        self.cores.sample(self.now)
        rows = [dict(zip(COLUMNS, row, strict=True)) for table, row in self.rows[begin:] if table == "core_samples"]
        assert all(row["time_ns"] == self.now for row in rows)
        return [(row["core"], row["period_ns"], row["busy_ratio"]) for row in rows]


def test_each_core_has_its_own_busy_share(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    period = 5 * SECOND_NS
    idle, busy = (0, 0, 0, 100, 0, 0, 0, 0), (100, 0, 0, 0, 0, 0, 0, 0)
    assert rig.sample((0,) * 8, (0,) * 8) == [(0, 0, None), (1, 0, None)]
    assert rig.sample(idle, busy) == [(0, period, 0.0), (1, period, 1.0)]
    assert rig.sample((100, 0, 0, 140, 60, 0, 0, 0), (100 + 20, 10, 5, 25, 25, 5, 5, 5)) == [
        (0, period, 100 / 200),
        (1, period, 50 / 100),
    ]


def test_a_core_that_comes_has_no_share_at_first_and_one_that_goes_no_row(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.sample((0,) * 8)
    assert rig.sample((1, 0, 0, 1, 0, 0, 0, 0), (9,) * 8)[1] == (1, 5 * SECOND_NS, None)
    assert len(rig.sample((2, 0, 0, 2, 0, 0, 0, 0))) == 1


def test_a_host_without_proc_stat_says_so_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "proc/stat").unlink()
    for _ in range(3):
        rig.now += SECOND_NS
        rig.cores.sample(rig.now)
    assert [(row[1], row[2]) for _, row in rig.rows] == [("host.cores", "unsupported")]


def test_shares_of_all_states_add_up_to_one() -> None:
    last, now = CpuTimes((0,) * 8), CpuTimes((13, 2, 7, 50, 11, 3, 5, 9))
    shares = now.shares_since(last)
    assert shares is not None
    assert (shares.busy, shares.iowait, shares.steal) == pytest.approx((39 / 100, 11 / 100, 9 / 100))
    assert now.shares_since(now) is None


def test_this_hosts_file_is_understood() -> None:
    data = Path("/proc/stat").read_bytes()
    cores = cores_of(data)
    assert len(cores) == os.sysconf("SC_NPROCESSORS_ONLN")
    total = sum(sum(times.ticks) for times in cores.values())
    assert total == pytest.approx(sum(whole_of(data).ticks), rel=0.01)
