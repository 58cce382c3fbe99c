"""Decoded events get their times and are handed to the rows: fast where doubles are exact, else as decimals."""

import sys
from collections import Counter as Count
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeVar

import numpy as np

from agprof.importers import kineto_events as kinds
from agprof.importers.kineto_events import Complete, Event, ExactComplete, ExactEvent, Instant
from agprof.importers.kineto_rows import Rows
from agprof.importers.kineto_time import array_ns, exact_ns

MEMORY = "[memory]"
Dated = TypeVar("Dated", Complete, Instant, kinds.Counter)
_MOST = sys.float_info.max
"""The largest sample of a counter that a table can hold."""
_NEED_ORDER = {kinds.Begin, kinds.End}


def take(rows: Rows, events: Sequence[Event]) -> bool:
    """Hand over events as the fast decoder gives them: all of them, or none and False, when their times are not exact
    as doubles or when there are some that only `Exact` takes. Raises OSError."""
    complete = [event for event in events if type(event) is Complete]
    others = [event for event in events if type(event) is not Complete] if len(complete) < len(events) else []
    classes = Count(map(type, others))
    if not _NEED_ORDER.isdisjoint(classes):
        return False
    instants = [event for event in others if type(event) is Instant]
    memory = [event for event in instants if event.name == MEMORY]
    counters = [event for event in others if type(event) is kinds.Counter]
    starts, durations = array_ns([event.ts for event in complete]), array_ns([event.dur for event in complete])
    times, sampled = array_ns([event.ts for event in memory]), array_ns([event.ts for event in counters])
    if starts is None or durations is None or times is None or sampled is None:
        return False
    rows.events.update(_others(classes))
    rows.events.update([event.cat or "ph i" for event in instants])
    rows.complete(complete, starts, durations)
    rows.memory(memory, times)
    _samples(rows, counters, sampled.tolist())
    return True


class NeedsOrderError(Exception):
    """Some events must be seen in the order of the file."""


class Exact:
    """Hands over events whose times are int, Decimal or anything else, and joins begins with their ends."""

    def __init__(self, rows: Rows, *, in_order: bool) -> None:
        self._rows = rows
        self._in_order = in_order
        self._open: dict[tuple[Any, Any], list[kinds.Begin]] = {}

    def take(self, events: Sequence[ExactEvent]) -> None:
        """Raises OSError, and NeedsOrderError, having taken nothing, when begins and ends come out of order."""
        rows = self._rows
        if not self._in_order and any(isinstance(event, kinds.Begin | kinds.End) for event in events):
            raise NeedsOrderError
        rows.events.update(_others(Count(map(type, events))))
        complete = self._dated([event for each in events if (event := self._joined(each)) is not None])
        lasting = [(event, start, span) for event, start in complete if (span := exact_ns(event.dur)) is not None]
        rows.left_out["no duration"] += len(complete) - len(lasting)
        rows.complete(
            [event for event, _, _ in lasting],
            np.array([start for _, start, _ in lasting], np.int64),
            np.array([duration for _, _, duration in lasting], np.int64),
        )
        instants = [event for event in events if isinstance(event, Instant)]
        rows.events.update([event.cat or "ph i" for event in instants])
        memory = self._dated([event for event in instants if event.name == MEMORY])
        rows.memory([event for event, _ in memory], np.array([time for _, time in memory], np.int64))
        counters = self._dated([event for event in events if isinstance(event, kinds.Counter)])
        _samples(rows, [event for event, _ in counters], [time for _, time in counters])

    def close(self) -> None:
        """Count what was begun and never ended."""
        self._rows.left_out["begin without end"] += sum(len(waiting) for waiting in self._open.values())

    def _dated(self, events: list[Dated]) -> list[tuple[Dated, int]]:
        dated = [(event, time) for event in events if (time := exact_ns(event.ts)) is not None]
        self._rows.left_out["no time"] += len(events) - len(dated)
        return dated

    def _joined(self, event: ExactEvent) -> Complete | None:
        """A complete event, also where its begin and end are events of their own."""
        if isinstance(event, Complete):
            return event
        if isinstance(event, kinds.Begin):
            self._open.setdefault((event.pid, event.tid), []).append(event)
        elif isinstance(event, kinds.End):
            waiting = self._open.get((event.pid, event.tid))
            if not waiting:
                self._rows.left_out["end without begin"] += 1
                return None
            begin = waiting.pop()
            duration = None
            if isinstance(begin.ts, int | Decimal) and isinstance(event.ts, int | Decimal):
                duration = Decimal(event.ts) - Decimal(begin.ts)
            return ExactComplete(
                cat=begin.cat, name=begin.name, pid=begin.pid, tid=begin.tid, ts=begin.ts, dur=duration, args=begin.args
            )
        return None


def _samples(rows: Rows, events: Sequence[kinds.Counter], times: Sequence[int]) -> None:
    """Every number that a counter event holds, under the event's name and its own."""
    numbers = [
        (key if key == event.name else f"{event.name}: {key}", time, value)
        for event, time in zip(events, times, strict=True)
        for key, value in (event.args or {}).items()
        if isinstance(value, int | Decimal | float) and not isinstance(value, bool)
    ]
    samples = [(name, time, float(value)) for name, time, value in numbers if -_MOST <= value <= _MOST]
    rows.left_out["impossible sample"] += len(numbers) - len(samples)
    at = np.array([time for _, time, _ in samples], np.int64)
    rows.counters([name for name, _, _ in samples], at, [value for _, _, value in samples])


def _others(classes: "Count[type[Any]]") -> dict[str, int]:
    """Events without a category of their own, by phase."""
    counted = (kinds.Described, kinds.ArrowStart, kinds.ArrowEnd)
    phases = {f"ph {each.__struct_config__.tag}": classes[each] for each in counted if each in classes}
    counters = sum(count for each, count in classes.items() if issubclass(each, kinds.Counter))
    return phases | ({"ph C": counters} if counters else {})
