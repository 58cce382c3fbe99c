"""The roofline: groups of modules by FLOP per byte and FLOP/s, under the roofs of the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agprof.model.compute_answers import Ceiling, ComputeAnswer, RooflinePoint
from agprof.model.format import format_value
from agprof_reports import compute_tables
from agprof_reports.charts.pieces import annotation, short
from agprof_reports.compute_tables import of_roof
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale

_HEIGHT = 380
_NAMED = 6
"""Groups that carry their names: those with most time."""
_STYLES = {"measured": ("solid", "measured"), "declared": ("dot", "declared"), "datasheet": ("dash", "data sheet")}
_LONGEST = 24
_OVER = 1.02
"""Of its roof, from which on a point is said to stand above it."""
_LEAST_PX, _MOST_PX = 7.0, 34.0


@dataclass(frozen=True, slots=True)
class Roof:
    kind: str
    flops_per_second: float | None
    bytes_per_second: float | None

    def at(self, intensity: float) -> float | None:
        """min(peak, intensity x bandwidth)."""
        known = [
            limit
            for limit in (
                self.flops_per_second,
                None if self.bytes_per_second is None else intensity * self.bytes_per_second,
            )
            if limit
        ]
        return min(known) if known else None

    @property
    def ridge(self) -> float | None:
        """FLOP per byte from which on computing bounds."""
        if not self.flops_per_second or not self.bytes_per_second:
            return None
        return self.flops_per_second / self.bytes_per_second


def roofs_of(ceilings: Sequence[Ceiling], dtype: str | None) -> list[Roof]:
    """One per kind of ceiling: the peak of the run's element type, and the bandwidth of that kind."""
    roofs = []
    for kind in _STYLES:
        of_kind = [ceiling for ceiling in ceilings if ceiling.kind == kind]
        own = [c for c in of_kind if c.dtype == dtype] or of_kind
        peak = next((c.flops_per_second for c in own if c.flops_per_second), None)
        bandwidth = next((c.bytes_per_second for c in (*own, *of_kind) if c.bytes_per_second), None)
        if peak or bandwidth:
            roofs.append(Roof(kind, peak, bandwidth))
    return roofs


def placed(points: Sequence[RooflinePoint]) -> list[RooflinePoint]:
    """Those with both coordinates, the longest first, so that small ones are drawn over large ones."""
    there = [
        point
        for point in points
        if point.intensity > 0 and math.isfinite(point.intensity) and (point.flops_per_second or 0) > 0
    ]
    return sorted(there, key=lambda point: -(point.duration_ns or 0))


def roofline(compute: ComputeAnswer) -> Chart:
    points = placed(compute.roofline)
    roofs = roofs_of(compute.ceilings, compute.dtype)
    limits = [roof.flops_per_second for roof in roofs]
    divisor, unit = scale((*limits, *(point.flops_per_second for point in points)), "FLOP/s")
    low, high = _span(points, roofs)
    lines = [line for roof in roofs if (line := _line(roof, low, high, divisor, unit))]
    rates = [value / divisor for point in points if (value := point.flops_per_second)]
    heights = [y for line in lines for y in line["y"]]
    top, bottom = max([*rates, *heights], default=1.0), min(rates, default=min(heights, default=0.1))
    without = len(compute.roofline) - len(points)
    notes = ["A larger point takes more time. Bytes are modelled: operands and results of the counted operations once."]
    if without:
        notes.append(f"Without a time and hence not drawn: {without} of {len(compute.roofline)} groups.")
    above = sum((of_roof(point) or 0.0) > _OVER for point in points)
    if above:
        verb = "points stand" if above > 1 else "point stands"
        notes.append(
            f"{above} {verb} above the roof: what fits into caches moves less than is modelled, and a ceiling that was "
            "measured beside other load is too low."
        )
    if not roofs:
        notes.append("No roof is drawn: no ceiling is known of this device.")
    return Chart(
        key="roofline",
        title=f"Roofline, {unit}",
        description="Points on logarithmic axes: groups of modules by FLOP per byte and FLOP/s, forward and backward "
        "apart, under the roof that the device's memory bandwidth and computing peak make.",
        height=_HEIGHT,
        spec={
            "data": [*lines, *(_points(points, name, divisor, unit) for name in ("backward", "forward"))],
            "layout": {
                "hovermode": "closest",
                "xaxis": {
                    "type": "log",
                    "title": {"text": "FLOP per byte"},
                    "range": [round(math.log10(low), 4), round(math.log10(high), 4)],
                    "dtick": _ticks(low, high),
                    "tickformat": "~r",
                    "zeroline": False,
                    "fixedrange": True,
                },
                "yaxis": {
                    "type": "log",
                    "range": [round(math.log10(bottom) - 0.25, 4), round(math.log10(top) + 0.25, 4)],
                    "dtick": _ticks(bottom, top),
                    "tickformat": "~r",
                    "zeroline": False,
                    "fixedrange": True,
                },
                "annotations": [*_roof_words(roofs, low, high, divisor), *_names(points, divisor, (low, high))],
                "margin": {"l": 64, "r": 16, "t": 16},
            },
        },
        table=compute_tables.roofline(compute.roofline),
        legend=(("forward", "forward"), ("backward", "backward")),
        note=" ".join(notes),
    )


