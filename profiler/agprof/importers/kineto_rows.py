"""Events of a Kineto file become rows: sorted by category, put on the clock of the run, what is unusable counted."""

from collections import Counter as Count
from itertools import compress

import msgspec
import numpy as np
import polars as pl

from agprof.importers import kineto_columns as columns
from agprof.importers.kineto_columns import Columns
from agprof.importers.kineto_events import CPU_KINDS, GPU_KINDS, NOT_WORK, NOTHING, Complete, Instant
from agprof.importers.kineto_time import MAX_INT, Int64s
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import TraceWriter

ROWS_HELD = 65_536
MAX_DURATION_NS = 30 * 86_400 * 10**9
"""Thirty days: what claims to last longer is damage."""
MAX_TIME_NS = MAX_INT // 2
"""The year 2116: what claims to be later, or as long before 1970, is damage."""
_CPU, _NO_ROW, _NO_CATEGORY = 16, 32, 33


class _Codes(dict[str, int]):
    """Code of a category: its GpuKind, or 16 + its CpuKind, or one of those that make no row."""

    def __missing__(self, category: str) -> int:
        return _CPU + int(CpuKind.OTHER)


_CODES = _Codes(
    {
        **{category: int(kind) for category, kind in GPU_KINDS.items()},
        **{category: _CPU + int(kind) for category, kind in CPU_KINDS.items()},
        **dict.fromkeys(NOT_WORK, _NO_ROW),
        "": _NO_CATEGORY,
    }
)


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
        self._held: dict[str, list[Columns]] = {}
        self._rows_held: Count[str] = Count()

    def complete(self, events: list[Complete], starts: Int64s, durations: Int64s) -> None:
        """Events with a duration; their times as the file has them, in ns. Raises OSError."""
        categories = [event.cat for event in events]
        self.events.update(categories)
        codes = np.array([_CODES[category] for category in categories], np.int64)
        if not self._finer:
            self._finer = bool((durations % 1000).any() or (starts % 1000).any())
        bad = self._unusable(codes, starts, durations)
        if bad.any():
            events = list(compress(events, ~bad))
            codes, starts, durations = codes[~bad], starts[~bad], durations[~bad]
        starts = starts + self._offset_ns
        rows = codes < _NO_ROW
        if rows.any():
            self._first_ns = min(self._first_ns, int(starts[rows].min()))
            self._last_ns = max(self._last_ns, int((starts + durations)[rows].max()))
        for table, kinds, chosen in (
            ("gpu", codes, codes < _CPU),
            ("cpu", codes - _CPU, (codes >= _CPU) & (codes < _NO_ROW)),
        ):
            if chosen.any():
                make = columns.gpu_columns if table == "gpu" else columns.cpu_columns
                some = list(compress(events, chosen))
                self._hold(table, make(self._writer, some, kinds[chosen], starts[chosen], durations[chosen]))
        if (codes == GpuKind.SYNC).any():
            waits = [
                event for event in events if NOTHING not in (event.args.record_correlation, event.args.correlation)
            ]
            if waits:
                self._hold("event_waits", columns.wait_columns(waits))
        says_comm = [event.args.collective is not None for event in events]
        if any(says_comm):
            self._hold("comm_args", columns.comm_columns(list(compress(events, says_comm)), starts[says_comm]))

    def memory(self, events: list[Instant], times: Int64s) -> None:
        """Allocations and frees. Raises OSError."""
        sized = np.array([event.args.bytes != NOTHING for event in events], np.bool_)
        if not sized.all():
            self.left_out["no bytes"] += int((~sized).sum())
            events, times = list(compress(events, sized)), times[sized]
        if events:
            args = [event.args for event in events]
            self._hold("memory_events", columns.memory_columns(args, times + self._offset_ns))

    def counters(self, names: list[str], times: Int64s, values: list[float]) -> None:
        """Samples of counters. Raises OSError."""
        if names:
            ids = self._writer.name_ids(names)
            self._hold("counters", {"time_ns": times + self._offset_ns, "name": ids, "value": values})

    def finish(self) -> Tally:
        """Write what is held back. Raises OSError."""
        for table in list(self._held):
            self._flush(table)
        self._writer.close()
        seen = self._first_ns <= self._last_ns
        return Tally(
            events=dict(self.events),
            left_out={reason: count for reason, count in self.left_out.items() if count},
            first_ns=self._first_ns if seen else None,
            last_ns=self._last_ns if seen else None,
            timestamp_unit="" if not seen else "ns" if self._finer else "us",
        )

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
