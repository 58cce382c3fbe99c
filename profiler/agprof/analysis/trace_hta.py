"""HolisticTraceAnalysis 0.5's definitions of time breakdown and overlap, for comparing with figures made by it.

Read in its source (docs/trace-analysis.md says where they go wrong). A row is on the device when it names a stream, of
whatever category; with several profiler steps in the run, what the last one launched is left out; fractional times
are rounded inward to whole microseconds; communication is `^nccl.*Kernel` only. Everything is summed as HTA sums it,
intervals of negative length included.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from agprof.analysis.trace_activities import ints, texts
from agprof.analysis.trace_idle import CAUSES
from agprof.analysis.trace_intervals import Bools, Ints, together, union, without
from agprof.model.trace_answers import TraceBreakdown
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

_COMMUNICATION = re.compile(r"^nccl.*Kernel")
_MEMORY = re.compile(r"(^Memcpy)|(^Memset)|(^dma)")
_NO_COMPUTE = re.compile(r"(^nccl.*Kernel)|(.*(Memcpy)|(Memset))|(.*Sync)")
_COMPUTE, _COMM, _MEM, _OTHER = range(4)
_CALLS = (int(CpuKind.RUNTIME), int(CpuKind.DRIVER))

Times = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class HtaValues:
    """What HTA answers for one rank, in its microseconds."""

    idle_us: float
    compute_us: float
    non_compute_us: float
    kernel_us: float
    overlap_ratio: float | None
    exposed_communication_us: float
    exposed_memory_us: float
    communication_us: float
    start_ns: int
    activities: int


def hta_values(
    traces: Mapping[int, RankTrace], *, rounded: bool = True, by_category: bool = False
) -> dict[int, HtaValues]:
    """HTA's answer per rank that has a row on a device.

    `rounded=False` leaves fractions of a microsecond, `by_category` takes kernels, copies and memsets only: both
    together are HTA's definitions without its two errors.
    """
    steps = set().union(*(_step_names(trace) for trace in traces.values())) if traces else set()
    found = {}
    for rank, trace in sorted(traces.items()):
        rows = _rows(trace, steps, by_category)
        if len(rows.start):
            found[rank] = _values(rows, trace, rounded)
    return found


def hta_windows(traces: Mapping[int, RankTrace], origin: int) -> tuple[tuple[TraceBreakdown, ...], tuple[str, ...]]:
    """HTA's answers as breakdowns, and why some ranks have none."""
    rows, notes = [], []
    for rank, values in hta_values(traces).items():
        if min(values.idle_us, values.compute_us, values.non_compute_us) < 0:
            notes.append(
                f"HTA 0.5 has no answer for rank {rank}: its rounding makes a part negative "
                f"(non_compute {values.non_compute_us:g} µs), and it stops there."
            )
        else:
            rows.append(_breakdown(rank, values, origin))
    return tuple(rows), tuple(notes)


def _breakdown(rank: int, values: HtaValues, origin: int) -> TraceBreakdown:
    """HTA gives only the sum of what is not compute; it is split here by its own classes, and what is left over
    (synchronisation rows, rounding) is `exposed_other_ns`."""
    idle, compute = _ns(values.idle_us), _ns(values.compute_us)
    window = _ns(values.kernel_us)
    rest = window - idle - compute
    communication = min(_ns(values.exposed_communication_us), rest)
    copies = min(_ns(values.exposed_memory_us), rest - communication)
    return TraceBreakdown(
        rank=rank,
        step=None,
        start_ns=values.start_ns - origin,
        window_ns=window,
        compute_ns=compute,
        exposed_communication_ns=communication,
        exposed_memcpy_ns=copies,
        exposed_memset_ns=0,
        exposed_other_ns=rest - communication - copies,
        idle_ns=idle,
        communication_ns=_ns(values.communication_us),
        overlapped_communication_ns=round((values.overlap_ratio or 0.0) * values.communication_us * 1000),
        overlap_ratio=values.overlap_ratio,
        idle_by_cause_ns={cause: idle if cause == "unknown" else 0 for cause in CAUSES},
    )


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)


@dataclass(frozen=True, slots=True)
class _Rows:
    start: Ints
    duration: Ints
    kind: Ints


def _step_names(trace: RankTrace) -> set[str]:
    """Distinct names with `ProfilerStep` in them that a row of the rank has."""
    names = trace.tables["names"].filter(pl.col("text").str.contains("ProfilerStep", literal=True)).collect()
    if not names.height:
        return set()
    used = pl.concat(
        [trace.tables[t].filter(pl.col("name").is_in(names["name"].implode())).select("name") for t in ("cpu", "gpu")]
    )
    return set(names.join(used.unique().collect(), on="name", how="semi")["text"])


