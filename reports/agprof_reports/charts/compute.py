"""The module tree as an icicle."""

from collections.abc import Iterable, Sequence

from agprof.model.compute_answers import ComputeAnswer, ModuleRow
from agprof.model.format import format_value
from agprof_reports import tables
from agprof_reports.charts.pieces import short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label

MODULE_BOXES = 1_500


def modules(compute: ComputeAnswer) -> Chart:
    rows = sorted(compute.modules, key=lambda row: -(row.forward_flops or row.forward_ns or 0))[:MODULE_BOXES]
    rows = _with_parents(rows, compute.modules)
    flops = _own([row.forward_flops for row in rows], rows)
    times = _own([None if row.forward_ns is None else float(row.forward_ns) for row in rows], rows)
    by_flops = sum(flops) > 0

    def shares(values: Iterable[float | None]) -> list[float]:
        return [short(value or 0.0) for value in values]

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
        description="Icicle of the module tree: the height of a box is its share of the forward's FLOPs or time, its "
        "shade its share of the other. Click a box to go into it.",
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
    return [short(max(own[row.path], 0.0), 5) for row in rows]
