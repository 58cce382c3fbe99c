"""Ranks by steps: the time of each step that a rank did not wait for others."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from agprof.model.straggler_answers import StragglerAnswer
from agprof_reports.charts.pieces import row_axis, short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import scale

_MOST_COLUMNS, _MOST_ROWS = 250, 128
_LOW, _HIGH = 0.02, 0.995
"""Quantiles at which the shades end."""


def own_time(found: StragglerAnswer, node_of: Mapping[int, int]) -> Chart | None:
    """Heat map; long runs and many ranks are binned. None where no own time is known."""
    known = [value for row in found.own_time_ns for value in row if value is not None]
    if not known:
        return None
    width, height = math.ceil(len(found.steps) / _MOST_COLUMNS), math.ceil(len(found.ranks) / _MOST_ROWS)
    divisor, unit = scale(known, "ns")
    steps = [found.steps[at] for at in range(0, len(found.steps), width)]
    tops = range(0, len(found.ranks), height)
    z = [
        [
            _mean(found.own_time_ns[top : top + height], left, width, divisor)
            for left in range(0, len(found.steps), width)
        ]
        for top in tops
    ]
    names = [_name(found.ranks[top : top + height]) for top in tops]
    cells = sorted(value for row in z for value in row if value is not None)
    notes = [f"Each cell is the mean of {width} steps." if width > 1 else ""]
    notes.append(f"Each row is the mean of {height} ranks." if height > 1 else "")
    notes.append(f"More ink is more time; the shades end at the {_LOW:.0%} and {_HIGH:.1%} quantiles.")
    return Chart(
        key="straggler-map",
        title="Own time of each rank and step",
        description="Heat map, one row per rank and one column per step: time of the step without waiting for others. "
        "A row with more ink than the others is a slow rank; a dark column is a slow step of all.",
        height=64 + max(8 * len(names), 22 * min(len(names), 12), 72),
        spec={
            "data": [
                {
                    "type": "heatmap",
                    "x": steps,
                    "y": list(range(len(names))),
                    "z": z,
                    "text": [[name] * len(steps) for name in names],
                    "zmin": cells[int(_LOW * (len(cells) - 1))],
                    "zmax": cells[math.ceil(_HIGH * (len(cells) - 1))],
                    "colorscale": [[0, "$heat-0"], [1, "$heat-1"]],
                    "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 3, "ticksuffix": f" {unit}"},
                    "hoverongaps": False,
                    "hovertemplate": f"%{{text}}, step %{{x}}: %{{z:.3r}} {unit}<extra></extra>",
                }
            ],
            "layout": {
                "hovermode": "closest",
                "xaxis": {"title": {"text": "step"}, "zeroline": False, "showgrid": False},
                "yaxis": row_axis(names),
                "shapes": _node_lines([found.ranks[top] for top in tops], node_of),
                "margin": {"l": 72, "t": 8},
            },
        },
        table=None,
        note=" ".join(note for note in notes if note),
    )


def _mean(rows: Sequence[Sequence[int | None]], left: int, width: int, divisor: float) -> float | None:
    values = [value for row in rows for value in row[left : left + width] if value is not None]
    return short(fmean(values) / divisor, 3) if values else None


def _name(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}–{ranks[-1]}"


def _node_lines(ranks: Sequence[int], node_of: Mapping[int, int]) -> list[Spec]:
    """A line between the ranks of one node and those of the next."""
    nodes = [node_of.get(rank) for rank in ranks]
    between = [at for at in range(1, len(nodes)) if nodes[at] != nodes[at - 1]]
    return [
        {
            "type": "line", "name": "node", "xref": "paper", "x0": 0, "x1": 1, "y0": at - 0.5, "y1": at - 0.5,
            "line": {"width": 1.5, "color": "$surface"},
        }
        for at in between
    ]  # fmt: skip
