"""torch's flight recorder against our taps: which collectives were missed."""

import polars as pl

from agprof.analysis.ranks import name_ranks
from agprof.analysis.view import View
from agprof.model.answers import UnseenRow


def ledger(view: View) -> tuple[tuple[UnseenRow, ...], str]:
    """Collectives that the recorder saw and we did not, and one sentence on it."""
    table = view.tables["ledger"]
    if not table.height:
        return (), _no_ledger(view)
    recorded, seen = int(table["recorded"].sum()), int(table["seen"].sum())
    unseen = table.filter(pl.col("recorded") > pl.col("seen")).sort("rank", "group", "op")
    rows = tuple(
        UnseenRow(rank=rank, group=group, op=op, recorded=recorded, seen=seen, complete=complete)
        for rank, group, op, recorded, seen, complete in unseen.select(
            "rank", "group", "op", "recorded", "seen", "complete"
        ).iter_rows()
    )
    dropped = table.filter(~pl.col("complete")).height
    tail = " Its ring had dropped older entries, so only the newest were compared." if dropped else ""
    without = [rank for rank in view.ranks if rank not in set(table["rank"].unique().to_list())]
    if without:
        tail += f" It is missing for {name_ranks(without)}."
    if rows:
        missing = sum(row.recorded - row.seen for row in rows)
        kinds = ", ".join(sorted({row.op for row in rows}))
        return rows, f"{missing:,} of {recorded:,} collectives in torch's flight recorder were not seen: {kinds}.{tail}"
    extra = f" Our taps saw {seen - recorded:,} more than it keeps." if seen > recorded else ""
    return rows, f"The flight recorder confirms all {recorded:,} collectives.{extra}{tail}"


def _no_ledger(view: View) -> str:
    if len(view.ranks) == 1 and not view.tables["collectives"].height:
        return "One rank: no ledger is needed."
    return "There is no ledger: torch's flight recorder was off, or no rank lived to read it at its end."
