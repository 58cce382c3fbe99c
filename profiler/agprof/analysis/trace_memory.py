"""Allocated memory over time, from the events of a framework's allocator (Kineto's `[memory]`, torch's snapshots)."""

import numpy as np
import polars as pl

from agprof.analysis.trace_host import IntArray
from agprof.analysis.trace_window import origin_ns
from agprof.model.trace_answers import TraceMemory
from agprof.store.traces import RankTrace

MAX_POINTS = 2_000
"""Of one curve."""


def memory(trace: RankTrace, *, origin: int | None = None) -> tuple[TraceMemory, ...]:
    """One curve per device that the events name, devices first; () without events.

    Where the events carry the allocator's own total, that is the curve. Else it is the sum of what was allocated and
    freed since the first event, lifted so that it never falls below zero: what was allocated before is not known.
    A curve of more than MAX_POINTS is thinned; its peak, and the extremes of every stretch, stay.
    """
    events = trace.table("memory_events")
    if not events.height:
        return ()
    since = origin_ns(trace) if origin is None else origin
    groups = events.with_columns(pl.col("device").fill_null(-1)).partition_by(
        "on_device", "device", as_dict=True, maintain_order=True
    )
    by_device = sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1]))
    return tuple(_curve(trace.rank, _label(bool(key[0]), int(key[1])), rows, since) for key, rows in by_device)


def _label(on_device: bool, device: int) -> str:
    if not on_device:
        return "host"
    return "cuda" if device < 0 else f"cuda {device}"


def _curve(rank: int, device: str, rows: pl.DataFrame, since: int) -> TraceMemory:
    allocated = rows["allocated_bytes"]
    if allocated.null_count() == rows.height:
        sums = rows["bytes"].cum_sum()
        lift = min(0, int(sums.min()))  # type: ignore[arg-type]
        allocated = sums - lift
    filled = allocated.fill_null(strategy="forward").fill_null(strategy="backward").to_numpy()
    peak = int(np.argmax(filled))
    keep = thinned(filled, MAX_POINTS)
    return TraceMemory(
        rank=rank,
        device=device,
        peak_bytes=int(filled[peak]),
        peak_at_ns=int(rows["time_ns"][peak]) - since,
        x_ns=tuple((rows["time_ns"].to_numpy()[keep] - since).tolist()),
        allocated_bytes=tuple(allocated.gather(keep).to_list()),
        reserved_bytes=tuple(rows["reserved_bytes"].gather(keep).to_list()),
    )


def thinned(values: IntArray, limit: int) -> IntArray:
    """At most `limit` (at least 4) indices, ascending: of every stretch the first, the last, a lowest and a highest."""
    if values.size <= limit:
        return np.arange(values.size)
    stretches = limit // 4
    borders = (np.arange(stretches + 1) * values.size) // stretches
    keep: set[int] = set()
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        part = values[first:last]
        keep |= {first, last - 1, first + int(np.argmin(part)), first + int(np.argmax(part))}
    return np.array(sorted(keep), dtype=np.int64)
