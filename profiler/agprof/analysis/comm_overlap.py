"""Communication in flight, by what the same rank did meanwhile, and by what its time is: issue, transfer, waiting."""

from collections.abc import Sequence

import polars as pl

from agprof.analysis.intervals import covered_until, union
from agprof.analysis.parts import collectives_in_flight, standing_in_collectives
from agprof.analysis.statistics import median_figure, nothing
from agprof.analysis.view import View
from agprof.model.comm_answers import OverlapAnswer
from agprof.model.figure import Figure, Source
from agprof.model.trace_answers import TraceAnswer, TraceBreakdown

_NO_STEP = "no steady step"


def analyse_overlap(view: View, calls: pl.DataFrame, trace: TraceAnswer | None) -> OverlapAnswer | None:
    """`calls` are those of the steady steps. None when nothing was communicated.

    exposed is |communication minus compute|. By the ranks' own records compute is what a rank does while none of its
    threads stands in a collective; by device traces it is the time of compute kernels. exposed + overlapped = in
    flight, exactly; transfer + skew = the durations of the matched calls.
    """
    if not calls.height:
        return None
    by_trace = _by_trace(trace)
    in_flight, exposed, overlapped = by_trace if by_trace is not None else _by_host(view)
    return OverlapAnswer(
        in_flight=in_flight,
        exposed=exposed,
        overlapped=overlapped,
        issue=_issue(view, calls),
        transfer=_of_matched(view, calls, "transfer_ns", "shortest duration over the ranks of matching calls"),
        skew=_of_matched(view, calls, "waited_ns", "duration beyond the shortest over the ranks of matching calls"),
    )


def _by_host(view: View) -> tuple[Figure, Figure, Figure]:
    steady, tables = view.steady, view.tables
    flight = within(steady, collectives_in_flight(tables["collectives"], tables["waits"]))
    standing = within(steady, standing_in_collectives(tables["collectives"], tables["waits"], tables["spans"]))
    return (
        mean_figure(flight.to_list(), "union of call to completion, per rank and steady step"),
        mean_figure(standing.to_list(), "of it, while a thread of the rank stood in a collective"),
        mean_figure((flight - standing).to_list(), "of it, while none of its threads stood in a collective"),
    )


def _by_trace(trace: TraceAnswer | None) -> tuple[Figure, Figure, Figure] | None:
    """By device traces, per rank and profiler step, where they have both."""
    rows: Sequence[TraceBreakdown] = trace.steps if trace is not None and trace.has_device else ()
    rows = [row for row in rows if row.step is not None]
    if not any(row.communication_ns for row in rows):
        return None
    method = "device trace, per rank and profiler step: communication kernels"
    return (
        mean_figure([row.communication_ns for row in rows], method),
        mean_figure([row.exposed_communication_ns for row in rows], f"{method} while no compute kernel ran"),
        mean_figure([row.overlapped_communication_ns for row in rows], f"{method} while a compute kernel ran"),
    )


def within(steps: pl.DataFrame, disjoint: pl.DataFrame) -> pl.Series:
    """Per step row the ns that disjoint intervals of its rank cover of it."""
    ends = covered_until(steps.select("rank", at_ns="end_ns"), disjoint)
    return ends - covered_until(steps.select("rank", at_ns="start_ns"), disjoint)


def mean_figure(values: Sequence[float], method: str, source: Source = "measured") -> Figure:
    """Mean in ns, so that parts add up, with the interval of the median, widened to hold the mean."""
    if not values:
        return nothing("ns", _NO_STEP, method=method, source=source)
    mean = sum(values) / len(values)
    spread = median_figure(values, "ns", method="", reason="")
    low, high = min(spread.low or 0.0, mean), max(spread.high or 0.0, mean)
    return Figure(
        value=mean, unit="ns", source=source, n=len(values), low=low, high=high,
        method=f"{method}; mean, interval of the median",
    )  # fmt: skip


def _issue(view: View, calls: pl.DataFrame) -> Figure:
    """Calls that return before they are done: asynchronous ones, and those whose end only a device knows."""
    method = "union of call to return of calls that return before they are complete, per rank and steady step"
    issued = calls.filter(pl.col("async_op") | pl.col("end_ns").is_null())
    if not issued.height:
        return nothing("ns", "all calls return when they are complete: issue and transfer are one", method=method)
    disjoint = union(issued.select("rank", "start_ns", end_ns="issue_end_ns"))
    return mean_figure(within(view.steady, disjoint).to_list(), method)


def _of_matched(view: View, calls: pl.DataFrame, column: str, method: str) -> Figure:
    matched = calls.drop_nulls("transfer_ns")
    if not matched.height:
        return nothing("ns", "no call could be matched across the ranks of its group", method=method)
    sums = matched.group_by("rank", "step").agg(pl.col(column).clip(0).sum().alias("value"))
    values = view.steady.select("rank", "step").join(sums, on=["rank", "step"], how="left")["value"].fill_null(0)
    return mean_figure(values.to_list(), f"{method}, summed per rank and steady step")
