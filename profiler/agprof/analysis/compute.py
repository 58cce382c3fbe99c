"""Compute: FLOPs of a step three ways, what share of the device they use, modules, operations and roofline."""

from agprof.analysis.compute_ceilings import Ceilings, find_ceilings
from agprof.analysis.compute_modules import dtype_of_most_flops, module_rows, mostly_convolutions, operation_rows
from agprof.analysis.compute_profile import Profile, finite, read_profile
from agprof.analysis.compute_roofline import roofline
from agprof.analysis.compute_utilisation import utilisation
from agprof.analysis.compute_ways import flops_ways, used_way
from agprof.analysis.statistics import nothing, two_modes
from agprof.analysis.throughput import throughput
from agprof.analysis.view import View
from agprof.model.compute_answers import ComputeAnswer, FlopsWay, Utilisation
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent, significant


def analyse_compute(view: View, step_time: Figure) -> ComputeAnswer:
    """The compute section. `step_time`: median duration of the slowest rank's steady steps."""
    profile = read_profile(view)
    ways = flops_ways(profile)
    dtype = dtype_of_most_flops(profile)
    ceilings = find_ceilings(
        view,
        profile.facts,
        _dtypes(profile),
        dtype or _model_dtype(profile),
        convolves=mostly_convolutions(profile, "float32"),
    )
    flops = _flops_per_step(view, profile, used_way(ways))
    rate = _rate(flops, step_time)
    shares = utilisation(view, profile, step_time, ceilings, dtype)
    params = _count(view, profile, "params")
    return ComputeAnswer(
        sentence=_sentence(flops, rate, params, shares, ways, dtype),
        params=params,
        trainable_params=_count(view, profile, "trainable_params"),
        forward_flops_per_micro_step=_per_micro_step(profile, ways[0].forward),
        flops_per_step=flops,
        executed_flops_per_step=_executed(profile, ways[0]),
        flops_per_second=rate,
        ways=ways,
        dtype=dtype,
        ceilings=ceilings.all,
        peak_hint=_hint(profile, ceilings, dtype),
        utilisation=shares,
        tokens_per_second=throughput(view, "tokens", "tokens/s"),
        tokens_per_second_without_padding=throughput(view, "unpadded_tokens", "tokens/s"),
        operations=operation_rows(profile, ceilings),
        modules=module_rows(profile, ceilings, dtype),
        roofline=roofline(profile, ceilings, dtype),
        profiled_step=profile.step,
        profiled_micro_steps=profile.micro_steps,
    )


def _dtypes(profile: Profile) -> list[str]:
    """Element types that FLOPs were counted in."""
    return sorted({row["dtype"] for row in profile.operations if row["dtype"] is not None and finite(row["flops"])})


def _model_dtype(profile: Profile) -> str | None:
    dtype = profile.facts.get("model.dtype")
    return dtype if isinstance(dtype, str) else None


def _hint(profile: Profile, ceilings: Ceilings, dtype: str | None) -> str:
    """A CPU has no data sheet's peak by nature: with a measured ceiling nothing is missing."""
    if profile.facts.get("device.type") == "cpu" and ceilings.measured(dtype or _model_dtype(profile)) is not None:
        return ""
    return ceilings.hint(dtype or _model_dtype(profile))


def _flops_per_step(view: View, profile: Profile, way: FlopsWay | None) -> Figure:
    if way is None or way.total.value is None:
        return nothing("FLOP", profile.reason or "FLOPs were not counted", source="counted")
    method = (
        f"forward + backward of step {profile.step} on rank {profile.rank}, without recomputation; {way.total.method}"
    )
    differ = _steps_differ(view, profile)
    return Figure(
        value=way.total.value,
        unit="FLOP",
        source=way.total.source,
        n=1,
        method=f"{method}; {differ}" if differ else method,
    )


def _steps_differ(view: View, profile: Profile) -> str:
    """Whether the one step that was counted may stand for the others."""
    said = []
    modes = two_modes(view.steady_durations)
    if modes is not None:
        fast, slow = (format_value(mode, "ns") for mode in modes[:2])
        said.append(f"steps come in two kinds, of {fast} and of {slow}, and the counted one is of one of them")
    tokens = _tokens_of_counted(view, profile)
    if tokens is not None and abs(tokens - 1) > 0.05:
        said.append(f"the counted step had {significant(tokens)} x the tokens of the median one")
    return "; ".join(said)


