"""The time line of a window of steps: lanes of phases, collectives and ranges per rank."""

from collections import defaultdict
from collections.abc import Sequence

from agprof.model.answers import TimeAnswer, TimelineSpan
from agprof_reports import tables
from agprof_reports.charts.pieces import PHASES, WORDS, short
from agprof_reports.data import Chart, Table
from agprof_reports.text import label, scale

TIMELINE_BARS = 3_000
TIMELINE_LANES = 32


def timeline(time: TimeAnswer) -> Chart:
    spans, note = _worth_drawing(time.timeline)
    divisor, unit = scale((span.start_ns + span.duration_ns for span in spans), "ns")
    lanes = sorted({_lane(span) for span in spans})
    row_of = {lane: index for index, lane in enumerate(lanes)}
    groups: dict[str, list[TimelineSpan]] = defaultdict(list)
    for span in spans:
        groups[span_colour(span)].append(span)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": WORDS.get(colour, colour),
            "y": [row_of[_lane(span)] for span in items],
            "base": [short(span.start_ns / divisor, 6) for span in items],
            "x": [short(span.duration_ns / divisor, 4) for span in items],
            "width": 0.84,
            "text": [label(span.name, 24) for span in items],
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
            "textfont": {"color": f"$on-{colour}", "size": 11},
            "customdata": [f"{label(span.name)}, rank {span.rank}" for span in items],
            "marker": {"color": f"${colour}", "line": {"width": 1, "color": "$surface"}},
            "hovertemplate": f"%{{customdata}}<br>%{{x:.3r}} {unit} from %{{base:.4r}} {unit}<extra></extra>",
        }
        for colour, items in groups.items()
    ]
    first, last = time.timeline_steps or (0, 0)
    ranks = {lane[0] for lane in lanes}
    layout = {
        "barmode": "overlay",
        "hovermode": "closest",
        "uniformtext": {"mode": "hide", "minsize": 11},
        "xaxis": {
            "title": {"text": f"time since step {first} began, {unit}"},
            "range": [0, max((span.start_ns + span.duration_ns for span in spans), default=1) / divisor],
            "zeroline": False,
        },
        "yaxis": {
            "tickvals": list(range(len(lanes))),
            "ticktext": [_lane_name(lane, many=len(ranks) > 1) for lane in lanes],
            "range": [len(lanes) - 0.5, -0.5],
            "fixedrange": True,
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": i - 0.5, "y1": i - 0.5,
             "line": {"color": "$line", "width": 1}}
            for i, lane in enumerate(lanes) if i and lane[0] != lanes[i - 1][0]
        ],
        "margin": {"l": 132},
    }  # fmt: skip
    legend = tuple((name, WORDS.get(name, name)) for name in (*PHASES, "range") if name in groups)
    return Chart(
        key="timeline",
        title=f"Time line of step {first}" if first == last else f"Time line of steps {first} to {last}",
        description="Lanes over time, for each rank: phases, collectives and your own ranges. Drag to zoom.",
        height=64 + 22 * len(lanes),
        spec={"data": data, "layout": layout},
        table=_timeline_table(spans),
        legend=tuple((name, "collective" if name == "communication" else word) for name, word in legend),
        note=" ".join(part for part in (_as_sentence(time.timeline_note), note) if part),
    )


_LANES = {"phase": 0, "communication": 1, "range": 2}


def _lane(span: TimelineSpan) -> tuple[int, int, int]:
    return span.rank, _LANES[span.lane], span.depth if span.lane == "range" else 0


def _lane_name(lane: tuple[int, int, int], *, many: bool) -> str:
    word = ("phases", "collectives", "ranges")[lane[1]] + (f" {lane[2] + 1}" if lane[2] else "")
    return f"rank {lane[0]} · {word}" if many else word


def span_colour(span: TimelineSpan) -> str:
    if span.lane != "phase":
        return span.lane
    return span.name if span.name in PHASES else "other"


def _worth_drawing(spans: Sequence[TimelineSpan]) -> tuple[list[TimelineSpan], str]:
    """Keep what a screen can hold: the lanes of the first ranks that fit, then the longest spans."""
    lanes = sorted({_lane(span) for span in spans})
    notes = []
    ranks = sorted({lane[0] for lane in lanes})
    fitting = {lane[0] for lane in lanes[:TIMELINE_LANES]} if len(lanes) > TIMELINE_LANES else set(ranks)
    kept = [span for span in spans if span.rank in fitting]
    if len(fitting) < len(ranks):
        notes.append(f"ranks {min(fitting)} to {max(fitting)} of {len(ranks)}")
    if len(kept) > TIMELINE_BARS:
        notes.append(f"the {TIMELINE_BARS:,} longest of {len(kept):,} bars")
        longest = sorted(range(len(kept)), key=lambda i: -kept[i].duration_ns)[:TIMELINE_BARS]
        kept = [kept[i] for i in sorted(longest)]
    return kept, f"Drawn: {', '.join(notes)}." if notes else ""


def _timeline_table(spans: Sequence[TimelineSpan]) -> Table:
    totals: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for span in spans:
        totals[span.rank, span.lane, span.name].append(span.duration_ns)
    return tables.spans([(*key, len(ns), sum(ns), max(ns)) for key, ns in sorted(totals.items())])


def _as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""
