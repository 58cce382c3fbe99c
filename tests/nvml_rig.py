"""The sampler's GPU parts on the fake NVML, in this process and on one clock that the test sets."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

from agprof.model.tables import BY_NAME
from agprof.sampler.nvml import Gpus
from agprof.sampler.states import States
from fakes.nvml.build import FakeNvml
from nvml_scenario import SECOND_NS, Scenario, VirtualClock

Tier = Literal["fast", "medium", "slow"]
Row = dict[str, Any]
ALL_TIERS: tuple[Tier, ...] = ("fast", "medium", "slow")


class Rig:
    """`Gpus` with everything that it appends. Time 0 of the scenario is `start_ns` of the sampler's clock."""

    def __init__(
        self, nvml: Any, clock: VirtualClock, pids: Mapping[int, tuple[int | None, str]], start_ns: int = 0
    ) -> None:
        self.nvml = nvml
        self.now_ns = self._start_ns = start_ns
        self.clock = clock
        self._rows: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self.states = States(self.append)
        self.gpus = Gpus(self.append, self.states, nvml, clock=lambda: self.now_ns, pids=lambda: pids)

    def append(self, table: str, row: tuple[Any, ...]) -> None:
        assert len(row) <= len(BY_NAME[table].columns)
        self._rows[table].append(row)

    def set_time(self, time_s: float) -> None:
        self.now_ns = self._start_ns + round(time_s * SECOND_NS)
        self.clock.set_ns(self.now_ns - self._start_ns)

    def sample(self, time_s: float, *tiers: Tier) -> None:
        """Have these tiers (none named: all) take a sample at this time."""
        self.set_time(time_s)
        for tier in tiers or ALL_TIERS:
            getattr(self.gpus, tier).sample(self.now_ns)

    def rows(self, table: str, **equal: Any) -> list[Row]:
        """Rows of a table with names, those whose columns have these values."""
        names = [column.name for column in BY_NAME[table].columns]
        found = [dict(zip(names, row, strict=False)) for row in self._rows[table]]
        return [row for row in found if all(row[name] == value for name, value in equal.items())]

    def last(self, table: str, gpu: int = 0) -> Row:
        return self.rows(table, gpu=gpu)[-1]

    def values(self, table: str, column: str, gpu: int = 0) -> list[Any]:
        return [row[column] for row in self.rows(table, gpu=gpu)]

    def written(self) -> dict[str, list[tuple[Any, ...]]]:
        """The rows of all tables as they were appended."""
        return dict(self._rows)

    def tables(self) -> list[str]:
        return [table for table in self._rows if table != "sampler_state"]

    def said(self, field: str) -> list[tuple[str, str]]:
        """(state, reason) of each row about a field, in order."""
        return [(row["state"], row["reason"]) for row in self.rows("sampler_state", field=field)]


RigMaker = Callable[..., AbstractContextManager[Rig]]
"""The fixture `rig` of the sampler's tests: `rig_of` with the fake and a folder filled in."""


@contextmanager
def rig_of(
    fake: FakeNvml,
    scenario: Scenario,
    folder: Path,
    *,
    without: tuple[str, ...] = (),
    log: Path | None = None,
    pids: Mapping[int, tuple[int | None, str]] | None = None,
    start_ns: int = 0,
) -> Iterator[Rig]:
    """A rig on a scenario; `without`: symbols that the driver does not have."""
    clock = VirtualClock(folder / "clock")
    with fake.binding(scenario.write(folder), clock.path, without=without, log=log) as nvml:
        rig = Rig(nvml, clock, pids or {}, start_ns)
        try:
            yield rig
        finally:
            rig.gpus.close()
