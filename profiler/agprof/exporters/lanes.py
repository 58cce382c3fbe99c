"""Everything that lasted, of every rank, laid out in lanes that a viewer of threads can show.

A lane is a made-up thread of a made-up process (the rank): within it spans nest or follow one another, and never cross.
Spans that would cross go to further lanes of the same name. Times are wall-clock nanoseconds since the epoch.
"""

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import polars as pl

from agprof.exporters import lane_sources
from agprof.exporters.clocks import clocks
from agprof.store.reader import Run

FIRST_PID = 1_000_000
"""Process id of rank 0 in what we write: above those of real processes, and 24 bits hold 15 million ranks more."""

COLOURS: Mapping[str, int] = {
    "step": 0x999999,
    "data": 0xCC79A7,
    "forward": 0x56B4E9,
    "backward": 0x0072B2,
    "optimizer": 0x009E73,
    "communication": 0xD55E00,
    "wait": 0xE69F00,
    "range": 0xE69F00,
    "module": 0x56B4E9,
    "generate": 0xF0E442,
    "mark": 0x000000,
    "other": 0x999999,
    "kernel": 0x0072B2,
    "memory": 0xCC79A7,
    "sync": 0xD9D9D9,
    "op": 0x56B4E9,
    "runtime": 0x999999,
    "annotation": 0xE69F00,
    "python": 0xD9D9D9,
}
"""RGB per category; the report's colours, so that one colour means one thing everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Spans that nest or follow one another."""

    thread: int
    """Made-up thread id, from 1 within the process."""
    name: str
    domain: str
    """`agprof` for what agprof measured, `trace` for what a device trace holds."""
    spans: pl.DataFrame
    """category, name, start_ns, end_ns, payload; by start, longest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One rank."""

    rank: int
    pid: int
    short: str
    """`rank 00`."""
    name: str
    """`rank 00 (host)`."""
    lanes: tuple[Lane, ...]
    marks: pl.DataFrame
    """name, time_ns, payload."""
    marks_thread: int
    """Made-up thread id of the marks."""
    left_out: int
    """Spans that end before they begin or lack a time."""

    @property
    def ranges(self) -> int:
        return sum(lane.spans.height for lane in self.lanes)


def processes(run: Run, *, trace: bool = True) -> Iterator[Process]:
    """Every rank of the run, one at a time. `trace`: with what device traces hold."""
    ranks = lane_sources.ranks(run)
    width = max(2, len(str(max(ranks, default=0))))
    clock = clocks(run.streams)
    for rank in ranks:
        spans = lane_sources.spans(run, rank, clock.of_rank(rank), trace=trace)
        good = spans.filter(pl.col("end_ns") >= pl.col("start_ns"))
        short = f"rank {rank:0{width}d}"
        host = clock.hosts.get(rank) or (run.traces[rank].meta.host if rank in run.traces else None)
        lanes = tuple(_lanes(good))
        yield Process(
            rank=rank,
            pid=FIRST_PID + rank,
            short=short,
            name=f"{short} ({host})" if host else short,
            lanes=lanes,
            marks=lane_sources.marks(run, rank, clock.of_rank(rank)),
            marks_thread=len(lanes) + 1,
            left_out=spans.height - good.height,
        )


def epoch_ns(run: Run) -> int:
    """The least time of all that `processes` gives, rounded down to a microsecond; 0 for a run without any."""
    clock = clocks(run.streams)
    firsts = [lane_sources.first_ns(run, rank, clock.of_rank(rank)) for rank in lane_sources.ranks(run)]
    least = min((first for first in firsts if first is not None), default=0)
    return least - least % 1000


def colour(category: str) -> int:
    return COLOURS.get(category, COLOURS["other"])


def _lanes(spans: pl.DataFrame) -> Iterator[Lane]:
    thread = 1
    spans = spans.sort("order", "start_ns", "end_ns", descending=[False, False, True], maintain_order=True)
    for group in spans.partition_by("order", maintain_order=True):
        starts, ends = group["start_ns"].to_list(), group["end_ns"].to_list()
        numbers = nested_lanes(starts, ends) if group["nests"][0] else flat_lanes(starts, ends)
        numbered = group.with_columns(lane=pl.Series(numbers, dtype=pl.Int64))
        parts = numbered.sort("lane", maintain_order=True).partition_by("lane", maintain_order=True)
        for number, part in enumerate(parts, start=1):
            yield Lane(
                thread=thread,
                name=part["lane_name"][0] + (f" ({number})" if number > 1 else ""),
                domain=part["domain"][0],
                spans=part.select("category", "name", "start_ns", "end_ns", "payload"),
            )
            thread += 1


def nested_lanes(starts: Sequence[int], ends: Sequence[int], open_ends: list[list[int]] | None = None) -> list[int]:
    """The lane of each span (sorted by start, longest first), so that in each lane spans nest or follow one another.

    The first lane that a span fits in takes it. `open_ends` holds, for each lane, the ends of spans that are open; a
    caller whose spans come in pieces gives the same list with each piece.

    >>> nested_lanes([0, 2, 3, 5], [4, 3, 9, 6])
    [0, 0, 1, 0]
    """
    open_ends = [] if open_ends is None else open_ends
    found = []
    for start, end in zip(starts, ends, strict=True):
        for number, stack in enumerate(open_ends):
            while stack and stack[-1] <= start:
                stack.pop()
            if not stack or end <= stack[-1]:
                stack.append(end)
                found.append(number)
                break
        else:
            found.append(len(open_ends))
            open_ends.append([end])
    return found


def flat_lanes(starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The lane of each span (sorted by start), so that in each lane spans only follow one another.

    >>> flat_lanes([0, 2, 3, 5], [4, 3, 9, 6])
    [0, 1, 1, 0]
    """
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    lanes = 0
    found = []
    for start, end in zip(starts, ends, strict=True):
        while busy and busy[0][0] <= start:
            insort(free, heappop(busy)[1])
        if not free:
            free.append(lanes)
            lanes += 1
        lane = free.pop(0)
        found.append(lane)
        heappush(busy, (end, lane))
    return found


def borders(lane: Lane) -> Iterator[tuple[int, int | None]]:
    """(time, row) for each begin and (time, None) for each end of a lane's spans, in an order in which they nest."""
    open_ends: list[int] = []
    starts, ends = lane.spans["start_ns"].to_list(), lane.spans["end_ns"].to_list()
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        while open_ends and open_ends[-1] <= start:
            yield open_ends.pop(), None
        open_ends.append(end)
        yield start, row
    while open_ends:
        yield open_ends.pop(), None
