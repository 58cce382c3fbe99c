"""From device traces to the answers on them. Pure: the traces' tables in, one frozen value out.

One rank at a time is looked at, so that memory is bounded by the largest rank; what the ranks give is put together at
the end. Every definition: docs/trace-analysis.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl

from agprof.analysis.trace_activities import Device, load_device
from agprof.analysis.trace_breakdown import breakdowns, parts_of
from agprof.analysis.trace_communication import (
    collective_rows,
    communication_calls,
    communication_sentence,
    match,
)
from agprof.analysis.trace_critical_path import critical_path
from agprof.analysis.trace_groups import group_rows, group_sums
from agprof.analysis.trace_hta import hta_windows
from agprof.analysis.trace_idle import host_waits
from agprof.analysis.trace_kernels import kernel_rows, kernel_sums, unclassified
from agprof.analysis.trace_launches import launch_row
from agprof.analysis.trace_memory import memory
from agprof.analysis.trace_quality import quality_row, quality_sentence
from agprof.analysis.trace_sentences import path_sentence, time_sentence
from agprof.analysis.trace_steps import device_steps, host_steps
from agprof.analysis.trace_stragglers import stragglers, stragglers_sentence
from agprof.analysis.trace_timeline import timeline
from agprof.analysis.trace_window import Window, typical_of
from agprof.model.communication_kernels import Communication
from agprof.model.trace_answers import LaunchRow, TraceAnswer, TraceBreakdown, TraceQuality, TraceStraggler
from agprof.store.traces import RankTrace

Compat = Literal["hta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RankParts:
    """What one rank gives."""

    quality: TraceQuality
    window: TraceBreakdown | None = None
    steps: tuple[TraceBreakdown, ...] = ()
    kernels: pl.DataFrame | None = None
    groups: pl.DataFrame | None = None
    calls: pl.DataFrame | None = None
    launches: LaunchRow | None = None


def analyse_traces(
    traces: Mapping[int, RankTrace],
    *,
    communication: Mapping[str, str] | None = None,
    compat: Compat | None = None,
) -> TraceAnswer | None:
    """All answers from device traces; None when there are none.

    `communication` holds the user's own libraries (name -> regular expression for kernels' names); raises re.error for
    one that is no expression. `compat` replaces the breakdown of the whole window by that of another tool.
    """
    if not traces:
        return None
    known = Communication.with_user(communication)
    ranks = [traces[rank] for rank in sorted(traces)]
    origin = _origin(ranks)
    parts = {trace.rank: _analyse_rank(trace, known, origin) for trace in ranks}
    windows = tuple(part.window for part in parts.values() if part.window is not None)
    world = max((trace.meta.world_size or 0 for trace in ranks), default=0) or None
    matches = match((part.calls for part in parts.values() if part.calls is not None), world)
    late = stragglers(matches, {row.rank: row.window_ns for row in windows})
    kernels = kernel_rows(part.kernels for part in parts.values() if part.kernels is not None)
    collectives = collective_rows(matches)
    followed = traces[_rank_to_follow(parts, late)]
    typical = typical_of(
        Window(step=row.step, start_ns=row.start_ns + origin, end_ns=row.start_ns + origin + row.window_ns)
        for row in parts[followed.rank].steps
    )
    path = critical_path(followed, window=typical, origin=origin, communicates=known.communicates)
    quality = tuple(part.quality for part in parts.values())
    answer = TraceAnswer(
        sentence=time_sentence(windows),
        definitions="exact",
        has_device=any(part.window is not None for part in parts.values()),
        windows=windows,
        steps=tuple(step for part in parts.values() for step in part.steps),
        kernels=kernels,
        groups=group_rows(part.groups for part in parts.values() if part.groups is not None),
        collectives=collectives,
        communication_sentence=communication_sentence(collectives, matches, len(ranks)),
        unclassified=unclassified(kernels),
        launches=tuple(part.launches for part in parts.values() if part.launches is not None),
        stragglers=late,
        stragglers_sentence=stragglers_sentence(late, len(ranks), matches),
        critical_path=path,
        critical_path_sentence=path_sentence(path),
        memory=tuple(curve for trace in ranks for curve in memory(trace, origin=origin)),
        timeline=timeline(followed, window=typical, origin=origin, communicates=known.communicates),
        quality=quality,
        quality_sentence=quality_sentence(quality, world),
    )
    return in_words_of(compat, answer, traces)


def in_words_of(compat: Compat | None, answer: TraceAnswer, traces: Mapping[int, RankTrace]) -> TraceAnswer:
    """The answer with the time breakdown of the whole window as another tool defines it; as it is without one."""
    if compat is None or not traces:
        return answer
    windows, notes = hta_windows(traces, _origin(list(traces.values())))
    sentence = " ".join((time_sentence(windows), *notes))
    return replace(answer, definitions="hta", windows=windows, steps=(), sentence=sentence)


def _origin(ranks: list[RankTrace]) -> int:
    """The earliest event of any rank."""
    first = [trace.meta.first_ns for trace in ranks if trace.meta.first_ns is not None]
    if len(first) == len(ranks):
        return min(first)
    begins = []
    for trace in ranks:
        for table in ("gpu", "cpu"):
            value = trace.tables[table].select(pl.col("start_ns").min()).collect().item()
            begins += [int(value)] if value is not None else []
    return min(begins, default=0)


def _analyse_rank(trace: RankTrace, known: Communication, origin: int) -> _RankParts:
    marked = host_steps(trace)
    device = load_device(trace, known)
    if device is None:
        return _RankParts(quality=quality_row(trace, None, len(marked), None))
    window, steps = _time(trace, device, origin)
    calls = communication_calls(trace, device)
    return _RankParts(
        quality=quality_row(trace, device, len(marked), calls),
        window=window,
        steps=steps,
        kernels=kernel_sums(device),
        groups=group_sums(trace, device),
        calls=calls,
        launches=launch_row(device),
    )


def _time(trace: RankTrace, device: Device, origin: int) -> tuple[TraceBreakdown, tuple[TraceBreakdown, ...]]:
    on_device = device_steps(device, host_steps(trace))
    parts = parts_of(device, host_waits(trace, device), on_device)
    window, steps = breakdowns(trace.rank, parts, on_device, origin)
    return window, tuple(steps)


def _rank_to_follow(parts: Mapping[int, _RankParts], late: tuple[TraceStraggler, ...]) -> int:
    """The rank whose path is worth showing: one that delays the others, else the first with a device."""
    named = [row.rank for row in late if row.is_straggler]
    with_device = [rank for rank, part in parts.items() if part.window is not None]
    return next(iter((*named, *with_device, *parts)))
