"""The FLOPs of the profile step, three ways: counted, modelled, and as DeepSpeed's profiler would print them."""

from collections.abc import Mapping
from typing import Any

from agprof.analysis.compute_profile import Profile, finite
from agprof.analysis.statistics import nothing
from agprof.model.compute_answers import FlopsWay
from agprof.model.figure import Figure, Source
from agprof.model.format import format_value, percent, significant

COUNTED = "executed operations of the profile step, as torch dispatched them; multiply-adds x 2"
MODELLED = "from shapes: one product of each operation's operands, and once more for each that requires a gradient"
DEEPSPEED = "as DeepSpeed's flops profiler would print it for the first micro-step; it takes backward as 2 x forward"

_NEAR = 0.02


def flops_ways(profile: Profile) -> tuple[FlopsWay, ...]:
    """Always three, in this order; one of which nothing is known says why."""
    counted, modelled, deepspeed = _counted(profile), _modelled(profile), _deepspeed(profile)
    return counted, modelled, deepspeed


def used_way(ways: tuple[FlopsWay, ...]) -> FlopsWay | None:
    return next((way for way in ways if way.used), None)


def _counted(profile: Profile) -> FlopsWay:
    missing = profile.reason or "not counted"
    notes = []
    if profile.total and profile.outside_modules > 0.001 * profile.total:
        share = percent(profile.outside_modules / profile.total)
        notes.append(f"{share} of them were in no module's call (losses and other functions).")
    unknown = profile.facts.get("compute.uncounted_operations")
    if isinstance(unknown, Mapping) and unknown:
        names = ", ".join(str(name)[:60] for name in sorted(unknown)[:3])
        notes.append(f"No formula is known for {len(unknown)} kinds of operations ({names}): they count as 0.")
    return FlopsWay(
        way="counted",
        label="counted",
        scope="step",
        forward=_figure(profile.forward, "counted", COUNTED, missing),
        backward=_figure(profile.backward, "counted", COUNTED, missing),
        recomputed=_figure(profile.recomputed, "counted", COUNTED, missing),
        total=_figure(profile.total, "counted", COUNTED, missing),
        ratio_to_counted=1.0 if profile.total else None,
        used=profile.total is not None,
        note=" ".join(notes),
    )


def _modelled(profile: Profile) -> FlopsWay:
    missing = profile.reason or "no module's operations were modelled"
    ratio = profile.modelled / profile.total if profile.modelled is not None and profile.total else None
    note = ""
    if ratio is not None and abs(ratio - 1) > _NEAR:
        direction = "more" if ratio > 1 else "less"
        note = (
            f"{significant(abs(ratio - 1) * 100)} % {direction} than was executed: something else ran than shapes tell."
        )
    return FlopsWay(
        way="modelled",
        label="modelled",
        scope="step",
        forward=_figure(profile.modelled_forward, "modelled", MODELLED, missing),
        backward=_figure(profile.modelled_backward, "modelled", MODELLED, missing),
        recomputed=nothing("FLOP", "the model knows no recomputation", method=MODELLED, source="modelled"),
        total=_figure(profile.modelled, "modelled", MODELLED, missing),
        ratio_to_counted=ratio,
        used=profile.total is None and profile.modelled is not None,
        note=note,
    )


def _deepspeed(profile: Profile) -> FlopsWay:
    facts = profile.facts
    forward = finite(facts.get("compute.deepspeed_forward_flops"))
    used = "deepspeed.version" in facts or facts.get("framework") == "deepspeed"
    why = "its profiler gave no figure of the first forward" if used else "DeepSpeed is not used in this run"
    missing = profile.reason or why
    backward = None if forward is None else 2 * forward
    total = None if forward is None else 3 * forward
    counted_forward, counted_backward = _first_micro_step(profile)
    counted = None if counted_forward is None or counted_backward is None else counted_forward + counted_backward
    return FlopsWay(
        way="deepspeed",
        label="DeepSpeed's profiler",
        scope="micro-step",
        forward=_figure(forward, "modelled", DEEPSPEED, missing),
        backward=_figure(backward, "modelled", DEEPSPEED, missing),
        recomputed=nothing("FLOP", "DeepSpeed's profiler sees no backward", method=DEEPSPEED, source="modelled"),
        total=_figure(total, "modelled", DEEPSPEED, missing),
        ratio_to_counted=total / counted if total is not None and counted else None,
        used=False,
        note=_faults(profile, forward, counted_forward, counted_backward),
    )


def _first_micro_step(profile: Profile) -> tuple[float | None, float | None]:
    """Counted forward and backward of the micro-step that DeepSpeed's profiler looks at."""
    forward, backward = (
        finite(profile.facts.get(f"compute.first_micro_step_{name}_flops")) for name in ("forward", "backward")
    )
    if forward is None and profile.micro_steps == 1:
        return profile.forward, profile.backward
    return forward, backward


def _faults(profile: Profile, printed: float | None, forward: float | None, backward: float | None) -> str:
    """What DeepSpeed's figure gets wrong on this run."""
    if printed is None:
        return ""
    said = []
    if forward and abs(printed / forward - 1) > _NEAR:
        stage = profile.facts.get("deepspeed.zero_stage")
        why = " (under ZeRO-3 it counts linear layers twice)" if stage == 3 and printed > forward else ""
        said.append(f"Its forward is {significant(printed / forward)} x the counted one{why}.")
    if forward and backward is not None and abs(backward / forward - 2) > 2 * _NEAR:
        frozen = _frozen(profile)
        why = f": {percent(frozen)} of the parameters are frozen" if frozen else ""
        said.append(
            f"It takes backward as 2 x forward; counted, backward is {significant(backward / forward)} x forward{why}."
        )
    if profile.recomputed and profile.total and profile.recomputed > 0.001 * profile.total:
        said.append(f"It leaves out the {format_value(profile.recomputed, 'FLOP')} that a step computes again.")
    if (profile.micro_steps or 1) > 1:
        said.append(
            f"It covers the first of {profile.micro_steps} micro-steps alone, and divides by the time of all of them."
        )
    return " ".join(said)


def _frozen(profile: Profile) -> float | None:
    params, trainable = _params(profile.facts)
    return 1 - trainable / params if params and trainable is not None and trainable < params else None


def _params(facts: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return finite(facts.get("model.params")), finite(facts.get("model.trainable_params"))


def _figure(value: float | None, source: Source, method: str, missing: str) -> Figure:
    if value is None:
        return nothing("FLOP", missing, method=method, source=source)
    return Figure(value=value, unit="FLOP", source=source, n=1, method=method)
