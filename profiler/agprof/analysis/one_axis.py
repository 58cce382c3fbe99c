"""A run whose nodes' times are on the clock of the reference node, for whatever draws the ranks below each other.

What pings say of a node's clock is applied to every time of it: of its tables, traces and headers. A run on one node
comes back as it is, and so do nodes whose clocks are known by their wall clocks only: these differ by a constant, which
stands in their headers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import polars as pl

from agprof.analysis.clock_axis import ClockAxis, common_column
from agprof.analysis.clocks import FittedClocks, answer, fit_clocks, node_of_stream, wall_offsets
from agprof.model.tables import BY_NAME
from agprof.store.reader import Run, Stream
from agprof.store.traces import RankTrace

TIMES = ("time_ns", "start_ns", "end_ns", "issue_end_ns")
_READ = ("clocks", "steps", "host_samples", "collectives")
_MAX_NS = 2**62


def on_one_axis(run: Run, say: Callable[[str], None] = lambda line: None) -> Run:
    """The run on one axis. `say` is told when its clocks can't be reconciled: then the nodes' wall clocks are left."""
    fitted = _fit(run)
    if fitted is None:
        return run
    axes = _pinged(fitted)
    if fitted.state == "refused":
        told = answer(fitted, 0)
        say(f"{told.sentence if told else ''} What is written here has each node at the time of its own wall clock.")
    if not axes:
        return run
    to_wall = wall_offsets(run.streams).get(fitted.reference or 0, 0)
    ranks = axes_of_ranks(run, axes)
    tables = dict(run.tables)
    for name, table in BY_NAME.items():
        tables[name] = _moved(tables[name], axes if table.scope == "node" else ranks, table.scope)
    return replace(
        run,
        tables={**tables, "clocks": tables["clocks"].clear()},
        traces={rank: _moved_trace(trace, ranks.get(rank)) for rank, trace in run.traces.items()},
        streams=tuple(_moved_header(stream, axes.get(node_of_stream(stream)), to_wall) for stream in run.streams),
    )


def pinged_axes(run: Run) -> dict[int, ClockAxis]:
    """By node the axes that pings say, which `on_one_axis` applies; {} with one node, and where clocks are refused."""
    fitted = _fit(run)
    return {} if fitted is None else _pinged(fitted)


def axes_of_ranks(run: Run, axes: Mapping[int, ClockAxis]) -> dict[int, ClockAxis]:
    """By rank the axis of its node, where it has one."""
    nodes = {stream.number: node_of_stream(stream) for stream in run.streams if stream.scope == "rank"}
    return {rank: axes[node] for rank, node in nodes.items() if node in axes}


def _pinged(fitted: FittedClocks) -> dict[int, ClockAxis]:
    if fitted.state == "refused":
        return {}
    return {one.node: one.axis for one in fitted.nodes if one.lines}


def _fit(run: Run) -> FittedClocks | None:
    """The run's clocks; None with one node."""
    if len({node_of_stream(stream) for stream in run.streams}) < 2:
        return None
    clean = {
        name: run.tables[name].drop_nulls(
            [BY_NAME[name].scope, *(column.name for column in BY_NAME[name].columns if not column.optional)]
        )
        for name in _READ
    }
    return fit_clocks(run.streams, clean, {s.number: node_of_stream(s) for s in run.streams if s.scope == "rank"})


def _safe(column: str) -> pl.Expr:
    """Damaged times near the ends of 64 bits would wrap around; they are left out as such ones are anyway."""
    return pl.when(pl.col(column).is_between(-_MAX_NS, _MAX_NS)).then(pl.col(column))


def _moved(frame: pl.DataFrame, axes: Mapping[int, ClockAxis], scope: str) -> pl.DataFrame:
    moved = {name: common_column(axes, pl.col(scope), _safe(name)) for name in TIMES if name in frame.columns}
    if "start_ns" in moved and "duration_ns" in frame.columns:
        end = common_column(axes, pl.col(scope), _safe("start_ns") + pl.col("duration_ns"))
        moved["duration_ns"] = end - moved["start_ns"]
    return frame.with_columns(**moved) if moved else frame


def _moved_trace(trace: RankTrace, axis: ClockAxis | None) -> RankTrace:
    if axis is None:
        return trace
    return replace(
        trace,
        tables={name: _moved_events(frame, axis) for name, frame in trace.tables.items()},
        parts={name: [_moved_events(frame, axis) for frame in frames] for name, frames in trace.parts.items()},
    )


def _moved_events(frame: pl.LazyFrame, axis: ClockAxis) -> pl.LazyFrame:
    columns = frame.collect_schema().names()
    moved = {name: axis.column(_safe(name)) for name in TIMES if name in columns}
    if "start_ns" in moved and "duration_ns" in columns:
        # Both ends are moved, so that what lay within another event still does.
        moved["duration_ns"] = axis.column(_safe("start_ns") + pl.col("duration_ns")) - moved["start_ns"]
    return frame.with_columns(**moved)


def _moved_header(stream: Stream, axis: ClockAxis | None, to_wall_ns: int) -> Stream:
    clock = stream.header.get("clock")
    monotonic = clock.get("monotonic_ns") if isinstance(clock, Mapping) else None
    if axis is None or not isinstance(clock, Mapping) or not isinstance(monotonic, int):
        return stream
    moved = axis.common(monotonic)
    told = {**clock, "monotonic_ns": moved, "realtime_ns": moved + to_wall_ns}
    return replace(stream, header={**stream.header, "clock": told})
