"""Many samples as few points of curves: of each stretch of time the lowest, the highest and a gap if it has one.

A single sample that stands out in a day stays. Works on whole columns; the points of one curve only are Python objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import polars as pl

from agprof.analysis.curves import Points
from agprof.model.format import format_value

_POINTS_PER_STRETCH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Stretches of time, the same for all curves, so that their points lie below one another."""

    begin_ns: int
    width_ns: int
    most: int
    """Rows up to which nothing is left out."""

    @classmethod
    def over(cls, begin_ns: int, end_ns: int, most: int) -> "Grid":
        """For curves of at most `most` (>= 5) points between two times."""
        stretches = max(1, (most - 2) // _POINTS_PER_STRETCH)
        return cls(begin_ns=begin_ns, width_ns=max(1, ceil((end_ns - begin_ns + 1) / stretches)), most=most)

    @property
    def sentence(self) -> str:
        width = format_value(self.width_ns, "ns")
        return f"Curves show the lowest and the highest value of each {width}; what lies between them is left out."


def decimated(rows: pl.DataFrame, columns: Sequence[str], grid: Grid) -> dict[str, Points]:
    """Points per column, in order of time. `rows` has `at_ns`, ascending, and the columns; null and NaN are gaps.

    The first and the last row stay. Of a column that is zero throughout, only these.
    """
    rows = rows.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in columns)
    if rows.height <= grid.most:
        return {name: _points(rows, name) for name in columns}
    rows = rows.with_row_index("row").with_columns(stretch=(pl.col("at_ns") - grid.begin_ns) // grid.width_ns)
    kept = rows.group_by("stretch", maintain_order=True).agg(
        expression for name in columns for expression in _extremes(name)
    )
    return {name: _points(rows[_rows_of(kept, name, rows.height)], name) for name in columns}


def was_decimated(height: int, grid: Grid) -> bool:
    """Whether a series of so many rows loses some."""
    return height > grid.most


def _extremes(name: str) -> list[pl.Expr]:
    first, column = pl.col("row").first().cast(pl.Int64), pl.col(name)
    gap = column.is_null()
    return [
        (first + column.arg_min()).alias(f"{name} lowest"),
        (first + column.arg_max()).alias(f"{name} highest"),
        pl.when(gap.any()).then(first + gap.arg_max()).alias(f"{name} gap"),
    ]


def _rows_of(kept: pl.DataFrame, name: str, height: int) -> list[int]:
    rows = {0, height - 1}
    for part in ("lowest", "highest", "gap"):
        rows.update(kept[f"{name} {part}"].drop_nulls().to_list())
    return sorted(rows)


def _points(rows: pl.DataFrame, name: str) -> Points:
    column = rows[name]
    if rows.height > 2 and column.null_count() == 0 and column.min() == 0 == column.max():
        rows = rows[[0, rows.height - 1]]
    return list(zip(rows["at_ns"].to_list(), rows[name].to_list(), strict=True))


def averaged(rows: pl.DataFrame, column: str, stretches: int) -> Points:
    """Means over equal stretches of time, at their samples' mean time; a stretch without a sample is a gap.

    For what is itself a share of the time since the sample before. Short series come back as they are.
    """
    known = rows.filter(pl.col(column).is_finite())
    if known.height <= stretches:
        return list(zip(known["at_ns"].to_list(), known[column].to_list(), strict=True))
    begin, end = known["at_ns"][0], known["at_ns"][-1]
    width = max(1, ceil((end - begin + 1) / stretches))
    means = (
        known.group_by(stretch=(pl.col("at_ns") - begin) // width, maintain_order=True)
        .agg(pl.col("at_ns").mean().cast(pl.Int64), pl.col(column).mean())
        .with_columns(before=pl.col("stretch").shift(1))
    )
    points: list[tuple[int, float | None]] = []
    for stretch, at_ns, value, before in means.iter_rows():
        if before is not None and stretch - before > 1:
            points.append((begin + (before + 1) * width, None))
        points.append((at_ns, value))
    return points
