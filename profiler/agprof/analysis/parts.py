"""The parts of a step: which phase its nanoseconds belong to. They add up to the step's duration exactly."""

import polars as pl

from agprof.analysis.intervals import covered_until, innermost, self_time_until, union
from agprof.model.tables import PHASES

OWN_PHASES = ("data", "forward", "backward", "optimizer")
"""Phases that come from spans; communication comes from the collectives and other is what is left."""


def step_parts(
    steps: pl.DataFrame, spans: pl.DataFrame, collectives: pl.DataFrame, waits: pl.DataFrame
) -> pl.DataFrame:
    """`steps` with one Int64 column per phase of `PHASES`, in ns; per row they add up to end_ns - start_ns.

    A nanosecond belongs to `communication` when any thread of the rank stands in a collective (between call and
    return, in wait(), or in DDP's own wait for its buckets); else to the innermost phase of the main thread; else to
    `other`.
    """
    standing = standing_in_collectives(collectives, waits, spans)
    segments = innermost(main_thread_phases(spans))
    borders = pl.concat([steps.select("rank", at_ns="start_ns"), steps.select("rank", at_ns="end_ns")])

    def between(at_borders: pl.Series) -> pl.Series:
        return at_borders[steps.height :] - at_borders[: steps.height]

    columns = {"communication": between(covered_until(borders, standing))}
    for phase in OWN_PHASES:
        own = segments.filter(pl.col("name") == phase)
        columns[phase] = between(self_time_until(borders, own, standing))
    parts = steps.with_columns(**columns)
    covered = pl.sum_horizontal("communication", *OWN_PHASES)
    return parts.with_columns(other=pl.col("end_ns") - pl.col("start_ns") - covered).select(*steps.columns, *PHASES)


def standing_in_collectives(collectives: pl.DataFrame, waits: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Union per rank of the intervals in which a caller stood in a collective."""
    return union(
        pl.concat(
            [
                collectives.select("rank", "start_ns", end_ns="issue_end_ns"),
                waits.select("rank", "start_ns", "end_ns"),
                reducer_waits(collectives, spans).select("rank", "start_ns", "end_ns"),
            ]
        )
    )


def reducer_waits(collectives: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """Where DistributedDataParallel's reducer waits in C++ for its buckets, one row per rank, backward and group: rank,
    step, micro_step, group, group_size, start_ns, end_ns.

    It issues the last bucket of a backward when the last gradient is there, and the backward returns when all buckets
    are complete. Known where their ends are: on a CPU. An end is told by a callback that may have to wait for the
    interpreter, so that it can come when the optimizer runs already: the wait ends with the backward at the latest.
    """
    buckets = collectives.filter(
        (pl.col("tap") == "dispatcher") & (pl.col("op") == "all_reduce") & (pl.col("caller") == "backward")
    ).drop_nulls("end_ns")
    waits = (
        buckets.group_by("rank", "step", "micro_step", "group", "group_size")
        .agg(start_ns=pl.col("issue_end_ns").max(), end_ns=pl.col("end_ns").max())
        .sort("start_ns")
    )
    backward = spans.filter((pl.col("category") == "phase") & (pl.col("name") == "backward"))
    backward = backward.select("rank", start_ns="start_ns", returns_ns="end_ns").sort("start_ns")
    return (
        waits.join_asof(backward, on="start_ns", by="rank", check_sortedness=False)
        .with_columns(end_ns=pl.min_horizontal("end_ns", "returns_ns"))
        .filter(pl.col("returns_ns").is_not_null() & (pl.col("end_ns") > pl.col("start_ns")))
        .drop("returns_ns")
        .sort("rank", "start_ns")
    )


def collectives_in_flight(collectives: pl.DataFrame, waits: pl.DataFrame) -> pl.DataFrame:
    """Union per rank of the intervals from a collective's call to its completion, where that was seen."""
    end = pl.max_horizontal("issue_end_ns", "end_ns")
    return union(
        pl.concat([collectives.select("rank", "start_ns", end_ns=end), waits.select("rank", "start_ns", "end_ns")])
    )


def main_thread_phases(spans: pl.DataFrame) -> pl.DataFrame:
    """Phase spans of each rank's main thread: the one that spends most time in phases (the lower id when equal)."""
    phases = spans.filter((pl.col("category") == "phase") & pl.col("name").is_in(OWN_PHASES))
    main = (
        phases.group_by("rank", "thread")
        .agg(total=(pl.col("end_ns") - pl.col("start_ns")).clip(0).sum())
        .sort("rank", "total", "thread", descending=[False, True, False])
        .unique("rank", keep="first", maintain_order=True)
        .select("rank", "thread")
    )
    return phases.join(main, on=["rank", "thread"], how="inner")
