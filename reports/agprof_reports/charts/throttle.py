"""Why the clocks of a GPU were held down, as a ribbon: colour, hatch and word of each kind, once for all charts."""

from collections.abc import Sequence

from agprof.model.system_answers import ThrottleSpan
from agprof_reports.charts.pieces import Span, row_axis, seconds, time_axis
from agprof_reports.data import Spec
from agprof_reports.text import label

KINDS = {
    "power": ("throttle-power", "held down by power", "/"),
    "thermal": ("throttle-thermal", "by heat", "x"),
    "hardware": ("throttle-hardware", "by hardware", "\\"),
    "application clocks": ("throttle-application", "by the application's clocks", "-"),
    "sync boost": ("throttle-sync", "by sync boost", "|"),
    "other": ("throttle-other", "for another reason", "."),
}
"""Kind -> name of the colour, words of the legend, hatch."""
_MOST_SPANS = 240
"""Of one GPU."""
_RESOLUTION = 1_200
"""Spans that are nearer than that part of the run are drawn as one."""


def legend_of(spans: Sequence[ThrottleSpan]) -> tuple[tuple[str, str], ...]:
    there = {_kind(span) for span in spans}
    return tuple((colour, words) for kind, (colour, words, _) in KINDS.items() if kind in there)


def merged(spans: Sequence[ThrottleSpan], run: Span) -> list[ThrottleSpan]:
    """Spans of one GPU as a screen can show them, by kind and begin; of very many the longest."""
    near = (run[1] - run[0]) * 1e9 / _RESOLUTION
    out: list[ThrottleSpan] = []
    for span in sorted(spans, key=lambda span: (_kind(span), span.start_ns)):
        last = out[-1] if out else None
        if last is not None and _kind(last) == _kind(span) and span.start_ns - last.end_ns <= near:
            reasons = tuple(dict.fromkeys((*last.reasons, *span.reasons)))
            out[-1] = ThrottleSpan(
                node=last.node,
                gpu=last.gpu,
                start_ns=last.start_ns,
                end_ns=max(last.end_ns, span.end_ns),
                kind=last.kind,
                reasons=reasons[:4],
            )
        else:
            out.append(span)
    out.sort(key=lambda span: span.start_ns - span.end_ns)
    return sorted(out[:_MOST_SPANS], key=lambda span: (_kind(span), span.start_ns))


def ribbon(spans: Sequence[ThrottleSpan], run: Span, owner: str, axis: str, base: float, height: float) -> list[Spec]:
    """One trace of bars per kind, from `base` upwards on the axis `y`, `y2` ...; `owner` is the GPU's label."""
    drawn = merged(spans, run)
    least = (run[1] - run[0]) / _RESOLUTION
    data: list[Spec] = []
    for kind, (colour, _, hatch) in KINDS.items():
        own = [span for span in drawn if _kind(span) == kind]
        if not own:
            continue
        widths = [max(seconds(span.end_ns - span.start_ns), least) for span in own]
        middles = [seconds(span.start_ns) + width / 2 for span, width in zip(own, widths, strict=True)]
        # plotly's hover reaches from a bar to half the least distance of two: these two, out of sight, make it small
        out_of_sight = [run[1] + least * 100, run[1] + least * 101]
        data.append(
            {
                "type": "bar",
                "name": f"{owner} held down",
                "x": [round(x, 4) for x in (*middles, *out_of_sight)],
                "width": [round(width, 4) for width in (*widths, least, least)],
                "y": [*([height] * len(own)), 0, 0],
                "base": [base] * len(own),
                "yaxis": axis,
                "customdata": [_reasons(span) for span in own],
                "hovertemplate": "%{customdata}",
                "marker": marker(colour, hatch),
            }
        )
    return data


def rows(spans: Sequence[ThrottleSpan], names: dict[tuple[int, int], str], run: Span) -> Spec:
    """A chart of its own for many GPUs: one row each."""
    order = list(names)
    data: list[Spec] = []
    for kind, (colour, words, hatch) in KINDS.items():
        own = [(row, span) for row, key in enumerate(order) for span in _of(spans, key, run) if _kind(span) == kind]
        if own:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": words,
                    "y": [row for row, _ in own],
                    "base": [seconds(span.start_ns) for _, span in own],
                    "x": [seconds(span.end_ns - span.start_ns) for _, span in own],
                    "customdata": [f"{names[order[row]]}: {_reasons(span)}" for row, span in own],
                    "hovertemplate": "%{customdata}<extra></extra>",
                    "marker": marker(colour, hatch),
                }
            )
    layout: Spec = {
        "barmode": "overlay",
        "bargap": 0.2,
        "hovermode": "closest",
        "xaxis": time_axis(run, titled=False),
        "yaxis": row_axis([label(name, 20) for name in names.values()]),
    }
    return {"data": data, "layout": layout}


def marker(colour: str, hatch: str) -> Spec:
    lines = "$veil" if colour == "throttle-hardware" else "$hatch"  # light lines on ink
    pattern = {"shape": hatch, "bgcolor": f"${colour}", "fgcolor": lines, "size": 5, "solidity": 0.25}
    return {"color": f"${colour}", "line": {"width": 0}, "pattern": pattern}


def _of(spans: Sequence[ThrottleSpan], key: tuple[int, int], run: Span) -> list[ThrottleSpan]:
    return merged([span for span in spans if (span.node, span.gpu) == key], run)


def _kind(span: ThrottleSpan) -> str:
    return span.kind if span.kind in KINDS else "other"


def _reasons(span: ThrottleSpan) -> str:
    return label(", ".join(span.reasons[:4]) or span.kind, 80)
