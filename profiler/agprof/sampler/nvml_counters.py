"""Changes of counters that run round at 32 or 64 bits, and that begin anew when the driver is loaded again.

A counter of b bits that was read as `last` and then as `value` has moved by (value - last) modulo 2^b, as long as it
did not run round twice. That is its change if the device can have moved it so far in the time between the two readings;
otherwise the counter was reset, and nothing is known about the time between. A step backwards is thus taken for a wrap
where that is plausible, and for a reset else; a jump forwards that no link can make is a reset too.

    >>> counter = Counter(most_per_s=1e9)
    >>> [counter.change(second * 10**9, value, 32) for second, value in enumerate([2**32 - 5, 10, 2])]
    [None, 15, None]
"""

from agprof.sampler.states import SECOND_NS

REFRESH_NS = SECOND_NS // 2
"""The driver refreshes counters by itself, up to this late: what it adds at once may be of that much more time."""
LONGEST_NS = SECOND_NS
"""Over more than this a counter that may have run round twice tells nothing."""


class Counter:
    """One counter. `most_per_s` is what the device can add to it per second at most, in the counter's unit."""

    # Small objects: there are a dozen per GPU, and after a pause none is in a cache of the CPU.
    __slots__ = ("_last", "_most_per_s", "period_ns")

    def __init__(self, most_per_s: float) -> None:
        self._most_per_s = most_per_s
        self._last: tuple[int, int] | None = None
        self.period_ns = 0
        """Between the two readings of the newest change."""

    def change(self, now_ns: int, value: int | None, bits: int) -> int | None:
        """How far the counter moved since the reading before. None at first, after a gap and after a reset."""
        last, self._last = self._last, None if value is None else (now_ns, value)
        if last is None or value is None or now_ns <= last[0]:
            return None
        period_ns = self.period_ns = now_ns - last[0]
        if period_ns > LONGEST_NS and self.ambiguous(period_ns, bits):
            return None
        moved = (value - last[1]) % (1 << bits)
        return moved if moved <= self._most_per_s * (period_ns + REFRESH_NS) / SECOND_NS else None

    def rate(self, now_ns: int, value: int | None, bits: int) -> float | None:
        """The change per second."""
        change = self.change(now_ns, value, bits)
        return None if change is None else change * SECOND_NS / self.period_ns

    def ambiguous(self, period_ns: int, bits: int) -> bool:
        """Whether the counter can have run round more than once in this time."""
        return self._most_per_s * period_ns / SECOND_NS >= 1 << bits
