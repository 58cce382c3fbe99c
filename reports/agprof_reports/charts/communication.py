"""Time in collectives."""

from collections.abc import Iterable

from agprof.model.answers import CollectiveRow, CommunicationAnswer
from agprof_reports.charts.pieces import short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale, with_unit


def collectives(communication: CommunicationAnswer) -> Chart:
    rows = sorted(communication.rows, key=lambda row: row.exposed_ns_per_step)[-24:]
    divisor, unit = scale((max(row.total_ns_per_step, row.exposed_ns_per_step) for row in rows), "ns")
    names = [f"{label(row.op, 24)} · {with_unit(row.bytes_per_call.value, 'bytes')}" for row in rows]
    hover = [label(f"{row.op}, {_group(row)}, issued in {row.caller}", 200) for row in rows]
    hidden = [max(row.total_ns_per_step - row.exposed_ns_per_step, 0.0) for row in rows]

    def bar(name: str, colour: str, values: Iterable[float], pattern: str) -> Spec:
        return {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": list(range(len(rows))),
            "x": [short(value / divisor) for value in values],
            "customdata": hover,
            "marker": {
                "color": colour,
                "pattern": {"shape": pattern, "bgcolor": colour, "fgcolor": "$surface", "size": 6, "solidity": 0.25},
            },
            "hovertemplate": f"%{{x:.3r}} {unit}, %{{customdata}}<extra>{name}</extra>",
        }

    return Chart(
        key="collectives",
        title="Time in collectives, by kind and size",
        description="Bars, one per kind, group and size of collective: exposed and overlapped time per step.",
        height=64 + 30 * max(len(rows), 1),
        spec={
            "data": [
                bar("exposed", "$communication", (row.exposed_ns_per_step for row in rows), ""),
                bar("overlapped", "$overlapped", hidden, "/"),
            ],
            "layout": {
                "barmode": "stack",
                "bargap": 0.3,
                "hovermode": "closest",
                "xaxis": {"title": {"text": f"mean per rank and steady step, {unit}"}, "fixedrange": True},
                "yaxis": {
                    "tickvals": list(range(len(rows))),
                    "ticktext": names,
                    "fixedrange": True,
                    "showgrid": False,
                    "zeroline": False,
                },
                "margin": {"l": 184},
            },
        },
        table=None,
        legend=(
            ("communication", "exposed: the caller stands in it"),
            ("overlapped", "overlapped: the caller does other work"),
        ),
        note=f"The {len(rows)} of {len(communication.rows)} with the most exposed time."
        if len(rows) < len(communication.rows)
        else "",
    )


def _group(row: CollectiveRow) -> str:
    return f"{row.group} ({row.group_size} ranks)" if row.group_size else f"{row.group} group"
