"""What happened to a node or a GPU, over its curves: gaps as outlined stretches, events as lines with words."""

from collections.abc import Iterable, Sequence

from agprof.model.system_answers import GpuEvent, SamplerGap
from agprof_reports.charts.pieces import Span, annotation, seconds
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label

_MOST = 24
_NAMED = 0.05
"""Share of the run that a word above a chart takes, at least: where the next one begins sooner, it has none."""
GAP_WORDS = "not sampled"


def event_words(event: GpuEvent) -> str:
    """`XID 79`, `unavailable`."""
    if event.kind == "xid" and event.code is not None:
        return f"XID {event.code}"
    return event.kind.replace("_", " ")


def gaps_over(gaps: Sequence[SamplerGap], nodes: set[int], run: Span) -> tuple[list[Spec], list[Spec]]:
    """Shapes over the whole height, and words above the chart."""
    shapes: list[Spec] = []
    words: list[Spec] = []
    free = run[0]
    for gap in [gap for gap in gaps if gap.node in nodes][:_MOST]:
        begin, end = max(seconds(gap.start_ns), run[0]), min(seconds(gap.end_ns), run[1])
        if end <= begin:
            continue
        shapes.append(
            {
                "type": "rect",
                "name": "gap",
                "yref": "paper",
                "x0": begin,
                "x1": end,
                "y0": 0,
                "y1": 1,
                "fillcolor": "$shade",
                "line": {"width": 1, "color": "$muted", "dash": "dot"},
                "layer": "above",
            }
        )
        if begin >= free:
            text = GAP_WORDS if len(nodes) == 1 else f"node {gap.node} {GAP_WORDS}"
            words.append(_above(text, begin))
            free = begin + 2 * _NAMED * (run[1] - run[0])
    return shapes, words


def add_gaps(chart: Chart, gaps: Sequence[SamplerGap], nodes: Iterable[int | None], run: Span) -> None:
    """Draw the gaps of these nodes over the chart; of all nodes where it is not known whose the chart is."""
    known = {node for node in nodes if node is not None} or {gap.node for gap in gaps}
    shapes, words = gaps_over(gaps, known, run)
    if not shapes:
        return
    layout = chart.spec["layout"]
    layout["shapes"] = [*layout.get("shapes", ()), *shapes]
    layout["annotations"] = [*layout.get("annotations", ()), *words]
    layout["margin"] = {**layout["margin"], "t": 24}


def events_over(
    events: Sequence[GpuEvent], row_of: dict[tuple[int, int], str], run: Span, *, above: bool
) -> tuple[list[Spec], list[Spec]]:
    """Lines with words; `row_of` gives the axis of each (node, GPU). An event of no known GPU crosses all rows.

    Words stand above the chart, or beside the line in its row, where each row is one GPU's.
    """
    shapes: list[Spec] = []
    words: list[Spec] = []
    free: dict[str, float] = {}
    for event in [event for event in events if _concerns(event, row_of)][:_MOST]:
        at = seconds(event.time_ns)
        if not run[0] <= at <= run[1]:
            continue
        row = row_of.get((event.node, event.gpu)) if event.gpu is not None else None
        axis = f"{row} domain" if row and not above else "paper"
        shapes.append(
            {
                "type": "line",
                "name": "event",
                "yref": axis,
                "x0": at,
                "x1": at,
                "y0": 0,
                "y1": 1,
                "line": {"width": 1.5, "color": "$bad", "dash": "dot"},
            }
        )
        if at < free.get(axis, run[0]):
            continue
        text = label(event_words(event), 24)
        free[axis] = at + (_NAMED + 0.006 * len(text)) * (run[1] - run[0])
        if axis == "paper":
            words.append(_above(f"✕ {text}", at))
        else:
            words.append(_beside(f"✕ {text}", at, axis))
    return shapes, words


def _concerns(event: GpuEvent, row_of: dict[tuple[int, int], str]) -> bool:
    if event.gpu is None:
        return any(node == event.node for node, _ in row_of)
    return (event.node, event.gpu) in row_of


def _above(text: str, at: float) -> Spec:
    return annotation(
        text=text, x=at, y=1, yref="paper", xanchor="left", yanchor="bottom", font={"size": 11, "color": "$muted"}
    )


def _beside(text: str, at: float, axis: str) -> Spec:
    return annotation(
        text=text,
        x=at,
        y=1,
        yref=axis,
        xanchor="left",
        yanchor="top",
        yshift=3,
        font={"size": 11, "color": "$text"},
        bgcolor="$veil",
    )
