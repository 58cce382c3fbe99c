"""Findings on communication: calls too small to be fast, and time in which nothing is computed meanwhile."""

import math
from typing import Any

import polars as pl

from agprof.analysis.comm import describe
from agprof.analysis.evidence import Evidence, saving
from agprof.model.answers import CollectiveRow, Finding
from agprof.model.format import format_value, percent

SMALL_BYTES = 64 * 2**10
FEW_CALLS = 16
"""Fewer small calls a step than this are not worth a word."""
_BUCKET_BYTES = 25 * 2**20
"""A bucket in which latency no longer matters: DDP's default."""
_MOVES_DATA = ("all_reduce", "all_gather", "reduce_scatter", "reduce", "broadcast")


def _zero(evidence: Evidence) -> dict[str, Any]:
    config = evidence.view.fact("deepspeed.config")
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    return zero if isinstance(zero, dict) else {}


def _framework(evidence: Evidence) -> str:
    return str(evidence.view.fact("framework") or "")


def _small(evidence: Evidence) -> list[CollectiveRow]:
    return [
        row
        for row in evidence.communication.rows
        if row.group_size > 1 and row.op.startswith(_MOVES_DATA) and 0 < (row.bytes_per_call.value or 0) < SMALL_BYTES
    ]


def small_messages(evidence: Evidence) -> Finding | None:
    """Many collectives below 64 KiB: the time is latency, and larger buckets merge them."""
    rows = _small(evidence)
    calls = sum(row.calls_per_step for row in rows)
    time_ns = sum(row.exposed_ns_per_step for row in rows)
    total = sum(row.bytes_per_step or 0.0 for row in rows)
    if calls < FEW_CALLS or time_ns < 0.01 * evidence.mean_ns:
        return None
    merged = max(1, math.ceil(total / _BUCKET_BYTES))
    top = max(rows, key=lambda row: row.exposed_ns_per_step)
    wasted = min(time_ns, _latency(evidence) * calls) * (1 - merged / calls)
    return Finding(
        key="small-messages",
        title=f"{format_value(calls, '1')} collectives a step are smaller than 64 KiB",
        evidence=(
            f"They move {format_value(total, 'bytes')} a step and take {format_value(time_ns, 'ns')} "
            f"({percent(time_ns / evidence.mean_ns)} of the step), most of it {describe(top)}: that is latency."
        ),
        section="communication",
        saving_ns_per_step=saving(
            wasted,
            len(rows),
            f"median transfer of a small call x the calls that {merged} of {_BUCKET_BYTES >> 20} MiB replace",
        ),
        confidence="modelled",
        change=_bucket_keys(evidence, rows),
        check="calls a step fall and bytes per call rise in the table of collectives; the step gets shorter.",
    )


def _latency(evidence: Evidence) -> float:
    """Median transfer of a small call in ns, without waiting for other ranks where calls could be matched."""
    small = evidence.calls.filter((pl.col("bytes") < SMALL_BYTES) & (pl.col("group_size") > 1))
    value = small["transfer_ns"].median() if small["transfer_ns"].count() else small["duration_ns"].median()
    return float(value) if isinstance(value, int | float) else 0.0


