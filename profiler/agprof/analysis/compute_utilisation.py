"""MFU and HFU by every convention, against the data sheet and against what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from agprof.analysis.compute_ceilings import Ceilings
from agprof.analysis.compute_profile import Profile, finite
from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.compute_answers import Ceiling, Utilisation
from agprof.model.figure import Figure
from agprof.model.format import percent

_TO_CLOSE = 0.001


@dataclass(frozen=True, slots=True)
class _Convention:
    key: str
    label: str
    words: str
    flops: float | None
    """Per step and rank."""
    reason: str
    """Why `flops` is None."""


def utilisation(
    view: View, profile: Profile, step_time: Figure, ceilings: Ceilings, dtype: str | None
) -> tuple[Utilisation, ...]:
    """One row per convention, always all of them."""
    share = _share_of_dtype(profile, dtype)
    return tuple(
        Utilisation(
            key=convention.key,
            label=convention.label,
            convention=convention.words,
            of_datasheet=_ratio(convention, step_time, ceilings.datasheet(dtype), ceilings.why_no_datasheet, share),
            of_achievable=_ratio(convention, step_time, ceilings.measured(dtype), ceilings.why_no_measured, share),
        )
        for convention in _conventions(view, profile)
    )


def _conventions(view: View, profile: Profile) -> tuple[_Convention, ...]:
    missing = profile.reason or "FLOPs were not counted"
    full = profile.total if profile.total is not None else profile.modelled
    causal, no_causal = _half_of_causal(profile, full)
    palm, no_palm = palm_flops(view, profile)
    return (
        _Convention(
            "mfu_full",
            "MFU, attention counted full",
            "counted forward + backward FLOPs, attention as if every position looked at every other; not what is "
            "recomputed. PaLM's convention (Chowdhery et al. 2022, appendix B), with counted FLOPs",
            full,
            missing,
        ),
        _Convention(
            "mfu_causal",
            "MFU, causal attention counted half",
            "the same with half of the FLOPs of causal attention, whose upper triangle need not be computed. "
            "Megatron-LM's convention",
            causal,
            no_causal if full is not None else missing,
        ),
        _Convention(
            "mfu_palm",
            "MFU by PaLM's formula",
            "tokens x (6 N + 12 L H Q T): N parameters without tables that are only looked up in, L layers, H heads of "
            "size Q, T tokens a sample, padding included; all weights taken to train",
            palm,
            no_palm,
        ),
        _Convention(
            "hfu",
            "HFU",
            "all executed FLOPs: forward, backward, and what checkpointing and attention kernels compute again",
            profile.executed,
            missing,
        ),
    )


def _half_of_causal(profile: Profile, full: float | None) -> tuple[float | None, str]:
    if full is None:
        return None, "FLOPs were not counted"
    if "compute.causal_attention_flops" not in profile.facts:
        return None, "which attention is causal was not recorded"
    causal = finite(profile.facts["compute.causal_attention_flops"])
    if causal is None:
        return None, "of some attention it can't be told whether it is causal: its mask is an ordinary tensor"
    return full - causal / 2, ""


def palm_flops(view: View, profile: Profile) -> tuple[float | None, str]:
    """FLOPs of a step of one rank by PaLM's formula; None and why where it does not hold."""
    facts = profile.facts
    config = facts.get("model.config")
    params, trainable = finite(facts.get("model.params")), finite(facts.get("model.trainable_params"))
    if len(profile.roots) > 1:
        return None, f"the formula is of one model, and a step runs {len(profile.roots)}"
    if params is None or trainable is None:
        return None, "the model was not seen"
    if trainable < params:
        return None, f"the formula takes all weights to train, and {percent(1 - trainable / params)} of them are frozen"
    if not isinstance(config, Mapping):
        return None, "the model has no Hugging Face config that tells layers and heads"
    sizes = _sizes(config)
    if sizes is None:
        return None, "the model's config tells no layers and heads"
    tokens, samples = _per_step(view, "tokens"), _per_step(view, "samples")
    if not tokens or not samples:
        return None, "tokens or samples of a step are not known: tell them with agprof.step(tokens=..., samples=...)"
    layers, heads, head_dim = sizes
    weights = params - (finite(facts.get("model.embedding_params")) or 0.0)
    return tokens * (6 * weights + 12 * layers * heads * head_dim * tokens / samples), ""


def _sizes(config: Mapping[Any, Any]) -> tuple[float, float, float] | None:
    layers, heads, hidden, head_dim = (finite(config.get(key)) for key in ("layers", "heads", "hidden", "head_dim"))
    if not layers or not heads:
        return None
    size = head_dim or (hidden / heads if hidden else None)
    return (layers, heads, size) if size else None


def _per_step(view: View, column: str) -> float | None:
    """Median over steady steps of the rank's mean; None where a step lacks it."""
    steady = view.steady
    if not steady.height or steady[column].null_count():
        return None
    return finite(steady.group_by("step").agg(pl.col(column).mean())[column].median())


def _share_of_dtype(profile: Profile, dtype: str | None) -> float | None:
    """The share of executed FLOPs whose operands had this type."""
    total = sum(finite(row["flops"]) or 0.0 for row in profile.operations)
    own = sum(finite(row["flops"]) or 0.0 for row in profile.operations if row["dtype"] == dtype)
    return own / total if total else None


def _ratio(
    convention: _Convention, step_time: Figure, ceiling: Ceiling | None, why_none: str, share: float | None
) -> Figure:
    peak = ceiling.flops_per_second if ceiling is not None else None
    method = "FLOP per step / median step time / ceiling, per rank"
    if ceiling is not None:
        method += f"; {ceiling.dtype}: {ceiling.source}"
        if share is not None and share < 1 - _TO_CLOSE:
            method += f"; {percent(share)} of the FLOPs are of that type, the others are held against it too"
    if convention.flops is None:
        return nothing("ratio", convention.reason, method=method, source="counted")
    if peak is None:
        return nothing("ratio", why_none, method=method, source="counted")
    if not step_time.value:
        return nothing("ratio", step_time.reason or "the step time is 0", method=method, source="counted")
    full = convention.flops * 1e9 / peak
    value = full / step_time.value
    if value > 1:
        method += "; above 1: the ceiling is too low for this run, as when it was measured beside other programs"
    return Figure(
        value=value,
        unit="ratio",
        source="modelled" if convention.key == "mfu_palm" else "counted",
        n=step_time.n,
        low=full / step_time.high if step_time.high else None,
        high=full / step_time.low if step_time.low else None,
        method=method,
    )
