"""What a timeline viewer draws of a run, in no format yet: processes and tracks, and frames of events on them.

Times in the frames are nanoseconds since the epoch, so that ranks and nodes share one axis.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
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
    """Placed slices. Those of a track nest or are disjoint and are sorted by start, then longest first."""

    frame: pl.DataFrame
    finish: Callable[[pl.DataFrame], pl.DataFrame]
    """Turns some rows into those with the columns SLICE_COLUMNS: texts take more memory than everything else."""
    longest: int
    """Bytes of the longest text that `finish` may put into a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All events of one rank or node. Each list holds what is drawn one after the other."""

    rank: int | None
    slices: Sequence[Slices] = ()
    instants: Sequence[pl.DataFrame] = ()
    counters: Sequence[pl.DataFrame] = ()
    derived_counters: Sequence[pl.DataFrame] = ()
    """Made from other events of the scene, for the eye: no part of what an import should find again."""


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

    def thread(self, process: Process, key: Hashable, name: str, wanted: int | None = None) -> Track:
        """The track of a key; its number is `wanted` (a thread's own) where nobody has that yet."""
        full = (process.pid, key)
        if full not in self.threads:
            free = wanted is not None and 0 < wanted < 2**30 and wanted not in self._used
            tid = wanted if free and wanted is not None else self._next
            self._next += not free
            self._used.add(tid)
            order = sum(track.pid == process.pid for track in self.threads.values())
            self.threads[full] = Track(pid=process.pid, tid=tid, name=name, order=order)
        return self.threads[full]

    def leave_out(self, reason: str, count: int) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count

    def place(
        self, frame: pl.DataFrame, by: Sequence[str], track: Callable[[tuple[Any, ...], int], Track]
    ) -> pl.DataFrame:
        """The frame with its `pid` and `tid`, sorted as a scene's slices are.

        Rows that are equal in the columns `by` share a track, and lanes of it where they overlap: `track` makes the
        track of such a group and lane.
        """
        frame = self.usable(frame).sort("start_ns", "duration_ns", descending=[False, True], maintain_order=True)
        groups = frame.partition_by(by, maintain_order=True, as_dict=True)
        placed: list[pl.DataFrame] = []
        for key in sorted(groups, key=lambda parts: [(part is None, part) for part in parts]):
            rows = groups[key]
            starts = rows["start_ns"].to_numpy()
            found = _lanes(starts, starts + rows["duration_ns"].to_numpy())
            pids, tids = np.zeros(len(found), dtype=np.int64), np.zeros(len(found), dtype=np.int64)
            for lane in np.unique(found).tolist():
                chosen = track(key, lane)
                pids[found == lane], tids[found == lane] = chosen.pid, chosen.tid
            rows = rows.with_columns(pid=pl.Series(pids), tid=pl.Series(tids))
            placed.append(rows)
        return pl.concat(placed) if placed else frame.with_columns(pid=pl.lit(0, pl.Int64), tid=pl.lit(0, pl.Int64))

    def usable(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The slices whose times can be: the others are counted, not drawn."""
        start, duration = pl.col("start_ns"), pl.col("duration_ns")
        good = frame.filter(start.is_between(-MAX_NS, MAX_NS) & duration.is_between(0, MAX_NS))
        self.leave_out("no time, or a negative or impossible duration", frame.height - good.height)
        return good

    def sentences(self) -> list[str]:
        """What was left out."""
        return [f"{count:,} events are not in the trace: {reason}" for reason, count in self.left_out.items()]


def _lanes(starts: Times, ends: Times) -> Times:
    """The lane of each slice; most tracks have but one, and that is seen without a look at each slice."""
    if len(starts) < 2 or bool(np.all(np.maximum.accumulate(ends)[:-1] <= starts[1:])):
        return np.zeros(len(starts), dtype=np.int64)
    return np.array(nested_lanes(starts.tolist(), ends.tolist()), dtype=np.int64)


def longest(frame: pl.DataFrame) -> int:
    """Bytes of the longest name and the longest arguments of a frame of events, together."""
    texts = [frame[name].str.len_bytes().max() for name in ("name", "args") if name in frame.columns]
    return sum(size for size in texts if isinstance(size, int))


def lane_name(name: str, lane: int) -> str:
    return name if lane == 0 else f"{name} ({lane + 1})"
