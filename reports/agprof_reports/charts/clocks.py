"""What the pings leave of the nodes' clocks once their lines are taken off, with the bounds of each."""

from collections.abc import Sequence

from agprof.model.clock_answers import NodeClock
from agprof_reports.charts.pieces import AXIS_TITLE, DIRECT_LABELS, RUN_MARGIN, annotation, seconds, short
from agprof_reports.columns import Field, evenly, table
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale

_MOST_POINTS = 300
"""Of one node."""
_ONE_ROW, _ROW = 200, 110


def residuals(nodes: Sequence[NodeClock]) -> Chart | None:
    """Residuals with their bounds as bars, a row for each of the least known nodes; None without pings."""
    pinged = [node for node in nodes if node.points]
    if not pinged:
        return None
    kept = sorted(sorted(pinged, key=lambda node: -(node.uncertainty_ns or 0))[:DIRECT_LABELS], key=lambda n: n.node)
    points = [evenly(node.points, _MOST_POINTS)[0] for node in kept]
    most = max(abs(point.residual_ns) + point.uncertainty_ns for held in points for point in held) or 1
    divisor, unit = scale([float(most)], "ns")
    span = [-1.1 * most / divisor, 1.1 * most / divisor]
    data: list[Spec] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": label(f"node {node.node}"),
            "x": [seconds(point.time_ns) for point in held],
            "y": [short(point.residual_ns / divisor) for point in held],
            "error_y": {
                "type": "data",
                "array": [short(point.uncertainty_ns / divisor) for point in held],
                "color": "$ink-1",
                "thickness": 1,
                "width": 3,
            },
            "marker": {"color": "$ink", "size": 6},
            **({"yaxis": f"y{at + 1}"} if at else {}),
            "hovertemplate": f"%{{y:.3r}} {unit}",
        }
        for at, (node, held) in enumerate(zip(kept, points, strict=True))
    ]
    rows = len(kept)
    times = [seconds(point.time_ns) for held in points for point in held]
    margin = 0.03 * (max(times) - min(times)) or 1.0
    return Chart(
        key="clocks",
        title=f"Pings against the line of their node, {unit}",
        description="Points over time: what the best exchange of each burst of pings measured, minus the line that was "
        "laid through them; the bar is what its round trip leaves open.",
        height=48 + (_ONE_ROW if rows == 1 else _ROW * rows),
        spec={
            "data": data,
            "layout": {
                "xaxis": {
                    "title": {"text": AXIS_TITLE},
                    "anchor": f"y{rows if rows > 1 else ''}",
                    "range": [min(times) - margin, max(times) + margin],
                    "zeroline": False,
                    "hoverformat": ".4~g",
                },
                **{f"yaxis{at + 1 if at else ''}": _row(at, rows, span) for at in range(rows)},
                "annotations": [
                    annotation(
                        text=label(f"node {node.node}", 20),
                        x=1,
                        xref="paper",
                        y=0,
                        xanchor="left",
                        xshift=6,
                        yref=f"y{at + 1 if at else ''}",
                    )
                    for at, node in enumerate(kept)
                ],
                "margin": RUN_MARGIN,
            },
        },
        table=table(
            "table-clock-points",
            "Pings",
            kept,
            [
                Field(label="node", get=lambda n: str(n.node)),
                Field(label="bursts", get=lambda n: len(n.points), unit="1"),
                Field(label="largest residual", get=lambda n: max(abs(p.residual_ns) for p in n.points), unit="ns"),
                Field(label="least half trip", get=lambda n: min(p.uncertainty_ns for p in n.points), unit="ns"),
                Field(label="largest half trip", get=lambda n: max(p.uncertainty_ns for p in n.points), unit="ns"),
            ],
        ),
        note=f"The {DIRECT_LABELS} of {len(pinged):,} nodes whose clocks are known least well."
        if len(kept) < len(pinged)
        else "",
    )


def _row(at: int, rows: int, span: Sequence[float]) -> Spec:
    """The scale of a row, the first one on top: the same for all."""
    gap = 0.06 if rows > 1 else 0.0
    high = 1 - at / rows
    return {
        "domain": [round(high - 1 / rows + gap / 2, 4), round(high - gap / 2, 4)],
        "range": list(span),
        "fixedrange": True,
        "nticks": 5 if rows == 1 else 3,
        "zeroline": True,
        "zerolinecolor": "$line",
    }
