"""The charts of a run's page as plain plotly figures.

Colours are names (`$forward`) that the page looks up in its style sheet, so that light, dark and every chart agree.
Whatever comes from outside passes `label`, since plotly reads markup in labels; hover texts take it from `text` or
`customdata`, never from a template.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from agprof.model.answers import (
    CommunicationAnswer,
    ComputeAnswer,
    Curve,
    MemoryAnswer,
    ModuleRow,
    StepRow,
    SystemAnswer,
    TimeAnswer,
    TimelineSpan,
)
from agprof.model.format import format_value
from agprof_reports import tables
from agprof_reports.data import Bar, Chart, Spec
from agprof_reports.tables import StepGroup
from agprof_reports.text import label, scale, slug, with_unit

PHASES = ("data", "forward", "backward", "communication", "optimizer", "other")
"""Parts of a step in drawing order; each is also the name of its colour."""
WORDS = {"data": "data wait", "communication": "exposed communication", "other": "host, other"}
LEGEND = tuple((name, WORDS.get(name, name)) for name in PHASES)
DIRECT_LABELS = 5
"""Series that are told apart by labels on the lines; more become a heat map."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
DRAWN_POINTS = 800
DRAWN_STEPS = 1_200
TIMELINE_BARS = 3_000
TIMELINE_LANES = 32
HEAT_COLUMNS = 1_000
MODULE_BOXES = 1_500

RUN_MARGIN = {"l": 64, "r": 104}
"""One left and right edge for all charts over the run's time, so that the same moment stands in the same place."""

Span = tuple[float, float]
Point = tuple[float, float | None]


# --- time -----------------------------------------------------------------------------------------------------------


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
            "x": [_short(rank.parts_ns.get(name, 0.0) / divisor) for rank in time.ranks],
            "text": [_percent(rank.parts_ns.get(name, 0.0), rank.step_ns) for rank in time.ranks] if few else None,
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "constraintext": "none",
            "textfont": {"color": f"$on-{name}"},
            "marker": {"color": f"${name}"},
            "hovertemplate": f"%{{x:.3r}} {unit}<extra>{WORDS.get(name, name)}</extra>",
        }
        for name in PHASES
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.16,
        "hovermode": "y unified",
        "xaxis": {
            "title": {"text": f"mean time per steady step, {unit}"},
            "range": [0, max((rank.step_ns for rank in time.ranks), default=1.0) / divisor],
            "fixedrange": True,
        },
        "yaxis": _rank_axis(rows),
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
        description="Stacked bars, one per rank: mean time of each phase in a steady step. The parts add up to the step.",
        height=56 + (28 if few else 9) * len(rows),
        spec={"data": data, "layout": layout},
        table=tables.phases(time.ranks, PHASES),
        legend=LEGEND,
        bars=bars,
        bars_unit=unit,
    )


