"""Communication beyond the collectives: overlap, sizes of messages, ceilings, arrivals."""

from collections.abc import Sequence

from agprof.model.comm_answers import ArrivalRow, CeilingRow, OverlapAnswer, SizeBin
from agprof_reports.charts.pieces import row_axis, short
from agprof_reports.data import Bar, Chart, Spec
from agprof_reports.text import amount, label, scale, with_unit

_MOST_CEILINGS = 24
_NAMED_SIZES = 6
"""Columns of sizes that are named, at most about twice as many."""
_LEFT = 184


def overlap(found: OverlapAnswer) -> Chart | None:
    """One bar; None when it is not known what was exposed."""
    if found.exposed.value is None or found.overlapped.value is None:
        return None
    values = {"communication": found.exposed.value, "overlapped": found.overlapped.value}
    divisor, unit = scale([sum(values.values())], "ns")
    words = {"communication": "exposed", "overlapped": "overlapped"}
    data: list[Spec] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": words[name],
            "y": ["in flight"],
            "x": [short(value / divisor)],
            "text": [f"{words[name]} {with_unit(value, 'ns')}"],
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{name}"},
            "marker": {
                "color": f"${name}",
                "pattern": {
                    "shape": "/" if name == "overlapped" else "", "bgcolor": f"${name}", "fgcolor": "$surface",
                    "size": 6, "solidity": 0.25,
                },
            },
            "hovertemplate": f"%{{x:.3r}} {unit}<extra>{words[name]}</extra>",
        }
        for name, value in values.items()
    ]  # fmt: skip
    return Chart(
        key="overlap",
        title="Communication in flight, by what the same rank did meanwhile",
        description="One bar: exposed and overlapped time of communication, mean per rank and steady step.",
        height=96,
        spec={
            "data": data,
            "layout": {
                "barmode": "stack",
                "uniformtext": {"mode": "hide", "minsize": 11},
                "hovermode": "closest",
                "xaxis": {"title": {"text": f"mean per rank and steady step, {unit}"}, "fixedrange": True},
                "yaxis": {"visible": False, "fixedrange": True},
                "margin": {"l": 8},
            },
        },
        table=None,
        legend=(
            ("communication", "exposed: nothing else runs"),
            ("overlapped", "overlapped: computing meanwhile"),
        ),
        bars=(Bar(label="", parts=tuple((name, value / divisor) for name, value in values.items())),),
        bars_unit=unit,
    )


