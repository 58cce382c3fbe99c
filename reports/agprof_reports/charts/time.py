"""Phases per rank, and steps over the run."""

from collections.abc import Sequence

from agprof.model.answers import TimeAnswer
from agprof.model.format import format_value
from agprof_reports import tables
from agprof_reports.charts.pieces import (
    LEGEND,
    PHASES,
    RUN_MARGIN,
    WORDS,
    Span,
    annotation,
    rank_axis,
    seconds,
    short,
    slowest_of_each,
    step_marks,
    time_axis,
)
from agprof_reports.data import Bar, Chart, Spec
from agprof_reports.tables import StepGroup
from agprof_reports.text import scale, with_unit

DRAWN_STEPS = 1_200


def phase_bars(time: TimeAnswer) -> Chart:
    divisor, unit = scale((rank.step_ns for rank in time.ranks), "ns")
    rows = [rank.rank for rank in time.ranks]
    few = len(rows) <= 16
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": WORDS.get(name, name),
            "y": list(range(len(rows))),
            "x": [short(rank.parts_ns.get(name, 0.0) / divisor) for rank in time.ranks],
            "text": [_percent(rank.parts_ns.get(name, 0.0), rank.step_ns) for rank in time.ranks] if few else None,
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{name}"},
            "marker": {"color": f"${name}"},
            "hovertemplate": f"%{{x:.3r}} {unit}<extra>{WORDS.get(name, name)}</extra>",
        }
        for name in PHASES
    ]
    layout = {
        "barmode": "stack",
        "uniformtext": {"mode": "hide", "minsize": 12},
        "bargap": 0.16,
        "hovermode": "y unified",
        "xaxis": {
            "title": {"text": f"mean time per steady step, {unit}"},
            "range": [0, max((rank.step_ns for rank in time.ranks), default=1.0) / divisor],
            "fixedrange": True,
        },
        "yaxis": rank_axis(rows),
        "margin": {"l": 64},
    }
    bars = tuple(
        Bar(
            label=f"rank {rank.rank}",
            parts=tuple((name, rank.parts_ns.get(name, 0.0) / divisor) for name in PHASES),
        )
        for rank in time.ranks
    )
    return Chart(
        key="phases",
        title="Phases of a step, per rank",
        description="Stacked bars, one per rank: mean time of each phase in a steady step. They add up to the step.",
        height=56 + (28 if few else 9) * len(rows),
        spec={"data": data, "layout": layout},
        table=tables.phases(time.ranks, PHASES),
        legend=LEGEND,
        bars=bars,
        bars_unit=unit,
    )


def steps_over_run(time: TimeAnswer, groups: Sequence[StepGroup], run: Span, most_rows: int) -> Chart:
    kept, note = slowest_of_each(groups, DRAWN_STEPS)
    rows = [group.slowest for group in kept]
    divisor, unit = scale((row.duration_ns for row in rows), "ns")
    x = [seconds(row.start_ns) for row in rows]
    if rows:
        x.append(seconds(rows[-1].start_ns + rows[-1].duration_ns))
    rows_and_end = [*rows, *rows[-1:]]
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": WORDS.get(name, name),
            "x": x,
            "y": [short(row.parts_ns.get(name, 0) / divisor) for row in rows_and_end],
            "stackgroup": "parts",
            "line": {"shape": "hv", "width": 0},
            "fillcolor": f"${name}",
            "hovertemplate": f"%{{y:.3r}} {unit}",
        }
        for name in PHASES
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "step",
            "x": x,
            "y": [short(row.duration_ns / divisor) for row in rows_and_end],
            "line": {"shape": "hv", "width": 1, "color": "$ink"},
            "text": [f"step {row.step}, {row.kind}, slowest: rank {row.rank}" for row in rows_and_end],
            "hovertemplate": f"%{{y:.3r}} {unit}, %{{text}}",
        }
    )
    marks = step_marks(groups, named=True)
    top, above = _step_ceiling(groups)
    if above:
        note = f"{note} {above}".strip()
    layout: Spec = {
        "xaxis": time_axis(run),
        "yaxis": {"title": {"text": f"time of a step, {unit}"}, "range": [0, top / divisor], "fixedrange": True},
        "shapes": marks["shapes"],
        "annotations": marks["annotations"],
        "margin": {**RUN_MARGIN, "t": 24},
    }
    middle = time.step_time.value
    if middle is not None:
        layout["shapes"].append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": middle / divisor,
                "y1": middle / divisor,
                "line": {"color": "$ink", "width": 1, "dash": "dash"},
            }
        )
        layout["annotations"].append(
            annotation(
                x=1,
                xref="paper",
                y=middle / divisor,
                text=f"median<br>{format_value(middle, 'ns')}",
                xanchor="left",
                xshift=6,
            )
        )
    return Chart(
        key="steps",
        title="Steps over the run",
        description="Stacked areas over time: the phases of each step on its slowest rank. Warm-up and profiled steps "
        "are shaded; they are left out of all statistics.",
        height=280,
        spec={"data": data, "layout": layout},
        table=tables.steps(groups, PHASES, most_rows),
        legend=LEGEND,
        note=note,
        axis="run",
    )


def _step_ceiling(groups: Sequence[StepGroup]) -> tuple[float, str]:
    """The top of the chart in ns: a few very long first steps must not flatten all others."""
    longest = [group.slowest.duration_ns for group in groups]
    steady = sorted(group.slowest.duration_ns for group in groups if group.kind == "steady")
    top = float(max(longest, default=1))
    if not steady or top <= 4 * steady[-1]:
        return top * 1.05, ""
    ceiling = 2.5 * steady[-1]
    above = sum(ns > ceiling for ns in longest)
    return (
        ceiling,
        f"{above} {'step is' if above == 1 else 'steps are'} longer than the chart, up to {with_unit(top, 'ns')}.",
    )


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 and part / whole >= 0.03 else ""