def steps_over_run(time: TimeAnswer, groups: Sequence[StepGroup], run: Span) -> Chart:
    kept, note = _slowest_of_each(groups, DRAWN_STEPS)
    rows = [group.slowest for group in kept]
    divisor, unit = scale((row.duration_ns for row in rows), "ns")
    x = [_seconds(row.start_ns) for row in rows]
    if rows:
        x.append(_seconds(rows[-1].start_ns + rows[-1].duration_ns))
    rows_and_end = [*rows, *rows[-1:]]
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": WORDS.get(name, name),
            "x": x,
            "y": [_short(row.parts_ns.get(name, 0) / divisor) for row in rows_and_end],
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
            "y": [_short(row.duration_ns / divisor) for row in rows_and_end],
            "line": {"shape": "hv", "width": 1, "color": "$ink"},
            "text": [f"step {row.step}, {row.kind}, slowest: rank {row.rank}" for row in rows_and_end],
            "hovertemplate": f"%{{y:.3r}} {unit}, %{{text}}",
        }
    )
    marks = _step_marks(groups, named=True)
    top, above = _step_ceiling(groups)
    if above:
        note = f"{note} {above}".strip()
    layout = {
        "xaxis": _time_axis(run),
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
            _note(x=1, xref="paper", y=middle / divisor, text=f"median {format_value(middle, 'ns')}", xanchor="left")
        )
    return Chart(
        key="steps",
        title="Steps over the run",
        description="Stacked areas over time: the phases of each step on its slowest rank. Warm-up and profiled steps are "
        "shaded; they are left out of all statistics.",
        height=280,
        spec={"data": data, "layout": layout},
        table=tables.steps(groups, PHASES),
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
    return ceiling, f"{above} {'step is' if above == 1 else 'steps are'} longer than the chart is high, up to {with_unit(top, 'ns')}."


def timeline(time: TimeAnswer) -> Chart:
    spans, note = _worth_drawing(time.timeline)
    divisor, unit = scale((span.start_ns + span.duration_ns for span in spans), "ns")
    lanes = sorted({_lane(span) for span in spans})
    row_of = {lane: index for index, lane in enumerate(lanes)}
    groups: dict[str, list[TimelineSpan]] = defaultdict(list)
    for span in spans:
        groups[_span_colour(span)].append(span)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": WORDS.get(colour, colour),
            "y": [row_of[_lane(span)] for span in items],
            "base": [_short(span.start_ns / divisor, 6) for span in items],
            "x": [_short(span.duration_ns / divisor, 4) for span in items],
            "width": 0.84,
            "text": [label(span.name, 24) for span in items],
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{colour}", "size": 11},
            "customdata": [f"{label(span.name)}, rank {span.rank}" for span in items],
            "marker": {"color": f"${colour}", "line": {"width": 1, "color": "$surface"}},
            "hovertemplate": f"%{{customdata}}<br>%{{x:.3r}} {unit} from %{{base:.4r}} {unit}<extra></extra>",
        }
        for colour, items in groups.items()
    ]
    first, last = time.timeline_steps or (0, 0)
    ranks = {lane[0] for lane in lanes}
    layout = {
        "barmode": "overlay",
        "hovermode": "closest",
        "uniformtext": {"mode": "hide", "minsize": 11},
        "xaxis": {
            "title": {"text": f"time since step {first} began, {unit}"},
            "range": [0, max((span.start_ns + span.duration_ns for span in spans), default=1) / divisor],
            "zeroline": False,
        },
        "yaxis": {
            "tickvals": list(range(len(lanes))),
            "ticktext": [_lane_name(lane, many=len(ranks) > 1) for lane in lanes],
            "range": [len(lanes) - 0.5, -0.5],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": i - 0.5, "y1": i - 0.5,
             "line": {"color": "$line", "width": 1}}
            for i, lane in enumerate(lanes) if i and lane[0] != lanes[i - 1][0]
        ],
        "margin": {"l": 132},
    }  # fmt: skip
    legend = tuple((name, WORDS.get(name, name)) for name in (*PHASES, "range") if name in groups)
    return Chart(
        key="timeline",
        title=f"Time line of step {first}" if first == last else f"Time line of steps {first} to {last}",
        description="Lanes over time, for each rank: phases, collectives and your own ranges. Drag to zoom.",
        height=64 + 22 * len(lanes),
        spec={"data": data, "layout": layout},
        table=_timeline_table(spans),
        legend=tuple((name, "collective" if name == "communication" else word) for name, word in legend),
        note=" ".join(part for part in (time.timeline_note, note) if part),
    )


_LANES = {"phase": 0, "communication": 1, "range": 2}


def _lane(span: TimelineSpan) -> tuple[int, int, int]:
    return span.rank, _LANES[span.lane], span.depth if span.lane == "range" else 0


def _lane_name(lane: tuple[int, int, int], *, many: bool) -> str:
    word = ("phases", "collectives", "ranges")[lane[1]] + (f" {lane[2] + 1}" if lane[2] else "")
    return f"rank {lane[0]} · {word}" if many else word


def _span_colour(span: TimelineSpan) -> str:
    if span.lane != "phase":
        return span.lane
    return span.name if span.name in PHASES else "other"


