"""Events of a Kineto file become rows: sorted by category, put on the clock of the run, what is unusable counted."""

from collections import Counter as Count
from itertools import compress

import msgspec
import numpy as np
import polars as pl

from agprof.importers import kineto_columns as columns
from agprof.importers.kineto_columns import Columns
from agprof.importers.kineto_events import CPU_KINDS, GPU_KINDS, NOT_WORK, NOTHING, Args, Complete, Instant
from agprof.importers.kineto_time import MAX_INT, Int64s
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import TraceWriter

ROWS_HELD = 65_536
MAX_DURATION_NS = 30 * 86_400 * 10**9
"""Thirty days: what claims to last longer is damage."""
MAX_TIME_NS = MAX_INT // 2
"""The year 2116: what claims to be later, or as long before 1970, is damage."""
_CPU, _NO_ROW, _NO_CATEGORY = 16, 32, 33


_CODES = {
    **{category: int(kind) for category, kind in GPU_KINDS.items()},
    **{category: _CPU + int(kind) for category, kind in CPU_KINDS.items()},
    **dict.fromkeys(NOT_WORK, _NO_ROW),
    "": _NO_CATEGORY,
}
"""Code of a category: its GpuKind, or 16 + its CpuKind, or one of those that make no row."""
_MOST_CATEGORIES = 1000


class _Categories(dict[str, int]):
    """Numbers for categories as they appear; what each is, and how often it was seen."""

    def __init__(self) -> None:
        self._codes: list[int] = []
        self._seen = np.zeros(0, np.int64)

    def __missing__(self, category: str) -> int:
        if len(self._codes) > _MOST_CATEGORIES:
            category = "(more categories)"
            if category in self:
                return self[category]
        self[category] = len(self._codes)
        self._codes.append(_CODES.get(category, _CPU + int(CpuKind.OTHER)))
        return self[category]

    def codes(self, events: list[Complete]) -> Int64s:
        """The code of every event's category; they are counted."""
        numbers = np.fromiter([self[event.cat] for event in events], np.int64, len(events))
        seen = np.bincount(numbers, minlength=len(self._codes))
        seen[: len(self._seen)] += self._seen
        self._seen = seen
        return np.array(self._codes, np.int64)[numbers]

    def counts(self) -> dict[str, int]:
        return {category: int(self._seen[number]) for category, number in self.items()}


class Tally(msgspec.Struct):
    """What became of the events that one process read."""

    events: dict[str, int] = msgspec.field(default_factory=dict)
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    first_ns: int | None = None
    last_ns: int | None = None
    timestamp_unit: str = ""
    """`us` when every time is a whole number of microseconds, else `ns`."""


