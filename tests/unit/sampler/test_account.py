"""What the sampler says about itself."""

from typing import Any

from agprof.sampler.account import Account
from agprof.sampler.loop import Clock
from agprof.sampler.states import SECOND_NS


class Rig:
    def __init__(self) -> None:
        self.now, self.cpu, self.lost = 1_000 * SECOND_NS, 0, 0
        self.costs = {"host.medium": 0, "gpu.fast": 0}
        self.rows: list[tuple[Any, ...]] = []
        clock = Clock(monotonic_ns=lambda: self.now, process_cpu_ns=lambda: self.cpu, resident_bytes=lambda: 123)
        self.account = Account(
            lambda table, row: self.rows.append(row), lambda: self.lost, lambda: dict(self.costs), clock
        )


def test_it_accounts_for_itself_every_ten_seconds_with_the_share_of_each_tier() -> None:
    rig = Rig()
    for _ in range(31):
        rig.account.look()
        rig.now += SECOND_NS
        rig.cpu += 9_000_000
        rig.costs["host.medium"] += 5_000_000
        rig.costs["gpu.fast"] += 25_000
    shares = "host.medium 0.5000 %, gpu.fast 0.0025 % of a core"
    assert [row[1:4] for row in rig.rows] == [("self", "ok", "")] + [("self", "ok", shares)] * 3
    assert [row[4] for row in rig.rows] == [number * 90_000_000 for number in range(4)]
    assert {row[5] for row in rig.rows} == {123}


def test_lost_rows_are_said_once() -> None:
    rig = Rig()
    rig.lost = 5
    rig.account.write(rig.now)
    rig.account.write(rig.now + 1)
    assert [row[1:4] for row in rig.rows] == [
        ("store", "retry", "5 rows could not be written"), ("self", "ok", ""),
        ("self", "ok", "host.medium 0.0000 %, gpu.fast 0.0000 % of a core"),
    ]  # fmt: skip
