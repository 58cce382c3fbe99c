"""The parts of memory: their names, colours and hatches, one for all charts; and stacked bars of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from agprof_reports.charts.pieces import row_axis, short
from agprof_reports.data import Bar, Mark, Spec
from agprof_reports.text import label, rounded

PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "master-weights": "master weights",
    "optimizer-states": "optimizer states",
    "activations": "activations",
    "temporary": "temporary",
    "buckets": "buckets",
    "buffers": "buffers",
    "kv-cache": "KV cache",
    "inputs": "inputs",
    "context": "context",
    "fragmentation": "fragmentation",
    "allocator": "allocators of the ranks",
    "tenant": "other processes",
    "reserved": "reserved by the driver",
    "unexplained": "unexplained",
}
"""Name of the colour -> its meaning, in drawing order."""
HATCHES = {
    "master-weights": "/",
    "temporary": "/",
    "buffers": "/",
    "fragmentation": "/",
    "inputs": "x",
    "unexplained": "/",
    "recomputed": "/",
    "tenant": "x",
    "reserved": ".",
}
FEW = 16


def colour_of(part: str) -> str:
    """`optimizer_states` -> `optimizer-states`; a part that nobody knows is drawn as unexplained."""
    name = part.replace("_", "-")
    return name if name in PARTS else "unexplained"


def word_of(part: str) -> str:
    return PARTS.get(part.replace("_", "-"), part)


def marker_of(colour: str) -> Spec:
    """Fill, hatch and outline of a colour, for plotly."""
    unknown = colour == "unexplained"
    marker: Spec = {"color": f"${colour}", "line": {"width": 1, "color": "$muted" if unknown else "$surface"}}
    if colour in HATCHES:
        marker["pattern"] = {
            "shape": HATCHES[colour],
            "bgcolor": f"${colour}",
            "fgcolor": "$muted" if unknown else "$hatch",
            "size": 6,
            "solidity": 0.2,
        }
    return marker


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRow:
    """One bar: its parts by colour, a tick (a total measured on its own, an estimate) and what is too much."""

    label: str
    parts: dict[str, float]
    tick: float | None = None
    tick_words: str = ""
    hover: str = ""
    excess: float = 0.0
    """Drawn as an outline from the tick to the end of the parts, when they say more than was measured."""


def bar_of(row: StackRow, divisor: float, unit: str) -> Bar:
    """The same bar for the drawing that needs no JavaScript."""
    marks = []
    length = sum(value for value in row.parts.values() if value > 0) / divisor
    if row.excess > 0:
        marks.append(Mark(begin=length - row.excess / divisor, end=length, title=_excess_words(row, divisor, unit)))
    if row.tick is not None:
        at = row.tick / divisor
        marks.append(Mark(begin=at, end=at, title=f"{row.tick_words}: {rounded(at)} {unit}"))
    parts = tuple((name, row.parts[name] / divisor) for name in PARTS if row.parts.get(name, 0.0) > 0)
    return Bar(label=row.label, parts=parts, marks=tuple(marks))


def _excess_words(row: StackRow, divisor: float, unit: str) -> str:
    return f"the parts say {rounded(row.excess / divisor)} {unit} more than was measured"


def stacked(rows: Sequence[StackRow], divisor: float, unit: str) -> list[Spec]:
    """Traces of plotly: one per part that is there, then outlines and ticks."""
    few = len(rows) <= FEW
    there = [name for name in PARTS if any(row.parts.get(name, 0.0) > 0 for row in rows)]
    data: list[Spec] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": PARTS[name],
            "y": list(range(len(rows))),
            "x": [short(max(row.parts.get(name, 0.0), 0.0) / divisor) for row in rows],
            "text": [_percent(row, name) for row in rows] if few else None,
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{name}"},
            "marker": marker_of(name),
            "hovertemplate": f"%{{x:.3r}} {unit}<extra>{PARTS[name]}</extra>",
        }
        for name in there
    ]
    over = [(at, row) for at, row in enumerate(rows) if row.excess > 0]
    if over:
        ends = [sum(row.parts.values()) / divisor for _, row in over]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": "more than measured",
                "width": 0.8,
                "y": [at for at, _ in over],
                "base": [short(end - row.excess / divisor, 6) for end, (_, row) in zip(ends, over, strict=True)],
                "x": [short(row.excess / divisor) for _, row in over],
                "marker": {
                    "color": "rgba(0,0,0,0)",
                    "line": {"width": 1, "color": "$text"},
                    "pattern": {"shape": "/", "fgcolor": "$text", "size": 6, "solidity": 0.2},
                },
                "customdata": [label(_excess_words(row, divisor, unit), 120) for _, row in over],
                "hovertemplate": "%{customdata}<extra></extra>",
            }
        )
    ticks = [(at, row) for at, row in enumerate(rows) if row.tick is not None]
    if ticks:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": ticks[0][1].tick_words,
                "y": [at for at, _ in ticks],
                "x": [short((row.tick or 0.0) / divisor) for _, row in ticks],
                "customdata": [label(row.hover, 160) for _, row in ticks],
                "marker": {"color": "$ink", "symbol": "line-ns-open", "size": 20 if few else 7, "line": {"width": 2}},
                "hovertemplate": f"%{{x:.3r}} {unit}%{{customdata}}<extra>{ticks[0][1].tick_words}</extra>",
            }
        )
    return data


def layout_of(rows: Sequence[StackRow], divisor: float, title: str, left: int = 136) -> Spec:
    longest = max((max(sum(row.parts.values()), row.tick or 0.0) for row in rows), default=1.0) or 1.0
    return {
        "barmode": "stack",
        "uniformtext": {"mode": "hide", "minsize": 12},
        "bargap": 0.2,
        "hovermode": "y unified",
        "xaxis": {"title": {"text": title}, "range": [0, short(longest / divisor * 1.02)], "fixedrange": True},
        "yaxis": row_axis([label(row.label, 40) for row in rows]),
        "margin": {"l": left},
    }


def legend_of(rows: Sequence[StackRow]) -> tuple[tuple[str, str], ...]:
    there = {name for row in rows for name, value in row.parts.items() if value > 0}
    if any(row.excess > 0 for row in rows):
        there.add("unexplained")
    return tuple((name, word) for name, word in PARTS.items() if name in there)


def _percent(row: StackRow, name: str) -> str:
    whole = sum(row.parts.values())
    part = row.parts.get(name, 0.0)
    return f"{part / whole:.0%}" if whole > 0 and part / whole >= 0.03 else ""
