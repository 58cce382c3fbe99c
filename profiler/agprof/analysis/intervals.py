"""Arithmetic on sets of time intervals, vectorised: unions, coverage up to a point, innermost of nested ones.

A set of intervals is a data frame with the columns `rank`, `start_ns`, `end_ns` (half open, integer nanoseconds).
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import polars as pl


def union(intervals: pl.DataFrame, by: tuple[str, ...] = ("rank",)) -> pl.DataFrame:
    """Disjoint intervals that cover the same time, per `by`, sorted. Empty and negative intervals vanish."""
    keys = list(by)
    return (
        intervals.select(*keys, "start_ns", "end_ns")
        .filter(pl.col("end_ns") > pl.col("start_ns"))
        .sort(*keys, "start_ns")
        .with_columns(reach=pl.col("end_ns").cum_max().shift(1).over(keys))
        .with_columns(block=(pl.col("start_ns") > pl.col("reach")).fill_null(True).cum_sum())
        .group_by(*keys, "block")
        .agg(pl.col("start_ns").min(), pl.col("end_ns").max())
        .drop("block")
        .sort(*keys, "start_ns")
    )


def covered_until(points: pl.DataFrame, disjoint: pl.DataFrame) -> pl.Series:
    """For each point (`rank`, `at_ns`): nanoseconds of the rank's disjoint intervals before it, in the points' order.

    The difference at two points is the time covered between them, so that anything can be clipped to anything.
    """
    cumulative = disjoint.sort("rank", "start_ns").with_columns(length=pl.col("end_ns") - pl.col("start_ns"))
    cumulative = cumulative.with_columns(before=pl.col("length").cum_sum().over("rank") - pl.col("length"))
    return _at(points, cumulative).select(
        pl.when(pl.col("before").is_null())
        .then(0)
        .otherwise(pl.col("before") + pl.min_horizontal("at_ns", "end_ns") - pl.col("start_ns"))
        .alias("covered_ns")
    )["covered_ns"]


def _at(points: pl.DataFrame, segments: pl.DataFrame) -> pl.DataFrame:
    """Each point with the last segment of its rank that began at or before it (nulls when none), in order."""
    return (
        points.select("rank", "at_ns")
        .with_row_index("point")
        .sort("at_ns")
        .join_asof(
            segments.sort("start_ns"),
            left_on="at_ns",
            right_on="start_ns",
            by="rank",
            strategy="backward",
            coalesce=False,
            check_sortedness=False,
        )
        .sort("point")
    )


def innermost(spans: pl.DataFrame) -> pl.DataFrame:
    """Self time: disjoint segments (`rank`, `name`, `start_ns`, `end_ns`), each of the innermost open span.

    Innermost is the span that began last; of those that began together the deeper one, then the later numbered.
    Takes `rank`, `name`, `start_ns`, `end_ns`, `depth`, `span` of one thread per rank, also badly nested ones.
    """
    ordered = (
        spans.filter(pl.col("end_ns") > pl.col("start_ns"))
        .sort("rank", "start_ns", "depth", "span")
        .select("rank", "start_ns", "end_ns", "name")
    )
    segments = [
        (rank, *segment)
        for rank, rows in groupby(ordered.iter_rows(), key=lambda row: row[0])
        for segment in _sweep(rows)
    ]
    return pl.DataFrame(
        segments,
        schema={"rank": pl.Int64, "start_ns": pl.Int64, "end_ns": pl.Int64, "name": pl.String},
        orient="row",
    )


def _sweep(rows: Iterable[tuple[int, int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """(start, end, name) of the innermost span over one thread's spans, which come ordered by begin.

    `open_` holds what has begun, the innermost last. What ended below it is found spent when it comes to the top.
    """
    open_: list[tuple[int, str]] = []
    cursor = 0
    for _, start, end, name in rows:
        while open_ and open_[-1][0] <= start:
            until, top = open_.pop()
            if until > cursor:
                yield cursor, until, top
                cursor = until
        if open_ and start > cursor:
            yield cursor, start, open_[-1][1]
        cursor = start
        open_.append((end, name))
    while open_:
        until, top = open_.pop()
        if until > cursor:
            yield cursor, until, top
            cursor = until


def self_time_until(points: pl.DataFrame, segments: pl.DataFrame, cut: pl.DataFrame) -> pl.Series:
    """As `covered_until` for disjoint `segments`, without the time that the disjoint intervals `cut` cover."""
    segments = segments.sort("rank", "start_ns").with_columns(
        cut_start=covered_until(segments.select("rank", at_ns="start_ns"), cut),
        cut_end=covered_until(segments.select("rank", at_ns="end_ns"), cut),
    )
    return _self_time(points, segments, covered_until(points, cut))


def _self_time(points: pl.DataFrame, segments: pl.DataFrame, cut_points: pl.Series) -> pl.Series:
    own = pl.col("end_ns") - pl.col("start_ns") - (pl.col("cut_end") - pl.col("cut_start"))
    segments = segments.with_columns(own=own).with_columns(before=pl.col("own").cum_sum().over("rank") - pl.col("own"))
    inside = pl.col("at_ns") < pl.col("end_ns")
    until = pl.when(inside).then("at_ns").otherwise("end_ns") - pl.col("start_ns")
    cut = pl.when(inside).then("cut_at").otherwise("cut_end") - pl.col("cut_start")
    return (
        _at(points, segments)
        .with_columns(cut_at=cut_points)
        .select(pl.when(pl.col("before").is_null()).then(0).otherwise(pl.col("before") + until - cut).alias("own_ns"))
    )["own_ns"]
