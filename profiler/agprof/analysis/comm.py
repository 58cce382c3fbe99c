"""Communication: what is called, how large, how long callers stand in it, and what bandwidth that makes."""

from typing import Any

import polars as pl

from agprof.analysis.comm_arrivals import arrivals
from agprof.analysis.comm_calls import steady_calls
from agprof.analysis.comm_ceilings import ceiling_rows, ceilings_sentence
from agprof.analysis.comm_kinds import group_rows
from agprof.analysis.comm_matrix import talk_matrix
from agprof.analysis.comm_overlap import analyse_overlap, within
from agprof.analysis.comm_sizes import size_bins
from agprof.analysis.ledger import ledger
from agprof.analysis.parts import collectives_in_flight
from agprof.analysis.statistics import median_figure, nothing
from agprof.analysis.view import View, mean_parts
from agprof.model.answers import CollectiveRow, CommunicationAnswer
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent
from agprof.model.trace_answers import TraceAnswer

KIND = ["op", "group", "group_size", "bytes", "dtype", "caller"]
"""What makes collectives one row."""


def bus_factor(op: str, n: int) -> float | None:
    """Factor from algorithm to bus bandwidth (nccl-tests), n the size of the group; None for what moves no data.

    >>> bus_factor("all_reduce", 4), bus_factor("all_gather", 4), bus_factor("broadcast", 4), bus_factor("barrier", 4)
    (1.5, 0.75, 1.0, None)
    """
    if n < 2 or "barrier" in op:
        return None
    if op.startswith("all_reduce"):
        return 2 * (n - 1) / n
    if op.startswith(("reduce_scatter", "all_gather", "all_to_all", "gather", "scatter")):
        return (n - 1) / n
    return 1.0 if op.startswith(("broadcast", "reduce", "send", "recv", "isend", "irecv")) else None


def analyse_communication(view: View, calls: pl.DataFrame, trace: TraceAnswer | None = None) -> CommunicationAnswer:
    """The communication section. `calls` is `matched_calls(view)`, `trace` what device traces say, where there are."""
    unseen, ledger_sentence = ledger(view)
    steady = view.steady
    calls = steady_calls(view, calls)
    exposed = _per_step_figure(view, steady["communication"], "ns", "union of the intervals in which a caller stood")
    share = _share_figure(view)
    rows = _rows(view, calls)
    ceilings = ceiling_rows(view, calls)
    return CommunicationAnswer(
        sentence=_sentence(view, rows, share),
        calls_per_step=_per_step_figure(view, _sums(steady, calls, pl.len()), "1", "calls of one rank", "counted"),
        bytes_per_step=_bytes_figure(view, calls),
        exposed_per_step=exposed,
        exposed_share=share,
        total_per_step=_per_step_figure(view, _in_flight(view), "ns", "union of call to completion"),
        rows=rows,
        unseen=unseen,
        ledger_sentence=ledger_sentence,
        overlap=analyse_overlap(view, calls, trace),
        sizes=size_bins(calls, steady.height),
        groups=group_rows(view, calls),
        matrix=talk_matrix(view, calls),
        ceilings=ceilings,
        arrivals=arrivals(view, calls),
        ceilings_sentence=ceilings_sentence(view, ceilings),
    )


def _sums(steady: pl.DataFrame, calls: pl.DataFrame, what: pl.Expr) -> pl.Series:
    """Per steady rank and step the aggregate of its calls; 0 where it made none."""
    sums = calls.group_by("rank", "step").agg(value=what)
    return steady.select("rank", "step").join(sums, on=["rank", "step"], how="left")["value"].fill_null(0)


def _per_step_figure(view: View, values: pl.Series, unit: str, method: str, source: Any = "measured") -> Figure:
    reason = "no steady step"
    return median_figure(
        values.to_list(), unit, method=f"{method}, per rank and steady step", reason=reason, source=source
    )


def _bytes_figure(view: View, calls: pl.DataFrame) -> Figure:
    method = "total bytes S of nccl-tests of the calls of one rank"
    unknown = calls["bytes"].null_count()
    if unknown and unknown == calls.height:
        return nothing("bytes", "the sizes of the collectives are not known", method=method, source="counted")
    if unknown:
        method += f"; {unknown:,} of {calls.height:,} calls have no known size and count nothing"
    return _per_step_figure(view, _sums(view.steady, calls, pl.col("bytes").sum()), "bytes", method, "counted")


