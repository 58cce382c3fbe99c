"""Memory over the run, with the steps and phases below it, and its peak per rank."""

from collections.abc import Sequence
from dataclasses import replace

from agprof.model.answers import TimeAnswer
from agprof.model.memory_answers import MemoryAnswer
from agprof_reports import tables
from agprof_reports.charts.curves import curves_chart, kinds_of
from agprof_reports.charts.pieces import DIRECT_LABELS, LEGEND, PHASES, Span, rank_axis, seconds, short
from agprof_reports.charts.time import DRAWN_STEPS
from agprof_reports.charts.timeline import span_colour
from agprof_reports.data import Chart, Spec
from agprof_reports.tables import StepGroup
from agprof_reports.text import label, scale

_STRIP = ("step", "step-other", "warmup", *PHASES)


def memory_curves(memory: MemoryAnswer, time: TimeAnswer, groups: Sequence[StepGroup], run: Span) -> tuple[Chart, ...]:
    """One chart with lines for a few curves; one heat map per kind (allocated, reserved) for many."""
    title = "Memory over the run" if memory.kind == "device" else "Resident memory over the run"
    if len(memory.curves) <= DIRECT_LABELS:
        chart = curves_chart("memory-curves", title, memory.curves, groups, run, height=260)
        return (_with_strip(chart, time, groups),)
    return tuple(
        curves_chart(
            f"memory-curves-{index}" if index else "memory-curves",
            f"{title}: {kind.name}" if kind.name else title,
            kind.curves,
            groups,
            run,
            height=200,
        )
        for index, kind in enumerate(kinds_of(memory.curves))
    )


def _with_strip(chart: Chart, time: TimeAnswer, groups: Sequence[StepGroup]) -> Chart:
    """Put the strip of steps and phases below the curves."""
    strip = _step_strip(time, groups)
    if strip is None:
        return chart
    layout = chart.spec["layout"]
    layout["yaxis"]["domain"] = [0.1, 1]
    layout["yaxis2"] = {"domain": [0, 0.055], "visible": False, "fixedrange": True}
    layout["xaxis"]["anchor"] = "y2"
    chart.spec["data"].append(strip)
    return replace(
        chart,
        legend=(("step", "step"), ("warmup", "step left out of statistics"), *(LEGEND if time.timeline else ())),
        note=" ".join((chart.note, _strip_note(time))).strip(),
    )


def _strip_note(time: TimeAnswer) -> str:
    if time.timeline_steps is None:
        return "The strip below the curve shows the steps."
    first, last = time.timeline_steps
    return f"The strip below the curve shows the steps, and the phases of steps {first} to {last}: zoom in there."


def _step_strip(time: TimeAnswer, groups: Sequence[StepGroup]) -> Spec | None:
    """One row of coloured cells over time: steps in turn, and phases where their place in the step is known."""
    edges: list[tuple[int, int, int, str]] = []
    window_ns = None
    rank = min((span.rank for span in time.timeline), default=None)
    for group in groups:
        row = next((row for row in group.rows if row.rank == rank), group.rows[0])
        if time.timeline_steps is not None and group.step == time.timeline_steps[0]:
            window_ns = min(item.start_ns for item in group.rows)
        code = 2 if group.kind != "steady" else group.step % 2
        edges.append((row.start_ns, row.start_ns + row.duration_ns, code, f"step {group.step}, {group.kind}"))
    if window_ns is not None:
        phases = sorted(
            (
                (window_ns + span.start_ns, window_ns + span.start_ns + span.duration_ns, _STRIP.index(colour), colour)
                for span in time.timeline
                if span.rank == rank and span.lane != "range" and (colour := span_colour(span)) in _STRIP
            ),
            key=lambda edge: (edge[0], edge[1]),
        )
        edges = _cut_in(edges, phases)
    if not edges or len(edges) > DRAWN_STEPS * 2:
        return None
    x: list[float] = []
    z: list[int | None] = []
    text: list[str] = []
    at = edges[0][0]
    for begin, end, code, words in edges:
        if end <= max(begin, at):
            continue
        if begin > at:
            x.append(seconds(at))
            z.append(None)
            text.append("")
        x.append(seconds(max(begin, at)))
        z.append(code)
        text.append(words)
        at = end
    x.append(seconds(at))
    top = len(_STRIP)
    colours = [[edge / top, f"${name}"] for i, name in enumerate(_STRIP) for edge in (i, i + 1)]
    return {
        "type": "heatmap",
        "x": x,
        "y": [0, 1],
        "z": [z],
        "yaxis": "y2",
        "zmin": -0.5,
        "zmax": top - 0.5,
        "colorscale": colours,
        "showscale": False,
        "text": [text],
        "name": "",
        "hovertemplate": "%{text}<extra></extra>",
    }


def _cut_in(
    steps: list[tuple[int, int, int, str]], phases: Sequence[tuple[int, int, int, str]]
) -> list[tuple[int, int, int, str]]:
    """Lay the phases over the steps; of spans that overlap, the one that began later is seen."""
    out = [step for step in steps if not phases or step[1] <= phases[0][0] or step[0] >= max(p[1] for p in phases)]
    before = [step for step in out if not phases or step[1] <= phases[0][0]]
    after = out[len(before) :]
    flat: list[tuple[int, int, int, str]] = []
    stack: list[tuple[int, int, int, str]] = []
    at = 0

    def until(end: int) -> None:
        nonlocal at
        while stack and at < end:
            top = stack[-1]
            stop = min(top[1], end)
            if stop > at:
                flat.append((at, stop, top[2], top[3]))
                at = stop
            if top[1] <= at:
                stack.pop()
        at = max(at, end)

    for phase in phases:
        until(phase[0])
        stack.append(phase)
    if phases:
        until(max(phase[1] for phase in phases))
    return [*before, *flat, *after]


def memory_peaks(memory: MemoryAnswer) -> Chart:
    rows = list(memory.ranks)
    divisor, unit = scale((row.peak.value for row in rows), "bytes")
    many = len(rows) > 16
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": "peak",
            "y": list(range(len(rows))),
            "x": [None if row.peak.value is None else short(row.peak.value / divisor) for row in rows],
            "customdata": [label(row.peak_at) for row in rows],
            "marker": {"color": "$other"},
            "hovertemplate": f"%{{x:.3r}} {unit}, %{{customdata}}<extra>peak</extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "standing",
            "y": list(range(len(rows))),
            "x": [None if row.standing_bytes is None else short(row.standing_bytes / divisor) for row in rows],
            "marker": {"color": "$ink", "symbol": "line-ns-open", "size": 7 if many else 16, "line": {"width": 2}},
            "hovertemplate": f"%{{x:.3r}} {unit}<extra>standing</extra>",
        },
    ]
    return Chart(
        key="memory-peaks",
        title="Peak per rank",
        description="Bars, one per rank: the highest memory seen; a tick marks what stands between steps.",
        height=56 + (9 if many else 28) * max(len(rows), 1),
        spec={
            "data": data,
            "layout": {
                "bargap": 0.3,
                "xaxis": {"title": {"text": unit}, "rangemode": "tozero", "fixedrange": True},
                "yaxis": rank_axis([row.rank for row in rows]),
                "margin": {"l": 64},
            },
        },
        table=tables.memory_peaks(rows),
        legend=(("other", "peak"), ("tick", "standing between steps")),
    )
