"""The waterfall of the step time: phases of the mean step, exposed communication split further."""

from fractions import Fraction

from agprof.analysis.compare_communication import communication_parts
from agprof.analysis.compare_sides import ComparedSide
from agprof.analysis.compare_waterfall import Part, build
from agprof.model.compare_answers import Waterfall
from agprof.model.tables import PHASES

NOTE = "mean over ranks and steady steps; of repeats the mean over runs"

_PHASES = {
    "forward": ("compute.forward", "Forward", "compute"),
    "backward": ("compute.backward", "Backward", "compute"),
    "data": ("data", "Waiting for data", "data"),
    "optimizer": ("optimizer", "Optimizer", "optimizer"),
    "other": ("other", "Host and other", "other"),
}
_METHODS = {
    "other": "remainder: time of a step in no phase and no collective",
}
_PHASE_METHOD = "measured: self time of the phase, collectives cut out"


def step_time_waterfall(baseline: ComparedSide, candidate: ComparedSide, index: int) -> Waterfall | None:
    """None where a side has no steady step."""
    a, b = phase_means(baseline), phase_means(candidate)
    if a is None or b is None:
        return None
    parts: list[Part] = []
    for phase, (key, label, group) in _PHASES.items():
        parts.append(
            Part(
                key=key, label=label, group=group, baseline=a[phase], candidate=b[phase],
                method=_METHODS.get(phase, _PHASE_METHOD),
            )
        )  # fmt: skip
        if phase == "backward":
            parts += communication_parts(baseline, candidate)
    return build("step time", "ns", index, parts, NOTE, (baseline.label, candidate.label))


def phase_means(side: ComparedSide) -> dict[str, Fraction] | None:
    """Mean ns per phase of a rank's steady step, mean over runs; they add up to the mean step exactly."""
    runs = [run.view.steady for run in side.runs if run.view.steady.height]
    if len(runs) < len(side.runs):
        return None
    return {
        phase: sum((Fraction(int(rows[phase].sum()), rows.height) for rows in runs), Fraction(0)) / len(runs)
        for phase in PHASES
    }