def _tokens_of_counted(view: View, profile: Profile) -> float | None:
    steps = view.steps.filter(rank=profile.rank) if profile.rank is not None else view.steps.clear()
    own = steps.filter(step=profile.step)["tokens"].to_list()
    median = finite(steps.filter(kind="steady")["tokens"].median())
    return own[0] / median if own and own[0] is not None and median else None


def _rate(flops: Figure, step_time: Figure) -> Figure:
    method = f"FLOP per step / median step time, per rank; {flops.method}"
    if flops.value is None or not step_time.value:
        reason = flops.reason if flops.value is None else step_time.reason or "the step time is 0"
        return nothing("FLOP/s", reason or "not known", method=method, source=flops.source)
    return Figure(
        value=flops.value * 1e9 / step_time.value,
        unit="FLOP/s",
        source=flops.source,
        n=step_time.n,
        low=flops.value * 1e9 / step_time.high if step_time.high else None,
        high=flops.value * 1e9 / step_time.low if step_time.low else None,
        method=method,
    )


def _per_micro_step(profile: Profile, forward: Figure) -> Figure:
    method = f"forward of the profile step / its {profile.micro_steps or '?'} micro-steps; {forward.method}"
    if forward.value is None or not profile.micro_steps:
        return nothing("FLOP", forward.reason or "the profile step did not end", method=method, source="counted")
    return Figure(value=forward.value / profile.micro_steps, unit="FLOP", source="counted", n=1, method=method)


def _executed(profile: Profile, counted: FlopsWay) -> Figure:
    method = f"forward + backward + what was computed again; {counted.total.method}"
    if profile.executed is None:
        return nothing("FLOP", counted.total.reason or "FLOPs were not counted", method=method, source="counted")
    return Figure(value=profile.executed, unit="FLOP", source="counted", n=1, method=method)


def _count(view: View, profile: Profile, column: str) -> Figure:
    """Parameters as the framework's facts tell them, else as the first tree's root holds them."""
    value = finite(view.fact(f"model.{column}"))
    method = f"fact model.{column}, read from the model once"
    if len(profile.roots) > 1:
        method += f"; of the first of {len(profile.roots)} models"
    if value is None and profile.roots:
        value = float(profile.roots[0][column])
        method = "root of the module tree; shared parameters once, partitioned ones as held"
    if value is None:
        return nothing("1", "the model was not seen", method=method, source="counted")
    return Figure(value=value, unit="1", source="counted", n=1, method=method)


def best_mfu(shares: tuple[Utilisation, ...]) -> tuple[Figure, str] | None:
    """MFU with full attention and what it is a share of: the data sheet where there is one, else what was measured."""
    full = next((share for share in shares if share.key == "mfu_full"), None)
    if full is None:
        return None
    if full.of_datasheet.value is not None:
        return full.of_datasheet, "of the data sheet's peak"
    if full.of_achievable.value is not None:
        return full.of_achievable, "of the measured ceiling"
    return None


def _sentence(
    flops: Figure,
    rate: Figure,
    params: Figure,
    shares: tuple[Utilisation, ...],
    ways: tuple[FlopsWay, ...],
    dtype: str | None,
) -> str:
    model = f"{format_value(params.value, '1')} parameters" if params.value is not None else "the model"
    if flops.value is None:
        said = f"{model[0].upper()}{model[1:]}; no FLOPs" if params.value is not None else "No FLOPs"
        return f"{said}: {flops.reason}."
    if rate.value is None:
        return f"{format_value(flops.value, 'FLOP')} a step by {model}; no FLOP/s: {rate.reason}."
    said = f"{format_value(rate.value, 'FLOP/s')} per rank"
    mfu = best_mfu(shares)
    if mfu is not None and mfu[0].value is not None:
        said += f", {percent(mfu[0].value)} {mfu[1]}{f' in {dtype}' if dtype else ''} (MFU, attention counted full)"
    said += f": {format_value(flops.value, 'FLOP')} a step by {model}."
    deepspeed = next((way for way in ways if way.way == "deepspeed"), None)
    if deepspeed is not None and deepspeed.ratio_to_counted is not None and abs(deepspeed.ratio_to_counted - 1) > 0.05:
        said += f" DeepSpeed's profiler would print {significant(deepspeed.ratio_to_counted)} x as many."
    return said
