"""Whether host events of one thread nest, as calls do: where they cross, a time is wrong."""

import polars as pl


def crossings(events: pl.DataFrame) -> int:
    """Events (thread, start_ns, duration_ns) that end outside of an event of their thread in which they began.

    On each thread the k-th begin at a depth has to be of the same event as the k-th end at that depth. Events without a
    thread or a duration are not looked at.

    >>> nested = pl.DataFrame({"thread": [1, 1, 1], "start_ns": [0, 2, 5], "duration_ns": [10, 3, 5]})
    >>> crossed = pl.DataFrame({"thread": [1, 1, 2], "start_ns": [0, 2, 2], "duration_ns": [10, 30, 30]})
    >>> crossings(nested), crossings(crossed)
    (0, 1)
    """
    known = events.filter(pl.col("thread").is_not_null() & (pl.col("duration_ns") > 0)).select(
        "thread", "start_ns", "duration_ns", event=pl.int_range(pl.len())
    )
    # At one time ends come first, the inner ones before the outer; then begins, the outer ones before the inner.
    length, event = pl.col("duration_ns"), pl.col("event")
    begins = known.select("thread", "event", time="start_ns", step=pl.lit(1), order=-length, tie=event)
    ends = known.select("thread", "event", time=pl.col("start_ns") + length, step=pl.lit(-1), order=length, tie=-event)
    borders = pl.concat([begins, ends]).sort("thread", "time", "step", "order", "tie")
    begun = (pl.col("step") == 1).cast(pl.Int64)
    levels = borders.with_columns(depth=(pl.col("step").cum_sum() + 1 - begun).over("thread"))
    numbered = levels.with_columns(place=pl.int_range(pl.len()).over("thread", "depth", "step"))
    keys = ["thread", "depth", "place"]
    pairs = numbered.filter(pl.col("step") == 1).join(numbered.filter(pl.col("step") == -1), on=keys, how="inner")
    # Two events that cross make two pairs that do not match.
    return (pairs.filter(pl.col("event") != pl.col("event_right")).height + 1) // 2
