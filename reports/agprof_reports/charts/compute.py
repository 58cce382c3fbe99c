"""The module trees as an icicle."""

from collections.abc import Iterable, Sequence

from agprof.model.compute_answers import ComputeAnswer, ModuleRow
from agprof.model.format import format_value
from agprof_reports import compute_tables
from agprof_reports.charts.pieces import short
from agprof_reports.compute_tables import device_ns, executed
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label

MODULE_BOXES = 1_000
_Key = tuple[int, str]


def modules(compute: ComputeAnswer, most_rows: int) -> Chart:
    rows = _kept(compute.modules)
    flops = _own([executed(row) for row in rows], rows)
    times = _own([float(device_ns(row) or 0) for row in rows], rows)
    by_flops = sum(flops) > 0
    several = sum(row.parent is None for row in rows) > 1
    above = [0.0] if several else []  # a box over all models has nothing of its own
    flops, times = flops + above, times + above
    share_of_time = _shares(row.time_share for row in rows) + above
    share_of_flops = _shares(row.flops_share for row in rows) + above
    parents = _parent_ids(rows)
    data: Spec = {
        "type": "icicle",
        "ids": [f"m{index}" for index in range(len(rows))],
        "parents": ["all" if several and parent == "" else parent for parent in parents],
        "labels": [_name(row, several=several) for row in rows],
        "values": flops if by_flops else times,
        "branchvalues": "remainder",
        "tiling": {"orientation": "h", "pad": 1},
        "sort": False,
        "maxdepth": 6 if several else 5,
        **({} if several else {"level": _first_split(parents)}),
        "pathbar": {"thickness": 22, "textfont": {"size": 12, "color": "$text"}},
        "customdata": [_told(row) for row in rows],
        "hovertemplate": "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>FLOPs: %{customdata[2]}"
        "<br>device time: %{customdata[3]}<br>%{customdata[4]}<br>%{customdata[5]}<extra></extra>",
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
    variants = [
        _variant("size: FLOPs, shade: time", flops, share_of_time, 0.5),
        _variant("size: time, shade: FLOPs", times, share_of_flops, 0.5),
    ]
    if any(row.of_ceiling is not None for row in rows):
        reached = _shares(row.of_ceiling for row in rows) + above
        variants.append(_variant("size: time, shade: of the ceiling", times, reached, 1.0))
    if several:
        data["ids"].append("all")
        data["parents"].append("")
        data["labels"].append("all models")
        data["customdata"].append(["all models", "", "", "", "", ""])
    spec: Spec = {
        "data": [data],
        "layout": {
            "margin": {"l": 0, "r": 0, "t": 0, "b": 4},
            "hovermode": "closest",
            "uniformtext": {"mode": "hide", "minsize": 10},
        },
    }
    if by_flops and sum(times) > 0:
        spec["variants"] = variants
    return Chart(
        key="modules",
        title="Modules: where FLOPs and time of a step go",
        description="Icicle of the module trees: the height of a box is its share of the step's FLOPs or device time, "
        "forward, backward and recomputation together; its shade is its share of the other, or how near it comes to "
        "the ceiling. Click a box to go into it.",
        height=24 + min(max(22 * _leaves(rows), 152), 416),
        spec=spec,
        table=compute_tables.modules(compute.modules, most_rows),
        note=f"Drawn: the {len(rows):,} largest of {len(compute.modules):,} modules."
        if len(rows) < len(compute.modules)
        else "A darker box takes more of what the size does not show. Click a box to go into it.",
    )


def _variant(words: str, values: list[float], colours: list[float], darkest: float) -> Spec:
    """Lists of its own, which the page puts in place."""
    return {
        "label": words,
        "data": {"values": [values], "marker.colors": [colours], "marker.cmax": [darkest]},
    }


def _name(row: ModuleRow, *, several: bool) -> str:
    own = row.path.rpartition(".")[2] or row.type
    return label(f"{row.root}: {own}" if several and row.parent is None else own, 32)


def _told(row: ModuleRow) -> list[str]:
    """Path, type, FLOPs by pass, time by pass, of the ceiling, parameters."""
    flops = (row.forward_flops, row.backward_flops, row.recomputed_flops or None)
    times = (row.forward_ns, row.backward_ns, row.recomputed_ns or None)
    ceiling = "" if row.of_ceiling is None else f"{format_value(row.of_ceiling, 'ratio')} of the ceiling"
    return [
        label(row.path or "whole model", 160),
        label(row.type),
        _by_pass(flops, "FLOP"),
        _by_pass(times, "ns"),
        ceiling,
        f"{row.params:,} parameters, {row.trainable_params:,} trainable",
    ]


def _by_pass(values: Sequence[float | None], unit: str) -> str:
    words = zip(("forward", "backward", "recomputed"), values, strict=True)
    return ", ".join(f"{word} {format_value(float(value), unit)}" for word, value in words if value is not None) or "–"


def _shares(values: Iterable[float | None]) -> list[float]:
    return [short(value or 0.0) for value in values]


def _kept(all_rows: Sequence[ModuleRow]) -> list[ModuleRow]:
    """The largest, in the order of the trees, and every parent of what is kept."""
    largest = sorted(all_rows, key=lambda row: (-executed(row), -(device_ns(row) or 0)))[:MODULE_BOXES]
    by_key: dict[_Key, ModuleRow] = {(row.root, row.path): row for row in all_rows}
    keep: set[_Key] = set()
    for row in largest:
        at: ModuleRow | None = row
        while at is not None and (at.root, at.path) not in keep:
            keep.add((at.root, at.path))
            at = by_key.get((at.root, at.parent)) if at.parent is not None else None
    return [row for key, row in by_key.items() if key in keep]


def _leaves(rows: Sequence[ModuleRow]) -> int:
    """Boxes that stand above one another in the first five levels."""
    shown = [row for row in rows if row.depth < 5]
    return len(shown) - len({(row.root, row.parent) for row in shown} & {(row.root, row.path) for row in shown})


def _parent_ids(rows: Sequence[ModuleRow]) -> list[str]:
    at = {(row.root, row.path): index for index, row in enumerate(rows)}
    ids = []
    for row in rows:
        parent = at.get((row.root, row.parent)) if row.parent is not None and row.parent != row.path else None
        ids.append("" if parent is None else f"m{parent}")
    return ids


def _first_split(parents: Sequence[str]) -> str:
    """The first box below the root that has several: what stands above tells nothing, and is in the path above."""
    at = "m0"
    while True:
        below = [f"m{index}" for index, parent in enumerate(parents) if parent == at]
        if len(below) != 1:
            return at
        at = below[0]


def _own(values: Sequence[float], rows: Sequence[ModuleRow]) -> list[float]:
    """What a module takes itself: its total less its children's, never below zero."""
    own = {(row.root, row.path): value for row, value in zip(rows, values, strict=True)}
    for row, value in zip(rows, values, strict=True):
        if row.parent is not None and (row.root, row.parent) in own and row.parent != row.path:
            own[row.root, row.parent] -= value
    return [short(max(own[row.root, row.path], 0.0), 5) for row in rows]
