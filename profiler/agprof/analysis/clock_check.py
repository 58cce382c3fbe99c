"""Holds the clocks against the collectives: no rank leaves an all-reduce before the last one has entered it.

Only operations are asked in which each rank needs something from every other. A root may leave its broadcast before
the others come, all but the root their gather, and anybody an all-to-all that has nothing for it.
"""

from collections.abc import Mapping

import polars as pl

from agprof.analysis.clock_axis import ClockAxis, common_column
from agprof.model.clock_answers import ClockConflict

SYNCHRONISING = ("all_reduce", "all_gather", "reduce_scatter", "barrier")
"""How the names of such operations begin."""
MOST_SHOWN = 8
_NEEDED = ("rank", "step", "op", "group", "group_size", "bytes", "start_ns", "issue_end_ns", "end_ns")
_NAME = 80


def conflicts(
    calls: pl.DataFrame,
    node_of: Mapping[int, int],
    axes: Mapping[int, ClockAxis],
    uncertainty_ns: Mapping[int, int | None],
) -> tuple[int, int, tuple[ClockConflict, ...]]:
    """(collectives over more than one node, those that contradict the clocks, the worst of these).

    `calls` is the table `collectives`. A contradiction counts beyond the uncertainties of both nodes; of clocks whose
    uncertainty is not known (None), every one does.
    """
    ends = _ends(calls, node_of)
    if not ends.height:
        return 0, 0, ()
    of_rank = {rank: axes.get(node, ClockAxis()) for rank, node in node_of.items()}
    allowed = pl.col("node").replace_strict(
        {node: known or 0 for node, known in uncertainty_ns.items()}, default=0, return_dtype=pl.Int64
    )
    key = ["step", "group", "op", "group_size", "bytes", "ordinal"]
    by_left, by_entered = pl.col("left_ns"), pl.col("entered_ns")
    matches = (
        ends.with_columns(
            left_ns=common_column(of_rank, pl.col("rank"), pl.col("done_ns")) + allowed,
            entered_ns=common_column(of_rank, pl.col("rank"), pl.col("start_ns")) - allowed,
        )
        .group_by(key)
        .agg(
            ranks=pl.col("rank").n_unique(),
            nodes=pl.col("node").n_unique(),
            left=by_left.min(),
            early=pl.col("rank").get(by_left.arg_min()),
            entered=by_entered.max(),
            late=pl.col("rank").get(by_entered.arg_max()),
        )
        .filter((pl.col("ranks") == pl.col("group_size")) & (pl.col("nodes") > 1))
    )
    # Of two ranks of one node no clock is to blame: the calls were matched wrongly, or their ends are not known well.
    apart = pl.col("early").replace_strict(node_of, default=0) != pl.col("late").replace_strict(node_of, default=0)
    wrong = matches.filter((pl.col("left") < pl.col("entered")) & apart).with_columns(
        by_ns=pl.col("entered") - pl.col("left")
    )
    worst = wrong.sort("by_ns", *key, descending=[True] + [False] * len(key), nulls_last=True).head(MOST_SHOWN)
    shown = tuple(
        ClockConflict(
            op=str(row["op"])[:_NAME],
            group=str(row["group"])[:_NAME],
            step=row["step"],
            early_rank=row["early"],
            late_rank=row["late"],
            by_ns=row["by_ns"],
        )
        for row in worst.iter_rows(named=True)
    )
    return matches.height, wrong.height, shown


def _ends(calls: pl.DataFrame, node_of: Mapping[int, int]) -> pl.DataFrame:
    """Calls with `done_ns` (complete by then), `node`, and `ordinal`: how many like them their rank made in the step.

    Counted within steps, because a rank that was killed may lack the rows of its last second.
    """
    asked = pl.any_horizontal(*(pl.col("op").str.starts_with(name) for name in SYNCHRONISING))
    done = pl.max_horizontal("issue_end_ns", "end_ns")
    return (
        calls.select(_NEEDED)
        .sort("rank", "start_ns", maintain_order=True)
        .with_columns(
            ordinal=pl.int_range(pl.len()).over("rank", "step", "group", "op"),
            node=pl.col("rank").replace_strict(node_of, default=0, return_dtype=pl.Int64),
            done_ns=pl.when(pl.col("end_ns").is_not_null()).then(done),
        )
        .filter(
            asked & (pl.col("group_size") > 1) & pl.col("done_ns").is_not_null() & (pl.col("bytes").fill_null(1) != 0)
        )
    )
