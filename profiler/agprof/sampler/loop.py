"""Samples the tiers of one thread when they are due, and keeps each within its budget.

    fast    0.2 s   the GPUs' power, energy, clocks, utilization, traffic
    medium  1 s     host, network, the ranks' processes; the GPUs' memory, temperature, activity
    slow    5 s     cores; the GPUs' processes and memory errors

A tier has a schedule and a budget of its own, on each of the two threads (host and GPUs): a driver that is slow slows
down what is asked of it and nothing else.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, Protocol

from agprof.sampler.budget import SLOW_READ_NS, Budget
from agprof.sampler.run_delay import RunDelay
from agprof.sampler.schedule import Schedule
from agprof.sampler.states import Append, States, describe

TierName = Literal["fast", "medium", "slow"]
MAX_PERIOD_S: Mapping[TierName, float] = {"fast": 10.0, "medium": 10.0, "slow": 60.0}
"""As far as a budget slows a tier down; one that was asked to be slower stays as it is."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Part(Protocol):
    """A group of readings that are made together, on one thread.

    Its first call is not held against the budget: it loads, opens and initialises.
    """

    def sample(self, now_ns: int) -> int:
        """Append rows for this time. Returns the ns of it that keep a budget of their own, or that happen once."""


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
    thread_cpu_ns: Callable[[], int] = time.thread_time_ns
    process_cpu_ns: Callable[[], int] = time.process_time_ns
    run_delay_ns: Callable[[], int] = field(default_factory=RunDelay)
    """Of all threads together."""
    resident_bytes: Callable[[], int | None] = _resident_bytes


@dataclass(slots=True)
class Tier:
    """Parts that are sampled together at one period."""

    name: TierName
    parts: Mapping[str, Part]
    schedule: Schedule
    budget: Budget = field(default_factory=Budget)
    due_ns: int = 0
    cpu_ns: int = 0
    """CPU time spent in it so far."""
    sampled: bool = False


def tier(name: TierName, period_s: float, parts: Mapping[str, Part], random: Random) -> Tier:
    return Tier(name, parts, Schedule(period_s, max(period_s, MAX_PERIOD_S[name]), random))


@dataclass(slots=True)
class Lane:
    """The tiers of one thread. Only that thread calls anything but `sampling`."""

    name: str
    """`host` or `gpu`, for messages."""
    tiers: Sequence[Tier]
    append: Append
    states: States
    flush: Callable[[], None]
    clock: Clock = field(default_factory=Clock)
    sampling: tuple[str, int] | None = None
    """(part, since when in ns) while one is being sampled; a watchdog on another thread reads it."""

    @property
    def due_ns(self) -> int:
        """When `run_due` has something to do next."""
        return min(tier.due_ns for tier in self.tiers)

    def run_due(self) -> None:
        """Sample the tiers whose time has come. A part that fails leaves a row of sampler_state and no other trace."""
        for tier in self.tiers:
            if self.clock.monotonic_ns() >= tier.due_ns:
                self._run(tier)

    def costs_ns(self) -> dict[str, int]:
        """CPU time of each tier so far; may be asked by another thread."""
        return {f"{self.name}.{tier.name}": tier.cpu_ns for tier in self.tiers}

    def finish(self) -> None:
        """Sample everything a last time."""
        for tier in self.tiers:
            self._sample(tier)

    def _run(self, tier: Tier) -> None:
        first = not tier.sampled
        if first:
            tier.sampled = True
            tier.schedule.start(self.clock.monotonic_ns())
        cpu_ns, slow = self._sample(tier, flush_each=first)
        tier.cpu_ns += cpu_ns
        end_ns = self.clock.monotonic_ns()
        if not first:
            reason = "; ".join(slow) or tier.budget.excess(end_ns, cpu_ns)
            if reason and tier.schedule.slow_down(end_ns):
                tier.budget.restart()
                reason = f"{self.name}: {reason}; the period is {tier.schedule.period_s:g} s from here on"
                cpu_ns = self.clock.process_cpu_ns()
                self.append("sampler_state", (end_ns, f"tier.{tier.name}", "slowed", reason, cpu_ns, None))
        tier.due_ns = tier.schedule.next_ns(end_ns)

    def _sample(self, tier: Tier, flush_each: bool = False) -> tuple[int, list[str]]:
        """Sample all parts. Returns the CPU time that counts, and a sentence on each part that was slow."""
        clock, slow, cpu_ns = self.clock, [], 0
        for name, part in tier.parts.items():
            begin_ns, begin_cpu_ns, delay_ns = clock.monotonic_ns(), clock.thread_cpu_ns(), clock.run_delay_ns()
            self.sampling = (name, begin_ns)
            excused_ns = 0
            try:
                excused_ns = part.sample(begin_ns)
                self.states.set(begin_ns, name, "ok")
            except Exception as error:
                self.states.set(begin_ns, name, "retry", describe(error))
            finally:
                self.sampling = None
            spent_ns = clock.monotonic_ns() - begin_ns - excused_ns
            cpu_ns += max(0, clock.thread_cpu_ns() - begin_cpu_ns - excused_ns)
            # A host whose CPUs are all busy makes everybody wait; that is not what the reading costs.
            if spent_ns > SLOW_READ_NS and (spent_ns := spent_ns - clock.run_delay_ns() + delay_ns) > SLOW_READ_NS:
                slow.append(f"reading {name} took {spent_ns / 1e6:.0f} ms")
            if flush_each:
                # A driver's library may end the process at its first call: what was read before is on the disk then.
                self.flush()
        return cpu_ns, slow
