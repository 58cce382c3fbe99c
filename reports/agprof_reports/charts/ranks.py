"""Own work of each rank: what tells a straggler from those that wait for it."""

from collections.abc import Sequence

from agprof_reports import tables
from agprof_reports.charts.pieces import DASHES, DIRECT_LABELS, Point, direct_labels, rank_axis, short, slowest_of_each
from agprof_reports.data import Chart, Spec
from agprof_reports.tables import StepGroup
from agprof_reports.text import scale

HEAT_COLUMNS = 1_000


def own_work(groups: Sequence[StepGroup]) -> Chart:
    """Step without exposed communication: ranks that wait for another look alike in step time, and differ here."""
    ranks = sorted({row.rank for group in groups for row in group.rows})
    kept, note = slowest_of_each(groups, HEAT_COLUMNS)
    work = {rank: [None] * len(kept) for rank in ranks}  # type: dict[int, list[float | None]]
    for index, group in enumerate(kept):
        for row in group.rows:
            work[row.rank][index] = float(row.duration_ns - row.parts_ns.get("communication", 0))
    divisor, unit = scale((y for values in work.values() for y in values), "ns")
    x = [group.step for group in kept]
    few = len(ranks) <= DIRECT_LABELS
    scaled = {
        rank: [None if y is None else short(y / divisor, 4 if few else 3) for y in values]
        for rank, values in work.items()
    }
    totals = _mean_work(groups, ranks)
    title = "Own work per step: step without exposed communication"
    table = tables.own_work(totals)
    if few:
        points: list[list[Point]] = [list(zip(map(float, x), scaled[rank], strict=True)) for rank in ranks]
        top = max((y for values in scaled.values() for y in values if y is not None), default=1.0) * 1.1
        names = [f"rank {rank}" for rank in ranks]
        direct = direct_labels(names, points, [0, top], 152)
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
        steady = [
            y for rank in ranks for y, g in zip(scaled[rank], kept, strict=True) if y is not None and g.kind == "steady"
        ]
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
            "yaxis": rank_axis(ranks),
            "margin": {"l": 64},
        }
        height = 56 + max(8 * len(ranks), 14 * min(len(ranks), 16))
        note = " ".join(
            (note, "More ink is more time; the shades end at the steady steps' 2 % and 99.5 % quantiles.")
        ).strip()
    return Chart(
        key="own-work",
        title=title,
        description="Per rank and step, the time of the step without the time it stood in collectives. The rank with "
        "the most is the one that others wait for.",
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


def _quantile(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None
