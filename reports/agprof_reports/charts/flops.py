"""FLOPs three ways, side by side, each as a multiple of what was counted over the same scope."""

from collections.abc import Sequence

from agprof.model.compute_answers import FlopsWay
from agprof.model.format import format_value
from agprof_reports import compute_tables
from agprof_reports.charts.memory_parts import marker_of
from agprof_reports.charts.pieces import row_axis, short
from agprof_reports.data import Bar, Chart, Spec

PASSES = ("forward", "backward", "recomputed")
_SHORT = {"counted": "counted", "modelled": "modelled", "deepspeed": "DeepSpeed"}


def can_draw(rows: Sequence[FlopsWay]) -> bool:
    return any(_counted(row) for row in rows)


def flops_ways(rows: Sequence[FlopsWay]) -> Chart:
    drawn = [row for row in rows if _counted(row)]
    parts = [_multiples(row) for row in drawn]
    names = [f"{_SHORT[row.way]}, {row.scope}" for row in drawn]
    there = [name for name in PASSES if any(part.get(name) for part in parts)]
    longest = max((sum(part.values()) for part in parts), default=1.0)
    data: list[Spec] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": list(range(len(drawn))),
            "x": [short(part.get(name, 0.0)) for part in parts],
            "text": [format_value(_value(row, name), "FLOP") if _value(row, name) else "" for row in drawn],
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{name}"},
            "marker": marker_of(name),
            "hovertemplate": f"%{{text}}, %{{x:.3r}} of the counted total<extra>{name}</extra>",
        }
        for name in there
    ]
    totals = [(i, row) for i, row in enumerate(drawn) if row.ratio_to_counted is not None]
    layout: Spec = {
        "barmode": "stack",
        "bargap": 0.24,
        "uniformtext": {"mode": "hide", "minsize": 11},
        "hovermode": "y unified",
        "xaxis": {
            "title": {"text": "multiple of the counted forward and backward"},
            "range": [0, short(longest * 1.12)],
            "fixedrange": True,
        },
        "yaxis": row_axis(names),
        "margin": {"l": 144},
        "shapes": [
            {
                "type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1,
                "line": {"color": "$ink", "width": 1, "dash": "dash"},
            }
        ],
        "annotations": [
            {
                "text": f"{row.ratio_to_counted:.2f} ×", "x": short(sum(parts[i].values())), "y": i, "showarrow": False,
                "xanchor": "left", "xshift": 6, "font": {"size": 12, "color": "$text"},
            }
            for i, row in totals
        ],
    }  # fmt: skip
    return Chart(
        key="flops-ways",
        title="FLOPs three ways, against what was counted",
        description="Stacked bars, one per way to know the FLOPs: forward, backward and what is recomputed, as "
        "multiples of the counted forward and backward over the same scope.",
        height=56 + 32 * len(drawn),
        spec={"data": data, "layout": layout},
        table=compute_tables.ways(rows),
        legend=tuple((name, name if name != "recomputed" else "recomputed, not in the total") for name in there),
        bars=tuple(
            Bar(label=name, parts=tuple((key, part.get(key, 0.0)) for key in there))
            for name, part in zip(names, parts, strict=True)
        ),
        bars_unit="× counted",
    )


def _counted(row: FlopsWay) -> float | None:
    """The counted total of the way's scope, from its own total and ratio."""
    total = row.total.value
    if not total:
        return None
    if row.ratio_to_counted:
        return total / row.ratio_to_counted
    return total if row.way == "counted" else None


def _value(row: FlopsWay, name: str) -> float | None:
    return {"forward": row.forward, "backward": row.backward, "recomputed": row.recomputed}[name].value


def _multiples(row: FlopsWay) -> dict[str, float]:
    counted = _counted(row) or 1.0
    return {name: (_value(row, name) or 0.0) / counted for name in PASSES}
