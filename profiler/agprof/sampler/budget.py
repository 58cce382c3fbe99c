"""What sampling may cost: one percent of a core per tier, and no reading above 50 ms."""

from collections import deque
from dataclasses import dataclass, field

from agprof.sampler.states import SECOND_NS

BUDGET_RATIO = 0.01
"""CPU time of one tier, of one core."""
WINDOW_NS = 30 * SECOND_NS
WINDOW_SAMPLES = 6
"""Fewest samples of a window: six of a tier of 5 s are the 30 s of the window."""
SLOW_READ_NS = 50_000_000


@dataclass(slots=True)
class Budget:
    """Says when a tier costs too much: by its CPU time over the last 30 s, or by one reading that was slow."""

    _samples: deque[tuple[int, int]] = field(default_factory=deque)
    """(end, CPU time) of the samples in the window; the oldest marks where it begins."""
    _spent_ns: int = 0

    def restart(self) -> None:
        """Forget what was: the period is another one."""
        self._samples.clear()
        self._spent_ns = 0

    def excess(self, end_ns: int, cpu_ns: int) -> str | None:
        """Take one sample into account. Why the tier is over its budget; None while it is not."""
        samples = self._samples
        if samples:
            self._spent_ns += cpu_ns
        samples.append((end_ns, cpu_ns))
        while len(samples) > WINDOW_SAMPLES + 1 and end_ns - samples[1][0] >= WINDOW_NS:
            samples.popleft()
            self._spent_ns -= samples[0][1]
        window_ns = end_ns - samples[0][0]
        if len(samples) <= WINDOW_SAMPLES or window_ns < WINDOW_NS:
            return None
        ratio = self._spent_ns / window_ns
        if ratio <= BUDGET_RATIO:
            return None
        return f"sampling it took {ratio:.1%} of a core over the last {window_ns / SECOND_NS:.0f} s"