def _worth_drawing(spans: Sequence[TimelineSpan]) -> tuple[list[TimelineSpan], str]:
    """Keep what a screen can hold: the lanes of the first ranks that fit, then the longest spans."""
    lanes = sorted({_lane(span) for span in spans})
    notes = []
    ranks = sorted({lane[0] for lane in lanes})
    fitting = {lane[0] for lane in lanes[:TIMELINE_LANES]} if len(lanes) > TIMELINE_LANES else set(ranks)
    kept = [span for span in spans if span.rank in fitting]
    if len(fitting) < len(ranks):
        notes.append(f"ranks {min(fitting)} to {max(fitting)} of {len(ranks)}")
    if len(kept) > TIMELINE_BARS:
        notes.append(f"the {TIMELINE_BARS:,} longest of {len(kept):,} bars")
        longest = sorted(range(len(kept)), key=lambda i: -kept[i].duration_ns)[:TIMELINE_BARS]
        kept = [kept[i] for i in sorted(longest)]
    return kept, f"Drawn: {', '.join(notes)}." if notes else ""


def _timeline_table(spans: Sequence[TimelineSpan]) -> tables.Table:
    totals: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for span in spans:
        totals[span.rank, span.lane, span.name].append(span.duration_ns)
    return tables.spans([(*key, len(ns), sum(ns), max(ns)) for key, ns in sorted(totals.items())])


# --- communication --------------------------------------------------------------------------------------------------


