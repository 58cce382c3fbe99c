"""What a timeline viewer draws of a run, in no format yet: processes and tracks, and frames of events on them.

Times in the frames are nanoseconds since the epoch, so that ranks and nodes share one axis.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from agprof.exporters.clocks import MAX_NS
from agprof.exporters.lanes import nested_lanes

Times = npt.NDArray[np.int64]
SLICE_COLUMNS: Mapping[str, type[pl.DataType]] = {
    "pid": pl.Int64, "tid": pl.Int64, "start_ns": pl.Int64, "duration_ns": pl.Int64,
    "name": pl.String, "category": pl.String, "args": pl.String, "flow_out": pl.Int64, "flow_in": pl.Int64,
}  # fmt: skip
"""`args`: members of a JSON object without braces. A slice with `flow_out` is where the arrow of that number begins,
one with `flow_in` where it ends."""
COUNTER_COLUMNS: Mapping[str, type[pl.DataType]] = {
    "pid": pl.Int64, "name": pl.String, "series": pl.String, "time_ns": pl.Int64, "value": pl.Float64,
}  # fmt: skip
INSTANT_COLUMNS: Mapping[str, type[pl.DataType]] = {
    "pid": pl.Int64, "tid": pl.Int64, "time_ns": pl.Int64, "name": pl.String, "category": pl.String, "args": pl.String,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A group of tracks: a rank's host side, one of its devices, a node."""

    pid: int
    name: str
    order: int
    rank: int | None
    """None for a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    pid: int
    tid: int
    name: str
    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Slices in the order of time, those that begin together longest first, as numbers alone: texts take more memory
    than everything else."""

    frame: pl.DataFrame
    finish: Callable[[pl.DataFrame], pl.DataFrame]
    """Turns the next rows of the frame into those with the columns SLICE_COLUMNS, grouped by track; slices of a track
    nest or are disjoint, and keep their order."""
    longest: int
    """Bytes of the longest text that `finish` may put into a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All events of one rank or node. Each list holds what is drawn one after the other."""

    rank: int | None
    slices: Iterable[Slices] = ()
    """Gone through once: what was is not kept."""
    instants: Sequence[pl.DataFrame] = ()
    counters: Sequence[pl.DataFrame] = ()
    derived_counters: Sequence[pl.DataFrame] = ()
    """Made from other events of the scene, for the eye: no part of what an import should find again."""
    derived: bool = False
    """So is the whole scene."""


@dataclass(slots=True)
class Tracks:
    """Hands out process and track numbers and remembers their names. Numbers of tracks are never used twice, because
    viewers know threads by their number alone."""

    processes: dict[Hashable, Process] = field(default_factory=dict)
    threads: dict[Hashable, Track] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Events that could not be drawn, by reason."""
    flows: int = 0
    """Arrows numbered so far."""
    _used: set[int] = field(default_factory=set)
    _next: int = 1_000_000_000

    def process(self, key: Hashable, name: str, order: int, rank: int | None) -> Process:
        if key not in self.processes:
            number = len(self.processes) + 1
            self.processes[key] = Process(pid=number, name=name, order=order, rank=rank)
        return self.processes[key]

    def thread(self, process: Process, key: Hashable, name: str, order: int, wanted: int | None = None) -> Track:
        """The track of a key; its number is `wanted` (a thread's own) where nobody has that yet."""
        full = (process.pid, key)
        if full not in self.threads:
            free = wanted is not None and 0 < wanted < 2**30 and wanted not in self._used
            tid = wanted if free and wanted is not None else self._next
            self._next += not free
            self._used.add(tid)
            self.threads[full] = Track(pid=process.pid, tid=tid, name=name, order=order)
        return self.threads[full]

    def leave_out(self, reason: str, count: int) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count

    def usable(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The slices whose times can be: the others are counted, not drawn."""
        start, duration = pl.col("start_ns"), pl.col("duration_ns")
        good = frame.filter(start.is_between(-MAX_NS, MAX_NS) & duration.is_between(0, MAX_NS))
        self.leave_out("no time, or a negative or impossible duration", frame.height - good.height)
        return good

    def sentences(self) -> list[str]:
        """What was left out."""
        return [f"{count:,} events are not in the trace: {reason}" for reason, count in self.left_out.items()]


@dataclass(slots=True, kw_only=True)
class Placer:
    """Puts slices on tracks, piece by piece in the order of time (those that begin together longest first)."""

    tracks: Tracks
    by: Sequence[str]
    """Columns: rows that are equal in them share a track, and lanes of it where they overlap."""
    track: Callable[[tuple[Any, ...], int], Track]
    """Makes the track of such a group and lane."""
    open_ends: dict[tuple[Any, ...], list[list[int]]] = field(default_factory=dict)
    """By group and lane: the ends of slices that are open."""

    def place(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The next rows with their `pid` and `tid`, grouped by track; those whose times can't be are left out."""
        rows = self.tracks.usable(rows)
        placed = [
            self._on_tracks(key, group)
            for key, group in rows.partition_by(self.by, maintain_order=True, as_dict=True).items()
        ]
        nowhere = {"pid": pl.lit(0, pl.Int64), "tid": pl.lit(0, pl.Int64)}
        return pl.concat(placed) if placed else rows.with_columns(**nowhere)

    def _on_tracks(self, key: tuple[Any, ...], group: pl.DataFrame) -> pl.DataFrame:
        starts = group["start_ns"].to_numpy()
        found = _lanes(starts, starts + group["duration_ns"].to_numpy(), self.open_ends.setdefault(key, []))
        pids, tids = np.zeros(len(found), dtype=np.int64), np.zeros(len(found), dtype=np.int64)
        for lane in np.unique(found).tolist():
            chosen = self.track(key, lane)
            pids[found == lane], tids[found == lane] = chosen.pid, chosen.tid
        return group.with_columns(pid=pl.Series(pids), tid=pl.Series(tids))


def _lanes(starts: Times, ends: Times, open_ends: list[list[int]]) -> Times:
    """The lane of each slice; most tracks have but one, and that is seen without a look at each slice."""
    free = not open_ends or (len(open_ends) == 1 and (not open_ends[0] or open_ends[0][0] <= starts[0]))
    if free and bool(np.all(np.maximum.accumulate(ends)[:-1] <= starts[1:])):
        open_ends[:] = [[int(ends[-1])]]
        return np.zeros(len(starts), dtype=np.int64)
    return np.array(nested_lanes(starts.tolist(), ends.tolist(), open_ends), dtype=np.int64)


def longest(frame: pl.DataFrame) -> int:
    """Bytes of the longest text of each column, together."""
    sizes = [frame[name].str.len_bytes().max() for name, dtype in frame.schema.items() if dtype == pl.String]
    return sum(size for size in sizes if isinstance(size, int))


def lane_name(name: str, lane: int) -> str:
    return name if lane == 0 else f"{name} ({lane + 1})"
