"""Compute: parameters, FLOPs of a step, and the module tree at the profile step."""

import math
from typing import Any

import polars as pl

from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.compute_answers import ComputeAnswer, ModuleRow
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent

_PROFILERS = {"deepspeed": "DeepSpeed's flops profiler", "torch": "torch's flop counter"}


def analyse_compute(view: View, step_time: Figure) -> ComputeAnswer:
    """The compute section."""
    tree, step = _tree(view)
    root = tree[0] if tree and tree[0]["parent"] is None else None
    forward = _forward(view, root)
    flops = _flops_per_step(view, forward)
    rate = _rate(flops, step_time)
    params = _count(view, root, "params", "model.params")
    return ComputeAnswer(
        sentence=_sentence(flops, rate, params, bool(tree)),
        params=params,
        trainable_params=_count(view, root, "trainable_params", "model.trainable_params"),
        forward_flops_per_micro_step=forward,
        flops_per_step=flops,
        executed_flops_per_step=nothing("FLOP", "not counted"),
        flops_per_second=rate,
        ways=(),
        dtype=None,
        ceilings=(),
        peak_hint="",
        utilisation=(),
        tokens_per_second=nothing("tokens/s", "not known"),
        tokens_per_second_without_padding=nothing("tokens/s", "not known"),
        operations=(),
        roofline=(),
        profiled_micro_steps=None,
        modules=tuple(_module(row, root) for row in tree),
        profiled_step=step,
    )


def _tree(view: View) -> tuple[list[dict[str, Any]], int | None]:
    """Rows of one tree, parents first: the first profiled step of the lowest rank that has one."""
    table = view.tables["modules"]
    if not table.height:
        return [], None
    rank, step = table.sort("rank", "step").select("rank", "step").row(0)
    own = table.filter((pl.col("rank") == rank) & (pl.col("step") == step))
    return own.sort("order").unique("path", keep="first", maintain_order=True).to_dicts(), step


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _forward(view: View, root: dict[str, Any] | None) -> Figure:
    profiler = _PROFILERS.get(str(view.fact("compute.profiler", "deepspeed")), "a flops profiler")
    method = f"{profiler} around one micro-step of the profile step; multiply-adds x 2"
    value = _finite(root["forward_flops"]) if root else None
    if value is None:
        value = _finite(view.fact("compute.forward_flops"))
    if value is None:
        reason = "the flops profiler did not run" if root is None else "the flops profiler gave no figure"
        return nothing("FLOP", reason, method=method, source="counted")
    return Figure(value=value, unit="FLOP", source="counted", n=1, method=method)


def _flops_per_step(view: View, forward: Figure) -> Figure:
    backward = _finite(view.fact("compute.backward_flops"))
    how = view.fact(
        "compute.backward_method", "per module: once its forward where an input needs a gradient, once for weights"
    )
    method = (
        f"(forward + backward) x micro-steps; forward: {forward.method}; backward: {how}; every micro-step of a "
        "step is taken to cost what the profiled one did"
    )
    micro = view.steady["micro_steps"].median()
    reasons = [
        forward.reason if forward.value is None else "",
        "the cost of the backward was not modelled (no fact compute.backward_flops)" if backward is None else "",
        "no steady step" if micro is None else "",
    ]
    reason = next((text for text in reasons if text), None)
    if reason or forward.value is None or backward is None or micro is None:
        return nothing("FLOP", reason or "not known", method=method, source="modelled")
    value = (forward.value + backward) * float(str(micro))
    return Figure(value=value, unit="FLOP", source="modelled", n=1, method=method)


def _rate(flops: Figure, step_time: Figure) -> Figure:
    method = f"FLOP per step / median step time, per rank; {flops.method}"
    if flops.value is None or not step_time.value:
        reason = flops.reason if flops.value is None else step_time.reason or "the step time is 0"
        return nothing("FLOP/s", reason or "not known", method=method, source="modelled")
    low = flops.value * 1e9 / step_time.high if step_time.high else None
    high = flops.value * 1e9 / step_time.low if step_time.low else None
    return Figure(
        value=flops.value * 1e9 / step_time.value,
        unit="FLOP/s",
        source="modelled",
        n=step_time.n,
        low=low,
        high=high,
        method=method,
    )


def _count(view: View, root: dict[str, Any] | None, column: str, fact: str) -> Figure:
    """Parameters as the framework's facts tell them, else as the module tree's root holds them."""
    value = _finite(view.fact(fact))
    method = f"fact {fact}, read from the model once"
    if value is None and root is not None:
        value, method = float(root[column]), "root of the module tree; shared parameters once, partitioned ones as held"
    if value is None:
        return nothing("1", "the model was not seen", method=method, source="counted")
    return Figure(value=value, unit="1", source="counted", n=1, method=method)


def _module(row: dict[str, Any], root: dict[str, Any] | None) -> ModuleRow:
    flops, time_ns = _finite(row["forward_flops"]), row["forward_ns"]
    all_flops = _finite(root["forward_flops"]) if root else None
    all_ns = root["forward_ns"] if root else None
    return ModuleRow(
        root=row["root"],
        recomputed_calls=row["recomputed_calls"],
        backward_flops=row["backward_flops"],
        recomputed_flops=row["recomputed_flops"],
        modelled_flops=None,
        backward_ns=row["backward_ns"],
        recomputed_ns=row["recomputed_ns"],
        flops_per_second=None,
        of_ceiling=None,
        intensity=None,
        path=row["path"],
        parent=row["parent"],
        depth=row["depth"],
        type=row["type"],
        params=row["params"],
        trainable_params=row["trainable_params"],
        forward_flops=flops,
        forward_ns=time_ns,
        calls=row["calls"],
        flops_share=flops / all_flops if flops is not None and all_flops else None,
        time_share=time_ns / all_ns if time_ns is not None and all_ns else None,
    )


def _sentence(flops: Figure, rate: Figure, params: Figure, has_tree: bool) -> str:
    model = f"{format_value(params.value, '1')} parameters" if params.value is not None else "The model was not seen"
    if rate.value is not None:
        step = format_value(flops.value, "FLOP")
        return f"{format_value(rate.value, 'FLOP/s')} per rank: {step} a step by {model}."
    missing = rate.reason or flops.reason
    if params.value is None and not has_tree:
        return f"No FLOPs: {missing}."
    return f"{model}; no FLOP/s: {missing}."


def describe_share(row: ModuleRow) -> str:
    """`llm (Llama): 50 % of the forward's FLOPs`."""
    return f"{row.path or 'the model'} ({row.type}): {percent(row.flops_share or 0)} of the forward's FLOPs"
