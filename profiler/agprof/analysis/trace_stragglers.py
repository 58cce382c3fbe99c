"""Which rank the others wait for, by statistics: none is named where chance explains what is seen."""

import math
from collections.abc import Mapping

import polars as pl

from agprof.analysis.trace_communication import Matches
from agprof.model.format import format_value, percent
from agprof.model.trace_answers import TraceStraggler

SIGNIFICANCE = 0.01
"""Of all ranks together: each rank is tested at this divided by their number (Bonferroni)."""
FEWEST_CALLS = 5
LEAST_LATENESS_NS = 10_000
"""A rank that comes last by less delays nobody worth a word."""
LEAST_SHARE = 0.01
"""Of the window: what its lateness must cost in total."""


def stragglers(matches: Matches, windows: Mapping[int, int]) -> tuple[TraceStraggler, ...]:
    """One row per rank in matched collectives; `windows` is the length of each rank's window in ns.

    All ranks leave a collective at about the same time, so who is in it shortest came last; this needs no common
    clock. A rank is a straggler when it came last significantly more often than one of n ranks does by chance
    (one-sided binomial test), by 10 µs or more in the mean, and for 1 % of its window or more in total.
    """
    if not matches.calls.height:
        return ()
    known = matches.calls.drop_nulls("transfer_ns").filter(pl.col("ranks") > 1)
    if not known.height:
        return ()
    call = ["library", "op", "group", "call"]
    ordered = known.sort(*call, "duration_ns", "rank")
    calls = ordered.group_by(call, maintain_order=True).agg(
        first=pl.col("duration_ns").first(),
        second=pl.col("duration_ns").gather(1).first(),
        rank=pl.col("rank").first(),
        size=pl.len(),
        wait=(pl.col("duration_ns") - pl.col("transfer_ns")).sum(),
    )
    # Two that are shortest alike came last together: nobody did.
    last = calls.filter(pl.col("second") > pl.col("first")).with_columns(late=pl.col("second") - pl.col("first"))
    sums = last.group_by("rank").agg(pl.len(), pl.col("late", "wait").sum())
    lateness = {rank: (n, int(late), int(caused)) for rank, n, late, caused in sums.iter_rows()}
    chances = known.join(calls.select(*call, "size"), on=call, how="left", nulls_equal=True)
    chances = chances.group_by("rank").agg(
        n=pl.len(),
        wait=(pl.col("duration_ns") - pl.col("transfer_ns")).sum(),
        chance=(1 / pl.col("size")).mean(),
    ).sort("rank")  # fmt: skip
    limit = SIGNIFICANCE / max(1, chances.height)
    rows = []
    for rank, n, wait, chance in chances.iter_rows():
        times, late, caused = lateness.get(rank, (0, 0, 0))
        mean = late / times if times else 0.0
        often = n >= FEWEST_CALLS and tail(times, n, chance) < limit
        rows.append(
            TraceStraggler(
                rank=rank,
                collectives=n,
                wait_ns=int(wait),
                last_share=times / n,
                lateness_ns=mean,
                is_straggler=often and mean >= LEAST_LATENESS_NS and late >= LEAST_SHARE * windows.get(rank, 0),
                caused_wait_ns=caused,
            )
        )
    return tuple(rows)


def tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial distribution.

    >>> round(tail(5, 8, 1 / 8), 6), tail(0, 3, 0.5), tail(3, 3, 0.5)
    (0.001226, 1.0, 0.125)
    """
    if k <= 0:
        return 1.0
    if p <= 0 or p >= 1:
        return float(p >= 1)
    log_p, log_q = math.log(p), math.log1p(-p)
    head = math.lgamma(n + 1)
    terms = (
        math.exp(head - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
        for i in range(k, n + 1)
    )
    return min(1.0, math.fsum(terms))


def stragglers_sentence(rows: tuple[TraceStraggler, ...], ranks: int, matches: Matches) -> str:
    """Who delays the others, or why nobody is named."""
    if ranks < 2:
        return "With one rank's trace there is nobody to compare with: no straggler can be named."
    if not rows:
        reason = f" {matches.notes[0]}" if matches.notes else " No collective could be matched across ranks."
        return f"Stragglers are not available.{reason}"
    named = [row for row in rows if row.is_straggler]
    calls = max(row.collectives for row in rows)
    if not named:
        most = max(rows, key=lambda row: (row.last_share, -row.rank))
        return (
            f"No rank delays the others by more than chance: over {calls:,} matched collectives the one that "
            f"comes last most often is rank {most.rank} ({percent(most.last_share)}, by "
            f"{format_value(most.lateness_ns, 'ns')})."
        )
    words = ", ".join(
        f"rank {row.rank}, which comes last to {percent(row.last_share)} of {row.collectives:,} collectives, by "
        f"{format_value(row.lateness_ns, 'ns')} in the mean"
        for row in named
    )
    waited = sum(row.caused_wait_ns for row in named)
    others = max(1, len(rows) - 1)
    return f"The others wait for {words}; they wait {format_value(waited / others, 'ns')} each in these."
