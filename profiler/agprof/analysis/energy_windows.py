"""The windows whose energy is told: stretches of steps of one kind, of the user's ranges, of the parts of RLHF.

All windows are in ns since the run's origin. Those of steps reach from the first rank's begin to the last rank's end;
ranges and parts are those of the lowest rank that has them: ranks go in step with one another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from agprof.analysis.intervals import union
from agprof.analysis.rlhf import iterations, part_intervals
from agprof.analysis.view import View

SHORTEST_NS = 5_000_000_000
"""Shorter windows are beneath what the sensors can tell: "Part-time Power Measurements", arXiv:2312.02741, asks for 5 s
and more."""
MOST_RANGES = 12

Window = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Steps of one kind that follow on one another."""

    kind: str
    first: int
    last: int
    """Numbers of the steps."""
    window: Window

    @property
    def duration_ns(self) -> int:
        return self.window[1] - self.window[0]


def stretches(view: View) -> list[Stretch]:
    """All steps of the run, in order, as stretches of one kind."""
    borders = _borders(view)
    found: list[Stretch] = []
    for step, kind in view.slowest.select("step", "kind").sort("step").iter_rows():
        start, end = borders[step]
        if found and found[-1].kind == kind and found[-1].last == step - 1:
            before = found[-1]
            window = (before.window[0], max(before.window[1], end))
            found[-1] = Stretch(kind=kind, first=before.first, last=step, window=window)
        else:
            found.append(Stretch(kind=kind, first=step, last=step, window=(start, end)))
    return found


def _borders(view: View) -> dict[int, Window]:
    times = {name: view.column_since_origin(name) for name in ("start_ns", "end_ns")}
    rows = (
        view.steps.with_columns(**times)
        .group_by("step")
        .agg(start=pl.col("start_ns").min(), end=pl.col("end_ns").max())
    )
    return {step: (start, end) for step, start, end in rows.iter_rows()}


def phase_windows(view: View, run: Window) -> list[tuple[str, list[Window]]]:
    """Name -> its windows, in order: before the first step, each kind of steps, after the last, parts and ranges."""
    steps = stretches(view)
    phases: dict[str, list[Window]] = {}
    if steps:
        phases["before the first step"] = [(run[0], steps[0].window[0])]
        for stretch in steps:
            name = f"{stretch.kind} steps"
            phases.setdefault(name, []).append(stretch.window)
        phases["after the last step"] = [(max(stretch.window[1] for stretch in steps), run[1])]
    for name, windows in (*_rlhf_parts(view), *_ranges(view)):
        phases.setdefault(name, windows)
    kept = {name: [(a, b) for a, b in windows if b > a] for name, windows in phases.items()}
    return [(name, windows) for name, windows in kept.items() if windows]


def _rlhf_parts(view: View) -> Iterator[tuple[str, list[Window]]]:
    parts = part_intervals(view.tables["spans"])
    if iterations(view, parts).height:
        yield from _by_name(view, parts)


def _ranges(view: View) -> Iterator[tuple[str, list[Window]]]:
    """The user's outermost ranges, those that take longest first."""
    ranges = view.tables["spans"].filter((pl.col("category") == "range") & (pl.col("depth") == 0))
    yield from _by_name(view, union(ranges, ("rank", "name")))


def _by_name(view: View, intervals: pl.DataFrame) -> list[tuple[str, list[Window]]]:
    lowest = intervals.filter(pl.col("rank") == pl.col("rank").min().over("name")).sort("start_ns")
    found: dict[str, list[Window]] = {}
    for rank, name, start, end in lowest.select("rank", "name", "start_ns", "end_ns").iter_rows():
        window = (view.since_origin(start, rank=rank), view.since_origin(end, rank=rank))
        found.setdefault(name[:60], []).append(window)
    order = sorted(found.items(), key=lambda item: -sum(end - start for start, end in item[1]))
    return order[:MOST_RANGES]


def long_enough(windows: Sequence[Window]) -> tuple[list[Window], int]:
    """Those of at least 5 s, and the ns of the others."""
    kept = [(start, end) for start, end in windows if end - start >= SHORTEST_NS]
    return kept, sum(end - start for start, end in windows) - sum(end - start for start, end in kept)
