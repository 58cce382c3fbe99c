"""The figures of a comparison side by side, each with its change against the baseline and what that is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import polars as pl

from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.compare_statistics import (
    LEVEL,
    MIN_STEPS,
    Difference,
    Statistic,
    difference_of_repeats,
    difference_of_steps,
    holm,
    interval_of_steps,
    least_permutation_p,
    statistic_of,
)
from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.compare_answers import Change, Direction, KpiRow, Test
from agprof.model.figure import Figure, Source

MIN_EFFECT = 0.01
"""Relative changes below it are never called better or worse: no machine repeats itself so well."""

Series = Callable[[View], list[float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A row: how it is taken from a run, and its value over steady steps where it has one per step."""

    key: str
    label: str
    unit: str
    direction: Direction
    figure: Callable[[ComparedRun], Figure | None]
    series: Series | None = None
    statistic: Statistic = "median"


def _kpi(key: str) -> Callable[[ComparedRun], Figure | None]:
    def find(run: ComparedRun) -> Figure | None:
        return next((kpi.figure for kpi in run.answers.kpis if kpi.key == key), None)

    return find


def _durations(view: View) -> list[float] | None:
    return [float(value) for value in view.steady_durations]


def _rate(what: str) -> Series:
    def rates(view: View) -> list[float] | None:
        steady = view.steady
        if not steady.height or steady[what].null_count():
            return None
        sums = steady.group_by("step").agg(pl.col(what).sum(), pl.col("duration_ns").max()).sort("step")
        moving = sums.filter(pl.col("duration_ns") > 0)
        return (moving[what] * 1e9 / moving["duration_ns"]).to_list()

    return rates


def _phase(phase: str) -> Series:
    """Per steady step the mean over its ranks, ns."""

    def means(view: View) -> list[float] | None:
        rows = view.steady.group_by("step").agg(pl.col(phase).mean()).sort("step")
        return rows[phase].cast(pl.Float64).to_list()

    return means


def _of_phase(phase: str, words: str) -> Callable[[ComparedRun], Figure | None]:
    def figure(run: ComparedRun) -> Figure | None:
        values = _phase(phase)(run.view) or []
        if not values:
            return nothing("ns", "no steady step")
        method = f"{words}, mean over ranks, median over steady steps"
        return Figure(value=statistic_of(values, "median"), unit="ns", source="measured", n=len(values), method=method)

    return figure


QUANTITIES: tuple[Quantity, ...] = (
    Quantity(
        key="step_time", label="Step time", unit="ns", direction="lower is better",
        figure=lambda run: run.answers.time.step_time, series=_durations,
    ),
    Quantity(
        key="throughput.samples", label="Samples per second", unit="samples/s", direction="higher is better",
        figure=_kpi("samples_per_s"), series=_rate("samples"),
    ),
    Quantity(
        key="throughput.tokens", label="Tokens per second", unit="tokens/s", direction="higher is better",
        figure=lambda run: run.answers.compute.tokens_per_second, series=_rate("tokens"),
    ),
    Quantity(
        key="flops", label="FLOP/s per rank", unit="FLOP/s", direction="higher is better",
        figure=lambda run: run.answers.compute.flops_per_second,
    ),
    Quantity(key="mfu", label="MFU", unit="ratio", direction="higher is better", figure=_kpi("mfu")),
    Quantity(
        key="memory.peak", label="Memory peak", unit="bytes", direction="lower is better",
        figure=lambda run: run.answers.memory.peak,
    ),
    Quantity(
        key="communication.exposed", label="Exposed communication per step", unit="ns", direction="lower is better",
        figure=_of_phase("communication", "union of the intervals in which a caller stood in a collective"),
        series=_phase("communication"),
    ),
    Quantity(
        key="communication.share", label="Exposed communication, share of the step", unit="ratio",
        direction="lower is better", figure=lambda run: run.answers.communication.exposed_share,
    ),
    Quantity(
        key="communication.bytes", label="Bytes communicated per step and rank", unit="bytes", direction="neither",
        figure=lambda run: run.answers.communication.bytes_per_step,
    ),
    Quantity(
        key="data.wait", label="Waiting for data per step", unit="ns", direction="lower is better",
        figure=_of_phase("data", "phase `data`"), series=_phase("data"),
    ),
    Quantity(
        key="gpu.utilization", label="GPU utilisation", unit="ratio", direction="neither",
        figure=_kpi("gpu_utilization"),
    ),
    Quantity(key="gpu.power", label="GPU power", unit="W", direction="neither", figure=_kpi("gpu_power")),
    Quantity(
        key="energy.per_step", label="Energy per step", unit="J", direction="lower is better",
        figure=lambda run: run.answers.energy.per_step if run.answers.energy else None,
    ),
    Quantity(
        key="energy.per_token", label="Energy per token", unit="J", direction="lower is better",
        figure=lambda run: run.answers.energy.per_token if run.answers.energy else None,
    ),
)  # fmt: skip
"""In the order in which they are shown. Their keys are what gates name."""


