"""When to sample, and what the sampling may cost."""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from agprof.sampler.states import SECOND_NS, Append, States, describe

JITTER = 0.2
MAX_PERIOD_S = 10.0
BUDGET_RATIO = 0.01
"""Of one core."""
BUDGET_SAMPLES = 30
SLOW_READ_NS = 50_000_000
SELF_PERIOD_NS = 10 * SECOND_NS
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Part(Protocol):
    """A group of readings that are made together."""

    def sample(self, now_ns: int) -> int:
        """Append rows for this time. Returns the ns of it that keep a budget of their own."""


def _run_delay_ns() -> int:
    """Time this process was ready to run and no CPU was free, so far; 0 where the kernel does not say."""
    try:
        with open("/proc/self/schedstat", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Everything the loop knows about time; tests put their own functions here."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    cpu_ns: Callable[[], int] = time.process_time_ns
    run_delay_ns: Callable[[], int] = _run_delay_ns
    resident_bytes: Callable[[], int | None] = _resident_bytes


@dataclass(slots=True)
class Schedule:
    """Sample times on an absolute grid, each moved by up to 20 % of the period either way.

    The grid does not drift with the cost of sampling; the jitter keeps samples from falling into step with the
    training. A time that was missed (a stopped process, a slow read) is left out and not made up for.
    """

    period_s: float
    random: Random
    _base_ns: int = 0
    _index: int = 0

    def start(self, now_ns: int) -> None:
        """Make `now` the first point of the grid."""
        self._base_ns, self._index = now_ns, 0

    def slow_down(self, now_ns: int) -> bool:
        """Double the period, up to 10 s. False when it was as long as it gets."""
        if self.period_s >= MAX_PERIOD_S:
            return False
        self.period_s = min(2 * self.period_s, MAX_PERIOD_S)
        self.start(now_ns)
        return True

    def next_ns(self, now_ns: int) -> int:
        """The time of the next sample, in the future of `now`. Call once per sample."""
        period_ns = int(self.period_s * SECOND_NS)
        self._index = max(self._index + 1, (now_ns - self._base_ns) // period_ns + 1)
        jitter = self.random.uniform(-JITTER, JITTER)
        due_ns = self._base_ns + self._index * period_ns + int(jitter * period_ns)
        return max(due_ns, now_ns)


@dataclass(slots=True)
class Sampler:
    """Samples all parts, keeps the budget, and accounts for itself."""

    append: Append
    flush: Callable[[], None]
    lost_rows: Callable[[], int]
    states: States
    parts: Mapping[str, Part]
    schedule: Schedule
    clock: Clock = field(default_factory=Clock)
    due_ns: int = 0
    """When `tick` is to be called next."""
    _started: bool = False
    _window: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=BUDGET_SAMPLES + 1))
    _self_due_ns: int = 0
    _reported_lost: int = 0

    def tick(self) -> None:
        """Take one sample and set `due_ns`. A part that fails leaves a row of sampler_state and no other trace."""
        now_ns = self.clock.monotonic_ns()
        first = not self._started
        if first:
            self._started = True
            self.schedule.start(now_ns)
        slow = self._sample_parts(flush_each=first)
        end_ns = self.clock.monotonic_ns()
        self._window.append((end_ns, self.clock.cpu_ns()))
        self._keep_budget(end_ns, slow)
        if end_ns >= self._self_due_ns:
            self._self_due_ns = end_ns + SELF_PERIOD_NS
            self._append_self(end_ns)
        self.due_ns = self.schedule.next_ns(end_ns)
        self.flush()

    def finish(self) -> None:
        """Take the last sample and account for the whole."""
        self._sample_parts(flush_each=False)
        self._append_self(self.clock.monotonic_ns())
        self.flush()

    def _sample_parts(self, flush_each: bool) -> list[str]:
        slow = []
        for name, part in self.parts.items():
            begin_ns, delay_ns = self.clock.monotonic_ns(), self.clock.run_delay_ns()
            excused_ns = 0
            try:
                excused_ns = part.sample(begin_ns)
                self.states.set(begin_ns, name, "ok")
            except Exception as error:
                self.states.set(begin_ns, name, "retry", describe(error))
            spent_ns = self.clock.monotonic_ns() - begin_ns - excused_ns
            # A host whose CPUs are all busy makes everybody wait; that is not what the reading costs.
            if spent_ns > SLOW_READ_NS and (spent_ns := spent_ns - self.clock.run_delay_ns() + delay_ns) > SLOW_READ_NS:
                slow.append(f"reading {name} took {spent_ns / 1e6:.0f} ms")
            if flush_each:
                # A driver's library may end the process at its first call: what was read before is on the disk then.
                self.flush()
        return slow

    def _keep_budget(self, now_ns: int, slow: list[str]) -> None:
        reason = "; ".join(slow)
        (first_ns, first_cpu_ns), (last_ns, last_cpu_ns) = self._window[0], self._window[-1]
        if len(self._window) > BUDGET_SAMPLES and last_ns > first_ns:
            ratio = (last_cpu_ns - first_cpu_ns) / (last_ns - first_ns)
            if ratio > BUDGET_RATIO:
                reason = reason or f"sampling took {ratio:.1%} of a core over the last {BUDGET_SAMPLES} samples"
        if reason and self.schedule.slow_down(now_ns):
            self._window.clear()
            reason = f"{reason}; the period is {self.schedule.period_s:g} s from here on"
            self.append("sampler_state", (now_ns, "self", "slowed", reason, self.clock.cpu_ns(), None))

    def _append_self(self, now_ns: int) -> None:
        lost = self.lost_rows()
        if lost != self._reported_lost:
            reason = f"{lost - self._reported_lost} rows could not be written"
            self._reported_lost = lost
            self.append("sampler_state", (now_ns, "store", "retry", reason, None, None))
        self.append("sampler_state", (now_ns, "self", "ok", "", self.clock.cpu_ns(), self.clock.resident_bytes()))
