"""The time line of a trace's window: slices packed for the canvas of assets/timeline*.js.

The head is JSON: names, kinds, pairs of both, lanes with their numbers of slices. The columns are one run of unsigned
LEB128 numbers, and the page carries them as base64 of gzip: for each lane its begins (ns, each as the distance to the
one before), then its durations (ns), then its pairs (index), then, as distances, the numbers of the slices through
which the critical path goes. The path itself is the last lane.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from agprof.model.trace_answers import CriticalPath, CriticalSegment, TraceLane, TraceTimeline
from agprof_reports.columns import Field, table
from agprof_reports.data import Most, Slices, Table
from agprof_reports.text import clean, with_unit

DRAWN_SLICES = Most().slices
"""Most slices that a page carries; more would break its bound of 3 MB."""
NAME_LIMIT = 1_000
NAMES_BYTES = 250_000
SHORT_NAME = 120
SUM_ROWS = 300
KINDS = {
    "compute": "compute",
    "communication": "communication",
    "memcpy": "copy",
    "memset": "memset",
    "operator": "operator",
    "launch": "launch",
    "annotation": "annotation",
    "python": "Python",
    "synchronisation": "synchronisation",
    "other": "other",
}
"""Kind of a slice -> its word; each is the name of a colour too (`tl-…` where the colour is the time line's own)."""
_PATH_KINDS = {"kernel": "compute", "launch latency": "launch", "host": "other"}
"""Categories of the critical path that share a colour with a kind of slices."""
_NO_SLICE = frozenset({"launch latency", "host", "idle"})
"""Categories of the critical path that lie between slices."""
COLOURS = frozenset({"compute", "communication", "memcpy", "memset", "idle"})
"""Kinds that have this colour on every chart."""


@dataclass(frozen=True, slots=True)
class _Lane:
    label: str
    group: str
    depth: int
    slices: tuple[tuple[int, int, str, str], ...]
    """Begin, duration, name, kind; by begin."""


def slices(timeline: TraceTimeline, path: CriticalPath | None, most: int = DRAWN_SLICES) -> Slices:
    lanes, dropped = _lanes(timeline, most)
    on_path = _on_path(lanes, timeline, path)
    marked = [_marked(lane, on_path, timeline.start_ns) for lane in lanes]
    if on_path:
        lanes.append(_path_lane(on_path, timeline))
        marked.append([])
    names: dict[str, int] = {}
    kinds: dict[str, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    columns = bytearray()
    for lane, marks in zip(lanes, marked, strict=True):
        _append(columns, _distances(begin for begin, _, _, _ in lane.slices))
        _append(columns, (duration for _, duration, _, _ in lane.slices))
        _append(
            columns, (_number(pairs, (_number(names, name), _number(kinds, kind))) for _, _, name, kind in lane.slices)
        )
        _append(columns, _distances(marks))
    kept = list(kinds)
    where = f"rank {timeline.rank}" + (f", step {timeline.step}" if timeline.step is not None else "")
    return Slices(
        key="trace-timeline",
        title=f"Time line of {where}",
        description=f"Lanes over time: streams of the device and threads of the host of {where}. Drag to move, use the "
        "wheel or + and - to zoom, 0 for the whole window, / to search.",
        head={
            "window": max(timeline.window_ns, 1),
            "names": _bounded(list(names)),
            "kinds": [{"word": KINDS.get(kind, kind), "colour": colour_of(kind)} for kind in kept],
            "pairs": [list(pair) for pair in pairs],
            "lanes": [
                {
                    "label": clean(lane.label, 80),
                    "group": lane.group,
                    "depth": lane.depth,
                    "count": len(lane.slices),
                    "marks": len(marks),
                }
                for lane, marks in zip(lanes, marked, strict=True)
            ],
        },
        columns=bytes(columns),
        legend=_legend(kept),
        table=_sums(lanes[:-1] if on_path else lanes),
        note=" ".join(part for part in (timeline.note, dropped, _path_note(path, on_path)) if part),
    )


def colour_of(kind: str) -> str:
    kind = _PATH_KINDS.get(kind, kind)
    return kind if kind in COLOURS else f"tl-{kind}" if kind in KINDS else "tl-other"


def _legend(kinds: Sequence[str]) -> tuple[tuple[str, str], ...]:
    order = [*KINDS, "idle"]
    there = {_PATH_KINDS.get(kind, kind) for kind in kinds}
    words = {**KINDS, "other": "host, other"} if "host" in kinds else KINDS
    return tuple((colour_of(kind), words.get(kind, kind)) for kind in order if kind in there)


T = TypeVar("T")


def _number(numbers: dict[T, int], thing: T) -> int:
    """The number of the thing, in the order in which things come."""
    return numbers.setdefault(thing, len(numbers))


def _lanes(timeline: TraceTimeline, most: int) -> tuple[list[_Lane], str]:
    """The lanes by begin; of too many slices the longest, and the sentence that says so."""
    total = sum(len(lane.start_ns) for lane in timeline.lanes)
    shortest = 0
    if total > most:
        durations = sorted((ns for lane in timeline.lanes for ns in lane.duration_ns), reverse=True)
        shortest = durations[most - 1] + 1
    lanes = [_lane(lane, timeline, shortest) for lane in timeline.lanes]
    if not shortest:
        return lanes, ""
    kept = sum(len(lane.slices) for lane in lanes)
    return lanes, f"Drawn: the {kept:,} longest of {total:,} slices, from {with_unit(float(shortest), 'ns')} on."


def _lane(lane: TraceLane, timeline: TraceTimeline, shortest: int) -> _Lane:
    rows = zip(lane.start_ns, lane.duration_ns, lane.name, lane.kind, strict=True)
    kept = sorted(
        (max(begin, 0), max(duration, 0), timeline.names[name], timeline.kinds[kind])
        for begin, duration, name, kind in rows
        if duration >= shortest
    )
    return _Lane(lane.label, lane.group, lane.depth, tuple(kept))


def _on_path(lanes: Sequence[_Lane], timeline: TraceTimeline, path: CriticalPath | None) -> list[CriticalSegment]:
    """The path's pieces inside the window, when it is the same rank's."""
    if path is None or path.rank != timeline.rank or not lanes:
        return []
    begin, end = timeline.start_ns, timeline.start_ns + timeline.window_ns
    return [s for s in path.segments if s.start_ns < end and s.start_ns + s.duration_ns > begin]


def _path_lane(segments: Sequence[CriticalSegment], timeline: TraceTimeline) -> _Lane:
    rows = []
    for segment in segments:
        begin = max(segment.start_ns - timeline.start_ns, 0)
        end = min(segment.start_ns + segment.duration_ns - timeline.start_ns, timeline.window_ns)
        rows.append((begin, end - begin, segment.name or segment.category, segment.category))
    return _Lane("critical path", "path", 0, tuple(sorted(rows)))


def _marked(lane: _Lane, segments: Sequence[CriticalSegment], origin_ns: int) -> list[int]:
    """Numbers of the slices of this lane in which a piece of the path lies: same side, name and time."""
    wanted = [s for s in segments if s.on_device == (lane.group == "device") and s.category not in _NO_SLICE]
    numbers = {int(text) for text in re.findall(r"\d+", lane.label)}
    by_name: dict[str, tuple[list[int], list[int]]] = {s.name: ([], []) for s in wanted}
    for index, (begin, _, name, _) in enumerate(lane.slices):
        if name in by_name:
            by_name[name][0].append(begin)
            by_name[name][1].append(index)
    found: set[int] = set()
    for segment in wanted:
        if numbers and segment.lane is not None and segment.lane not in numbers:
            continue
        begins, indexes = by_name[segment.name]
        start = segment.start_ns - origin_ns
        at = max(bisect_right(begins, start) - 1, 0)
        while at < len(begins) and begins[at] < start + segment.duration_ns:
            begin, duration, _, _ = lane.slices[indexes[at]]
            if begin + duration > start:
                found.add(indexes[at])
            at += 1
    return sorted(found)


def _distances(numbers: Iterable[int]) -> Iterable[int]:
    last = 0
    for number in numbers:
        yield number - last
        last = number


def _append(out: bytearray, numbers: Iterable[int]) -> None:
    """Append unsigned LEB128 numbers.

    >>> out = bytearray()
    >>> _append(out, [3, 300])
    >>> out.hex()
    '03ac02'
    """
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7  # noqa: PLW2901
        out.append(number)


def _bounded(names: Sequence[str]) -> list[str]:
    """Names without control characters, cut so that all fit the page."""
    out, left = [], NAMES_BYTES
    for name in names:
        text = clean(name, NAME_LIMIT if left > 0 else SHORT_NAME)
        left -= len(text)
        out.append(text)
    return out


def _path_note(path: CriticalPath | None, on_path: Sequence[CriticalSegment]) -> str:
    if path is None:
        return ""
    if not on_path:
        return f"The critical path is that of rank {path.rank}, which this window does not show."
    return "Outlined: what the critical path goes through."


def _sums(lanes: Sequence[_Lane]) -> Table:
    totals: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for lane in lanes:
        for _, duration, name, kind in lane.slices:
            totals[lane.label, name, kind].append(duration)
    rows = sorted(totals.items(), key=lambda item: (-sum(item[1]), item[0]))
    kept = [(*key, len(ns), sum(ns), max(ns)) for key, ns in rows[:SUM_ROWS]]
    return table(
        "table-trace-timeline",
        "The same summed by lane and name; what is nested counts in its parent too",
        kept,
        [
            Field(label="lane", get=lambda r: r[0]),
            Field(label="name", get=lambda r: r[1], code=True, fold=True),
            Field(label="kind", get=lambda r: KINDS.get(r[2], r[2])),
            Field(label="times", get=lambda r: r[3], unit="1", source="counted"),
            Field(label="sum", get=lambda r: r[4], unit="ns", source="measured"),
            Field(label="longest", get=lambda r: r[5], unit="ns", source="measured"),
        ],
        f"The {SUM_ROWS} of {len(rows):,} with the most time." if len(rows) > SUM_ROWS else "",
        filter_by="kind",
    )
