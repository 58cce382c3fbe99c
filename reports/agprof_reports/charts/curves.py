"""Curves over the run's time: lines with direct labels for few, a heat map for many."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agprof.model.figure import Curve
from agprof_reports import tables
from agprof_reports.charts.pieces import (
    DASHES,
    DIRECT_LABELS,
    RUN_MARGIN,
    Point,
    Span,
    chart_title,
    direct_labels,
    row_axis,
    seconds,
    short,
    step_marks,
    time_axis,
)
from agprof_reports.data import Chart, Spec
from agprof_reports.tables import StepGroup
from agprof_reports.text import clean, label, scale

DRAWN_POINTS = 800
MEANS = "Each cell is the mean of its samples."
_OF_KEPT = "Each cell is the mean of the points that were kept: the lowest and the highest of each stretch."
TITLE = 120
"""Longest title of a chart, in characters."""
_OWNER = re.compile(r"^(?:(?:rank|node|GPU|core) \d+(?: |$))+")
_GPU = re.compile(r"^(?:node \d+ )?GPU \d+ ")


@dataclass(frozen=True, slots=True)
class Kind:
    """Curves of one kind: `CPU` of all ranks, `power` of all GPUs."""

    name: str
    """Empty where the labels name nothing but the owner."""
    curves: tuple[Curve, ...]

    @property
    def title(self) -> str:
        title = f"{self.name} per rank" if len(self.curves) > 1 and self.curves[0].rank is not None else self.name
        return f"GPU {title}" if _GPU.match(self.curves[0].label) else title

    @property
    def values(self) -> list[float]:
        return [y for curve in self.curves for y in curve.y if y is not None and math.isfinite(y)]


def kinds_of(curves: Sequence[Curve]) -> list[Kind]:
    found: dict[tuple[str, str, bool], list[Curve]] = defaultdict(list)
    for curve in curves:
        found[_OWNER.sub("", curve.label), curve.unit, _GPU.match(curve.label) is not None].append(curve)
    return [Kind(name, tuple(items)) for (name, _, _), items in found.items()]


def _owner(curve: Curve) -> str:
    """What tells it from the others of its chart: `rank 0` of `rank 0 CPU`, `n0 GPU 1` of `node 0 GPU 1 power`."""
    found = _OWNER.match(curve.label)
    if found is None:
        return curve.label
    owner = found.group().strip()
    return owner.replace("node ", "n") if " GPU " in owner or " core " in owner else owner


def curves_chart(
    key: str,
    title: str,
    curves: Sequence[Curve],
    groups: Sequence[StepGroup],
    run: Span,
    height: int,
    *,
    titled: bool = True,
    whole: float | None = None,
    below: float = 0.0,
    points: int = DRAWN_POINTS,
) -> Chart:
    """`whole` is the top of the scale in the curves' unit; `below` the share of the scale left free under zero."""
    unit_of = curves[0].unit if curves else "1"
    divisor, unit = scale((y for curve in curves for y in curve.y), unit_of)
    if len(curves) > DIRECT_LABELS:
        return heat_chart(key, title, curves, run, titled=titled, whole=whole)
    marks = step_marks(groups, named=False)
    title = clean(title, TITLE)
    drawn = [thin(curve, 1e9, divisor, most=points) for curve in curves]
    top = max((y for points in drawn for _, y in points if y is not None), default=0.0) * 1.1 or 1.0
    top = whole / divisor if whole else top
    low = min((y for points in drawn for _, y in points if y is not None), default=0.0)
    span = [min(low * 1.1, -below * top), top]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label(curve.label),
            "x": [x for x, _ in points],
            "y": [y for _, y in points],
            "line": {"width": 1.5, "color": "$ink" if i == 0 else f"$ink-{i}", "dash": DASHES[i % len(DASHES)]},
            "connectgaps": False,
            "hovertemplate": f"%{{y:.3r}} {unit}",
            **lone_points(points),
        }
        for i, (curve, points) in enumerate(zip(curves, drawn, strict=True))
    ]
    owners = [_owner(curve) for curve in curves]
    distinct = len(set(owners)) == len(owners)
    family = f"{title} "  # `sent` of `network sent` in the chart `network`
    told = [owner if distinct else curve.label for owner, curve in zip(owners, curves, strict=True)]
    names = [label(name.removeprefix(family), 20) for name in told]
    room = height - (48 if titled else 32)
    direct = direct_labels(names, drawn, span, room) if len(curves) > 1 else []
    cut = any(len(points) < len(curve.x_ns) for curve, points in zip(curves, drawn, strict=True))
    return Chart(
        key=key,
        title=chart_title(title, unit),
        description=f"Lines over time: {title}, one per {'rank' if len(curves) > 1 else 'node'}.",
        height=height,
        spec={
            "data": data,
            "layout": {
                "xaxis": time_axis(run, titled=titled),
                "yaxis": {"range": span, "fixedrange": True, **_ticks(span, below)},
                "shapes": marks["shapes"],
                "annotations": direct,
                "margin": RUN_MARGIN if titled else {**RUN_MARGIN, "b": 24},
            },
        },
        table=tables.curves(f"table-{key}", title, curves),
        note=f"Drawn with the lowest and highest of every {len(curves[0].x_ns) * 2 // points + 1} samples."
        if cut
        else "",
        axis="run",
    )


