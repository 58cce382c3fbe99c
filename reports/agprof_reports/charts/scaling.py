"""How figures go with the number of ranks: one small chart each, every side a point with its name."""

import math
from collections.abc import Callable, Sequence

from agprof.model.compare_answers import ScalingAnswer, ScalingPoint
from agprof.model.figure import Figure
from agprof_reports.charts.pieces import chart_title, short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale

_QUANTITIES: tuple[tuple[str, str, Callable[[ScalingPoint], Figure]], ...] = (
    ("throughput", "Throughput", lambda point: point.throughput),
    ("efficiency", "Efficiency", lambda point: point.efficiency),
    ("step-time", "Step time", lambda point: point.step_time),
    ("exposed", "Exposed communication", lambda point: point.exposed),
    ("energy", "Energy per token", lambda point: point.energy_per_token),
    ("cost", "Cost", lambda point: point.cost),
)
_HEIGHT = 224
_MOST_NAMES = 6


def scaling_charts(found: ScalingAnswer, labels: Sequence[str]) -> tuple[Chart, ...]:
    """Quantities that at least two sides have."""
    made = []
    for key, title, get in _QUANTITIES:
        points = [point for point in found.points if get(point).value is not None]
        if len(points) > 1:
            made.append(_chart(key, title, get, points, labels))
    return tuple(made)


def _chart(
    key: str,
    title: str,
    get: Callable[[ScalingPoint], Figure],
    points: Sequence[ScalingPoint],
    labels: Sequence[str],
) -> Chart:
    divisor, unit = scale((get(point).value for point in points), get(points[0]).unit)
    ranks = [point.ranks for point in points]
    y = [short((get(point).value or 0.0) / divisor) for point in points]
    names = [label(labels[point.side], 40) for point in points]
    data: list[Spec] = [_line(points, y, names, unit, _errors(points, get, divisor))]
    if ideal := _ideal(key, points, y):
        data.insert(0, ideal)
    top = max([*y, *(ideal["y"] if ideal else ())], default=1.0)
    ends = [math.log2(min(ranks)), math.log2(max(ranks))]
    air = 0.06 * (ends[1] - ends[0]) or 0.5
    axis: Spec = {
        "title": {"text": "ranks"}, "fixedrange": True, "tickvals": sorted(set(ranks)), "type": "log",
        "range": [(ends[0] - air) * math.log10(2), (ends[1] + air) * math.log10(2)],
    }  # fmt: skip
    return Chart(
        key=f"scaling-{key}",
        title=chart_title(title, unit),
        description=f"{title} of each side against its number of ranks.",
        height=_HEIGHT,
        spec={
            "data": data,
            "layout": {
                "hovermode": "closest",
                "xaxis": axis,
                "yaxis": {"range": [0, top * 1.24 or 1.0], "fixedrange": True},
                "margin": {"l": 48, "r": 24},
            },
        },
        table=None,
    )


def _line(points: Sequence[ScalingPoint], y: list[float], names: list[str], unit: str, errors: Spec | None) -> Spec:
    """Text beside the points while they are few."""
    few = len(points) <= _MOST_NAMES
    distinct = len({point.ranks for point in points}) == len(points)
    spec: Spec = {
        "type": "scatter",
        "mode": ("lines+" if distinct else "") + "markers" + ("+text" if few else ""),
        "x": [point.ranks for point in points],
        "y": y,
        "text": names,
        "textposition": _places(points),
        "textfont": {"size": 11, "color": "$muted"},
        "cliponaxis": False,
        "customdata": [f"{point.ranks:,} ranks on {point.nodes:,} node{'s' * (point.nodes != 1)}" for point in points],
        "line": {"color": "$ink", "width": 1.5},
        "marker": {"color": "$ink", "size": 7},
        "hovertemplate": f"%{{text}}: %{{y:.3r}} {unit}, %{{customdata}}<extra></extra>",
    }
    if errors is not None:
        spec["error_y"] = errors
    return spec


def _places(points: Sequence[ScalingPoint]) -> list[str]:
    """Names lean inwards at both ends."""
    fewest, most = min(point.ranks for point in points), max(point.ranks for point in points)
    sides = {fewest: "top right", most: "top left"}
    return [sides.get(point.ranks, "top center") for point in points]


def _errors(points: Sequence[ScalingPoint], get: Callable[[ScalingPoint], Figure], divisor: float) -> Spec | None:
    up, down = [], []
    for point in points:
        figure = get(point)
        value = figure.value or 0.0
        up.append(short(max(figure.high - value, 0.0) / divisor) if figure.high is not None else 0)
        down.append(short(max(value - figure.low, 0.0) / divisor) if figure.low is not None else 0)
    if not any((*up, *down)):
        return None
    return {
        "type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": "$muted", "thickness": 1,
        "width": 3,
    }  # fmt: skip


def _ideal(key: str, points: Sequence[ScalingPoint], y: Sequence[float]) -> Spec | None:
    """Throughput that grows with the ranks, efficiency of 100 %: from the smallest side on."""
    smallest = min(range(len(points)), key=lambda i: points[i].ranks)
    ends = sorted({point.ranks for point in points})
    if len(ends) < 2 or key not in ("throughput", "efficiency"):
        return None
    grow = key == "throughput"
    return {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": [short(y[smallest] * (n / points[smallest].ranks if grow else 1)) for n in ends],
        "line": {"color": "$muted", "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