def kpi_rows(sides: Sequence[ComparedSide], baseline: int) -> tuple[KpiRow, ...]:
    """One row per quantity that any side has; p values are corrected over all of them together."""
    rows = [row for quantity in QUANTITIES if (row := _row(quantity, sides, baseline)) is not None]
    tested = [
        (at, side, change.p_value)
        for at, row in enumerate(rows)
        for side, change in enumerate(row.changes)
        if change is not None and change.p_value is not None
    ]
    corrected = holm([p for _, _, p in tested])
    changes = [list(row.changes) for row in rows]
    for (at, side, _), p in zip(tested, corrected, strict=True):
        found = changes[at][side]
        assert found is not None
        changes[at][side] = replace(found, p_value=p)
    least = [_least_p(sides[baseline], side) for side in sides]
    count = len(tested)
    return tuple(
        replace(row, changes=tuple(_judged(c, row.direction, p, count) for c, p in zip(of_row, least, strict=True)))
        for row, of_row in zip(rows, changes, strict=True)
    )


def _least_p(a: ComparedSide, b: ComparedSide) -> float:
    return least_permutation_p(len(a.runs), len(b.runs)) if len(a.runs) > 1 and len(b.runs) > 1 else 0.0


def _row(quantity: Quantity, sides: Sequence[ComparedSide], baseline: int) -> KpiRow | None:
    figures = tuple(side_figure(quantity, side) for side in sides)
    if all(figure.value is None for figure in figures):
        return None
    changes = [
        None if at == baseline else _change(quantity, sides[baseline], side, figures[baseline], figures[at])
        for at, side in enumerate(sides)
    ]
    return KpiRow(
        key=quantity.key, label=quantity.label, direction=quantity.direction, values=figures, changes=tuple(changes)
    )


def side_figure(quantity: Quantity, side: ComparedSide) -> Figure:
    """A single run's own figure; of repeats the mean of theirs, from least to most."""
    figures = [quantity.figure(run) for run in side.runs]
    values = [figure.value for figure in figures if figure is not None and figure.value is not None]
    first = next((figure for figure in figures if figure is not None and figure.value is not None), None)
    if first is None:
        told = next((figure for figure in figures if figure is not None), None)
        reason = told.reason if told is not None and told.reason else "not measured"
        return nothing(quantity.unit, reason, method=told.method if told else "")
    if len(side.runs) == 1:
        return _with_interval(first, quantity, side.first.view)
    if len(values) < len(figures):
        return nothing(quantity.unit, f"measured in {len(values)} of {len(figures)} repeats", method=first.method)
    return Figure(
        value=statistic_of(values, "mean"),
        unit=first.unit,
        source=first.source,
        n=len(values),
        low=min(values),
        high=max(values),
        method=f"mean over {len(values)} repeats, least..most; each: {first.method}",
    )


def _with_interval(figure: Figure, quantity: Quantity, view: View) -> Figure:
    """A figure made here gets the interval of the block bootstrap; those of the run's report keep their own."""
    if figure.low is not None or quantity.series is None:
        return figure
    ends = interval_of_steps(quantity.series(view) or [], quantity.statistic)
    if ends is None or figure.value is None:
        return figure
    low, high = min(ends[0], figure.value), max(ends[1], figure.value)
    return replace(figure, low=low, high=high, method=f"{figure.method}; 95 % interval: moving-block bootstrap")


