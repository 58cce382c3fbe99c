"""What the charts share: colours of phases, axes, shades behind steps that do not count, labels on lines.

Colours are names (`$forward`) that the page looks up in its style sheet, so that light, dark and every chart agree.
Whatever comes from outside passes `text.label`, since plotly reads markup in labels; hover texts take it from `text`
or `customdata`, never from a template.
"""

import math
from collections.abc import Iterable, Sequence

from agprof.model.answers import TimeAnswer
from agprof.model.figure import Curve
from agprof_reports.data import Spec
from agprof_reports.tables import StepGroup

PHASES = ("data", "forward", "backward", "communication", "optimizer", "other")
"""Parts of a step in drawing order; each is also the name of its colour."""
WORDS = {"data": "data wait", "communication": "exposed communication", "other": "host, other"}
LEGEND = tuple((name, WORDS.get(name, name)) for name in PHASES)
DIRECT_LABELS = 5
"""Series that are told apart by labels on the lines; more become a heat map."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
RUN_MARGIN = {"l": 64, "r": 104}
"""One left and right edge for all charts over the run's time, so that the same moment stands in the same place."""
Span = tuple[float, float]
Point = tuple[float, float | None]


def short(value: float, significant: int = 4) -> float:
    """Fewer digits than a screen can show cost bytes only."""
    if not math.isfinite(value):
        return 0.0
    return float(f"{value:.{significant}g}")


def seconds(ns: float) -> float:
    return round(ns / 1e9, 4)


def chart_title(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


AXIS_TITLE = "time since the first step began, s"


def time_axis(run: Span, *, titled: bool = True) -> Spec:
    title = {"title": {"text": AXIS_TITLE}} if titled else {}
    return {**title, "range": list(run), "zeroline": False, "hoverformat": ".4~g"}


def rank_axis(ranks: Sequence[int]) -> Spec:
    return row_axis([f"rank {rank}" for rank in ranks])


def row_axis(names: Sequence[str]) -> Spec:
    """One row per name from the top; of many rows every fourth is named, of very many every eighth."""
    every = 1 if len(names) <= 16 else 4 if len(names) <= 64 else 8
    shown = list(range(0, len(names), every))
    return {
        "tickvals": shown,
        "ticktext": [names[i] for i in shown],
        "range": [len(names) - 0.5, -0.5],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def annotation(*, text: str, x: float, y: float, xref: str = "x", xanchor: str = "center", **extra: object) -> Spec:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": xref,
        "xanchor": xanchor,
        "showarrow": False,
        "font": {"size": 12, "color": "$text"},
        **extra,
    }


def step_marks(groups: Sequence[StepGroup], *, named: bool) -> dict[str, list[Spec]]:
    """Shades behind warm-up and profiled steps, neighbours as one."""
    shapes: list[Spec] = []
    notes: list[Spec] = []
    runs: list[tuple[str, int, int]] = []
    for group in groups:
        if group.kind == "steady":
            continue
        begin = min(row.start_ns for row in group.rows)
        end = max(row.start_ns + row.duration_ns for row in group.rows)
        if runs and runs[-1][0] == group.kind and abs(runs[-1][2] - begin) <= (end - begin) // 50 + 1:
            runs[-1] = (group.kind, runs[-1][1], end)
        else:
            runs.append((group.kind, begin, end))
    whole = max((row.start_ns + row.duration_ns for group in groups for row in group.rows), default=0)
    for kind, begin, end in runs[:24]:
        shapes.append(
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": seconds(begin),
                "x1": seconds(end),
                "y0": 0,
                "y1": 1,
                "fillcolor": "$shade",
                "line": {"width": 1, "color": "$line"},
                "layer": "above" if named else "below",
            }
        )
        if not named or len(notes) >= 4:
            continue
        if notes and seconds(begin) - notes[-1]["x"] < whole / 1e9 / 12:  # no room for a label of its own
            if kind not in notes[-1]["text"]:
                notes[-1]["text"] += f", {kind}"
            continue
        notes.append(
            annotation(
                text=kind,
                x=seconds(begin),
                y=1,
                yref="paper",
                xanchor="left",
                yanchor="bottom",
                font={"size": 11, "color": "$muted"},
            )
        )
    return {"shapes": shapes, "annotations": notes}


def slowest_of_each(groups: Sequence[StepGroup], limit: int) -> tuple[Sequence[StepGroup], str]:
    """Keep the slowest step of each run of neighbours when there are more than a screen shows."""
    if len(groups) <= limit:
        return groups, ""
    size = math.ceil(len(groups) / limit)
    kept = [
        max(groups[at : at + size], key=lambda group: group.slowest.duration_ns) for at in range(0, len(groups), size)
    ]
    return kept, f"Drawn: the slowest of every {size} steps, {len(kept):,} of {len(groups):,}."


def direct_labels(
    names: Sequence[str], drawn: Sequence[Sequence[Point]], span: Sequence[float], height: int
) -> list[Spec]:
    """Names at the right end of their lines, moved apart to 14 px; `height` is the plot's own."""
    pixels = height / ((span[1] - span[0]) or 1.0)
    placed = []
    for name, points in zip(names, drawn, strict=True):
        last = next((y for _, y in reversed(points) if y is not None), None)
        if last is not None:
            placed.append((last, name))
    placed.reverse()
    placed.sort(key=lambda place: place[0])
    at = [(y - span[0]) * pixels for y, _ in placed]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 14)
    for i in reversed(range(len(at))):  # back down from the top edge
        at[i] = min(at[i], height - 6 if i == len(at) - 1 else at[i + 1] - 14)
    return [
        annotation(
            text=name, x=1, xref="paper", y=y, xanchor="left", xshift=6, yshift=round(place - (y - span[0]) * pixels)
        )
        for (y, name), place in zip(placed, at, strict=True)
    ]


def run_span(time: TimeAnswer, curves: Iterable[Curve]) -> Span:
    """Begin and end, in seconds, of what all charts over the run show."""
    ends = [row.start_ns + row.duration_ns for row in time.steps]
    if time.steps:
        return min(0.0, seconds(min(row.start_ns for row in time.steps))), seconds(max(ends))
    points = [x for curve in curves if curve.x_ns for x in (curve.x_ns[0], curve.x_ns[-1])]
    return seconds(min(points, default=0)), seconds(max(points, default=1_000_000_000))
