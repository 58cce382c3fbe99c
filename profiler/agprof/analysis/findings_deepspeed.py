"""Findings on a DeepSpeed JSON whose words do something else than they seem to say."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from agprof.analysis.comm import describe
from agprof.analysis.evidence import Evidence, saving
from agprof.analysis.findings_comm import small_messages
from agprof.model.answers import CollectiveRow, Finding
from agprof.model.format import format_value

_TINY_BYTES = 2**20
"""A message below this is far from a link's bandwidth."""
_REDUCES = ("all_reduce", "reduce", "reduce_scatter")
_MAX_RATES = {
    "WarmupLR": "warmup_max_lr",
    "WarmupDecayLR": "warmup_max_lr",
    "OneCycle": "cycle_max_lr",
    "LRRangeTest": "lr_range_test_min_lr",
}
"""Schedulers of DeepSpeed that set the rate by a key of their own. WarmupCosineLR scales the optimizer's."""


def _config(evidence: Evidence) -> Mapping[str, Any]:
    config = evidence.view.fact("deepspeed.config")
    return config if isinstance(config, dict) else {}


def _block(config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = config.get(key)
        config = value if isinstance(value, dict) else {}
    return config


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def inert_checkpointing(evidence: Evidence) -> Finding | None:
    """activation_checkpointing is configured, and nobody calls DeepSpeed's checkpointing."""
    block = _block(_config(evidence), "activation_checkpointing")
    asked = sorted(str(key) for key, value in block.items() if value)
    calls = evidence.view.fact("deepspeed.checkpoint_calls")
    if not asked or calls != 0:
        return None
    modules = evidence.view.tables["modules"]
    recomputed = int(modules["recomputed_calls"].fill_null(0).sum()) if modules.height else None
    seen = {None: "", 0: " In the profiled step no module's forward ran again in backward."}.get(
        recomputed, " What runs again in backward does so by other means."
    )
    return Finding(
        key="inert-checkpointing",
        title="The activation_checkpointing block of the DeepSpeed JSON has no effect",
        evidence=(
            f"It sets {', '.join(asked)}; deepspeed.checkpointing.checkpoint was called 0 times in the run.{seen}"
        ),
        section="memory",
        saving_ns_per_step=None,
        confidence="measured",
        change="If memory is short, call deepspeed.checkpointing.checkpoint (or the model's own "
        "gradient_checkpointing_enable()); else take activation_checkpointing out of the JSON.",
        check="recomputed calls in the table of modules, or no such block.",
    )


def overridden_rate(evidence: Evidence) -> Finding | None:
    """The scheduler sets another learning rate than the optimizer's parameters say."""
    config = _config(evidence)
    said = _number(_block(config, "optimizer", "params").get("lr"))
    scheduler = _block(config, "scheduler")
    key = _MAX_RATES.get(str(scheduler.get("type")))
    peak = _number(_block(scheduler, "params").get(key)) if key else None
    if said is None or peak is None or math.isclose(said, peak, rel_tol=1e-6):
        return None
    real = _number(evidence.view.fact("deepspeed.lr"))
    above = real is not None and real > said * (1 + 1e-6)
    return Finding(
        key="overridden-learning-rate",
        title=f"optimizer.lr {said:g} has no effect: the scheduler goes up to {peak:g}",
        evidence=(
            f"{scheduler.get('type')} sets every group's rate by {key} = {peak:g} and overwrites "
            f"optimizer.params.lr = {said:g}."
            + (f" The highest rate of the engine in this run was {real:g}." if real is not None else "")
        ),
        section="configuration",
        saving_ns_per_step=None,
        confidence="measured" if above else "rule of thumb",
        change=f"Set scheduler.params.{key} of the DeepSpeed JSON to the rate that is meant, and optimizer.params.lr "
        "to the same.",
        check="both keys hold one number, and the loop's printed rate reaches it.",
    )


def tiny_buckets(evidence: Evidence) -> Finding | None:
    """DeepSpeed's buckets are so small that gradients go out in pieces, each with its own latency."""
    if small_messages(evidence) is not None:
        return None  # names the same keys
    zero = _block(_config(evidence), "zero_optimization")
    bucket, trained = _number(zero.get("reduce_bucket_size")), _number(evidence.view.fact("model.trainable_params"))
    micro_steps = _number(_config(evidence).get("gradient_accumulation_steps")) or 1
    rows = [row for row in evidence.communication.rows if _carries_gradients(row)]
    if not bucket or not trained or not rows or trained <= bucket:
        return None
    widest = max(row.bytes_per_call.value or 0 for row in rows)
    calls = sum(row.calls_per_step for row in rows)
    total = sum(row.bytes_per_step or 0.0 for row in rows)
    # Under ZeRO-2 gradients go out in every micro-step, else in the last.
    rounds = micro_steps if calls >= micro_steps * math.ceil(trained / bucket) else 1.0
    merged = rounds * max(1, math.ceil(total / rounds / (25 * 2**20)))
    if widest >= _TINY_BYTES or calls <= merged:
        return None
    time_ns = sum(row.exposed_ns_per_step for row in rows)
    wasted = min(time_ns, _latency(evidence, widest) * (calls - merged))
    top = max(rows, key=lambda row: row.exposed_ns_per_step)
    return Finding(
        key="tiny-buckets",
        title=f"Gradients go out in {calls:.3g} pieces a step: reduce_bucket_size is {bucket:,.0f} elements",
        evidence=(
            f"{trained:,.0f} trained parameters go out in messages of at most {format_value(widest, 'bytes')}: "
            f"{calls / rounds:.3g} reductions where {merged / rounds:.3g} would do"
            f"{f', in each of {rounds:.0f} micro-steps' if rounds > 1 else ''}. They take "
            f"{format_value(time_ns, 'ns')} a step, most of it {describe(top)}."
        ),
        section="communication",
        saving_ns_per_step=saving(
            wasted, len(rows), "median transfer of the smallest calls x the calls that larger buckets save"
        ),
        confidence="modelled",
        change=f"Raise zero_optimization.reduce_bucket_size (now {bucket:,.0f}) of the DeepSpeed JSON to "
        f"{max(trained, bucket):,.0f} or more; 5e8 elements is its default.{_gathers(evidence, zero)}",
        check="calls a step fall and bytes per call rise in the table of collectives.",
    )


def _carries_gradients(row: CollectiveRow) -> bool:
    return row.group_size > 1 and row.op.startswith(_REDUCES) and (row.caller == "backward")


def _gathers(evidence: Evidence, zero: Mapping[str, Any]) -> str:
    """DeepSpeed gathers in buckets only where torch has no all_gather_into_tensor."""
    calls = sum(row.calls_per_step for row in evidence.communication.rows if row.op.startswith("all_gather"))
    size = _number(zero.get("allgather_bucket_size"))
    if size is None or not calls:
        return ""
    if calls > 2:
        return f" Likewise allgather_bucket_size (now {size:,.0f}), for {calls:.3g} all-gathers a step."
    return f" allgather_bucket_size (now {size:,.0f}) makes no difference here: all is gathered in one call."


def _latency(evidence: Evidence, widest: float) -> float:
    """Median transfer in ns of calls of at most a fourth of the widest bucket: what a call costs by being one."""
    frame = evidence.calls.filter((pl.col("group_size") > 1) & (pl.col("bytes") <= max(widest / 4, 4096)))
    value = frame["transfer_ns"].median() if frame["transfer_ns"].count() else frame["duration_ns"].median()
    return float(value) if isinstance(value, int | float) else 0.0