def collectives(communication: CommunicationAnswer) -> Chart:
    rows = sorted(communication.rows, key=lambda row: row.exposed_ns_per_step)[-24:]
    divisor, unit = scale((max(row.total_ns_per_step, row.exposed_ns_per_step) for row in rows), "ns")
    names = [f"{label(row.op, 24)} · {with_unit(row.bytes_per_call.value, 'bytes')}" for row in rows]
    hover = [label(f"{row.op}, {row.group} ({row.group_size} ranks), issued in {row.caller}", 200) for row in rows]
    hidden = [max(row.total_ns_per_step - row.exposed_ns_per_step, 0.0) for row in rows]

    def bar(name: str, colour: str, values: Iterable[float], pattern: str) -> Spec:
        return {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": list(range(len(rows))),
            "x": [_short(value / divisor) for value in values],
            "customdata": hover,
            "marker": {"color": colour, "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "$surface", "size": 6, "solidity": 0.25}},
            "hovertemplate": f"%{{x:.3r}} {unit}, %{{customdata}}<extra>{name}</extra>",
        }

    return Chart(
        key="collectives",
        title="Time in collectives, by kind and size",
        description="Bars, one per kind, group and size of collective: exposed and overlapped time per step.",
        height=64 + 30 * max(len(rows), 1),
        spec={
            "data": [
                bar("exposed", "$communication", (row.exposed_ns_per_step for row in rows), ""),
                bar("overlapped", "$overlapped", hidden, "/"),
            ],
            "layout": {
                "barmode": "stack",
                "bargap": 0.3,
                "hovermode": "closest",
                "xaxis": {"title": {"text": f"mean per rank and steady step, {unit}"}, "fixedrange": True},
                "yaxis": {"tickvals": list(range(len(rows))), "ticktext": names, "fixedrange": True, "showgrid": False, "zeroline": False},
                "margin": {"l": 184},
            },
        },
        table=None,
        legend=(("communication", "exposed: the caller stands in it"), ("overlapped", "overlapped: hidden behind work")),
        note=f"The {len(rows)} of {len(communication.rows)} with the most exposed time."
        if len(rows) < len(communication.rows)
        else "",
    )


# --- compute --------------------------------------------------------------------------------------------------------


def modules(compute: ComputeAnswer) -> Chart:
    rows = sorted(compute.modules, key=lambda row: -(row.forward_flops or row.forward_ns or 0))[:MODULE_BOXES]
    rows = _with_parents(rows, compute.modules)
    flops = _own([row.forward_flops for row in rows], rows)
    times = _own([None if row.forward_ns is None else float(row.forward_ns) for row in rows], rows)
    by_flops = sum(flops) > 0

    def shares(values: Iterable[float | None]) -> list[float]:
        return [_short(value or 0.0) for value in values]

    share_of_time = shares(row.time_share for row in rows)
    share_of_flops = shares(row.flops_share for row in rows)
    data = [
        {
            "type": "icicle",
            "ids": [f"m{index}" for index in range(len(rows))],
            "parents": _parent_ids(rows),
            "labels": [label(row.path.rpartition(".")[2] or row.type, 32) for row in rows],
            "values": flops if by_flops else times,
            "branchvalues": "remainder",
            "tiling": {"orientation": "h", "pad": 1},
            "sort": False,
            "maxdepth": 5,
            "pathbar": {"thickness": 22, "textfont": {"size": 12, "color": "$text"}},
            "customdata": [
                [
                    label(row.path or "whole model", 160),
                    label(row.type),
                    format_value(row.forward_flops, "FLOP"),
                    format_value(None if row.forward_ns is None else float(row.forward_ns), "ns"),
                    format_value(float(row.params), "1"),
                    format_value(float(row.trainable_params), "1"),
                ]
                for row in rows
            ],
            "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}, %{customdata[3]}"
            "<br>%{customdata[4]} parameters, %{customdata[5]} trainable<extra></extra>",
            "textfont": {"color": "$on-tint"},
            "texttemplate": "%{label}",
            "marker": {
                "colors": share_of_time if by_flops else share_of_flops,
                "colorscale": [[0, "$tint-0"], [1, "$tint-1"]],
                "cmin": 0,
                "cmax": 0.5,
                "line": {"width": 1, "color": "$surface"},
            },
        }
    ]
    spec: Spec = {
        "data": data,
        "layout": {
            "margin": {"l": 0, "r": 0, "t": 0, "b": 4},
            "hovermode": "closest",
            "uniformtext": {"mode": "hide", "minsize": 10},
        },
    }
    if by_flops and sum(times) > 0:
        spec["variants"] = [
            {"label": "size: FLOPs, shade: time", "data": {"values": [flops], "marker.colors": [share_of_time]}},
            {"label": "size: time, shade: FLOPs", "data": {"values": [times], "marker.colors": [share_of_flops]}},
        ]
    return Chart(
        key="modules",
        title="Modules: where FLOPs and time go in one forward",
        description="Icicle of the module tree: the height of a box is its share of the forward's FLOPs or time, its shade "
        "its share of the other. Click a box to go into it.",
        height=24 + min(max(22 * _leaves(rows), 152), 416),
        spec=spec,
        table=tables.modules(compute.modules),
        note=f"Drawn: the {len(rows):,} largest of {len(compute.modules):,} modules."
        if len(rows) < len(compute.modules)
        else "A darker box takes more of what the size does not show. Click a box to go into it.",
    )


def _leaves(rows: Sequence[ModuleRow]) -> int:
    """Boxes that stand above one another in the first five levels."""
    shown = [row for row in rows if row.depth < 5]
    return len(shown) - len({row.parent for row in shown} & {row.path for row in shown})


def _with_parents(rows: Sequence[ModuleRow], all_rows: Sequence[ModuleRow]) -> list[ModuleRow]:
    """Keep the order of the tree, and every parent of what is kept."""
    by_path = {row.path: row for row in all_rows}
    keep: set[str] = set()
    for row in rows:
        at: ModuleRow | None = row
        while at is not None and at.path not in keep:
            keep.add(at.path)
            at = by_path.get(at.parent) if at.parent is not None else None
    return [row for row in by_path.values() if row.path in keep]


def _parent_ids(rows: Sequence[ModuleRow]) -> list[str]:
    at = {row.path: index for index, row in enumerate(rows)}
    return [
        f"m{at[row.parent]}" if row.parent is not None and row.parent in at and row.parent != row.path else ""
        for row in rows
    ]


def _own(values: Sequence[float | None], rows: Sequence[ModuleRow]) -> list[float]:
    """What a module takes itself: its total less its children's, never below zero."""
    own = {row.path: value or 0.0 for row, value in zip(rows, values, strict=True)}
    for row, value in zip(rows, values, strict=True):
        if row.parent in own and row.parent != row.path:
            own[row.parent] -= value or 0.0
    return [_short(max(own[row.path], 0.0), 5) for row in rows]


# --- memory and system ----------------------------------------------------------------------------------------------


def memory_curves(memory: MemoryAnswer, time: TimeAnswer, groups: Sequence[StepGroup], run: Span) -> Chart:
    chart = _curves_chart(
        "memory-curves",
        "Memory over the run" if memory.kind == "device" else "Resident memory over the run",
        memory.curves,
        groups,
        run,
        height=260,
    )
    strip = _step_strip(time, groups)
    if strip is None or chart.spec["data"][0]["type"] == "heatmap":
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


_STRIP = ("step", "step-other", "warmup", *PHASES)


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
                if span.rank == rank and span.lane != "range" and (colour := _span_colour(span)) in _STRIP
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
        begin = max(begin, at)
        if end <= begin:
            continue
        if begin > at:
            x.append(_seconds(at))
            z.append(None)
            text.append("")
        x.append(_seconds(begin))
        z.append(code)
        text.append(words)
        at = end
    x.append(_seconds(at))
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


def _cut_in(steps: list[tuple[int, int, int, str]], phases: Sequence[tuple[int, int, int, str]]) -> list[
    tuple[int, int, int, str]
]:
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
            "x": [None if row.peak.value is None else _short(row.peak.value / divisor) for row in rows],
            "customdata": [label(row.peak_at) for row in rows],
            "marker": {"color": "$other"},
            "hovertemplate": f"%{{x:.3r}} {unit}, %{{customdata}}<extra>peak</extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "standing",
            "y": list(range(len(rows))),
            "x": [None if row.standing_bytes is None else _short(row.standing_bytes / divisor) for row in rows],
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
                "yaxis": _rank_axis([row.rank for row in rows]),
                "margin": {"l": 64},
            },
        },
        table=tables.memory_peaks(rows),
        legend=(("other", "peak"), ("tick", "standing between steps")),
    )


