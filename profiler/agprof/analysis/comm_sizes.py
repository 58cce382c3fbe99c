"""How large messages are: per operation, in bins of a factor of two."""

import polars as pl

from agprof.model.comm_answers import SizeBin


def size_bins(calls: pl.DataFrame, rank_steps: int) -> tuple[SizeBin, ...]:
    """Bins that hold a call, by operation and size, means over `rank_steps` ranks and steady steps.

    A bin holds low <= S < 2 low, low a power of two; the first is that of S = 0. Calls of unknown size are in none.
    """
    if not calls.height or not rank_steps:
        return ()
    sizes = (
        calls.drop_nulls("bytes").group_by("op", "bytes").agg(calls=pl.len(), stood=pl.col("stood_ns").clip(0).sum())
    )
    sizes = sizes.with_columns(low=pl.col("bytes").map_elements(_low, return_dtype=pl.Int64))
    bins = sizes.group_by("op", "low").agg(
        pl.col("calls").sum(), pl.col("stood").sum(), bytes=(pl.col("bytes") * pl.col("calls")).sum()
    )
    return tuple(
        SizeBin(
            op=row["op"],
            low_bytes=row["low"],
            high_bytes=max(1, 2 * row["low"]),
            calls_per_step=row["calls"] / rank_steps,
            bytes_per_step=row["bytes"] / rank_steps,
            exposed_ns_per_step=row["stood"] / rank_steps,
        )
        for row in bins.sort("op", "low").iter_rows(named=True)
    )


def _low(size: int) -> int:
    """The largest power of two that is not above the size, exactly; 0 for 0.

    >>> [_low(size) for size in (0, 1, 2, 3, 2**53 - 1, 2**53)] == [0, 1, 2, 2, 2**52, 2**53]
    True
    """
    return 1 << (size.bit_length() - 1) if size > 0 else 0
