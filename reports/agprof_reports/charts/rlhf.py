"""The parts of an RLHF iteration, per rank."""

from collections.abc import Mapping

from agprof.model.answers import RlhfAnswer, RlhfRank
from agprof_reports import tables
from agprof_reports.charts.pieces import rank_axis, short
from agprof_reports.data import Bar, Chart
from agprof_reports.text import scale

COLOURS = {
    "data": "data",
    "generate": "generate",
    "score": "score",
    "train actor": "train-actor",
    "train critic": "train-critic",
    "train unsupervised": "unsupervised",
    "train": "train",
    "EMA": "ema",
    "other": "other",
}
"""Group of parts -> name of its colour, in drawing order. Data and other are what they are in a step."""
_FEW = 16


def groups_of(found: RlhfAnswer) -> tuple[str, ...]:
    """The groups that this run has, in drawing order."""
    there = {part.group for part in found.parts}
    return tuple(group for group in COLOURS if group in there)


def iteration_bars(found: RlhfAnswer) -> Chart:
    groups = groups_of(found)
    group_of = {part.name: part.group for part in found.parts}
    divisor, unit = scale((rank.iteration_ns for rank in found.ranks), "ns")
    rows = [_by_group(rank, group_of, groups) for rank in found.ranks]
    few = len(rows) <= _FEW
    totals = [rank.iteration_ns for rank in found.ranks]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": group,
            "y": list(range(len(rows))),
            "x": [short(row[group] / divisor) for row in rows],
            "text": [_percent(row[group], total) for row, total in zip(rows, totals, strict=True)] if few else None,
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{COLOURS[group]}"},
            "marker": {"color": f"${COLOURS[group]}"},
            "hovertemplate": f"%{{x:.3r}} {unit}<extra>{group}</extra>",
        }
        for group in groups
    ]
    layout = {
        "barmode": "stack",
        "uniformtext": {"mode": "hide", "minsize": 12},
        "bargap": 0.16,
        "hovermode": "y unified",
        "xaxis": {
            "title": {"text": f"mean time per steady iteration, {unit}"},
            "range": [0, max(totals, default=1.0) / divisor],
            "fixedrange": True,
        },
        "yaxis": rank_axis([rank.rank for rank in found.ranks]),
        "margin": {"l": 64},
    }
    return Chart(
        key="rlhf",
        title="Parts of an iteration, per rank",
        description="Stacked bars, one per rank: mean time of each part of a steady iteration. They add up to it.",
        height=56 + (28 if few else 9) * len(rows),
        spec={"data": data, "layout": layout},
        table=tables.rlhf_ranks(found),
        legend=tuple((COLOURS[group], group) for group in groups),
        bars=tuple(
            Bar(label=f"rank {rank.rank}", parts=tuple((COLOURS[group], row[group] / divisor) for group in groups))
            for rank, row in zip(found.ranks, rows, strict=True)
        ),
        bars_unit=unit,
    )


def _by_group(rank: RlhfRank, group_of: Mapping[str, str], groups: tuple[str, ...]) -> dict[str, float]:
    sums = dict.fromkeys(groups, 0.0)
    for name, ns in rank.parts_ns.items():
        sums[group_of[name]] += ns
    return sums


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 and part / whole >= 0.03 else ""