_OWNER = re.compile(r"^(?:(?:rank|node|GPU) \d+ )+")


def _owner(curve: Curve) -> str:
    """`rank 0` of `rank 0 CPU`: what tells it from the other curves of its chart."""
    found = _OWNER.match(curve.label)
    return found.group().strip() if found else curve.label


def system_curves(system: SystemAnswer, groups: Sequence[StepGroup], run: Span) -> tuple[Chart, ...]:
    """One small chart per kind of curve, ranks or GPUs together; curves that are zero throughout are left to a line."""
    kinds: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in system.curves:
        if any(curve.y):
            kinds[_OWNER.sub("", curve.label), curve.unit].append(curve)
    kinds = _families(kinds)
    charts = []
    for index, ((kind, _), items) in enumerate(kinds.items()):
        title = f"{kind} per rank" if len(items) > 1 and items[0].rank is not None else kind
        last = index == len(kinds) - 1
        key = f"system-{index}-{slug(kind)}"
        charts.append(_curves_chart(key, title, items, groups, run, height=144 if last else 128, titled=last))
    return tuple(charts)


def _families(kinds: dict[tuple[str, str], list[Curve]]) -> dict[tuple[str, str], list[Curve]]:
    """`network sent` and `network received` share a chart, `disk read` and `disk write` too, where each is one curve."""
    out: dict[tuple[str, str], list[Curve]] = {}
    for (kind, unit), curves in kinds.items():
        family = kind.split(" ")[0]
        mates = [cs for (k, u), cs in kinds.items() if u == unit and k.split(" ")[0] == family]
        if family in ("network", "disk") and all(len(mate) == 1 for mate in mates):
            out[family, unit] = [curve for mate in mates for curve in mate]
        else:
            out[kind, unit] = curves
    return out


def silent_curves(system: SystemAnswer) -> tuple[str, ...]:
    """Kinds of curves that are zero or absent throughout."""
    loud = {_OWNER.sub("", curve.label) for curve in system.curves if any(curve.y)}
    return tuple(dict.fromkeys(k for c in system.curves if (k := _OWNER.sub("", c.label)) not in loud))


