"""Memory of the devices over the trace, from the allocator's own events."""

import math
from collections.abc import Iterable, Sequence

from agprof.model.trace_answers import TraceMemory
from agprof_reports import trace_tables
from agprof_reports.charts.curves import DRAWN_POINTS
from agprof_reports.charts.pieces import DIRECT_LABELS, annotation, direct_labels, short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale

_LINES = DIRECT_LABELS
_HEIGHT = 220
Points = list[tuple[float, float | None]]


def memory(rows: Sequence[TraceMemory]) -> Chart:
    kept = sorted(sorted(rows, key=lambda r: -r.peak_bytes)[:_LINES], key=lambda r: (r.rank, r.device))
    divisor, unit = scale((value for row in kept for value in (*row.allocated_bytes, *row.reserved_bytes)), "bytes")
    ticks, tick_unit = scale((row.x_ns[-1] for row in kept if row.x_ns), "ns")
    several = len({row.rank for row in rows}) > 1
    data: list[Spec] = []
    named: list[tuple[str, Points]] = []
    for index, row in enumerate(kept):
        colour = "$ink" if index == 0 else f"$ink-{index}"
        name = label(f"rank {row.rank} {row.device}" if several else row.device, 20)
        for kind, dash, values in (
            ("allocated", "solid", row.allocated_bytes),
            ("reserved", "dot", row.reserved_bytes),
        ):
            points = _thin([x / ticks for x in row.x_ns], values, divisor)
            if not any(y is not None for _, y in points):
                continue
            data.append(_line(f"{name} {kind}", points, colour, dash, unit))
            if kind == "allocated":
                named.append((name, points))
    top = max((y for trace in data for y in trace["y"] if y is not None), default=1.0) * 1.1
    end = max((row.x_ns[-1] for row in kept if row.x_ns), default=1) / ticks
    begin = min((row.x_ns[0] for row in kept if row.x_ns), default=0) / ticks
    labels = direct_labels([n for n, _ in named], [p for _, p in named], [0, top], _HEIGHT - 48)
    peaks = [
        annotation(
            text="peak",
            x=short(row.peak_at_ns / ticks, 6),
            y=row.peak_bytes / divisor,
            yanchor="bottom",
            font={"size": 11, "color": "$muted"},
        )
        for row in kept[:1]
        if len(kept) == 1
    ]
    return Chart(
        key="trace-memory",
        title=f"Memory over the trace, {unit}",
        description="Lines over time: memory allocated (solid) and reserved from the driver (dotted), per rank and "
        "device.",
        height=_HEIGHT,
        spec={
            "data": data,
            "layout": {
                "xaxis": {
                    "title": {"text": f"time since the trace began, {tick_unit}"},
                    "range": [begin, end],
                    "zeroline": False,
                    "hoverformat": ".4~g",
                },
                "yaxis": {"range": [0, top], "fixedrange": True, "nticks": 5},
                "annotations": [*labels, *peaks],
                "margin": {"l": 64, "r": 104, "t": 16},
            },
        },
        table=trace_tables.memory(rows),
        note=" ".join(_notes(rows, kept)),
    )


def _notes(rows: Sequence[TraceMemory], kept: Sequence[TraceMemory]) -> Iterable[str]:
    if any(value is not None for row in kept for value in row.reserved_bytes):
        yield "Solid: allocated; dotted: reserved from the driver."
    if len(kept) < len(rows):
        yield f"Drawn: the {len(kept)} of {len(rows)} with the highest peaks."
    if any(len(row.x_ns) > DRAWN_POINTS for row in kept):
        yield "Long curves are drawn with the lowest and highest of each stretch."


def _line(name: str, points: Points, colour: str, dash: str, unit: str) -> Spec:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [short(x, 6) for x, _ in points],
        "y": [y for _, y in points],
        "line": {"width": 1.5 if dash == "solid" else 1, "color": colour, "dash": dash, "shape": "hv"},
        "connectgaps": False,
        "hovertemplate": f"%{{y:.3r}} {unit}",
    }


def _thin(x: Sequence[float], values: Sequence[int | None], divisor: float) -> Points:
    """All points, or of long curves the lowest and highest of each stretch, in their order."""
    points: Points = [
        (at, None if value is None else short(value / divisor)) for at, value in zip(x, values, strict=True)
    ]
    if len(points) <= DRAWN_POINTS:
        return points
    size = math.ceil(len(points) * 2 / DRAWN_POINTS)
    out: Points = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        known = [i for i, (_, y) in enumerate(stretch) if y is not None]
        if not known:
            out.append(stretch[0])
            continue
        ends = {min(known, key=lambda i: stretch[i][1] or 0.0), max(known, key=lambda i: stretch[i][1] or 0.0)}
        out.extend(stretch[i] for i in sorted(ends))
    return out
