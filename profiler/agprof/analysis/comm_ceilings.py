"""Collectives against what the same link was measured to do (`agprof bench-comm`)."""

import math
from collections.abc import Sequence
from statistics import median

import polars as pl

from agprof.analysis.comm_calls import group_ranks, steady_calls
from agprof.analysis.comm_models import backend_of, fitting_ceilings, link_of, nodes_of
from agprof.analysis.statistics import median_figure
from agprof.analysis.view import View
from agprof.model.alpha_beta import predict_ns
from agprof.model.comm_answers import CeilingRow
from agprof.model.comm_ceiling import CommCurve
from agprof.model.figure import Figure

FAR_BELOW = 0.5
"""A kind of collective that reaches less than this of its ceiling, by more than the fit is off, is far below it."""
Z95 = 1.96
_KINDS = ["op", "group", "group_size", "bytes", "line"]
_MOST_ROWS = 200


def curve_of(view: View, op: str, group_size: int, nodes: int | None = None) -> CommCurve | None:
    """The curve measured for an operation on as many ranks over as many nodes (the run's when None), with a fit."""
    spanned = nodes_of(view) if nodes is None else nodes
    curves = [
        curve
        for ceiling in fitting_ceilings(view)
        for curve in ceiling.curves
        if curve.op == _measured_op(op) and curve.group_size == group_size and curve.nodes == spanned
    ]
    return next((curve for curve in curves if curve.fit is not None), None)


def alpha_of(view: View, op: str, group_size: int) -> float | None:
    """Latency in ns of an operation on a group over all nodes of the run; None where it was not measured."""
    curve = curve_of(view, op, group_size)
    return curve.fit.alpha_ns if curve is not None and curve.fit is not None else None


def ceiling_rows(view: View, calls: pl.DataFrame) -> tuple[CeilingRow, ...]:
    """Each kind of collective with its ceiling, those that lose most first. `calls`: `matched_calls(view)`."""
    steady = steady_calls(view, calls)
    timed = steady.filter(pl.col("transfer_ns").is_not_null() & (pl.col("bytes") > 0) & (pl.col("group_size") > 1))
    lines = group_ranks(view)
    steps = max(1, view.steady.height)
    rows = []
    for (op, group, size, total, line), found in timed.group_by(*_KINDS, maintain_order=True):
        nodes = _spanned(view, lines[int(str(line))]) if line is not None else nodes_of(view)
        curve = curve_of(view, str(op), int(str(size)), nodes)
        if curve is not None:
            transfers = found.filter(pl.col("rank") == pl.col("lead"))["transfer_ns"].to_list()
            if transfers:
                rows.append(
                    _row(str(op), str(group), int(str(size)), int(str(total)), transfers, found.height / steps, curve)
                )
    rows.sort(key=lambda row: (-row.saving_ns_per_step, row.op, row.group, row.bytes))
    return tuple(rows[:_MOST_ROWS])


def why_none(view: View) -> str | None:
    """Why nothing is held against a ceiling; None where there is one."""
    if fitting_ceilings(view):
        return None
    if not view.run.comm_ceilings:
        return "no ceiling was measured: run `agprof bench-comm` once (docs/bench-comm.md)"
    backend, nodes, link = backend_of(view) or "its backend", nodes_of(view), link_of(view).words
    over = f" over {link}" if nodes > 1 and link else ""
    return (
        f"what `agprof bench-comm` measured is of another backend, device, link or number of nodes: measure {backend} "
        f"on {nodes} node{'s' * (nodes > 1)}{over}"
    )


def ceilings_sentence(view: View, rows: Sequence[CeilingRow]) -> str:
    """What the ceilings say, for the report."""
    reason = why_none(view)
    if reason is not None:
        return reason[0].upper() + reason[1:] + "."
    if not rows:
        return "No collective of the steady steps is of an operation, group size and number of nodes that was measured."
    below = [row for row in rows if row.far_below]
    if not below:
        return f"None of {len(rows)} kinds of collectives is far below what the link was measured to do."
    worst = below[0]
    return (
        f"{len(below)} of {len(rows)} kinds of collectives are far below what the link was measured to do; "
        f"most is lost in {worst.op.replace('_', '-')}, which reaches {worst.reached.value or 0:.0%}."
    )


def _measured_op(op: str) -> str:
    """The measured operation's name of one that a call is named by: variants move the same."""
    for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"):
        if op.startswith(name) and "object" not in op:
            return name
    return op


def _spanned(view: View, ranks: Sequence[int]) -> int:
    return len({view.node_of.get(rank, 0) for rank in ranks})


def _row(
    op: str, group: str, size: int, total: int, transfers: list[int], calls_per_step: float, curve: CommCurve
) -> CeilingRow:
    assert curve.fit is not None
    measured = median_figure(
        transfers, "ns", method="shortest duration over the ranks of matching calls", reason="no transfer"
    )
    predicted = _predicted(curve, total)
    took, should = float(median(transfers)), predicted.value or 0.0
    reached = Figure(
        value=should / took if took > 0 else None,
        unit="ratio",
        source="modelled",
        n=measured.n,
        low=(predicted.low or 0.0) / took if took > 0 else None,
        high=(predicted.high or 0.0) / took if took > 0 else None,
        method="predicted / measured; interval of the prediction",
        reason=None if took > 0 else "the transfer took no time by the clock",
    )
    return CeilingRow(
        op=op,
        group=group,
        group_size=size,
        bytes=total,
        measured=measured,
        predicted=predicted,
        reached=reached,
        far_below=took > 0 and should < FAR_BELOW * took and (predicted.high or should) < (measured.low or took),
        saving_ns_per_step=max(0.0, took - should) * calls_per_step,
    )


def _predicted(curve: CommCurve, total: int) -> Figure:
    """alpha + beta S with a 95 % interval: errors of both parameters, and what single sizes are off the line."""
    fit = curve.fit
    assert fit is not None
    value = predict_ns(fit, total)
    error = math.hypot(fit.alpha_error_ns, fit.beta_error_ns_per_byte * total, fit.relative_rms * value)
    beyond = ""
    if not curve.points[0].bytes <= total <= curve.points[-1].bytes:
        beyond = "; the size is outside of what was measured"
    return Figure(
        value=value,
        unit="ns",
        source="modelled",
        n=len(curve.points),
        low=max(0.0, value - Z95 * error),
        high=value + Z95 * error,
        method=f"alpha + beta S of agprof bench-comm, {curve.group_size} ranks on {curve.nodes} nodes; 95 %{beyond}",
    )
