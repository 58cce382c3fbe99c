"""Says how far a long export is."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")

_BATCH = 4096
"""Items between two looks at the clock."""


class Pace:
    """Says `what N` at most every `period_s`, and nothing in the first `period_s`. N counts what was done."""

    def __init__(
        self,
        say: Callable[[str], None],
        what: str,
        *,
        period_s: float = 2.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._what, self._period_s, self._now = say, what, period_s, now
        self._last = now()
        self._done = 0

    def add(self, count: int) -> None:
        """Count what was done since the call before."""
        self._done += count
        now = self._now()
        if now - self._last >= self._period_s:
            self._last = now
            self._say(f"{self._what} {self._done:,}")

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, counted as they go by."""
        items = iter(items)
        while batch := list(islice(items, _BATCH)):
            yield from batch
            self.add(len(batch))
