"""Kernels, copies and memsets by name, over all ranks: count, sum, mean, shortest and longest launch."""

from collections.abc import Iterable

import polars as pl

from agprof.analysis.trace_activities import CLASSES, COMPUTE, Device
from agprof.model.communication_kernels import hints_at_communication
from agprof.model.trace_answers import KernelRow

MAX_ROWS = 2000
"""Names that are kept, the largest first; the rest is one row per class."""
MAX_NAME = 2000
"""Characters of a name that are kept."""


def kernel_sums(device: Device) -> pl.DataFrame:
    """One row per name and class of one rank: name, kind, library, count, sum_ns, min_ns, max_ns, ranks, text."""
    rows = pl.DataFrame({"name": device.name, "kind": device.kind, "duration": device.end - device.start})
    sums = rows.group_by("name", "kind").agg(
        count=pl.len().cast(pl.Int64),
        sum_ns=pl.col("duration").sum(),
        min_ns=pl.col("duration").min(),
        max_ns=pl.col("duration").max(),
        ranks=pl.lit(1, dtype=pl.Int64),
    )
    ids = sums["name"].to_list()
    return sums.with_columns(
        library=pl.Series([device.library.get(i) for i in ids], dtype=pl.String),
        text=pl.Series([cut(device.text.get(i, f"name {i}")) for i in ids], dtype=pl.String),
    )


def kernel_rows(sums: Iterable[pl.DataFrame]) -> tuple[KernelRow, ...]:
    """All ranks' sums as rows, largest first; the order in which the ranks come says nothing."""
    parts = list(sums)
    if not parts:
        return ()
    merged = (
        pl.concat(parts)
        .group_by("name", "kind")
        .agg(
            pl.col("count", "sum_ns", "ranks").sum(),
            pl.col("min_ns").min(),
            pl.col("max_ns").max(),
            pl.col("library").min(),
            pl.col("text").min(),
        )
        .sort(["sum_ns", "count", "text", "name", "kind"], descending=[True, True, False, False, False])
    )
    total = int(merged["sum_ns"].sum())
    kept = merged.head(MAX_ROWS)
    if merged.height > MAX_ROWS:
        kept = pl.concat([kept, _rest(merged.slice(MAX_ROWS)).select(kept.columns)])
    return tuple(_row(row, total) for row in kept.iter_rows(named=True))


def _rest(rows: pl.DataFrame) -> pl.DataFrame:
    """What has no row of its own, per class."""
    return (
        rows.group_by("kind")
        .agg(
            pl.col("count", "sum_ns").sum(),
            pl.col("ranks", "max_ns").max(),
            pl.col("min_ns").min(),
            text=pl.format("({} more names)", pl.len()),
            name=pl.lit(-1, dtype=pl.Int64),
            library=pl.lit(None, dtype=pl.String),
        )
        .sort("kind")
    )


def _row(row: dict[str, int | str | None], total: int) -> KernelRow:
    count, sum_ns = _int(row["count"]), _int(row["sum_ns"])
    return KernelRow(
        name=str(row["text"]),
        kind=CLASSES[_int(row["kind"])],
        library=None if row["library"] is None else str(row["library"]),
        count=count,
        sum_ns=sum_ns,
        mean_ns=sum_ns / count,
        min_ns=_int(row["min_ns"]),
        max_ns=_int(row["max_ns"]),
        share=sum_ns / total if total else 0.0,
        ranks=_int(row["ranks"]),
    )


def _int(value: int | str | None) -> int:
    assert isinstance(value, int)
    return value


def unclassified(rows: tuple[KernelRow, ...]) -> tuple[KernelRow, ...]:
    """Compute kernels whose names hint at communication."""
    return tuple(row for row in rows if row.kind == CLASSES[COMPUTE] and hints_at_communication(row.name))


def cut(name: str) -> str:
    """A name short enough to be shown and kept: names from outside may be megabytes."""
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}… ({len(name):,} characters)"