def sizes(bins: Sequence[SizeBin]) -> Chart:
    """A histogram per operation: factors of two of the message's size, the shade is what the reader chooses."""
    ops = list(dict.fromkeys(item.op for item in bins))
    octaves = sorted({_octave(item) for item in bins})
    every = max(1, len(octaves) // _NAMED_SIZES)
    byte_divisor, byte_unit = scale((item.bytes_per_step for item in bins), "bytes")
    ns_divisor, ns_unit = scale((item.exposed_ns_per_step for item in bins), "ns")
    calls, volume, exposed = (_grid(ops, octaves) for _ in range(3))
    hover = [["" for _ in octaves] for _ in ops]
    for item in bins:
        row, column = ops.index(item.op), octaves.index(_octave(item))
        calls[row][column] = _plus(calls[row][column], item.calls_per_step)
        volume[row][column] = _plus(volume[row][column], item.bytes_per_step / byte_divisor)
        exposed[row][column] = _plus(exposed[row][column], item.exposed_ns_per_step / ns_divisor)
        hover[row][column] = label(
            f"{item.op}, {with_unit(item.low_bytes, 'bytes')} to {with_unit(item.high_bytes, 'bytes')}: "
            f"{with_unit(item.calls_per_step, '1')} calls, {with_unit(item.bytes_per_step, 'bytes')}, "
            f"{with_unit(item.exposed_ns_per_step, 'ns')} exposed a step",
            240,
        )
    return Chart(
        key="message-sizes",
        title="Messages by operation and size, per step",
        description="Heat map, one row per operation and one column per factor of two of size that occurs.",
        height=72 + 34 * max(len(ops), 1),
        spec={
            "data": [
                {
                    "type": "heatmap",
                    "x": list(range(len(octaves))),
                    "y": list(range(len(ops))),
                    "z": calls,
                    "text": hover,
                    "texttemplate": "%{z:.3~g}",
                    "textfont": {"size": 11},
                    "xgap": 2,
                    "ygap": 2,
                    "zmin": 0,
                    "colorscale": [[0, "$heat-0"], [1, "$heat-1"]],
                    "showscale": False,
                    "hoverongaps": False,
                    "hovertemplate": "%{text}<extra></extra>",
                }
            ],
            "layout": {
                "hovermode": "closest",
                "xaxis": {
                    "title": {"text": "size of a message, from"},
                    "tickvals": list(range(len(octaves)))[::every],
                    "ticktext": [_size_words(octave) for octave in octaves][::every],
                    "tickangle": 0,
                    "fixedrange": True,
                    "showgrid": False,
                    "zeroline": False,
                },
                "yaxis": row_axis([label(op, 24) for op in ops]),
                "margin": {"l": 120},
            },
            "variants": [
                {"label": "calls", "data": {"z": [calls]}},
                {"label": f"size, {byte_unit}", "data": {"z": [volume]}},
                {"label": f"exposed, {ns_unit}", "data": {"z": [exposed]}},
            ],
        },
        table=None,
    )


def _size_words(octave: int) -> str:
    """`4 MiB`: powers of two are whole numbers of their unit."""
    number, unit = amount(2.0**octave, "bytes")
    return f"{float(number.replace(',', '')):g} {unit}"


def _octave(item: SizeBin) -> int:
    return max(item.low_bytes, 1).bit_length() - 1


def _grid(ops: Sequence[str], octaves: Sequence[int]) -> list[list[float | None]]:
    return [[None for _ in octaves] for _ in ops]


def _plus(value: float | None, more: float) -> float:
    return short((value or 0.0) + more)


def ceilings(rows: Sequence[CeilingRow]) -> Chart:
    """Measured transfer time as a bar, what the link could do as a tick with its error."""
    known = [row for row in rows if row.measured.value is not None and row.predicted.value is not None]
    kept = sorted(known, key=lambda row: row.saving_ns_per_step)[-_MOST_CEILINGS:]
    divisor, unit = scale((row.measured.value for row in kept), "ns")
    places = list(range(len(kept)))
    names = [f"{label(row.op, 18)} · {with_unit(row.bytes, 'bytes')}" for row in kept]
    hover = [
        label(
            f"{row.group}, {row.group_size} ranks: reaches {with_unit(row.reached.value, 'ratio')} of the ceiling"
            + (", far below" if row.far_below else ""),
            200,
        )
        for row in kept
    ]
    up = [max((row.predicted.high or 0.0) - (row.predicted.value or 0.0), 0.0) / divisor for row in kept]
    down = [
        max((row.predicted.value or 0.0) - (row.predicted.low or row.predicted.value or 0.0), 0.0) / divisor
        for row in kept
    ]
    return Chart(
        key="link-ceilings",
        title="A call against what the link was measured to do",
        description="Bars: measured transfer time of a call. Ticks: predicted from latency and bandwidth of the link.",
        height=72 + 26 * max(len(kept), 1),
        spec={
            "data": [
                {
                    "type": "bar", "orientation": "h", "name": "measured", "y": places,
                    "x": [short((row.measured.value or 0.0) / divisor) for row in kept], "customdata": hover,
                    "marker": {"color": "$communication"},
                    "text": [_reached(row) for row in kept],
                    "textposition": "inside",
                    "insidetextanchor": "end",
                    "textangle": 0,
                    "textfont": {"color": "$on-communication"},
                    "hovertemplate": f"measured %{{x:.3r}} {unit}; %{{customdata}}<extra></extra>",
                },
                {
                    "type": "scatter", "mode": "markers", "name": "ceiling", "y": places,
                    "x": [short((row.predicted.value or 0.0) / divisor) for row in kept],
                    "error_x": {
                        "type": "data", "symmetric": False, "array": [short(y) for y in up],
                        "arrayminus": [short(y) for y in down], "color": "$ink", "thickness": 1, "width": 3,
                    },
                    "marker": {
                        "symbol": "line-ns-open", "size": 16, "color": "$ink", "line": {"width": 2.5, "color": "$ink"},
                    },
                    "hovertemplate": f"predicted %{{x:.3r}} {unit}<extra></extra>",
                },
            ],
            "layout": {
                "bargap": 0.36,
                "hovermode": "closest",
                "xaxis": {
                    "title": {"text": f"time of a call, {unit}"}, "fixedrange": True, "rangemode": "tozero",
                },
                "yaxis": {
                    "tickvals": places, "ticktext": names, "fixedrange": True, "showgrid": False, "zeroline": False,
                },
                "margin": {"l": _LEFT},
            },
        },
        table=None,
        legend=(("communication", "measured"), ("tick", "predicted: latency + size / bandwidth of the link")),
        note=f"{len(kept)} of {len(rows)} are drawn; the table has all." if len(kept) < len(rows) else "",
    )  # fmt: skip


def _reached(row: CeilingRow) -> str:
    share = with_unit(row.reached.value, "ratio")
    return f"✕ {share}, far below" if row.far_below else share


def arrivals(rows: Sequence[ArrivalRow]) -> Chart:
    """Share of its collectives to which a rank came first, between, and last."""
    kept = [row for row in rows if row.matched]
    parts = (
        ("first", "$step", [row.first for row in kept]),
        ("between", "$ink-3", [max(row.matched - row.first - row.last, 0) for row in kept]),
        ("last: the others wait", "$communication", [row.last for row in kept]),
    )
    hover = [
        label(f"{row.matched:,} collectives, {with_unit(row.lateness.value, 'ns')} behind the first", 120)
        for row in kept
    ]
    return Chart(
        key="arrivals",
        title="How ranks come to their collectives",
        description="Stacked bars, one per rank: share of its collectives to which it came first, between and last.",
        height=64 + max(7 * len(kept), 22 * min(len(kept), 16)),
        spec={
            "data": [
                {
                    "type": "bar", "orientation": "h", "name": name, "y": list(range(len(kept))),
                    "x": [short(100 * value / row.matched) for value, row in zip(values, kept, strict=True)],
                    "marker": {"color": colour}, "customdata": hover,
                    "hovertemplate": f"{name}: %{{x:.3r}} %; %{{customdata}}<extra></extra>",
                }
                for name, colour, values in parts
            ],
            "layout": {
                "barmode": "stack",
                "bargap": 0.2,
                "hovermode": "closest",
                "xaxis": {"title": {"text": "share of its collectives, %"}, "range": [0, 100], "fixedrange": True},
                "yaxis": row_axis([f"rank {row.rank}" for row in kept]),
                "margin": {"l": 64},
            },
        },
        table=None,
        legend=(("step", "first"), ("between", "between"), ("communication", "last: the others wait")),
    )  # fmt: skip
