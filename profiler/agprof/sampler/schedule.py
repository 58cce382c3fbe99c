"""When a tier samples: an absolute grid with jitter."""

from dataclasses import dataclass
from random import Random

from agprof.sampler.states import SECOND_NS

JITTER = 0.2


@dataclass(slots=True)
class Schedule:
    """Sample times on an absolute grid, each moved by up to 20 % of the period either way.

    The grid does not drift with the cost of sampling; the jitter keeps samples from falling into step with the
    training. A time that was missed (a stopped process, a slow read) is left out and not made up for.
    """

    period_s: float
    max_period_s: float
    """As far as `slow_down` goes."""
    random: Random
    _base_ns: int = 0
    _index: int = 0

    def start(self, now_ns: int) -> None:
        """Make `now` the first point of the grid."""
        self._base_ns, self._index = now_ns, 0

    def slow_down(self, now_ns: int) -> bool:
        """Double the period, up to the longest. False when it was as long as it gets."""
        if self.period_s >= self.max_period_s:
            return False
        self.period_s = min(2 * self.period_s, self.max_period_s)
        self.start(now_ns)
        return True

    def next_ns(self, now_ns: int) -> int:
        """The time of the next sample, in the future of `now`. Call once per sample."""
        period_ns = int(self.period_s * SECOND_NS)
        self._index = max(self._index + 1, (now_ns - self._base_ns) // period_ns + 1)
        jitter = self.random.uniform(-JITTER, JITTER)
        due_ns = self._base_ns + self._index * period_ns + int(jitter * period_ns)
        return max(due_ns, now_ns)
