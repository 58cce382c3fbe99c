"""Small multiples over time: one row per GPU on one scale, its name at the left, its figure at the right."""

import math
from collections.abc import Sequence

from agprof.model.figure import Curve, Figure
from agprof.model.system_answers import SystemAnswer
from agprof_reports import tables
from agprof_reports.charts import throttle
from agprof_reports.charts.curves import lone_points, thin
from agprof_reports.charts.marks import events_over, gaps_over
from agprof_reports.charts.pieces import RUN_MARGIN, Span, annotation, chart_title, step_marks, time_axis
from agprof_reports.data import Chart, Spec
from agprof_reports.tables import StepGroup
from agprof_reports.text import label, rounded, scale, with_unit

GpuKey = tuple[int, int]
"""Node and number of the GPU on it."""
_FEW = 4
_ROW, _LOW_ROW, _RIBBON = 44, 32, 12
"""Pixels of a row when there are few and when there are many, and what a ribbon takes beside."""
_BETWEEN = 0.14
"""Share of a row that is left free below it."""
_TOLD_TWICE = 4
"""Rows whose second curve the hover tells too."""
_MOST_POINTS_IN_ALL = 4_800
_MOST_HOLES = 24
"""Gaps of a row that are covered."""


def rows_chart(
    key: str,
    title: str,
    keys: Sequence[GpuKey],
    series: Sequence[tuple[str, dict[GpuKey, Curve]]],
    system: SystemAnswer,
    groups: Sequence[StepGroup],
    run: Span,
    *,
    whole: float | None,
    limit: bool,
    ribbon: bool,
    figures: dict[GpuKey, Figure],
    told: str,
    most_points: int,
    titled: bool,
) -> Chart:
    """`series`: word of the line and its curves, the main one first; with `limit` the second is dashed. `figures` stand
    at the right, `told` says what they are."""
    every = [curve for _, curves in series for curve in curves.values()]
    divisor, unit = scale((y for curve in every for y in curve.y), every[0].unit)
    top = whole / divisor if whole else _top(every, divisor)
    spans = [span for span in system.throttles if (span.node, span.gpu) in set(keys)] if ribbon else []
    low = -0.36 * top if spans else -0.02 * top
    axes = {gpu: "y" if i == 0 else f"y{i + 1}" for i, gpu in enumerate(keys)}
    names = {gpu: _name(gpu, keys) for gpu in keys}
    points = min(most_points, _MOST_POINTS_IN_ALL // len(keys))
    data: list[Spec] = []
    notes: list[Spec] = []
    holes: list[Spec] = []
    for gpu in keys:
        for index, (word, curves) in enumerate(series):
            if gpu in curves:
                several = word if len(series) > 1 else ""
                line = _line(curves[gpu], names[gpu], several, index, divisor, unit, points, run, limit=limit)
                if index and (limit or len(keys) > _TOLD_TWICE):
                    line["hoverinfo"] = "skip"
                    del line["hovertemplate"]
                data.append({**line, "yaxis": axes[gpu]})
                if index == 0:
                    holes.extend(_holes(line["x"], line["y"], axes[gpu]))
        main = series[0][1].get(gpu)
        notes.append(_at_right(main, figures.get(gpu), axes[gpu], top))
        own = [span for span in spans if (span.node, span.gpu) == gpu]
        data.extend(throttle.ribbon(own, run, names[gpu], axes[gpu], low * 0.92, -low * 0.62))
    row = (_ROW if len(keys) <= _FEW else _LOW_ROW) + (_RIBBON if spans else 0)
    gap_shapes, gap_words = gaps_over(system.gaps, {node for node, _ in keys}, run)
    event_shapes, event_words = events_over(system.events, axes, run, above=False)
    bottom = 40 if titled else 24
    layout: Spec = {
        "hoversubplots": "axis",
        "barmode": "overlay",
        "xaxis": {**time_axis(run, titled=titled), "anchor": axes[keys[-1]]},
        **_axes(keys, names, low, top),
        "shapes": [*holes, *step_marks(groups, named=False)["shapes"], *gap_shapes, *event_shapes],
        "annotations": [*notes, *gap_words, *event_words],
        "margin": {**RUN_MARGIN, "t": 24, "b": bottom},
    }
    dashed = f" Dashed: its {series[1][0]}." if limit and len(series) > 1 else ""
    second = f" Line: {series[1][0]}; area: {series[0][0]}." if not limit and len(series) > 1 else ""
    over = "over the steady steps" if groups else "over the run"
    right = f" At the right {told} {over}." if any(figure.value is not None for figure in figures.values()) else ""
    rounding = "; report.json has more points" if any(len(curve.x_ns) > points for curve in every) else ""
    return Chart(
        key=key,
        title=chart_title(title, unit),
        description=f"Lines over time, one row per GPU on one scale: {title}.",
        height=24 + bottom + row * len(keys),
        spec={"data": data, "layout": layout},
        table=tables.curves(f"table-{key}", title, every),
        legend=throttle.legend_of(spans),
        note=f"Every row from 0 to {rounded(top)} {unit}.{right}{dashed}{second}"
        + (f" Lowest and highest of each stretch are drawn{rounding}." if rounding else ""),
        axis="run",
    )


def _top(curves: Sequence[Curve], divisor: float) -> float:
    highest = max((y for curve in curves for y in curve.y if y is not None and math.isfinite(y)), default=0.0)
    return highest * 1.05 / divisor or 1.0


def _name(gpu: GpuKey, keys: Sequence[GpuKey]) -> str:
    return f"GPU {gpu[1]}" if len({node for node, _ in keys}) == 1 else f"n{gpu[0]} GPU {gpu[1]}"


def _line(
    curve: Curve,
    name: str,
    word: str,
    index: int,
    divisor: float,
    unit: str,
    points: int,
    run: Span,
    *,
    limit: bool,
) -> Spec:
    digits = max(0, math.ceil(math.log10(5_000 / max(run[1] - run[0], 1e-3))))
    drawn = thin(curve, 1e9, divisor, most=points, decimals=min(digits, 4))
    line: Spec = {
        "type": "scatter",
        "mode": "lines",
        "name": label(f"{name} {word}".rstrip(), 40),
        "x": [x for x, _ in drawn],
        "y": [y for _, y in drawn],
        "line": {"width": 1.2, "color": "$ink"},
        "connectgaps": False,
        "hovertemplate": f"%{{y:.3r}} {unit}",
    }
    line |= lone_points(drawn)
    if index == 0:
        line |= {"fill": "tozeroy", "fillcolor": "$spark"}
    elif limit:
        line["line"] = {"width": 1, "color": "$ink-1", "dash": "dash"}
    else:
        line["line"] = {"width": 1, "color": "$ink-3"}
    return line


def _holes(x: Sequence[float], y: Sequence[float | None], axis: str) -> list[Spec]:
    """Covers over the longest gaps of a line, since plotly fills the area from one side of a gap to the other."""
    found: list[tuple[float, float]] = []
    last: float | None = None
    missing = False
    for at, value in zip(x, y, strict=True):
        if value is None:
            missing = True
            continue
        if missing and last is not None:
            found.append((last, at))
        last, missing = at, False
    found.sort(key=lambda ends: ends[0] - ends[1])
    return [
        {
            "type": "rect",
            "name": "hole",
            "yref": f"{axis} domain",
            "x0": begin,
            "x1": end,
            "y0": 0,
            "y1": 1,
            "fillcolor": "$page",
            "line": {"width": 0},
            "layer": "above",
        }
        for begin, end in found[:_MOST_HOLES]
    ]


def _at_right(curve: Curve | None, figure: Figure | None, axis: str, top: float) -> Spec:
    known = curve is not None and any(y is not None for y in curve.y)
    told = with_unit(figure.value, figure.unit) if figure is not None and figure.value is not None else ""
    text = told if known else "not measured"
    return annotation(text=text, x=1, xref="paper", y=top / 2, yref=axis, xanchor="left", xshift=6)


def _axes(keys: Sequence[GpuKey], names: dict[GpuKey, str], low: float, top: float) -> Spec:
    out: Spec = {}
    share = 1 / len(keys)
    for i, gpu in enumerate(keys):
        begin = 1 - (i + 1) * share
        free = share * _BETWEEN if i < len(keys) - 1 else 0.0
        out["yaxis" if i == 0 else f"yaxis{i + 1}"] = {
            "domain": [
                round(max(begin + free, 0.0), 5),
                round(begin + share, 5),
            ],
            "range": [low, top],
            "tickvals": [top / 2],
            "ticktext": [names[gpu]],
            "ticks": "",
            "showgrid": False,
            "zeroline": True,
            "fixedrange": True,
        }
    return out
