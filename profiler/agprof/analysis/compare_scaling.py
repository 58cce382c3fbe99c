"""How throughput, exposed communication, energy and cost go with the number of ranks."""

from collections.abc import Sequence
from typing import Literal

from agprof.analysis.compare_configuration import per_step
from agprof.analysis.compare_kpis import QUANTITIES, side_figure
from agprof.analysis.compare_sides import ComparedSide, ranks_of
from agprof.analysis.statistics import nothing
from agprof.model.compare_answers import ScalingAnswer, ScalingPoint
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent

_SAME = 0.02
"""Batches that differ by less are the same."""
_BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


def scaling(sides: Sequence[ComparedSide]) -> ScalingAnswer | None:
    """None where all sides have as many ranks."""
    if len({ranks_of(side) for side in sides}) < 2:
        return None
    order = sorted(range(len(sides)), key=lambda at: (ranks_of(sides[at]), at))
    what = next((key for key in ("throughput.samples", "throughput.tokens") if _all_have(sides, key)), None)
    smallest = sides[order[0]]
    points = tuple(_point(sides[at], at, smallest, what) for at in order)
    return ScalingAnswer(sentence=_sentence(points, sides), kind=_kind(sides), points=points)


def _all_have(sides: Sequence[ComparedSide], key: str) -> bool:
    return all(side_figure(_BY_KEY[key], side).value is not None for side in sides)


def _kind(sides: Sequence[ComparedSide]) -> Literal["weak", "strong", "neither"]:
    """Of the batch: the same on each rank, or the same over all."""
    batches = [per_step(side.first, "samples") or per_step(side.first, "tokens") for side in sides]
    known = [batch for batch in batches if batch]
    if len(known) < len(sides):
        return "neither"
    if _alike([batch / ranks_of(side) for batch, side in zip(known, sides, strict=True)]):
        return "weak"
    return "strong" if _alike(known) else "neither"


def _alike(values: Sequence[float]) -> bool:
    return max(values) <= min(values) * (1 + _SAME)


def _point(side: ComparedSide, at: int, smallest: ComparedSide, what: str | None) -> ScalingPoint:
    if what is None:
        reason = "the samples or tokens of a step are not known on every side"
        throughput = nothing("samples/s", reason)
        base = throughput
    else:
        throughput, base = (side_figure(_BY_KEY[what], one) for one in (side, smallest))
    return ScalingPoint(
        side=at,
        ranks=ranks_of(side),
        nodes=side.first.answers.identity.nodes or 1,
        throughput=throughput,
        efficiency=_efficiency(throughput, base, ranks_of(side), ranks_of(smallest)),
        step_time=side_figure(_BY_KEY["step_time"], side),
        exposed=side_figure(_BY_KEY["communication.exposed"], side),
        energy_per_token=side_figure(_BY_KEY["energy.per_token"], side),
        cost=_cost(side),
    )


def _efficiency(throughput: Figure, base: Figure, ranks: int, fewest: int) -> Figure:
    """Throughput per rank over that of the side with the fewest ranks: 1 is perfect, for weak and strong alike."""
    method = f"(throughput / {ranks} ranks) / (throughput / {fewest} ranks of the smallest side)"
    if throughput.value is None or not base.value:
        return nothing("ratio", throughput.reason or base.reason or "not measured", method=method)
    factor = fewest / ranks / base.value
    ends = [None if end is None else end * factor for end in (throughput.low, throughput.high)]
    return Figure(
        value=throughput.value * factor, unit="ratio", source=throughput.source, n=throughput.n, low=ends[0],
        high=ends[1], method=f"{method}; interval: that of the throughput alone",
    )  # fmt: skip


def _cost(side: ComparedSide) -> Figure:
    """Per million tokens, else per thousand samples, over the whole run, start and end included."""
    run = side.first
    energy = run.answers.energy
    if energy is None or energy.cost.value is None:
        reason = (energy.cost.reason if energy is not None else None) or "neither energy nor prices are known"
        return nothing("EUR" if energy is None else energy.currency, reason, source="declared")
    steps = run.view.steps
    for column, unit, many in (("tokens", "1M tokens", 1e6), ("samples", "1,000 samples", 1e3)):
        if steps.height and not steps[column].null_count() and (done := float(steps[column].sum())):
            value = energy.cost.value / done * many
            method = f"{energy.cost.method}; of the whole run over its {column}"
            return Figure(value=value, unit=f"{energy.currency}/{unit}", source="declared", n=1, method=method)
    return nothing(energy.currency, "neither tokens nor samples are known", source="declared")


def _sentence(points: Sequence[ScalingPoint], sides: Sequence[ComparedSide]) -> str:
    first, last = points[0], points[-1]
    names = sides[first.side].label, sides[last.side].label
    if last.efficiency.value is None or last.throughput.value is None:
        return f"{names[1]} has {last.ranks} ranks against {first.ranks}; {last.efficiency.reason}."
    unit = last.throughput.unit
    return (
        f"{names[1]} does {format_value(last.throughput.value, unit)} on {last.ranks} ranks, "
        f"{percent(last.efficiency.value)} of what a rank of {names[0]} ({first.ranks}) does."
    )