class Rows:
    """Takes events whose times are known, and writes their rows; one per writing process."""

    def __init__(self, writer: TraceWriter, offset_ns: int) -> None:
        """`offset_ns` is added to every time."""
        self.events: Count[str] = Count()
        self.left_out: Count[str] = Count()
        self._writer = writer
        self._offset_ns = offset_ns
        self._first_ns, self._last_ns = MAX_INT, -MAX_INT
        self._finer = False
        self._categories = _Categories()
        self._held: dict[str, list[Columns]] = {}
        self._rows_held: Count[str] = Count()

    def complete(self, events: list[Complete], starts: Int64s, durations: Int64s) -> None:
        """Events with a duration, their times as the file has them, in ns. Raises OSError."""
        if not events:
            return
        codes = self._categories.codes(events)
        if not self._finer:
            self._finer = bool((durations % 1000).any() or (starts % 1000).any())
        bad = self._unusable(codes, starts, durations)
        if bad.any():
            events = list(compress(events, (~bad).tolist()))
            codes, starts, durations = codes[~bad], starts[~bad], durations[~bad]
        starts = starts + self._offset_ns
        rows = codes < _NO_ROW
        if rows.any():
            self._first_ns = min(self._first_ns, int(starts[rows].min()))
            self._last_ns = max(self._last_ns, int((starts + durations)[rows].max()))
        on_gpu = codes < _CPU
        for chosen in (on_gpu, rows & ~on_gpu):
            if chosen.any():
                some = list(compress(events, chosen.tolist()))
                args = [event.args for event in some]
                if chosen is on_gpu:
                    kinds, table, make = codes[chosen], "gpu", columns.gpu_columns
                else:
                    kinds, table, make = codes[chosen] - _CPU, "cpu", columns.cpu_columns
                self._hold(table, make(self._writer, some, args, kinds, starts[chosen], durations[chosen]))
                self._collectives(args, starts[chosen])
        if (codes == GpuKind.SYNC).any():
            waits = [a for event in events if NOTHING not in ((a := event.args).record_correlation, a.correlation)]
            if waits:
                self._hold("event_waits", columns.wait_columns(waits))

    def memory(self, events: list[Instant], times: Int64s) -> None:
        """Allocations and frees. Raises OSError."""
        sized = np.array([event.args.bytes != NOTHING for event in events], np.bool_)
        possible = np.abs(times) <= MAX_TIME_NS
        if not (sized & possible).all():
            self.left_out["no bytes"] += int((~sized).sum())
            self.left_out["impossible time"] += int((sized & ~possible).sum())
            events, times = list(compress(events, (sized & possible).tolist())), times[sized & possible]
        if events:
            args = [event.args for event in events]
            self._hold("memory_events", columns.memory_columns(args, times + self._offset_ns))

    def counters(self, names: list[str], times: Int64s, values: list[float]) -> None:
        """Samples of counters. Raises OSError."""
        possible = np.abs(times) <= MAX_TIME_NS
        self.left_out["impossible time"] += int((~possible).sum())
        if possible.any():
            ids = self._writer.name_ids(compress(names, possible.tolist()))
            times = times[possible] + self._offset_ns
            self._hold("counters", {"time_ns": times, "name": ids, "value": list(compress(values, possible.tolist()))})

    def finish(self) -> Tally:
        """Write what is held back. Raises OSError."""
        for table in list(self._held):
            self._flush(table)
        self._writer.close()
        seen = self._first_ns <= self._last_ns
        return Tally(
            events=dict(self.events + Count(self._categories.counts())),
            left_out={reason: count for reason, count in self.left_out.items() if count},
            first_ns=self._first_ns if seen else None,
            last_ns=self._last_ns if seen else None,
            timestamp_unit="" if not seen else "ns" if self._finer else "us",
        )

    def _collectives(self, args: list[Args], starts: Int64s) -> None:
        saying = [number for number, a in enumerate(args) if a.collective is not None]
        if saying:
            self._hold("comm_args", columns.comm_columns([args[number] for number in saying], starts[saying]))

    def _unusable(
        self, codes: Int64s, starts: Int64s, durations: Int64s
    ) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        checks = {
            "no category": codes == _NO_CATEGORY,
            "negative duration": durations < 0,
            "impossible duration": durations > MAX_DURATION_NS,
            "impossible time": np.abs(starts) > MAX_TIME_NS,
        }
        bad = np.zeros(len(codes), np.bool_)
        for reason, found in checks.items():
            if found.any():
                self.left_out[reason] += int((found & ~bad).sum())
                bad |= found
        return bad

    def _hold(self, table: str, rows: Columns) -> None:
        self._held.setdefault(table, []).append(rows)
        self._rows_held[table] += len(next(iter(rows.values())))
        if self._rows_held[table] >= ROWS_HELD:
            self._flush(table)

    def _flush(self, table: str) -> None:
        held = self._held.pop(table)
        self._rows_held[table] = 0
        series: dict[str, pl.Series] = {}
        for column in held[0]:
            parts = [rows[column] for rows in held]
            if isinstance(parts[0], np.ndarray):
                found = pl.Series(column, np.concatenate(parts))
                given = found != NOTHING
                series[column] = found if given.all() else found.set(~given, None)
            else:
                series[column] = pl.Series(column, [value for part in parts for value in part])
        self._writer.append(table, series)