def _change(quantity: Quantity, baseline: ComparedSide, candidate: ComparedSide, a: Figure, b: Figure) -> Change | None:
    if a.value is None or b.value is None:
        return None
    difference, test = _tested(quantity, baseline, candidate)
    source: Source = b.source
    relative = b.value / a.value - 1 if a.value > 0 else None
    if difference is None:
        why = "a single value of each run: nothing says how much it varies by chance"
        few = "too few steady steps to say how much they vary"
        method = few if quantity.series is not None else why
        n = min(a.n, b.n)
        return Change(
            absolute=Figure(value=b.value - a.value, unit=a.unit, source=source, n=n, method=method),
            relative=_relative(relative, None, None, source, n, method),
            p_value=None,
            test="none",
            verdict="not tested",
        )
    shown, low, high = difference.absolute
    method = difference.method
    if test == "permutation over repeats" and difference.least_p > LEVEL:
        method += "; no p can be below 0.05, so that the verdict goes by the interval"
    n = min(_count(quantity, side) for side in (baseline, candidate))
    ratio = difference.relative
    return Change(
        absolute=Figure(value=shown, unit=a.unit, source=source, n=n, low=low, high=high, method=method),
        relative=_relative(
            ratio[0] if ratio else relative, ratio[1] if ratio else None, ratio[2] if ratio else None, source, n, method
        ),
        p_value=difference.p,
        test=test,
        verdict="no change shown",
    )


def _relative(
    value: float | None, low: float | None, high: float | None, source: Source, n: int, method: str
) -> Figure:
    if value is None:
        return nothing("ratio", "the baseline is 0", method=method, source=source)
    return Figure(value=value, unit="ratio", source=source, n=n, low=low, high=high, method=method)


def _count(quantity: Quantity, side: ComparedSide) -> int:
    if len(side.runs) > 1:
        return len(side.runs)
    return len(quantity.series(side.first.view) or []) if quantity.series is not None else 1


def _tested(quantity: Quantity, a: ComparedSide, b: ComparedSide) -> tuple[Difference | None, Test]:
    """Repeats where both sides have them; else the steps of the first run of each."""
    if len(a.runs) > 1 and len(b.runs) > 1:
        values = [[_value(quantity, run) for run in side.runs] for side in (a, b)]
        of_a, of_b = ([value for value in some if value is not None] for some in values)
        return difference_of_repeats(of_a, of_b), "permutation over repeats"
    if quantity.series is None:
        return None, "none"
    if max(len(a.runs), len(b.runs)) > 1:
        return None, "none"  # one run against several: neither the steps nor the repeats of both are there
    series = [quantity.series(side.first.view) or [] for side in (a, b)]
    if min(map(len, series)) < MIN_STEPS:
        return None, "none"
    return difference_of_steps(series[0], series[1], quantity.statistic), "block bootstrap over steps"


def _value(quantity: Quantity, run: ComparedRun) -> float | None:
    figure = quantity.figure(run)
    return None if figure is None else figure.value


def _judged(change: Change | None, direction: Direction, least_p: float, tests: int) -> Change | None:
    """Better or worse where the interval leaves out zero, the change has a size, and p allows it.

    So few repeats that even the farthest apart have no p below the level, corrected over all tests, are judged by the
    interval alone.
    """
    if change is None or change.test == "none":
        return change
    value, low, high = change.absolute.value, change.absolute.low, change.absolute.high
    if direction == "neither" or value is None or low is None or high is None or change.p_value is None:
        return change
    small = change.relative.value is not None and abs(change.relative.value) < MIN_EFFECT
    by_chance = change.p_value > LEVEL and least_p * tests <= LEVEL
    if small or low <= 0 <= high or by_chance:
        return change
    return replace(change, verdict="worse" if (value > 0) == (direction == "lower is better") else "better")
