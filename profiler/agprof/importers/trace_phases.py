"""Phases of a trace: those that it names, and forward and backward where autograd's own events show them.

Backward: from the first to the last of autograd's events (evaluate_function, the operators of the backward) that run
one after another without a forward operator of the main thread between them. Forward: the operators of the main thread
that autograd numbered, between such passes and outside of them. Both end where a named phase or a step begins.
"""

from collections.abc import Iterable

import polars as pl

from agprof.importers.trace_ranges import BACKWARD_OP, PHASE
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace

SCHEMA = {"name": pl.String, "start_ns": pl.Int64, "end_ns": pl.Int64, "thread": pl.Int64}


def find_phases(trace: RankTrace, ranges: pl.DataFrame, steps: pl.DataFrame) -> pl.DataFrame:
    """Columns name (data, forward, backward, optimizer), start_ns, end_ns, thread.

    What runs on autograd's threads while the main thread waits for it stands on the main thread.
    """
    named = ranges.filter(pl.col("what") == PHASE).select(pl.col("which").alias("name"), "start_ns", "end_ns", "thread")
    told = set(named["name"].unique().to_list())
    wanted = {"forward", "backward"} - told
    main = main_thread(ranges, steps)
    if not wanted or main is None:
        return named.sort("start_ns")
    borders = sorted({*steps["start_ns"].to_list(), *steps["end_ns"].to_list(), *named["start_ns"].to_list()})
    derived = _derived(trace, ranges, main, borders).filter(pl.col("name").is_in(list(wanted)))
    return pl.concat([named, derived]).sort("start_ns")


def main_thread(ranges: pl.DataFrame, steps: pl.DataFrame) -> int | None:
    """The thread of the steps, else of the phases, else the one with most annotations; None without any."""
    for rows in (steps, ranges.filter(pl.col("what") == PHASE), ranges.filter(pl.col("what") != BACKWARD_OP)):
        threads = rows.drop_nulls("thread").group_by("thread").len().sort("len", "thread", descending=[True, False])
        if threads.height:
            return int(threads["thread"][0])
    return None


def _derived(trace: RankTrace, ranges: pl.DataFrame, main: int, borders: Iterable[int]) -> pl.DataFrame:
    backward = ranges.filter(pl.col("what") == BACKWARD_OP).select("start_ns", "end_ns", "thread")
    if not backward.height:
        return pl.DataFrame(schema=SCHEMA)
    forward = _forward_operators(trace, main, backward)
    kinds = [
        forward.select("start_ns", "end_ns", name=pl.lit("forward")),
        backward.select("start_ns", "end_ns", name=pl.lit("backward")),
    ]
    edges = pl.DataFrame({"start_ns": pl.Series(list(borders), dtype=pl.Int64)}).with_columns(
        end_ns=pl.col("start_ns"), name=pl.lit("border")
    )
    merged = pl.concat([*kinds, edges.select("start_ns", "end_ns", "name")]).sort("start_ns", maintain_order=True)
    passes = (
        merged.with_columns(run=pl.col("name").rle_id())
        .group_by("run", "name", maintain_order=True)
        .agg(pl.col("start_ns").min(), pl.col("end_ns").max())
        .filter(pl.col("name") != "border")
    )
    # A pass ends no later than the next of anything begins: what autograd still had open belongs to the next.
    limits = merged.filter(pl.col("name") == "border").select(border="start_ns").sort("border")
    clipped = passes.join_asof(
        limits, left_on="start_ns", right_on="border", strategy="forward", allow_exact_matches=False
    )
    following = pl.col("start_ns").shift(-1)
    end = pl.min_horizontal("end_ns", "border", following)
    return clipped.with_columns(end_ns=end, thread=pl.lit(main, dtype=pl.Int64)).select(*SCHEMA)


def _forward_operators(trace: RankTrace, main: int, backward: pl.DataFrame) -> pl.DataFrame:
    """Operators of the main thread that autograd numbered, outside of its own events (recomputation is inside)."""
    operators = (
        trace.tables["cpu"]
        .filter((pl.col("kind") == int(CpuKind.OP)) & (pl.col("thread") == main) & pl.col("sequence").is_not_null())
        .select("start_ns", end_ns=pl.col("start_ns") + pl.col("duration_ns"))
        .collect()
        .sort("start_ns")
    )
    own = backward.filter(pl.col("thread") == main).sort("start_ns")
    if not own.height:
        return operators
    covered = own.select(begin="start_ns", until=pl.col("end_ns").cum_max())
    inside = operators.join_asof(covered, left_on="start_ns", right_on="begin", strategy="backward")
    return inside.filter(pl.col("until").is_null() | (pl.col("start_ns") >= pl.col("until"))).select(
        "start_ns", "end_ns"
    )
