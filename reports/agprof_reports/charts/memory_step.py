"""Bytes of live tensors over the profile step, with its phases behind and its peak labelled."""

from collections.abc import Sequence

from agprof.model.figure import Curve
from agprof.model.memory_answers import MemoryAnswer, StepPhase
from agprof_reports import tables
from agprof_reports.charts.curves import thin
from agprof_reports.charts.memory_account import ALL_RANKS
from agprof_reports.charts.pieces import DASHES, PHASES, WORDS, Point, annotation, direct_labels, short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale, with_unit

_HEIGHT = 260
_BEFORE = 0.05
"""Share of the step from which on the time before the first row is not drawn."""
_NAMED = 0.06
"""Share of the step from which on a phase's name stands over its shade."""


def top_of(curve: Curve) -> float:
    return max((y for y in curve.y if y is not None), default=0.0)


def drawn_curves(curves: Sequence[Curve]) -> tuple[list[tuple[str, Curve]], str]:
    """All curves of a few ranks; of many the highest, the median and the lowest. Name and curve, the highest first."""
    order = sorted(curves, key=lambda curve: (-top_of(curve), curve.rank or 0))
    if len(order) <= ALL_RANKS:
        return [(curve.label, curve) for curve in order], ""
    chosen = (("highest", order[0]), ("median", order[len(order) // 2]), ("lowest", order[-1]))
    note = f"Drawn: the highest, the median and the lowest of {len(order)} ranks; the table has all."
    return [(f"{curve.label}, {word}", curve) for word, curve in chosen], note


def step_memory(memory: MemoryAnswer) -> Chart:
    drawn, note = drawn_curves([curve for curve in memory.step_curves if curve.x_ns])
    divisor, unit = scale((top_of(curve) for _, curve in drawn), "bytes")
    ticks, tick_unit = scale((curve.x_ns[-1] for _, curve in drawn), "ns")
    points: list[list[Point]] = [thin(curve, ticks, divisor) for _, curve in drawn]
    top = max((y for line in points for _, y in line if y is not None), default=1.0) * 1.15 or 1.0
    end = max(curve.x_ns[-1] for _, curve in drawn) / ticks
    begin = min(curve.x_ns[0] for _, curve in drawn) / ticks
    begin = begin if begin > _BEFORE * end else 0.0
    names = [label(name, 24) for name, _ in drawn]
    first = drawn[0][1]
    phases = [row for row in memory.step_phases if row.rank == first.rank]
    peak = max(((x, y) for x, y in zip(first.x_ns, first.y, strict=True) if y is not None), key=lambda point: point[1])
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [x for x, _ in line],
            "y": [y for _, y in line],
            "line": {
                "width": 1.5,
                "color": "$ink" if i == 0 else f"$ink-{i}",
                "dash": DASHES[i % len(DASHES)],
                "shape": "hv",
            },
            "connectgaps": False,
            "hovertemplate": f"%{{y:.3r}} {unit}",
        }
        for i, (name, line) in enumerate(zip(names, points, strict=True))
    ]
    shapes, words = _shades(phases, ticks, end - begin)
    within = next((row.phase for row in phases if row.begin_ns <= peak[0] <= row.end_ns), "")
    annotations = [
        *words,
        annotation(
            text=label(f"peak {with_unit(peak[1], 'bytes')}{f', {within}' if within else ''}"),
            x=short(peak[0] / ticks, 6),
            y=short(peak[1] / divisor),
            xanchor="left" if peak[0] / ticks < begin + (end - begin) * 0.7 else "right",
            yanchor="bottom",
        ),
    ]
    if len(drawn) > 1:
        annotations += direct_labels(names, points, [0, top], _HEIGHT - 64)
    shaded = f"Shades: phases of {first.label}." if phases else ""
    unseen = with_unit(begin * ticks, "ns")
    late = f"The first {unseen} of the step, before any operation was seen, are left out." if begin else ""
    used = {_colour(row.phase) for row in phases}
    return Chart(
        key="memory-step",
        title=f"Live tensors over the profile step, {unit}",
        description="Lines over time: bytes of live tensors in the profile step, one per rank, with the phases of the "
        "highest rank shaded behind them and its peak labelled.",
        height=_HEIGHT,
        spec={
            "data": data,
            "layout": {
                "xaxis": {
                    "title": {"text": f"time since the step began, {tick_unit}"},
                    "range": [short(begin, 6), short(end, 6)],
                    "zeroline": False,
                    "hoverformat": ".4~g",
                },
                "yaxis": {"range": [0, top], "fixedrange": True, "nticks": 5},
                "shapes": shapes,
                "annotations": annotations,
                "margin": {"l": 64, "r": 136 if len(drawn) > 1 else 24, "t": 24},
            },
        },
        table=tables.curves("table-memory-step", "Live tensors over the profile step", memory.step_curves),
        legend=tuple((name, WORDS.get(name, name)) for name in PHASES if name in used),
        note=" ".join(filter(None, (note, shaded, late))),
    )


def _colour(phase: str) -> str:
    return phase if phase in PHASES else "other"


def _shades(phases: Sequence[StepPhase], ticks: float, whole: float) -> tuple[list[Spec], list[Spec]]:
    shapes, words = [], []
    for row in phases[:400]:
        begin, stop = row.begin_ns / ticks, row.end_ns / ticks
        shapes.append(
            {
                "type": "rect",
                "yref": "paper",
                "x0": short(begin, 6),
                "x1": short(stop, 6),
                "y0": 0,
                "y1": 1,
                "fillcolor": f"${_colour(row.phase)}",
                "opacity": 0.22,
                "line": {"width": 0},
                "layer": "below",
            }
        )
        if stop - begin >= _NAMED * whole:
            words.append(
                annotation(
                    text=label(row.phase, 24),
                    x=short((begin + stop) / 2, 6),
                    y=1,
                    yref="paper",
                    yanchor="bottom",
                    font={"size": 11, "color": "$muted"},
                )
            )
    return shapes, words