def _curves_chart(
    key: str,
    title: str,
    curves: Sequence[Curve],
    groups: Sequence[StepGroup],
    run: Span,
    height: int,
    *,
    titled: bool = True,
) -> Chart:
    unit_of = curves[0].unit if curves else "1"
    divisor, unit = scale((y for curve in curves for y in curve.y), unit_of)
    table = tables.curves(f"table-{key}", title, curves)
    if len(curves) > DIRECT_LABELS:
        return _heat(key, title, curves, (divisor, unit), run, table, titled=titled)
    marks = _step_marks(groups, named=False)
    drawn = [_thin(curve, divisor) for curve in curves]
    top = max((y for points in drawn for _, y in points if y is not None), default=0.0) * 1.1 or 1.0
    low = min((y for points in drawn for _, y in points if y is not None), default=0.0)
    span = [min(low * 1.1, 0.0), top]
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
        }
        for i, (curve, points) in enumerate(zip(curves, drawn, strict=True))
    ]
    names = [label(_owner(curve), 20) for curve in curves]
    room = height - (48 if titled else 32)
    direct = _direct_labels(names, drawn, span, room) if len(curves) > 1 else []
    cut = any(len(points) < len(curve.x_ns) for curve, points in zip(curves, drawn, strict=True))
    return Chart(
        key=key,
        title=_title(title, unit),
        description=f"Lines over time: {title}, one per {'rank' if len(curves) > 1 else 'node'}.",
        height=height,
        spec={
            "data": data,
            "layout": {
                "xaxis": _time_axis(run, titled=titled),
                "yaxis": {"range": span, "fixedrange": True, "nticks": 5},
                "shapes": marks["shapes"],
                "annotations": direct,
                "margin": RUN_MARGIN if titled else {**RUN_MARGIN, "b": 24},
            },
        },
        table=table,
        note=f"Drawn with the lowest and highest of every {len(curves[0].x_ns) * 2 // DRAWN_POINTS + 1} samples."
        if cut
        else "",
        axis="run",
    )


