"""How far the traces can be trusted: what is missing, dropped, unclear. Every count here is printed in the report."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from agprof.analysis.trace_activities import NONE, Device, among
from agprof.model.format import format_value, percent
from agprof.model.trace_answers import TraceQuality
from agprof.model.trace_tables import GpuKind
from agprof.store.traces import RankTrace

_MAX_NOTES = 20
_NOTE_LENGTH = 500
_NO_NAME = "(no name)"
"""What the reader of nsys' exports calls a kernel whose text is lost."""
_LONG_GAP_NS = 3_600 * 10**9
"""A device that does nothing for so long inside a trace is less likely than a damaged time."""


def quality_row(trace: RankTrace, device: Device | None, steps: int, calls: pl.DataFrame | None) -> TraceQuality:
    """One rank's row. `calls` are its communication kernels."""
    meta = trace.meta
    sized = int(calls["bytes"].count()) if calls is not None and calls.height else 0
    return TraceQuality(
        rank=trace.rank,
        source=meta.source[:_NOTE_LENGTH],
        format=meta.format,
        events=sum(meta.events.values()),
        left_out=dict(meta.left_out),
        dropped_events=meta.dropped_events,
        truncated=meta.truncated,
        steps=steps,
        kernels_without_launch=int((~device.known).sum()) if device is not None else 0,
        collectives_with_size=sized,
        collectives=calls.height if calls is not None else 0,
        timestamp_unit=meta.timestamp_unit,
        notes=tuple(note[:_NOTE_LENGTH] for note in _notes(trace, device, steps, calls))[:_MAX_NOTES],
    )


def _notes(trace: RankTrace, device: Device | None, steps: int, calls: pl.DataFrame | None) -> Iterator[str]:
    yield from trace.meta.notes
    if trace.meta.world_size is None:
        missing = " (no distributedInfo)" if trace.meta.format == "kineto" else ""
        yield f"The trace does not say how many ranks the job had{missing}."
    if device is None:
        yield "The trace holds no device activity: nothing is known of kernels."
        return
    if not steps:
        yield "The trace marks no step (ProfilerStep#3, step 3): only the whole window can be judged."
    lost = int((~device.known).sum())
    if lost:
        yield (
            f"{lost:,} of {len(device.start):,} activities have no launch in the trace "
            f"({percent(lost / len(device.start))}): launched before the window, or lost."
        )
    late = int((device.known & (device.launched_at() > device.start)).sum())
    if late:
        yield f"{late:,} activities begin before their launch call does: host and device clocks differ a little."
    nameless = [number for number, text in device.text.items() if text.strip() in ("", _NO_NAME)]
    if unnamed := int(among(device.name, nameless).sum()):
        yield (
            f"{unnamed:,} activities have no name: whether kernels among them communicate is not known, and they count "
            "as compute."
        )
    if twice := _twice(device):
        yield (
            f"{twice:,} activities stand in the trace more than once (same name, times and correlation): counts and "
            "sums by name hold them as often."
        )
    busy = device.busy
    longest = int((busy.start[1:] - busy.end[:-1]).max(initial=0))
    if longest > _LONG_GAP_NS:
        yield (
            f"The device does nothing for {format_value(longest, 'ns')} in one piece: a time in the trace may be "
            "damaged, and the window and its idle time with it."
        )
    other = trace.tables["gpu"].filter(pl.col("kind") == int(GpuKind.OTHER)).select(pl.len()).collect().item()
    if other:
        yield f"{other:,} device rows are of a category that agprof does not know; they do not count as busy."
    if device.devices > 1:
        yield f"The rank drives {device.devices} devices; they are taken together: busy means that any of them is."
    if calls is not None and calls.height and not calls["bytes"].count():
        yield "The trace records no sizes of collectives: bandwidth is not available."


def _twice(device: Device) -> int:
    """Activities that are the one before them once more; no device runs one launch's kernel twice at one time."""
    rows = (device.start, device.end, device.name, device.correlation)
    again = np.logical_and.reduce([row[1:] == row[:-1] for row in rows])
    return int((again & (device.end > device.start)[1:] & (device.correlation[1:] != NONE)).sum())


def quality_sentence(rows: Sequence[TraceQuality], world: int | None) -> str:
    """The traces' worth in one sentence."""
    ranks, events = len(rows), sum(row.events for row in rows)
    of = f" of {world:,}" if world is not None and world != ranks else ""
    words = f"Traces of {ranks:,}{of} rank{'' if (world or ranks) == 1 else 's'} with {events:,} events"
    faults = []
    if cut := sum(row.truncated is not None for row in rows):
        faults.append(f"{cut:,} cut short")
    if dropped := sum(row.dropped_events or 0 for row in rows):
        faults.append(f"{dropped:,} events lost by the profiler")
    if left_out := sum(sum(row.left_out.values()) for row in rows):
        faults.append(f"{left_out:,} events that could not be used")
    if missing := sum(row.kernels_without_launch for row in rows):
        faults.append(f"{missing:,} activities without a launch")
    steps = sorted({row.steps for row in rows})
    marked = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    words += f", {marked} step{'' if steps == [1] else 's'} marked"
    return f"{words}; {', '.join(faults)}." if faults else f"{words}; nothing is known to be missing."