def _rows(trace: RankTrace, steps: set[str], by_category: bool) -> _Rows:
    columns = ("start_ns", "duration_ns", "name", "correlation", "stream", "kind")
    gpu = trace.tables["gpu"].select(columns).filter(pl.col("kind") != int(GpuKind.ANNOTATION)).collect()
    cpu = trace.tables["cpu"].select(columns).collect()
    device = gpu
    if not by_category:
        # ROCm's runtime calls name their stream in hexadecimal, which HTA reads as none.
        streamed = cpu.filter((pl.col("stream") != -1) & ~pl.col("kind").is_in(_CALLS))
        streamed = streamed.with_columns(kind=pl.lit(-1, dtype=pl.Int64))
        device = pl.concat([gpu.filter(pl.col("stream").fill_null(-1) != -1), streamed])
    else:
        device = gpu.filter(pl.col("kind") <= int(GpuKind.MEMSET))
    if len(steps) > 1:
        device = _without_last_step(trace, device, cpu)
    kind = _kinds(trace, ints(device["name"]))
    return _Rows(ints(device["start_ns"]), ints(device["duration_ns"]), kind)


def _without_last_step(trace: RankTrace, device: pl.DataFrame, cpu: pl.DataFrame) -> pl.DataFrame:
    """Rows whose correlation some host row has that began before the last step did; host rows that did themselves."""
    names = trace.tables["names"].filter(pl.col("text").str.contains("ProfilerStep", literal=True)).collect()
    last = cpu.filter(pl.col("name").is_in(names["name"].implode()))["start_ns"].max()
    before = cpu.filter(pl.col("start_ns") < last)
    own = pl.col("correlation").is_in(before["correlation"].drop_nulls().unique().implode())
    host = (pl.col("kind") == -1) & pl.col("correlation").is_null() & (pl.col("start_ns") < last)
    return device.filter(own | host)


def _kinds(trace: RankTrace, name: Ints) -> Ints:
    distinct, inverse = np.unique(name, return_inverse=True)
    text = texts(trace, distinct)
    return np.array([_kind(text.get(int(each), "")) for each in distinct], dtype=np.int64)[inverse]


def _kind(name: str) -> int:
    head = name[:4096]
    if _COMMUNICATION.match(head):
        return _COMM
    if _MEMORY.match(head):
        return _MEM
    return _OTHER if _NO_COMPUTE.match(head) else _COMPUTE


def _values(rows: _Rows, trace: RankTrace, rounded: bool) -> HtaValues:
    start, end = _times(rows, trace.meta.time_base_ns, rounded)
    everything = _merged(start, end)
    compute, communication = (_merged(start[rows.kind == k], end[rows.kind == k]) for k in (_COMPUTE, _COMM))
    kernel = everything[1][-1] - everything[0][0]
    busy, computing = _length(everything), _length(compute)
    talking = _length(communication)
    solid = [union(start[rows.kind == k], end[rows.kind == k]) for k in (_COMPUTE, _COMM, _MEM)]
    overlap = _overlap(communication, compute) / talking if len(communication[0]) and talking else None
    scale = 1.0 if rounded else 1e-3
    return HtaValues(
        idle_us=float(kernel - busy) * scale,
        compute_us=float(computing) * scale,
        non_compute_us=float(busy - computing) * scale,
        kernel_us=float(kernel) * scale,
        overlap_ratio=None if overlap is None else float(overlap),
        exposed_communication_us=float(without(solid[1], solid[0]).total_ns) * scale,
        exposed_memory_us=float(without(solid[2], together(solid[0], solid[1])).total_ns) * scale,
        communication_us=float(talking) * scale,
        start_ns=int(rows.start.min()),
        activities=len(start),
    )


def _times(rows: _Rows, base_ns: int | None, rounded: bool) -> tuple[Times, Times]:
    """Begin and end: whole microseconds as HTA rounds them, or nanoseconds.

    HTA reads times as binary floats that count from the file's own origin and rounds only when one has a fraction; the
    same floats are made here.
    """
    if not rounded:
        return rows.start, rows.start + rows.duration
    own = rows.start - (base_ns or 0)
    if not (own % 1000).any():
        return own // 1000, (own + rows.duration) // 1000
    start = _microseconds(own)
    end = np.floor(start + _microseconds(rows.duration)).astype(np.int64)
    return np.ceil(start).astype(np.int64), end


def _microseconds(ns: Ints) -> Times:
    """The float nearest to so many microseconds: whole and fractional part are added once, so one rounding counts."""
    return (ns // 1000).astype(np.float64) + (ns % 1000).astype(np.float64) / 1000


def _merged(start: Times, end: Times) -> tuple[Times, Times]:
    """HTA's merge_kernel_intervals: a group ends where the next begin lies after every end so far."""
    if not len(start):
        return start, end
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    first = np.flatnonzero(np.concatenate(([True], start[1:] > reach[:-1])))
    return start[first], np.maximum.reduceat(end, first)


def _length(merged: tuple[Times, Times]) -> int:
    return int(merged[1].sum() - merged[0].sum())


def _overlap(communication: tuple[Times, Times], compute: tuple[Times, Times]) -> int:
    """Time between events while one communication (+1) and one compute (+2) interval are open."""
    time = np.concatenate((*communication, *compute))
    lengths = (len(communication[0]), len(communication[1]), len(compute[0]), len(compute[1]))
    status = np.repeat(np.array([1, -1, 2, -2], dtype=np.int64), lengths)
    order = np.argsort(time, kind="stable")
    running: Bools = np.cumsum(status[order])[:-1] == 3
    return int(np.diff(time[order])[running].sum())
