"""The device's time, divided: one bar per rank, and one per profiler step."""

from collections.abc import Sequence

from agprof.model.trace_answers import TraceBreakdown
from agprof_reports import trace_tables
from agprof_reports.charts.pieces import row_axis, short
from agprof_reports.data import Bar, Chart, Spec
from agprof_reports.text import scale

PARTS = {
    "compute": "compute",
    "communication": "exposed communication",
    "memcpy": "exposed copies",
    "memset": "exposed memsets",
    "other": "busy, by HTA's count",
    "idle-launch": "idle: not launched yet",
    "idle-kernel-wait": "idle: launched, not begun",
    "idle-synchronisation": "idle: host synchronises",
    "idle-data": "idle: data",
    "idle-unknown": "idle: cause not known",
}
"""Name of the colour -> its meaning, in drawing order. The parts add up to the window."""
HATCHES = {
    "idle-launch": "/",
    "idle-kernel-wait": "\\",
    "idle-synchronisation": "x",
    "idle-data": "/",
    "idle-unknown": "/",
}
STEP_BARS = 32
_FEW = 16


def parts_of(row: TraceBreakdown) -> dict[str, int]:
    """Name of the colour -> ns; they add up to the window."""
    return {
        "compute": row.compute_ns,
        "communication": row.exposed_communication_ns,
        "memcpy": row.exposed_memcpy_ns,
        "memset": row.exposed_memset_ns,
        **({"other": row.exposed_other_ns} if row.exposed_other_ns else {}),
        **{f"idle-{cause.replace(' ', '-')}": ns for cause, ns in row.idle_by_cause_ns.items()},
    }


def device_time(windows: Sequence[TraceBreakdown]) -> Chart:
    return _bars(
        "trace-ranks",
        "Device time per rank",
        "Stacked bars, one per rank: what the device did in the window of its trace. The parts add up to the window.",
        windows,
        [f"rank {row.rank}" for row in windows],
        "device time over the whole window",
        "",
        windows,
        legend=True,
    )


def device_steps(steps: Sequence[TraceBreakdown]) -> Chart:
    drawn, note = _worth_drawing(steps)
    several = len({row.rank for row in drawn}) > 1
    return _bars(
        "trace-steps",
        "Device time per step",
        "Stacked bars, one per profiler step and rank: what the device did. The parts add up to the step.",
        drawn,
        [f"{row.step} · {row.rank}" if several else f"step {row.step}" for row in drawn],
        "device time of a step",
        f"{note}{' Rows are named step · rank.' if several else ''}".strip(),
        steps,
        legend=False,
    )


def _bars(
    key: str,
    title: str,
    description: str,
    rows: Sequence[TraceBreakdown],
    names: Sequence[str],
    axis: str,
    note: str,
    table_rows: Sequence[TraceBreakdown],
    *,
    legend: bool,
) -> Chart:
    divisor, unit = scale((row.window_ns for row in rows), "ns")
    parts = [parts_of(row) for row in rows]
    few = len(rows) <= _FEW
    present = [name for name in PARTS if any(part.get(name) for part in parts)]
    data = [_trace(name, [part.get(name, 0) for part in parts], rows, divisor, unit, few=few) for name in present]
    return Chart(
        key=key,
        title=title,
        description=description,
        height=56 + (28 if few else 9) * len(rows),
        spec={
            "data": data,
            "layout": {
                "barmode": "stack",
                "uniformtext": {"mode": "hide", "minsize": 12},
                "bargap": 0.16,
                "hovermode": "y unified",
                "xaxis": {
                    "title": {"text": f"{axis}, {unit}"},
                    "range": [0, max((row.window_ns for row in rows), default=1) / divisor],
                    "fixedrange": True,
                },
                "yaxis": row_axis(names),
                "margin": {"l": 64},
            },
        },
        table=trace_tables.breakdown(f"table-{key}", title, table_rows, PARTS, parts_of),
        legend=tuple((name, PARTS[name]) for name in present) if legend else (),
        note=note,
        bars=tuple(
            Bar(label=label, parts=tuple((name, part.get(name, 0) / divisor) for name in present))
            for label, part in zip(names, parts, strict=True)
        ),
        bars_unit=unit,
    )


def _trace(
    name: str, values: Sequence[int], rows: Sequence[TraceBreakdown], divisor: float, unit: str, *, few: bool
) -> Spec:
    unknown = name == "idle-unknown"
    line = {"width": 1 if few or unknown else 0, "color": "$muted" if unknown else "$surface"}
    marker: Spec = {"color": f"${name}", "line": line}
    if name in HATCHES:
        marker["pattern"] = {
            "shape": HATCHES[name],
            "bgcolor": f"${name}",
            "fgcolor": "$muted" if unknown else "$hatch",
            "size": 6,
            "solidity": 0.2,
        }
    return {
        "type": "bar",
        "orientation": "h",
        "name": PARTS[name],
        "y": list(range(len(rows))),
        "x": [short(value / divisor) for value in values],
        "text": [_percent(value, row.window_ns) for value, row in zip(values, rows, strict=True)] if few else None,
        "textposition": "inside",
        "insidetextanchor": "start",
        "textangle": 0,
        "textfont": {"color": f"$on-{name}"},
        "marker": marker,
        "hovertemplate": f"%{{x:.3r}} {unit}<extra>{PARTS[name]}</extra>",
    }


def _worth_drawing(steps: Sequence[TraceBreakdown]) -> tuple[Sequence[TraceBreakdown], str]:
    """All rows, or of each step its longest rank, or of those the longest."""
    rows = sorted(steps, key=lambda row: (row.step or 0, row.rank))
    if len(rows) <= STEP_BARS:
        return rows, ""
    slowest: dict[int | None, TraceBreakdown] = {}
    for row in rows:
        if row.step not in slowest or row.window_ns > slowest[row.step].window_ns:
            slowest[row.step] = row
    chosen = list(slowest.values())
    if len(chosen) <= STEP_BARS:
        return chosen, f"Drawn: of each step its longest rank, {len(chosen)} of {len(rows):,} rows."
    kept = sorted(chosen, key=lambda row: -row.window_ns)[:STEP_BARS]
    return sorted(kept, key=lambda row: row.step or 0), f"Drawn: the {STEP_BARS} longest of {len(chosen):,} steps."


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 and part / whole >= 0.03 else ""
