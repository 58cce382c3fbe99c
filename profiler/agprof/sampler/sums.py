"""Rates of sums of counters whose parts come and go: interfaces, disks."""

from collections.abc import Mapping
from typing import Generic, TypeVar

from agprof.sampler.states import SECOND_NS

Key = TypeVar("Key")


class SumRate(Generic[Key]):
    """Turns counters by name into one rate per second, over those that were there at the reading before too.

    One that comes or goes must not look like traffic. None at first, when there is nothing in common, and where a
    counter went backwards.
    """

    def __init__(self) -> None:
        self._last: tuple[int, Mapping[Key, int]] | None = None

    def update(self, now_ns: int, values: Mapping[Key, int] | None) -> float | None:
        if values is None:
            return None
        last, self._last = self._last, (now_ns, values)
        if last is None or now_ns <= last[0]:
            return None
        deltas = [value - last[1][name] for name, value in values.items() if name in last[1]]
        if not deltas or min(deltas) < 0:
            return None
        return sum(deltas) * SECOND_NS / (now_ns - last[0])
