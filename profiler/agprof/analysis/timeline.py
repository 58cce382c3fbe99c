"""The bars of a short window of steady steps: what each rank did, phase by phase and call by call."""

from statistics import median

import polars as pl

from agprof.analysis.intervals import innermost
from agprof.analysis.parts import OWN_PHASES, main_thread_phases
from agprof.analysis.view import View
from agprof.model.answers import PhaseLine, TimelineSpan
from agprof.model.format import format_value

MAX_RANKS = 8
MAX_BARS = 4000
MAX_PHASES = 12_000
"""Longest line of phases; of a longer run only the steps are told."""

_COLUMNS = ["rank", "lane", "name", "start_ns", "end_ns", "depth"]

Window = tuple[tuple[int, int] | None, tuple[TimelineSpan, ...], str]


def timeline(view: View) -> Window:
    """(first and last step, bars, what was left out) of at most two steady steps around the median step."""
    steps = _median_steps(view)
    if steps is None:
        return None, (), "no steady step to draw"
    notes = []
    ranks = sorted(view.steps["rank"].unique().to_list())
    if len(ranks) > MAX_RANKS:
        notes.append(f"the first {MAX_RANKS} of {len(ranks)} ranks")
        ranks = ranks[:MAX_RANKS]
    bars = _bars(view, steps, ranks)
    if bars.height > MAX_BARS and steps[0] != steps[1]:
        steps = (steps[0], steps[0])
        bars = _bars(view, steps, ranks)
    if bars.height > MAX_BARS:
        notes.append(f"the longest {MAX_BARS:,} of {bars.height:,} bars")
        bars = bars.sort(pl.col("end_ns") - pl.col("start_ns"), descending=True, maintain_order=True).head(MAX_BARS)
    bars = bars.sort(["rank", "lane", "start_ns", "depth", "end_ns", "name"])
    spans = tuple(
        TimelineSpan(rank=rank, lane=lane, name=name, start_ns=start, duration_ns=end - start, depth=depth)
        for rank, lane, name, start, end, depth in bars.iter_rows()
    )
    return steps, spans, "shows " + " and ".join(notes) if notes else ""


def phase_line(view: View) -> PhaseLine | None:
    """The phases of the lowest rank's main thread, one after another, over the whole run."""
    ranks = view.steps["rank"].unique().to_list()
    if not ranks:
        return None
    rank = min(ranks)
    phases = main_thread_phases(view.tables["spans"].filter(pl.col("rank") == rank))
    if not 0 < phases.height <= MAX_PHASES:
        return None
    rows = innermost(phases).sort("start_ns").select("name", "start_ns", "end_ns").rows()
    return PhaseLine(
        rank=rank,
        names=OWN_PHASES,
        phase=tuple(OWN_PHASES.index(name) for name, _, _ in rows),
        start_ns=tuple(view.since_origin(start, rank=rank) for _, start, _ in rows),
        duration_ns=tuple(end - start for _, start, end in rows),
    )


def _median_steps(view: View) -> tuple[int, int] | None:
    steady = view.slowest.filter(pl.col("kind") == "steady").select("step", "duration_ns").rows()
    if not steady:
        return None
    middle = median(duration for _, duration in steady)
    best = min(steady, key=lambda row: (abs(row[1] - middle), row[0]))[0]
    numbers = {step for step, _ in steady}
    if best + 1 in numbers:
        return best, best + 1
    return (best - 1, best) if best - 1 in numbers else (best, best)


def _bars(view: View, steps: tuple[int, int], ranks: list[int]) -> pl.DataFrame:
    """Bars that touch the window, cut to it; times since the window began, on the common axis."""
    chosen = view.steps.filter(pl.col("step").is_between(*steps) & pl.col("rank").is_in(ranks))
    windows = chosen.group_by("rank").agg(begin=pl.col("start_ns").min(), end=pl.col("end_ns").max())
    begin = int(windows.select(view.column_since_origin("begin").min()).item() or 0)
    return (
        pl.concat([_spans(view), _calls(view), _waits(view)])
        .join(windows, on="rank", how="inner")
        .filter(
            (pl.col("end_ns") > pl.col("start_ns"))
            & (pl.col("start_ns") < pl.col("end"))
            & (pl.col("end_ns") > pl.col("begin"))
        )
        .with_columns(
            start_ns=view.column_since_origin(pl.max_horizontal("start_ns", "begin")) - begin,
            end_ns=view.column_since_origin(pl.min_horizontal("end_ns", "end")) - begin,
        )
        .select(_COLUMNS)
    )


def _spans(view: View) -> pl.DataFrame:
    spans = view.tables["spans"].filter(
        (pl.col("category") == "range") | ((pl.col("category") == "phase") & pl.col("name").is_in(OWN_PHASES))
    )
    return spans.with_columns(lane="category").select(_COLUMNS)


def _calls(view: View) -> pl.DataFrame:
    """A synchronous call as long as its caller stood in it, an asynchronous one until it was complete."""
    calls = view.tables["collectives"]
    sizes = {size: f" {format_value(size, 'bytes')}" for size in calls["bytes"].drop_nulls().unique().to_list()}
    words = pl.col("bytes").replace_strict(sizes, default="", return_dtype=pl.String).fill_null("")
    return calls.with_columns(
        lane=pl.lit("communication"),
        name=pl.col("op") + words,
        end_ns=pl.when("async_op").then(pl.max_horizontal("issue_end_ns", "end_ns")).otherwise("issue_end_ns"),
        depth=pl.lit(0, dtype=pl.Int64),
    ).select(_COLUMNS)


def _waits(view: View) -> pl.DataFrame:
    return (
        view.tables["waits"]
        .with_columns(lane=pl.lit("communication"), name="wait " + pl.col("op"), depth=pl.lit(1, dtype=pl.Int64))
        .select(_COLUMNS)
    )