def _bucket_keys(evidence: Evidence, rows: list[CollectiveRow]) -> str:
    if _framework(evidence) != "deepspeed":
        if _framework(evidence) == "ddp":
            return "Raise bucket_cap_mb of DistributedDataParallel, and send small tensors of your own as one."
        return "Send small tensors together: flatten them into one buffer per step."
    zero, keys = _zero(evidence), []
    if any(row.op.startswith(("all_reduce", "reduce")) for row in rows):
        keys.append("reduce_bucket_size")
    if any(row.op.startswith(("all_gather", "broadcast")) for row in rows):
        keys.append("allgather_bucket_size")
    words = [f"zero_optimization.{key}" + (f" (now {zero[key]:,})" if _is_int(zero.get(key)) else "") for key in keys]
    return f"Raise {' and '.join(words)} of the DeepSpeed JSON; 5e8 elements is its default."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def exposed_communication(evidence: Evidence) -> Finding | None:
    """Communication that nothing hides, unless most of it is waiting for a straggler or small messages."""
    if evidence.share("communication") < 0.1 or not evidence.communication.rows:
        return None
    straggler = evidence.straggler
    if straggler is not None and straggler.lost_ns > 0.5 * evidence.parts["communication"]:
        return None
    small = sum(row.exposed_ns_per_step for row in _small(evidence))
    if small > 0.5 * evidence.parts["communication"] and small_messages(evidence) is not None:
        return None
    top = evidence.communication.rows[0]
    exposed = evidence.parts["communication"]
    backward = evidence.parts["backward"]
    hidden = min(exposed, sum(r.exposed_ns_per_step for r in evidence.communication.rows if r.caller == "backward"))
    possible = min(hidden, backward)
    by_op = _by_op(evidence)
    return Finding(
        key="exposed-communication",
        title=f"{percent(evidence.share('communication'))} of the step is communication that nothing hides",
        evidence=(
            f"Callers stand {format_value(exposed, 'ns')} of {format_value(evidence.mean_ns, 'ns')} a step in "
            f"collectives: {by_op}. Most of it: {describe(top)}.{_waiting(evidence)}"
        ),
        section="communication",
        saving_ns_per_step=saving(
            possible,
            evidence.time.step_time.n,
            "at most: what backward issues, as far as its own time can hide it",
        ),
        confidence="modelled",
        change=_overlap_keys(evidence),
        check="the share of exposed communication falls while its total stays.",
    )


def _waiting(evidence: Evidence) -> str:
    """How much of the time is waiting for the last rank to enter, where calls could be matched."""
    matched = evidence.calls.drop_nulls("transfer_ns")
    total, waiting = int(matched["duration_ns"].sum()), int((matched["duration_ns"] - matched["transfer_ns"]).sum())
    if not total:
        return ""
    return f" {percent(waiting / total)} of the time in collectives is waiting for the last rank to enter."


def _by_op(evidence: Evidence) -> str:
    times: dict[str, float] = {}
    for row in evidence.communication.rows:
        times[row.op] = times.get(row.op, 0.0) + row.exposed_ns_per_step
    ordered = sorted(times.items(), key=lambda item: (-item[1], item[0]))[:3]
    return ", ".join(f"{op.replace('_', '-')} {format_value(ns, 'ns')}" for op, ns in ordered)


def _overlap_keys(evidence: Evidence) -> str:
    fewer = "more gradient_accumulation_steps make fewer reductions per sample"
    if _framework(evidence) != "deepspeed":
        return f"Let the framework reduce gradients in buckets during backward (bucket_cap_mb of DDP); {fewer}."
    if _zero(evidence).get("overlap_comm") is True:
        return f"zero_optimization.overlap_comm is on already: {fewer}; a smaller communication_data_type moves less."
    return f"zero_optimization.overlap_comm: true in the DeepSpeed JSON (it needs a device or idle cores); {fewer}."


def below_ceiling(evidence: Evidence) -> Finding | None:
    """Transfers that take far longer than the same link was measured to need."""
    below = [row for row in evidence.communication.ceilings if row.far_below]
    lost = sum(row.saving_ns_per_step for row in below)
    possible = min(lost, evidence.parts["communication"])
    if not below or possible < 0.01 * evidence.mean_ns:
        return None
    worst = below[0]
    name = worst.op.replace("_", "-")
    return Finding(
        key="below-ceiling",
        title=f"{name} reaches {percent(worst.reached.value or 0.0)} of what the link was measured to do",
        evidence=(
            f"{name} of {format_value(worst.bytes, 'bytes')} over {worst.group_size} ranks takes "
            f"{format_value(worst.measured.value or 0.0, 'ns')}, waiting for late ranks left out; `agprof bench-comm` "
            f"measured {format_value(worst.predicted.value or 0.0, 'ns')} for it."
            + (f" {len(below) - 1} more kinds of collectives are far below too." if len(below) > 1 else "")
        ),
        section="communication",
        saving_ns_per_step=saving(
            possible,
            worst.measured.n,
            "at most: transfer beyond alpha + beta S of the ceiling x calls, as far as it is exposed",
        ),
        confidence="modelled",
        change=(
            "Look for what shares the link or the cores with the ranks: other jobs on the network, more threads than "
            "cores (OMP_NUM_THREADS), several collectives at once; check GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
        ),
        check="the share of the ceiling rises in the table of collectives against the link.",
    )
