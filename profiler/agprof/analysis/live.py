"""A running job at a glance: rows of the ranks' streams folded into one small state per rank.

An approximation for the display only (phases by their outermost spans, communication taken out of the phase that
issued it); the report's figures come from `analysis.time`.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agprof.model.tables import BY_NAME, PHASES

RECENT_STEPS = 20
"""Steps behind the rates and shares."""


def _columns(table: str, *names: str) -> tuple[int, ...]:
    order = [column.name for column in BY_NAME[table].columns]
    return tuple(order.index(name) for name in names)


_STEP = _columns("steps", "step", "start_ns", "end_ns", "loss")
_MICRO = _columns("micro_steps", "step", "loss")
_SPAN = _columns("spans", "step", "category", "name", "start_ns", "end_ns")
_COLLECTIVE = _columns("collectives", "step", "start_ns", "issue_end_ns", "wait_ns", "caller")
_MEMORY = _columns("memory", "rss_bytes", "allocated_bytes")


@dataclass(slots=True)
class LiveRank:
    """What the display shows of one rank. Feed it with `fold`."""

    rank: int
    steps_done: int = 0
    loss: float | None = None
    rss_bytes: int | None = None
    allocated_bytes: int | None = None
    last_phase: str | None = None
    last_end_ns: int | None = None
    """When the last step ended, CLOCK_MONOTONIC of the rank's node."""
    _durations_ns: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    _phase_ns: dict[int, dict[str, int]] = field(default_factory=dict)
    _step_ns: dict[int, int] = field(default_factory=dict)

    def fold(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Take in rows of one table; tables that the display does not show are ignored."""
        if table == "steps":
            self._fold_steps(rows)
        elif table == "micro_steps":
            for row in rows:
                loss = row[_MICRO[1]]
                self.loss = loss if loss is not None else self.loss
        elif table == "spans":
            self._fold_spans(rows)
        elif table == "collectives":
            self._fold_collectives(rows)
        elif table == "memory":
            for row in rows:
                self.rss_bytes, self.allocated_bytes = row[_MEMORY[0]], row[_MEMORY[1]]

    def steps_per_s(self) -> float | None:
        """Over the recent steps; None before two steps."""
        total = sum(self._durations_ns)
        return len(self._durations_ns) / (total / 1e9) if len(self._durations_ns) > 1 and total > 0 else None

    def eta_s(self, total_steps: int | None) -> float | None:
        """Seconds left at the recent rate; None when total or rate is not known, or the job went past the total."""
        rate = self.steps_per_s()
        if total_steps is None or rate is None or self.steps_done > total_steps:
            return None
        return (total_steps - self.steps_done) / rate

    def late_ns(self, now_ns: int) -> int | None:
        """Time since the last step ended; None before the first. `now_ns` on the clock of the rank's node."""
        return None if self.last_end_ns is None else max(0, now_ns - self.last_end_ns)

    def shares(self) -> dict[str, float]:
        """Phase -> share of the recent steps, adding up to 1; {} before the first step."""
        total = sum(self._step_ns.values())
        if total <= 0:
            return {}
        sums = dict.fromkeys(PHASES, 0)
        for step in self._step_ns:
            for phase, duration_ns in self._phase_ns.get(step, {}).items():
                sums[phase] += max(0, duration_ns)
        named = sum(sums.values())
        sums["other"] += max(0, total - named)
        whole = max(total, named)
        return {phase: value / whole for phase, value in sums.items()}

    def _fold_steps(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            step, start_ns, end_ns, loss = (row[index] for index in _STEP)
            self.steps_done = step + 1
            self.last_end_ns = end_ns
            self.loss = loss if loss is not None else self.loss
            self._durations_ns.append(end_ns - start_ns)
            self._step_ns[step] = end_ns - start_ns
            for old in [known for known in self._step_ns if known <= step - RECENT_STEPS]:
                self._step_ns.pop(old)
                self._phase_ns.pop(old, None)

    def _fold_spans(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            step, category, name, start_ns, end_ns = (row[index] for index in _SPAN)
            if category == "phase" and name in PHASES:
                self.last_phase = name
                self._add(step, name, end_ns - start_ns)

    def _fold_collectives(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            step, start_ns, issue_end_ns, wait_ns, caller = (row[index] for index in _COLLECTIVE)
            exposed_ns = issue_end_ns - start_ns + wait_ns
            self._add(step, "communication", exposed_ns)
            if caller != "other":
                self._add(step, caller, -exposed_ns)

    def _add(self, step: int, phase: str, duration_ns: int) -> None:
        phases = self._phase_ns.setdefault(step, {})
        phases[phase] = phases.get(phase, 0) + duration_ns