def _heat(
    key: str,
    title: str,
    curves: Sequence[Curve],
    scaled: tuple[float, str],
    run: Span,
    table: tables.Table,
    *,
    titled: bool,
) -> Chart:
    divisor, unit = scaled
    begin = min((curve.x_ns[0] for curve in curves if curve.x_ns), default=0)
    end = max((curve.x_ns[-1] for curve in curves if curve.x_ns), default=1)
    columns = max(1, min(240, max(len(curve.x_ns) for curve in curves)))
    width = max(end - begin, 1) / columns
    z = []
    for curve in curves:
        sums, counts = [0.0] * columns, [0] * columns
        for x, y in zip(curve.x_ns, curve.y, strict=True):
            if y is not None and math.isfinite(y):
                at = min(int((x - begin) / width), columns - 1)
                sums[at] += y / divisor
                counts[at] += 1
        means = [_short(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
        # a sampler's period wavers: a cell without a sample shows the one before it
        z.append([means[i] if means[i] is not None or not i else means[i - 1] for i in range(columns)])
    names = [label(curve.label, 20) for curve in curves]
    return Chart(
        key=key,
        title=_title(title, unit),
        description=f"Heat map: {title} over time, one row per rank; more ink is more.",
        height=(56 if titled else 32) + (14 if len(curves) <= 16 else 7) * len(curves),
        spec={
            "data": [
                {
                    "type": "heatmap",
                    "x0": _seconds(begin),
                    "dx": width / 1e9,
                    "z": z,
                    "zmin": 0,
                    "zmax": max((y for row in z for y in row if y is not None), default=1.0),
                    "customdata": [[name] * columns for name in names],
                    "colorscale": [[0, "$heat-0"], [1, "$heat-1"]],
                    "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 4},
                    "hovertemplate": f"%{{customdata}}, %{{x:.3r}} s: %{{z:.3r}} {unit}<extra></extra>",
                }
            ],
            "layout": {
                "hovermode": "closest",
                "xaxis": _time_axis(run, titled=titled),
                "yaxis": _rank_axis([curve.rank if curve.rank is not None else i for i, curve in enumerate(curves)]),
                "margin": RUN_MARGIN if titled else {**RUN_MARGIN, "b": 24},
            },
        },
        table=table,
        note="Each cell is the mean of its samples.",
        axis="run",
    )


# --- ranks ----------------------------------------------------------------------------------------------------------


def own_work(groups: Sequence[StepGroup]) -> Chart:
    """Step without exposed communication: ranks that wait for another look alike in step time, and differ here."""
    ranks = sorted({row.rank for group in groups for row in group.rows})
    kept, note = _slowest_of_each(groups, HEAT_COLUMNS)
    work = {rank: [None] * len(kept) for rank in ranks}  # type: dict[int, list[float | None]]
    for index, group in enumerate(kept):
        for row in group.rows:
            work[row.rank][index] = float(row.duration_ns - row.parts_ns.get("communication", 0))
    divisor, unit = scale((y for values in work.values() for y in values), "ns")
    x = [group.step for group in kept]
    scaled = {rank: [None if y is None else _short(y / divisor) for y in values] for rank, values in work.items()}
    totals = _mean_work(groups, ranks)
    title = "Own work per step: step without exposed communication"
    table = tables.own_work(totals)
    if len(ranks) <= DIRECT_LABELS:
        points: list[list[Point]] = [list(zip(map(float, x), scaled[rank], strict=True)) for rank in ranks]
        top = max((y for values in scaled.values() for y in values if y is not None), default=1.0) * 1.1
        names = [f"rank {rank}" for rank in ranks]
        direct = _direct_labels(names, points, [0, top], 152)
        data: list[Spec] = [
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": x,
                "y": scaled[rank],
                "line": {"width": 1.5, "color": "$ink" if i == 0 else f"$ink-{i}", "dash": DASHES[i]},
                "hovertemplate": f"%{{y:.3r}} {unit}",
            }
            for i, (rank, name) in enumerate(zip(ranks, names, strict=True))
        ]
        layout: Spec = {
            "xaxis": {"title": {"text": "step"}},
            "yaxis": {"title": {"text": unit}, "range": [0, top], "fixedrange": True},
            "annotations": direct,
            "margin": {"r": 80},
        }
        height = 200
    else:
        steady = [y for rank in ranks for y, g in zip(scaled[rank], kept, strict=True) if y is not None and g.kind == "steady"]
        data = [
            {
                "type": "heatmap",
                "x": x,
                "y": list(range(len(ranks))),
                "z": [scaled[rank] for rank in ranks],
                "zmin": _quantile(steady, 0.02),
                "zmax": _quantile(steady, 0.995),
                "colorscale": [[0, "$heat-0"], [1, "$heat-1"]],
                "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 4, "ticksuffix": f" {unit}"},
                "hovertemplate": f"rank %{{y}}, step %{{x}}: %{{z:.3r}} {unit}<extra></extra>",
            }
        ]
        layout = {
            "hovermode": "closest",
            "xaxis": {"title": {"text": "step"}},
            "yaxis": _rank_axis(ranks),
            "margin": {"l": 64},
        }
        height = 56 + max(8 * len(ranks), 14 * min(len(ranks), 16))
        note = " ".join((note, "More ink is more time; the shades end at the steady steps' 2 % and 99.5 % quantiles.")).strip()
    return Chart(
        key="own-work",
        title=title,
        description="Per rank and step, the time of the step without the time it stood in collectives. The rank with the "
        "most is the one that others wait for.",
        height=height,
        spec={"data": data, "layout": layout},
        table=table,
        note=note,
    )


def _mean_work(groups: Sequence[StepGroup], ranks: Sequence[int]) -> list[tuple[int, float, float]]:
    """Rank, own work, exposed communication: means over its steady steps."""
    sums: dict[int, list[float]] = {rank: [0.0, 0.0, 0.0] for rank in ranks}
    for group in groups:
        for row in group.rows:
            if row.kind == "steady":
                waits = row.parts_ns.get("communication", 0)
                mine = sums[row.rank]
                mine[0] += 1
                mine[1] += row.duration_ns - waits
                mine[2] += waits
    return [(rank, own / n, waits / n) for rank, (n, own, waits) in sums.items() if n]


# --- pieces ---------------------------------------------------------------------------------------------------------


def _short(value: float, significant: int = 4) -> float:
    """Fewer digits than a screen can show cost bytes only."""
    if not math.isfinite(value):
        return 0.0
    return float(f"{value:.{significant}g}")


def _seconds(ns: float) -> float:
    return round(ns / 1e9, 4)


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 and part / whole >= 0.03 else ""


def _title(title: str, unit: str) -> str:
    return f"{title}, {unit}" if unit else title


def run_span(time: TimeAnswer, curves: Iterable[Curve]) -> Span:
    """Begin and end, in seconds, of what all charts over the run show."""
    ends = [row.start_ns + row.duration_ns for row in time.steps]
    if time.steps:
        return min(0.0, _seconds(min(row.start_ns for row in time.steps))), _seconds(max(ends))
    points = [x for curve in curves if curve.x_ns for x in (curve.x_ns[0], curve.x_ns[-1])]
    return _seconds(min(points, default=0)), _seconds(max(points, default=1_000_000_000))


def _time_axis(run: Span, *, titled: bool = True) -> Spec:
    title = {"title": {"text": "time since the first step began, s"}} if titled else {}
    return {**title, "range": list(run), "zeroline": False, "hoverformat": ".4~g"}


def _rank_axis(ranks: Sequence[int]) -> Spec:
    many = len(ranks) > 16
    shown = [i for i in range(len(ranks)) if not many or i % 4 == 0]
    return {
        "tickvals": shown,
        "ticktext": [f"rank {ranks[i]}" for i in shown],
        "range": [len(ranks) - 0.5, -0.5],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def _note(*, text: str, x: float, y: float, xref: str = "x", xanchor: str = "center", **extra: object) -> Spec:
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


def _step_marks(groups: Sequence[StepGroup], *, named: bool) -> dict[str, list[Spec]]:
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
                "x0": _seconds(begin),
                "x1": _seconds(end),
                "y0": 0,
                "y1": 1,
                "fillcolor": "$shade",
                "line": {"width": 1, "color": "$line"},
                "layer": "above" if named else "below",
            }
        )
        if not named or len(notes) >= 4:
            continue
        if notes and _seconds(begin) - notes[-1]["x"] < whole / 1e9 / 12:  # no room for a label of its own
            if kind not in notes[-1]["text"]:
                notes[-1]["text"] += f", {kind}"
            continue
        notes.append(
            _note(
                text=kind,
                x=_seconds(begin),
                y=1,
                yref="paper",
                xanchor="left",
                yanchor="bottom",
                font={"size": 11, "color": "$muted"},
            )
        )
    return {"shapes": shapes, "annotations": notes}


