"""Says how far a long export is."""

import time
from collections.abc import Callable


class Pace:
    """Says `what N` at most every `period_s`, and nothing in the first `period_s`."""

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

    def at(self, number: int) -> None:
        now = self._now()
        if now - self._last >= self._period_s:
            self._last = now
            self._say(f"{self._what} {number:,}")
