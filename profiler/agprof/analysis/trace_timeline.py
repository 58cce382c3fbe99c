"""A window of one rank to be drawn: slices on lanes that never overlap, few enough for a canvas."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.trace_host import BoolArray, IntArray, nesting
from agprof.analysis.trace_names import synchronises
from agprof.analysis.trace_window import Window, host_window, origin_ns, typical_window, whole_window
from agprof.model.communication_kernels import Communication
from agprof.model.trace_answers import TraceLane, TraceTimeline
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

MAX_SLICES = 100_000
WHOLE_TRACE_SLICES = 20_000
"""A trace of no more events is drawn whole."""
MAX_DEPTH = 64
MAX_NAME = 1_000
"""Characters of a name that are kept."""

KINDS = (
    "compute", "communication", "memcpy", "memset", "operator", "launch", "annotation", "python", "synchronisation",
    "other",
)  # fmt: skip
(_COMPUTE, _COMMUNICATION, _MEMCPY, _MEMSET, _OPERATOR, _LAUNCH, _ANNOTATION, _PYTHON, _SYNC, _OTHER) = range(10)
_GPU_KINDS = {
    GpuKind.KERNEL: _COMPUTE,
    GpuKind.MEMCPY: _MEMCPY,
    GpuKind.MEMSET: _MEMSET,
    GpuKind.SYNC: _SYNC,
    GpuKind.ANNOTATION: _ANNOTATION,
    GpuKind.OTHER: _OTHER,
}
_CPU_KINDS = {
    CpuKind.OP: _OPERATOR,
    CpuKind.RUNTIME: _LAUNCH,
    CpuKind.DRIVER: _LAUNCH,
    CpuKind.ANNOTATION: _ANNOTATION,
    CpuKind.PYTHON: _PYTHON,
    CpuKind.OVERHEAD: _OTHER,
    CpuKind.OTHER: _OTHER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """Slices that do not overlap, ascending."""

    label: str
    on_device: bool
    depth: int
    start_ns: IntArray
    end_ns: IntArray
    name: IntArray
    kind: IntArray

    def only(self, kept: BoolArray) -> "_Lane":
        columns = (each[kept] for each in (self.start_ns, self.end_ns, self.name, self.kind))
        start, end, name, kind = columns
        return _Lane(
            label=self.label,
            on_device=self.on_device,
            depth=self.depth,
            start_ns=start,
            end_ns=end,
            name=name,
            kind=kind,
        )


def timeline(
    trace: RankTrace,
    *,
    step: int | None = None,
    window: Window | None = None,
    max_slices: int = MAX_SLICES,
    origin: int | None = None,
    communicates: Callable[[str], bool] | None = None,
) -> TraceTimeline | None:
    """The time line of a step, host and device; without a number that of the typical step, or of the whole trace where
    it is small or has no steps. None when there is no such step, or nothing in it.

    Streams come first, then threads, the busiest first. Activities of one stream that overlap lie on lanes of their
    own, a thread's events on one lane per depth. Of more than `max_slices` slices the longest are kept, those of the
    device at least up to the half of it; `note` says what is left out.

    `window` is that of the step, where it is known already.
    """
    window = _window(trace, step, window)
    if window is None:
        return None
    names = trace.names()
    lanes = [*_device_lanes(trace, window, names, communicates), *_host_lanes(trace, window, names)]
    deep = sum(lane.start_ns.size for lane in lanes if lane.depth >= MAX_DEPTH)
    lanes = [lane for lane in lanes if lane.depth < MAX_DEPTH]
    kept = _longest(lanes, max_slices)
    left_out = sum(lane.start_ns.size for lane in lanes) - sum(lane.start_ns.size for lane in kept)
    if not kept:
        return None
    used = np.unique(np.concatenate([lane.name for lane in kept]))
    return TraceTimeline(
        rank=trace.rank,
        step=window.step,
        start_ns=window.start_ns - (origin_ns(trace) if origin is None else origin),
        window_ns=window.end_ns - window.start_ns,
        names=tuple(drawn_name(names.get(each, "?")) for each in used.tolist()),
        kinds=KINDS,
        lanes=tuple(_drawn(lane, window.start_ns, used) for lane in kept),
        note=_note(left_out, deep),
    )


def _window(trace: RankTrace, step: int | None, known: Window | None) -> Window | None:
    """The step on host and device together."""
    if step is None:
        events = sum(trace.tables[name].select(pl.len()).collect().item() for name in ("gpu", "cpu"))
        if events <= WHOLE_TRACE_SLICES:
            return whole_window(trace)
    window = known if known is not None else typical_window(trace, step)
    if window is None or window.step is None:
        return window
    host = host_window(trace, window.step) or window
    return Window(
        step=window.step, start_ns=min(window.start_ns, host.start_ns), end_ns=max(window.end_ns, host.end_ns)
    )


def _rows(trace: RankTrace, table: str, window: Window, *columns: str) -> pl.DataFrame:
    start, end = pl.col("start_ns"), pl.col("start_ns") + pl.col("duration_ns")
    return (
        trace.tables[table]
        .filter(start < window.end_ns, end > window.start_ns, pl.col("duration_ns") > 0)
        .select(
            start.clip(window.start_ns, window.end_ns),
            end.clip(window.start_ns, window.end_ns).alias("end_ns"),
            "kind",
            "name",
            *columns,
        )
        .collect()
        .sort("start_ns", "end_ns", descending=[False, True], maintain_order=True)
    )


def _device_lanes(
    trace: RankTrace, window: Window, names: dict[int, str], communicates: Callable[[str], bool] | None
) -> list[_Lane]:
    rows = _rows(trace, "gpu", window, "device", "stream")
    table = Communication.with_user()
    talks = communicates or (lambda name: table.library(name) is not None)
    talking = [each for each in rows["name"].unique().to_list() if talks(names.get(each, ""))]
    is_kernel = pl.col("kind") == int(GpuKind.KERNEL)
    rows = rows.with_columns(
        role=pl.col("kind").replace_strict({int(GpuKind.SYNC): 1, int(GpuKind.ANNOTATION): 2}, default=0),
        kind=pl.when(is_kernel & pl.col("name").is_in(talking))
        .then(_COMMUNICATION)
        .otherwise(pl.col("kind").replace_strict({int(k): v for k, v in _GPU_KINDS.items()}, default=_OTHER)),
    )
    several = rows["device"].n_unique() > 1
    groups = rows.partition_by("device", "stream", "role", as_dict=True, maintain_order=True)
    order = sorted(groups, key=lambda key: tuple(-1 if each is None else int(each) for each in key))
    lanes: list[_Lane] = []
    for key in order:
        device, stream, role = key
        label = "no stream" if stream is None else f"stream {stream}"
        label = (f"device {device} " if several else "") + label + ("", " waits", " ranges")[int(role)]
        part = groups[key]
        depth = _free_lane(part["start_ns"].to_list(), part["end_ns"].to_list())
        lanes.extend(_by_depth(part, depth, label, on_device=True))
    return lanes


def _free_lane(starts: list[int], ends: list[int]) -> IntArray:
    """For each slice (sorted by begin) the lowest lane that is free when it begins."""
    depth = np.zeros(len(starts), dtype=np.int64)
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    lanes = 0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, lanes = lanes, lanes + 1
        depth[number] = lane
        heapq.heappush(busy, (end, lane))
    return depth


def _host_lanes(trace: RankTrace, window: Window, names: dict[int, str]) -> list[_Lane]:
    rows = _rows(trace, "cpu", window, "thread").filter(pl.col("kind") != int(CpuKind.OVERHEAD))
    waiting = [each for each in rows["name"].unique().to_list() if synchronises(names.get(each, ""))]
    is_call = pl.col("kind").is_in([int(CpuKind.RUNTIME), int(CpuKind.DRIVER)])
    rows = rows.with_columns(
        kind=pl.when(is_call & pl.col("name").is_in(waiting))
        .then(_SYNC)
        .otherwise(pl.col("kind").replace_strict({int(k): v for k, v in _CPU_KINDS.items()}, default=_OTHER))
    )
    groups = rows.partition_by("thread", as_dict=True, maintain_order=True)
    lanes: list[_Lane] = []
    for (thread,), part in sorted(groups.items(), key=lambda item: (-item[1].height, str(item[0][0]))):
        levels, end = nesting(part["start_ns"].to_numpy(), part["end_ns"].to_numpy())
        depth = np.full(part.height, -1, dtype=np.int64)
        for number, members in enumerate(levels):
            depth[members] = number
        label = "no thread" if thread is None else f"thread {thread}"
        lanes.extend(_by_depth(part.with_columns(end_ns=pl.Series(end)), depth, label, on_device=False))
    return lanes


def _by_depth(part: pl.DataFrame, depth: IntArray, label: str, *, on_device: bool) -> list[_Lane]:
    start, end, name, kind = (
        part[column].cast(pl.Int64).to_numpy() for column in ("start_ns", "end_ns", "name", "kind")
    )
    order = np.argsort(depth, kind="stable")
    levels, begins = np.unique(depth[order], return_index=True)
    return [
        _Lane(
            label=label,
            on_device=on_device,
            depth=level,
            start_ns=start[at],
            end_ns=end[at],
            name=name[at],
            kind=kind[at],
        )
        for level, at in zip(levels.tolist(), np.split(order, begins[1:]), strict=True)
        if level >= 0
    ]


def _longest(lanes: list[_Lane], limit: int) -> list[_Lane]:
    """The lanes with their longest slices only, `limit` in all."""
    on_device, on_host = ([lane for lane in lanes if lane.on_device is each] for each in (True, False))
    devices, hosts = (sum(lane.start_ns.size for lane in each) for each in (on_device, on_host))
    for_device = min(devices, max(limit // 2, limit - hosts))
    kept = [*_longest_of(on_device, for_device), *_longest_of(on_host, limit - for_device)]
    return [lane for lane in kept if lane.start_ns.size]


def _longest_of(lanes: list[_Lane], limit: int) -> list[_Lane]:
    sizes = [lane.start_ns.size for lane in lanes]
    if sum(sizes) <= limit:
        return lanes
    durations = np.concatenate([lane.end_ns - lane.start_ns for lane in lanes])
    kept = np.zeros(durations.size, dtype=np.bool_)
    kept[np.argsort(-durations, kind="stable")[:limit]] = True
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    return [lane.only(part) for lane, part in zip(lanes, parts, strict=True)]


def _drawn(lane: _Lane, since: int, used: IntArray) -> TraceLane:
    return TraceLane(
        label=lane.label,
        group="device" if lane.on_device else "host",
        depth=lane.depth,
        start_ns=tuple((lane.start_ns - since).tolist()),
        duration_ns=tuple((lane.end_ns - lane.start_ns).tolist()),
        name=tuple(np.searchsorted(used, lane.name).tolist()),
        kind=tuple(lane.kind.tolist()),
    )


def drawn_name(name: str) -> str:
    """A name as far as it is kept: names come from outside and may be megabytes."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _note(left_out: int, deep: int) -> str:
    notes = []
    if left_out:
        notes.append(f"The {left_out} shortest slices are left out.")
    if deep:
        notes.append(f"{deep} slices nested more than {MAX_DEPTH} deep are left out.")
    return " ".join(notes)
