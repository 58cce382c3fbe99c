"""Who comes first and who last to the collectives, where the clocks can tell."""

import polars as pl

from agprof.analysis.comm_calls import SYNCHRONISING
from agprof.analysis.statistics import median_figure
from agprof.analysis.view import View
from agprof.model.comm_answers import ArrivalRow

_MATCH = ["group", "line", "op", "match_bytes", "ordinal"]


def arrivals(view: View, calls: pl.DataFrame) -> tuple[ArrivalRow, ...]:
    """One row per rank that took part in a matched synchronising collective of the steady steps.

    Ranks of one node share a clock. Groups that span nodes count only where the nodes' clocks were brought onto one
    axis. Two that enter at the same nanosecond are both neither first nor last.
    """
    known = calls.filter(
        pl.col("transfer_ns").is_not_null()
        & pl.any_horizontal(pl.col("op").str.starts_with(op) for op in SYNCHRONISING)
    )
    if not known.height:
        return ()
    nodes = {rank: view.node_of.get(rank, 0) for rank in known["rank"].unique()}
    known = known.with_columns(
        node=pl.col("rank").replace_strict(nodes, return_dtype=pl.Int64), at=view.column_since_origin("start_ns")
    )
    if not view.one_axis:
        known = known.filter(pl.col("node").n_unique().over(_MATCH) == 1)
    first, last = pl.col("at").min().over(_MATCH), pl.col("at").max().over(_MATCH)
    known = known.with_columns(late=pl.col("at") - first, is_first=pl.col("at") == first, is_last=pl.col("at") == last)
    alone = [pl.col(name) & (pl.col(name).sum().over(_MATCH) == 1) for name in ("is_first", "is_last")]
    rows = known.with_columns(alone).group_by("rank", "node").agg(
        pl.col("is_first").sum(), pl.col("is_last").sum(), matched=pl.len(), late=pl.col("late")
    )  # fmt: skip
    return tuple(
        ArrivalRow(
            rank=row["rank"],
            node=row["node"],
            last=row["is_last"],
            first=row["is_first"],
            matched=row["matched"],
            lateness=median_figure(
                row["late"], "ns", method="entry behind the first rank's, matched collectives", reason=""
            ),
        )
        for row in rows.sort("rank").iter_rows(named=True)
    )
