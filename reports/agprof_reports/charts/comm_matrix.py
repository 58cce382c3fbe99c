"""Who passes how much to whom: ranks by ranks, nodes outlined."""

import math
from collections.abc import Mapping, Sequence

from agprof.model.comm_answers import TalkMatrix
from agprof_reports.charts.pieces import annotation, row_axis, short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import scale

_MOST_CELLS = 96
"""Rows of a matrix; ranks of larger ones are summed by neighbours."""
_NAMED_CELLS = 12
"""Rows up to which the cells of a matrix carry their figures."""
_NAMED_NODES = 16


def matrix(found: TalkMatrix, node_of: Mapping[int, int]) -> Chart:
    """Ranks by ranks; nodes are outlined. Of many ranks, neighbours are summed."""
    width = math.ceil(len(found.ranks) / _MOST_CELLS) or 1
    rows = [found.ranks[at : at + width] for at in range(0, len(found.ranks), width)]
    sums = _summed(found.bytes_per_step, width)
    divisor, unit = scale((value for row in sums for value in row), "bytes")
    names = [f"rank {row[0]}" if len(row) == 1 else f"ranks {row[0]}–{row[-1]}" for row in rows]
    z = [[short(value / divisor, 3) if value else None for value in row] for row in sums]
    few = len(rows) <= _NAMED_CELLS
    axis = row_axis(names)
    every = 2 if len(rows) > _NAMED_CELLS else 1
    boxes, words = _node_boxes(rows, node_of)
    height = max(8 * len(rows), 32 * min(len(rows), _NAMED_CELLS))
    note = "" if width == 1 else f"Drawn: sums over {width} neighbouring ranks each."
    return Chart(
        key="talk-matrix",
        title=f"Who has to send to whom, {unit} per step",
        description="Heat map of ranks by ranks: bytes that the source in the row passes to the target in the column.",
        height=height + 88,
        spec={
            "data": [
                {
                    "type": "heatmap",
                    "x": list(range(len(rows))),
                    "y": list(range(len(rows))),
                    "z": z,
                    "customdata": [names] * len(names),
                    "text": [[name] * len(names) for name in names],
                    "texttemplate": "%{z:.3~g}" if few else "",
                    "textfont": {"size": 11},
                    "xgap": 1 if few else 0,
                    "ygap": 1 if few else 0,
                    "zmin": 0,
                    "zmax": max((value for row in z for value in row if value), default=1.0),
                    "colorscale": [[0, "$heat-0"], [1, "$heat-1"]],
                    "showscale": not few,
                    "colorbar": {"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 4},
                    "hoverongaps": False,
                    "hovertemplate": f"%{{text}} to %{{customdata}}: %{{z:.3r}} {unit} a step<extra></extra>",
                }
            ],
            "layout": {
                "hovermode": "closest",
                "xaxis": {
                    **axis,
                    "tickvals": axis["tickvals"][::every],
                    "ticktext": [name.partition(" ")[2] for name in axis["ticktext"]][::every],
                    "tickangle": 0,
                    "range": [-0.5, len(rows) - 0.5],
                    "title": {"text": "to rank"},
                },
                "yaxis": axis,
                "shapes": boxes,
                "annotations": words,
                "margin": {"l": 88, "t": 24, "b": 48},
            },
        },
        table=None,
        note=note,
    )  # fmt: skip


def _summed(values: Sequence[Sequence[float]], width: int) -> list[list[float]]:
    """Sums over blocks of `width` sources and targets."""
    if width == 1:
        return [list(row) for row in values]
    blocks = [range(at, min(at + width, len(values))) for at in range(0, len(values), width)]
    return [[math.fsum(values[i][j] for i in rows for j in columns) for columns in blocks] for rows in blocks]


def _node_boxes(rows: Sequence[Sequence[int]], node_of: Mapping[int, int]) -> tuple[list[Spec], list[Spec]]:
    """An outline around each node's block; its name above while there is room."""
    nodes = [node_of.get(row[0]) for row in rows]
    runs: list[list[int]] = []
    for at, node in enumerate(nodes):
        if node is None:
            return [], []
        if runs and nodes[runs[-1][0]] == node:
            runs[-1][1] = at
        else:
            runs.append([at, at])
    if len(runs) < 2:
        return [], []
    boxes: list[Spec] = [
        {
            "type": "rect", "name": "node", "x0": a - 0.5, "x1": b + 0.5, "y0": a - 0.5, "y1": b + 0.5,
            "line": {"width": 1.5, "color": "$ink"}, "fillcolor": "rgba(0,0,0,0)",
        }
        for a, b in runs
    ]  # fmt: skip
    words = [
        annotation(
            text=f"node {nodes[a]}", x=(a + b) / 2, y=1, yref="paper", yanchor="bottom",
            font={"size": 11, "color": "$muted"}, name="node",
        )
        for a, b in runs
        if len(runs) <= _NAMED_NODES
    ]  # fmt: skip
    return boxes, words
