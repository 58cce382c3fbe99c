"""Normalised steps of all sides under one another: what share of the ranks is in which phase, over the step."""

from collections.abc import Sequence
from statistics import fmean

from agprof.model.figure import Curve
from agprof_reports.charts.pieces import LEGEND, PHASES, WORDS, annotation, short
from agprof_reports.data import Bar, Chart, Spec
from agprof_reports.text import label

_ROW, _LOW_ROW, _FEW = 96, 64, 4
_NAME = 22
"""Pixels of a side's name above its band."""
_PERCENT_OF_MILLIONTHS = 1e4


def overlays(curves: Sequence[tuple[Curve, ...]], labels: Sequence[str]) -> Chart | None:
    """One band per side on one axis; None when no side has curves."""
    there = [(name, {curve.label: curve for curve in own}) for name, own in zip(labels, curves, strict=True) if own]
    if not there:
        return None
    height = _ROW if len(there) <= _FEW else _LOW_ROW
    whole = len(there) * (height + _NAME)
    data: list[Spec] = []
    layout: Spec = {
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "xaxis": {
            "title": {"text": "share of the step, %"}, "range": [0, 100], "fixedrange": True, "zeroline": False,
            "hoverformat": ".0f", "anchor": "free", "position": 0,
        },
        "annotations": [],
        "margin": {"l": 40, "t": 0},
    }  # fmt: skip
    for row, (name, own) in enumerate(there):
        axis = "y" if row == 0 else f"y{row + 1}"
        top = 1 - (row * (height + _NAME) + _NAME) / whole
        layout["yaxis" if row == 0 else f"yaxis{row + 1}"] = {
            "domain": [max(top - height / whole, 0), top], "range": [0, 100], "tickvals": [0, 50, 100],
            "fixedrange": True, "zeroline": False, "ticksuffix": "" if row else " %",
        }  # fmt: skip
        layout["annotations"].append(
            annotation(text=label(name), x=0, xref="x", xanchor="left", y=1, yref=f"{axis} domain", yanchor="bottom")
        )
        data += _band(own, axis, label(name, 30))
    return Chart(
        key="overlays",
        title="The step of each side, from its begin to its end",
        description="One band per side: share of the ranks in each phase, over the share of the step. "
        "The bands are aligned; their lengths in time differ.",
        height=whole + 48,
        spec={"data": data, "layout": layout},
        table=None,
        legend=LEGEND,
        bars=tuple(Bar(label=name, parts=_means(own)) for name, own in there),
        bars_unit="% of the step",
    )


def _band(own: dict[str, Curve], axis: str, name: str) -> list[Spec]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{WORDS.get(phase, phase)}, {name}",
            "x": [0, *(short(x / _PERCENT_OF_MILLIONTHS) for x in own[phase].x_ns), 100],
            "y": [_percent(y) for y in (own[phase].y[0], *own[phase].y, own[phase].y[-1])],
            "xaxis": "x",
            "yaxis": axis,
            "stackgroup": axis,
            "line": {"shape": "hvh", "width": 0},
            "fillcolor": f"${phase}",
            "hovertemplate": "%{y:.0f} %",
        }
        for phase in PHASES
        if phase in own and own[phase].y
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else short(100 * share, 3)


def _means(own: dict[str, Curve]) -> tuple[tuple[str, float], ...]:
    means = []
    for phase in PHASES:
        known = [y for y in own[phase].y if y is not None] if phase in own else []
        means.append((phase, 100 * fmean(known) if known else 0.0))
    return tuple(means)