def of_kept_points(chart: Chart) -> Chart:
    """The chart of curves that hold the lowest and highest of each stretch: their median would be no one's."""
    if chart.table is None:
        return chart
    kept = [i for i, column in enumerate(chart.table.columns) if column.label != "median"]
    columns = tuple(chart.table.columns[i] for i in kept)
    table = replace(
        chart.table,
        columns=columns,
        rows=tuple(tuple(row[i] for i in kept) for row in chart.table.rows),
    )
    return replace(chart, table=table, note=_OF_KEPT if chart.note == MEANS else chart.note)


def lone_points(points: Sequence[Point]) -> Spec:
    """Marks on samples between two gaps, of which a line shows nothing; empty where there is none."""
    known = [False, *(y is not None for _, y in points), False]
    lone = [here and not (before or after) for before, here, after in zip(known, known[1:], known[2:], strict=False)]
    if not any(lone):
        return {}
    return {"mode": "lines+markers", "marker": {"size": [4 if one else 0 for one in lone], "color": "$ink"}}


def _ticks(span: Sequence[float], below: float) -> Spec:
    """Where something else stands under zero, the scale has no figures there."""
    if not below:
        return {"nticks": 5}
    step = 10 ** math.floor(math.log10(span[1]))
    step = next(size for size in (step / 2, step, step * 2, step * 5) if span[1] / size <= 4)
    return {"tickvals": [short(step * i) for i in range(int(span[1] / step) + 1)]}


def heat_chart(
    key: str,
    title: str,
    curves: Sequence[Curve],
    run: Span,
    *,
    titled: bool,
    whole: float | None = None,
    what: str = "rank",
    row: int | None = None,
) -> Chart:
    """One row of `row` pixels per curve, named by its owner; `whole` is the value with most ink, in their unit."""
    title = clean(title, TITLE)
    row = row or (14 if len(curves) <= 16 else 7 if len(curves) <= 64 else 4)
    divisor, unit = scale((y for curve in curves for y in curve.y), curves[0].unit if curves else "1")
    begin = min((curve.x_ns[0] for curve in curves if curve.x_ns), default=0)
    end = max((curve.x_ns[-1] for curve in curves if curve.x_ns), default=1)
    columns = max(1, min(240, max(len(curve.x_ns) for curve in curves) * 2 // 3))
    width = max(end - begin, 1) / columns
    z = []
    for curve in curves:
        sums, counts = [0.0] * columns, [0] * columns
        for x, y in zip(curve.x_ns, curve.y, strict=True):
            if y is not None and math.isfinite(y):
                at = min(int((x - begin) / width), columns - 1)
                sums[at] += y / divisor
                counts[at] += 1
        means = [short(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
        # a sampler's period wavers: a cell without a sample shows the one before it
        z.append([means[i] if means[i] is not None or not i else means[i - 1] for i in range(columns)])
    names = [label(_owner(curve), 20) for curve in curves]
    return Chart(
        key=key,
        title=chart_title(title, unit),
        description=f"Heat map: {title} over time, one row per {what}; more ink is more.",
        height=(56 if titled else 32) + row * len(curves),
        spec={
            "data": [
                {
                    "type": "heatmap",
                    "x0": seconds(begin + width / 2),
                    "dx": width / 1e9,
                    "z": z,
                    "zmin": 0,
                    "zmax": whole / divisor
                    if whole
                    else max((y for row in z for y in row if y is not None), default=1.0),
                    "customdata": [[name] * columns for name in names],
                    "colorscale": [[0, "$heat-0"], [1, "$heat-1"]],
                    "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 4},
                    "hovertemplate": f"%{{customdata}}, %{{x:.3r}} s: %{{z:.3r}} {unit}%{{meta}}<extra></extra>",
                    "meta": " ",  # step and phase under the pointer, filled in by report.js
                }
            ],
            "layout": {
                "hovermode": "closest",
                "xaxis": time_axis(run, titled=titled),
                "yaxis": row_axis(names),
                "margin": RUN_MARGIN if titled else {**RUN_MARGIN, "b": 24},
            },
        },
        table=tables.curves(f"table-{key}", title, curves),
        note=MEANS,
        axis="run",
    )


def thin(curve: Curve, ticks: float, divisor: float, *, most: int = DRAWN_POINTS, decimals: int = 4) -> list[Point]:
    """Points of a curve, x over `ticks` and y over `divisor`; of long ones the lowest and highest of each bucket."""
    points: list[Point] = [
        (round(x / ticks, decimals), None if y is None or not math.isfinite(y) else short(y / divisor))
        for x, y in zip(curve.x_ns, curve.y, strict=True)
    ]
    if len(points) <= most:
        return points
    size = math.ceil(len(points) * 2 / most)
    out: list[Point] = []
    for at in range(0, len(points), size):
        bucket = points[at : at + size]
        known = [i for i, (_, y) in enumerate(bucket) if y is not None]
        if not known:
            out.append(bucket[0])
            continue
        ends = {min(known, key=lambda i: bucket[i][1] or 0.0), max(known, key=lambda i: bucket[i][1] or 0.0)}
        if len(known) < len(bucket):
            ends.add(next(i for i in range(len(bucket)) if bucket[i][1] is None))
        out.extend(bucket[i] for i in sorted(ends))
    return out