def _ticks(low: float, high: float) -> int | str:
    """One, two and five of every power of ten, or the powers alone where there are many."""
    return "D2" if high < low * 1000 else 1


def _span(points: Sequence[RooflinePoint], roofs: Sequence[Roof]) -> tuple[float, float]:
    """From a bit left of what is there to a bit right of it, ridges included."""
    there = [point.intensity for point in points] + [roof.ridge for roof in roofs if roof.ridge]
    return min(there, default=0.1) / 3, max(there, default=100.0) * 4


def _line(roof: Roof, low: float, high: float, divisor: float, unit: str) -> Spec | None:
    xs = [low, *([roof.ridge] if roof.ridge and low < roof.ridge < high else []), high]
    ys = [roof.at(x) for x in xs]
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if y]
    if not known:
        return None
    dash, word = _STYLES[roof.kind]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": word,
        "x": [short(x) for x, _ in known],
        "y": [short(y / divisor) for _, y in known],
        "line": {"width": 1.5, "color": "$ink", "dash": dash},
        "hovertemplate": f"%{{y:.3r}} {unit} at %{{x:.3r}} FLOP per byte<extra>{word}</extra>",
    }


def _roof_words(roofs: Sequence[Roof], low: float, high: float, divisor: float) -> list[Spec]:
    words = []
    for roof in roofs:
        at = roof.at(high)
        if at is None:
            continue
        words.append(
            annotation(
                text=f"{_STYLES[roof.kind][1]} {format_value(at, 'FLOP/s')}",
                x=round(math.log10(high), 4),
                y=round(math.log10(at / divisor), 4),
                xanchor="right",
                yanchor="bottom" if roof.kind == "datasheet" or len(roofs) == 1 else "top",
            )
        )
    return words


def _points(points: Sequence[RooflinePoint], in_pass: str, divisor: float, unit: str) -> Spec:
    own = [point for point in points if point.in_pass == in_pass]
    longest = max((point.duration_ns or 0 for point in points), default=0) or 1
    return {
        "type": "scatter",
        "mode": "markers",
        "name": in_pass,
        "x": [short(point.intensity) for point in own],
        "y": [short((point.flops_per_second or 0.0) / divisor) for point in own],
        "customdata": [_told(point) for point in own],
        "marker": {
            "color": f"${in_pass}",
            "symbol": "circle" if in_pass == "forward" else "diamond",
            "opacity": 0.85,
            "size": [
                round(_LEAST_PX + (_MOST_PX - _LEAST_PX) * math.sqrt((point.duration_ns or 0) / longest), 1)
                for point in own
            ],
            "line": {"width": 1, "color": "$surface"},
        },
        "hovertemplate": f"<b>%{{customdata[0]}}</b>, {in_pass}<br>%{{y:.3r}} {unit} at %{{x:.3r}} FLOP per byte"
        "<br>%{customdata[1]}<br>%{customdata[2]}<extra></extra>",
    }


def _told(point: RooflinePoint) -> list[str]:
    reached = of_roof(point)
    time = "no time" if point.duration_ns is None else format_value(float(point.duration_ns), "ns")
    words = f"{point.modules:,} module{'' if point.modules == 1 else 's'}, {time}"
    bound = f"bound by {point.bound_by}" if point.bound_by != "unknown" else "what bounds it is not known"
    return [
        label(point.label, 120),
        words,
        bound if reached is None else f"{format_value(reached, 'ratio')} of the roof, {bound}",
    ]


def _tail(name: str) -> str:
    """The last part below repeated blocks, or the end of a long path: what tells a group from its neighbours."""
    own = name.rpartition(".*.")[2] or name
    return own if len(own) <= _LONGEST else f"…{own[1 - _LONGEST :]}"


def _names(points: Sequence[RooflinePoint], divisor: float, span: tuple[float, float]) -> list[Spec]:
    """The names of the groups with most time; one that would stand over another is left out."""
    words: list[Spec] = []
    wide = math.log10(span[1] / span[0])
    for point in points:
        x = math.log10(point.intensity)
        y = math.log10((point.flops_per_second or 1.0) / divisor)
        if any(abs(x - word["x"]) < 0.16 * wide and abs(y - word["y"]) < 0.12 for word in words):
            continue
        right = x > math.log10(span[1]) - 0.24 * wide
        words.append(
            annotation(
                text=label(_tail(point.label)),
                x=round(x, 4),
                y=round(y, 4),
                xanchor="right" if right else "left",
                xshift=-22 if right else 22,
                name="wide",  # not on narrow screens
                font={"size": 11, "color": "$muted"},
            )
        )
        if len(words) == _NAMED:
            break
    return words
