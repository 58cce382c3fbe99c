"""Runs beside one another, and the difference explained. Pure: answers and views in, one frozen value out."""

from collections.abc import Sequence

from agprof.analysis.compare_configuration import configuration_rows, judge
from agprof.analysis.compare_gates import Gate, change_words, gate_rows
from agprof.analysis.compare_kpis import MIN_EFFECT, kpi_rows
from agprof.analysis.compare_memory import energy_waterfall, memory_waterfall
from agprof.analysis.compare_moved import moved_rows
from agprof.analysis.compare_overlay import overlay
from agprof.analysis.compare_scaling import scaling
from agprof.analysis.compare_sides import MOST_SIDES, ComparedSide, told
from agprof.analysis.compare_statistics import MIN_STEPS, RESAMPLES
from agprof.analysis.compare_time import step_time_waterfall
from agprof.analysis.compare_waterfall import explained, signed
from agprof.analysis.forecast import forecast_comparison
from agprof.errors import ConfigError
from agprof.model.compare_answers import (
    COMPARE_VERSION,
    Comparable,
    CompareAnswer,
    KpiRow,
    Waterfall,
)
from agprof.model.figure import Curve
from agprof.model.format import format_value, percent
from agprof.model.version import __version__


def compare(
    sides: Sequence[ComparedSide],
    *,
    baseline: int = 0,
    gates: Sequence[Gate] = (),
    overlays: tuple[tuple[Curve, ...], ...] | None = None,
) -> CompareAnswer:
    """Compare two to sixteen sides with one of them. Raises ConfigError when there are fewer or more.

    `overlays`: those of the same sides, where they are known; they do not depend on the baseline.
    """
    if not 2 <= len(sides) <= MOST_SIDES:
        raise ConfigError(
            f"{len(sides)} side{'' if len(sides) == 1 else 's'} to compare; there must be 2 to {MOST_SIDES}"
        )
    if not 0 <= baseline < len(sides):
        raise ConfigError(f"the baseline is side {baseline + 1}, of {len(sides)}")
    rows = configuration_rows(sides)
    verdict, reasons = judge(sides, rows)
    kpis = kpi_rows(sides, baseline)
    falls = _waterfalls(sides, baseline)
    labels = [side.label for side in sides]
    return CompareAnswer(
        version=COMPARE_VERSION,
        agprof_version=__version__,
        sentence=_sentence(labels, baseline, verdict, reasons, kpis, falls),
        comparable=verdict,
        reasons=reasons,
        baseline=baseline,
        sides=tuple(told(side) for side in sides),
        configuration=rows,
        kpis=kpis,
        waterfalls=falls,
        moved=moved_rows(sides, baseline),
        scaling=scaling(sides),
        forecast=forecast_comparison([(side.label, [run.view for run in side.runs]) for side in sides], baseline),
        overlays=overlays if overlays is not None else tuple(overlay(side) for side in sides),
        gates=gate_rows(gates, kpis, baseline, labels),
        methods=METHODS,
    )


def _waterfalls(sides: Sequence[ComparedSide], baseline: int) -> tuple[Waterfall, ...]:
    """Of every candidate: step time, memory peak, energy per step, as far as both sides have them."""
    found = []
    for at, side in enumerate(sides):
        if at != baseline:
            for build in (step_time_waterfall, memory_waterfall, energy_waterfall):
                waterfall = build(sides[baseline], side, at)
                if waterfall is not None:
                    found.append(waterfall)
    return tuple(found)


def _sentence(
    labels: Sequence[str],
    baseline: int,
    verdict: Comparable,
    reasons: Sequence[str],
    kpis: Sequence[KpiRow],
    falls: Sequence[Waterfall],
) -> str:
    """On the candidate whose step time is farthest from the baseline's."""
    caution = f" They can't be compared: {reasons[0]}" if verdict == "not comparable" and reasons else ""
    row = next((row for row in kpis if row.key == "step_time"), None)
    candidates = [at for at in range(len(labels)) if at != baseline]
    known = [at for at in candidates if row is not None and row.changes[at] is not None]
    if row is None or not known:
        return f"There is no step time on both sides to compare.{caution}"
    farthest = max(known, key=lambda at: abs(_change(row, at)))
    among = f" Farthest of {len(candidates)} candidates." if len(candidates) > 1 else ""
    return _step_sentence(row, farthest, labels, baseline, falls) + among + caution


def _change(row: KpiRow, at: int) -> float:
    change = row.changes[at]
    return (change.absolute.value or 0.0) if change is not None else 0.0


def _step_sentence(row: KpiRow, at: int, labels: Sequence[str], baseline: int, falls: Sequence[Waterfall]) -> str:
    """`two-nodes takes 812 ms a step against 374 ms (+117 % [115, 119]): of the 438 ms ...`"""
    change, a, b = row.changes[at], row.values[baseline].value, row.values[at].value
    assert change is not None and a is not None and b is not None
    head = f"{labels[at]} takes {format_value(b, 'ns')} a step against {format_value(a, 'ns')} of {labels[baseline]}"
    head += f" ({change_words(change.relative)})"
    if change.verdict == "no change shown" and change.test != "none":
        head += ", no change shown"
    fall = next((fall for fall in falls if fall.quantity == "step time" and fall.side == at), None)
    how = explained(fall) if fall is not None else ""
    if fall is None or not how:
        return f"{head}."
    return f"{head}; the mean step's {signed(fall.candidate - fall.baseline, 'ns')} is {how}."


METHODS: tuple[tuple[str, str], ...] = (
    (
        "Change",
        "candidate - baseline, with a 95 % interval. Repeats: means; bootstrap over repeats (expanded percentiles), of "
        "fewer than five Welch's t; permutation test. Single runs: moving-block bootstrap over steady steps "
        f"({RESAMPLES:,} resamples, at least {MIN_STEPS} steps), which tells nothing of how runs vary.",
    ),
    ("p", "Holm-corrected over all figures and candidates of the comparison."),
    (
        "Better, worse",
        f"the interval leaves out zero, the change is at least {percent(MIN_EFFECT)}, and p is at most 0.05 where so "
        "many repeats can give such a p at all.",
    ),
    (
        "Waterfall",
        "mean over ranks and steady steps, in whole nanoseconds and bytes; each side's parts add up to its total, so "
        "that the changes add up to the difference.",
    ),
    (
        "Bytes, bandwidth, latency",
        "transfer (shortest service over the ranks of matching calls) = calls x alpha + wire bytes x time per byte; "
        "bytes at the mean time per byte of both sides, bandwidth the rest; alpha from agprof bench-comm, else 0. Wire "
        "bytes: S x nccl-tests' bus factor.",
    ),
    ("Skew", "time in matched calls beyond the shortest service over their ranks: waiting for the last rank."),
    ("Efficiency", "throughput per rank over that of the side with the fewest ranks."),
)