def _share_figure(view: View) -> Figure:
    method = "exposed communication over the step's duration"
    rows = view.steady.filter(pl.col("duration_ns") > 0)
    if not rows.height:
        return nothing("ratio", "no steady step", method=method)
    mean = float(rows["communication"].sum()) / float(rows["duration_ns"].sum())
    per_step = (rows["communication"] / rows["duration_ns"]).to_list()
    spread = median_figure(per_step, "ratio", method=method, reason="")
    low, high = spread.low, spread.high
    if low is not None and high is not None:
        low, high = min(low, mean), max(high, mean)
    return Figure(
        value=mean,
        unit="ratio",
        source="measured",
        n=rows.height,
        low=low,
        high=high,
        method=f"{method}, sums over ranks and steady steps; interval of the median over them",
    )


def _in_flight(view: View) -> pl.Series:
    return within(view.steady, collectives_in_flight(view.tables["collectives"], view.tables["waits"]))


def _rows(view: View, calls: pl.DataFrame) -> tuple[CollectiveRow, ...]:
    stood = pl.col("stood_ns")
    kinds = (
        calls.group_by(KIND)
        .agg(
            calls=pl.len(),
            exposed=stood.clip(0).sum(),
            total=pl.max_horizontal(pl.max_horizontal("issue_end_ns", "end_ns") - pl.col("start_ns"), stood)
            .clip(0)
            .sum(),
            transfers=pl.col("transfer_ns").filter(pl.col("rank") == pl.col("lead")).drop_nulls(),
            durations=pl.col("duration_ns").drop_nulls(),
        )
        .sort("exposed", *KIND, descending=[True] + [False] * len(KIND), nulls_last=True)
    )
    count, mean = max(1, view.steady.height), view.mean_step_ns
    return tuple(_row(row, count, mean) for row in kinds.iter_rows(named=True))


def _row(row: dict[str, Any], count: int, mean: float) -> CollectiveRow:
    algorithm, bus = _bandwidths(row)
    size = row["bytes"]
    exposed = row["exposed"] / count
    return CollectiveRow(
        op=row["op"],
        group=row["group"],
        group_size=row["group_size"],
        dtype=row["dtype"],
        caller=row["caller"],
        calls_per_step=row["calls"] / count,
        bytes_per_call=Figure(
            value=size,
            unit="bytes",
            source="counted",
            n=row["calls"],
            method="total bytes S as nccl-tests defines it for the operation",
            reason=None if size is not None else "the size of this call could not be known",
        ),
        bytes_per_step=None if size is None else size * row["calls"] / count,
        exposed_ns_per_step=exposed,
        total_ns_per_step=row["total"] / count,
        share=exposed / mean if mean else 0.0,
        algorithm_bandwidth=algorithm,
        bus_bandwidth=bus,
    )


def _bandwidths(row: dict[str, Any]) -> tuple[Figure, Figure]:
    size, n, op = row["bytes"], row["group_size"], row["op"]
    factor = bus_factor(op, n)
    matched = bool(row["transfers"])
    times = [t for t in (row["transfers"] or row["durations"]) if t > 0]
    which = (
        "shortest duration over the ranks of matching calls" if matched else "duration of each call, waiting included"
    )
    method = f"algbw = S / t, t: {which}"
    reason = (
        "the size of the group is not known"
        if n < 1
        else "one rank: nothing is transferred"
        if n < 2
        else "the size is not known"
        if size is None
        else "it moves no data"
        if not size or factor is None
        else "no call was seen to complete"
    )
    rates = [size * 1e9 / t for t in times] if size and factor is not None else []
    algorithm = median_figure(rates, "bytes/s", method=method, reason=reason)
    bus_method = f"{method}; busbw = algbw x {factor:.3g} (nccl-tests, n = {n})" if factor is not None else method
    bus = median_figure([rate * (factor or 0) for rate in rates], "bytes/s", method=bus_method, reason=reason)
    return algorithm, bus


def _sentence(view: View, rows: tuple[CollectiveRow, ...], share: Figure) -> str:
    if not view.steps.height:
        return "No optimizer step was seen, so nothing can be said about communication."
    if not rows:
        if len(view.ranks) == 1 and view.fact("dist.world_size", 1) in (1, None):
            return "One rank: there is nothing to communicate."
        return "No collective was seen in the steady steps."
    top = rows[0]
    parts = mean_parts(view.steady)
    time = f"{format_value(parts['communication'], 'ns')} of {format_value(view.mean_step_ns, 'ns')} a step"
    return f"Callers stand {time} ({percent(share.value or 0)}) in collectives, mostly {describe(top)}."


def describe(row: CollectiveRow) -> str:
    """`24 all-reduce calls a step of 4.20 MiB`."""
    name = row.op.replace("_", "-")
    calls = row.calls_per_step
    size = row.bytes_per_call.value
    many = f"{format_value(calls, '1')} {name} call{'' if calls == 1 else 's'} a step"
    return f"{many} of {format_value(size, 'bytes')}" if size else many