def _slowest_of_each(groups: Sequence[StepGroup], limit: int) -> tuple[Sequence[StepGroup], str]:
    """Keep the slowest step of each run of neighbours when there are more than a screen shows."""
    if len(groups) <= limit:
        return groups, ""
    size = math.ceil(len(groups) / limit)
    kept = [
        max(groups[at : at + size], key=lambda group: group.slowest.duration_ns) for at in range(0, len(groups), size)
    ]
    return kept, f"Drawn: the slowest of every {size} steps, {len(kept):,} of {len(groups):,}."


def _thin(curve: Curve, divisor: float) -> list[Point]:
    """Points of a curve in seconds; of long ones the lowest and highest of each bucket, in their order."""
    points: list[Point] = [
        (_seconds(x), None if y is None or not math.isfinite(y) else _short(y / divisor))
        for x, y in zip(curve.x_ns, curve.y, strict=True)
    ]
    if len(points) <= DRAWN_POINTS:
        return points
    size = math.ceil(len(points) * 2 / DRAWN_POINTS)
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


def _direct_labels(names: Sequence[str], drawn: Sequence[Sequence[Point]], span: Sequence[float], height: int) -> list[
    Spec
]:
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
        _note(text=name, x=1, xref="paper", y=y, xanchor="left", xshift=6, yshift=round(place - (y - span[0]) * pixels))
        for (y, name), place in zip(placed, at, strict=True)
    ]


def _quantile(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
