"""A device's activities in a window with what they may have waited for: the ground of the critical path.

Arrays are aligned with the activities, which are sorted by begin; an index of -1 stands for "none".
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.trace_host import IntArray
from agprof.analysis.trace_window import Window
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

UNKNOWN = np.iinfo(np.int64).min
"""Stands for a missing device, stream, thread or time in arrays of integers."""
TOLERANCE_NS = 1_000
"""Times are rounded, of old traces to a microsecond: what ends that much later still ended before."""
CALLS = (int(CpuKind.RUNTIME), int(CpuKind.DRIVER))
BUSY = (int(GpuKind.KERNEL), int(GpuKind.MEMCPY), int(GpuKind.MEMSET), int(GpuKind.OTHER))
_MAX_LOOK_BACK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ByEnd:
    """Some activities by their end."""

    end_ns: IntArray
    activity: IntArray

    def last(self, until_ns: int, before: int) -> int:
        """The activity that ended last at or before a time (give or take TOLERANCE_NS), of those that began before
        the activity number `before`; -1 when there is none."""
        place = int(np.searchsorted(self.end_ns, until_ns + TOLERANCE_NS, side="right")) - 1
        for _ in range(_MAX_LOOK_BACK):
            if place < 0:
                break
            if self.activity[place] < before:
                return int(self.activity[place])
            place -= 1
        return -1

    def last_each(self, until_ns: IntArray, before: IntArray) -> IntArray:
        """`last` for many."""
        found = np.full(until_ns.size, -1, dtype=np.int64)
        place = np.searchsorted(self.end_ns, until_ns + TOLERANCE_NS, side="right") - 1
        open_ = np.flatnonzero(place >= 0)
        for _ in range(_MAX_LOOK_BACK):
            if not open_.size:
                break
            candidate = self.activity[place[open_]]
            earlier = candidate < before[open_]
            found[open_[earlier]] = candidate[earlier]
            open_ = open_[~earlier]
            place[open_] -= 1
            open_ = open_[place[open_] >= 0]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EventWaits:
    """Waits of one stream for events recorded on others, by the time of the host's call."""

    call_ns: IntArray
    lane: IntArray
    """Stream waited for."""
    record_ns: IntArray
    """When the host recorded the event there; the time of the wait where the trace does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One stream's activities by the time of their launch."""

    launch_ns: IntArray
    activity: IntArray

    def last(self, until_ns: int) -> int:
        place = int(np.searchsorted(self.launch_ns, until_ns, side="right")) - 1
        return int(self.activity[place]) if place >= 0 else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Activities that overlap a window: kernels, copies, memsets."""

    start_ns: IntArray
    end_ns: IntArray
    kind: IntArray
    name: IntArray
    lane: IntArray
    """Index of (device, stream)."""
    stream: tuple[int | None, ...]
    """Stream of each lane."""
    correlation: IntArray
    launch_start_ns: IntArray
    """Begin and end of the call that launched it; UNKNOWN where the trace does not hold it."""
    launch_end_ns: IntArray
    launch_thread: IntArray
    before_in_lane: IntArray
    """The activity of the same stream that ended last before it began."""
    before: IntArray
    """That of any stream."""
    by_end: ByEnd
    lane_by_end: tuple[ByEnd, ...]
    lane_launched: tuple[Launched, ...]
    waits: dict[int, EventWaits]
    """By the lane that waits."""
    sync_lane: dict[int, int]
    """Correlation of a synchronising call -> the stream it waits for, where the trace says."""
    sync_record_ns: dict[int, int]
    """Correlation of a call that waits for an event -> when the host recorded that event."""


def device_activities(trace: RankTrace, window: Window) -> Device:
    """The activities of a window, their launches (also those before the window), and the recorded waits."""
    rows = (
        trace.tables["gpu"]
        .filter(
            pl.col("kind").is_in(BUSY),
            pl.col("start_ns") < window.end_ns,
            pl.col("start_ns") + pl.col("duration_ns") > window.start_ns,
        )
        .select(
            "start_ns",
            "duration_ns",
            "kind",
            "name",
            "device",
            "stream",
            # Profilers write 0 where they know none.
            pl.when(pl.col("correlation") != 0).then("correlation"),
        )
        .collect()
    )
    rows = rows.join(_launches(trace, window, rows), on="correlation", how="left", maintain_order="left")
    lanes = rows.select("device", "stream").unique(maintain_order=True).with_row_index("lane")
    rows = rows.join(lanes, on=["device", "stream"], how="left", nulls_equal=True, maintain_order="left")
    start, end = _ints(rows["start_ns"]), _ints(rows["start_ns"] + rows["duration_ns"])
    lane, launch = _ints(rows["lane"]), _ints(rows["launch_start_ns"])
    members = [np.flatnonzero(lane == each) for each in range(lanes.height)]
    known = [each[launch[each] != UNKNOWN] for each in members]
    numbers = {key: number for number, key in enumerate(lanes.select("device", "stream").iter_rows())}
    by_end, lane_by_end = _by_end(end, np.arange(end.size)), tuple(_by_end(end, each) for each in members)
    before_in_lane = np.full(end.size, -1, dtype=np.int64)
    for each, ended in zip(members, lane_by_end, strict=True):
        before_in_lane[each] = ended.last_each(start[each], each)
    waits, sync_lane, sync_record_ns = _recorded_waits(trace, window, numbers)
    return Device(
        start_ns=start,
        end_ns=end,
        kind=_ints(rows["kind"]),
        name=_ints(rows["name"]),
        lane=lane,
        stream=tuple(lanes["stream"]),
        correlation=_ints(rows["correlation"]),
        launch_start_ns=launch,
        launch_end_ns=_ints(rows["launch_end_ns"]),
        launch_thread=_ints(rows["thread"]),
        before_in_lane=before_in_lane,
        before=by_end.last_each(start, np.arange(end.size)),
        by_end=by_end,
        lane_by_end=lane_by_end,
        lane_launched=tuple(_launched(launch, each) for each in known),
        waits=waits,
        sync_lane=sync_lane,
        sync_record_ns=sync_record_ns,
    )


def _launches(trace: RankTrace, window: Window, rows: pl.DataFrame) -> pl.DataFrame:
    """The host call of each correlation; of a runtime's call and the driver's below it the outer one."""
    return (
        trace.tables["cpu"]
        .filter(pl.col("kind").is_in(CALLS), pl.col("correlation").is_not_null(), pl.col("start_ns") < window.end_ns)
        .select(
            "correlation",
            pl.col("start_ns").alias("launch_start_ns"),
            (pl.col("start_ns") + pl.col("duration_ns")).alias("launch_end_ns"),
            pl.col("thread").fill_null(UNKNOWN),
        )
        .join(rows.lazy().select("correlation").unique(), on="correlation", how="semi")
        .sort("launch_start_ns", "launch_end_ns", descending=[False, True])
        .unique("correlation", keep="first", maintain_order=True)
        .collect()
    )


def _recorded_waits(
    trace: RankTrace, window: Window, lanes: dict[tuple[int | None, int | None], int]
) -> tuple[dict[int, EventWaits], dict[int, int], dict[int, int]]:
    """What the trace's own synchronisation events say: who waits for which stream, and for which record of an event."""
    syncs = (
        trace.tables["gpu"]
        .filter(
            pl.col("kind") == int(GpuKind.SYNC),
            pl.col("start_ns") < window.end_ns,
            pl.col("correlation").is_not_null(),
        )
        .select("device", "stream", "correlation")
        .unique("correlation", keep="first", maintain_order=True)
        .collect()
    )
    if not syncs.height:
        return {}, {}, {}
    told = trace.tables["event_waits"].select("correlation", "waited_stream", "record_correlation")
    told = told.unique("correlation", keep="first", maintain_order=True)
    calls = (
        trace.tables["cpu"]
        .filter(pl.col("kind").is_in(CALLS), pl.col("correlation").is_not_null())
        .select("correlation", pl.col("start_ns").alias("call_ns"))
        .unique("correlation", keep="first", maintain_order=True)
    )
    records = calls.rename({"correlation": "record_correlation", "call_ns": "record_ns"})
    rows = (
        syncs.lazy()
        .join(told, on="correlation", how="left", maintain_order="left")
        .join(calls, on="correlation", how="inner", maintain_order="left")
        .join(records, on="record_correlation", how="left", maintain_order="left")
        .sort("call_ns")
        .collect()
    )
    waits: dict[int, list[tuple[int, int, int]]] = {}
    sync_lane: dict[int, int] = {}
    sync_record_ns: dict[int, int] = {}
    columns = ("device", "stream", "waited_stream", "correlation", "call_ns", "record_ns")
    for device, stream, waited, correlation, call_ns, record_ns in rows.select(columns).iter_rows():
        own, other = lanes.get((device, stream)), lanes.get((device, waited))
        if other is not None and own is not None and own != other:
            waits.setdefault(own, []).append((call_ns, other, call_ns if record_ns is None else record_ns))
        waited_lane = other if other is not None else own
        if waited_lane is not None:
            sync_lane[correlation] = waited_lane
        if record_ns is not None:
            sync_record_ns[correlation] = record_ns
    return {lane: _event_waits(found) for lane, found in waits.items()}, sync_lane, sync_record_ns


def _event_waits(found: list[tuple[int, int, int]]) -> EventWaits:
    call_ns, lane, record_ns = np.array(sorted(found), dtype=np.int64).T
    return EventWaits(call_ns=call_ns, lane=lane, record_ns=record_ns)


def _by_end(end: IntArray, members: IntArray) -> ByEnd:
    # Of those that end together the one that began last comes last: the shortest explanation of what follows.
    order = members[np.argsort(end[members], kind="stable")]
    return ByEnd(end_ns=end[order], activity=order)


def _launched(launch: IntArray, members: IntArray) -> Launched:
    order = members[np.argsort(launch[members], kind="stable")]
    return Launched(launch_ns=launch[order], activity=order)


def _ints(column: pl.Series) -> IntArray:
    return column.cast(pl.Int64).fill_null(UNKNOWN).to_numpy()
