"""Ranks that others wait for: who is slow, when, whether it is always the same, and what its resources did then.

All times are of a rank's own clock: how long it waited for others is known from durations, and needs no common clock.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from agprof.analysis.comm_calls import SYNCHRONISING
from agprof.analysis.comm_overlap import mean_figure
from agprof.analysis.parts import reducer_waits
from agprof.analysis.ranks import rank_streams
from agprof.analysis.statistics import median_figure
from agprof.analysis.straggler_causes import LikelyCause, Look, likely_cause
from agprof.analysis.trace_stragglers import tail
from agprof.analysis.view import View
from agprof.model.format import format_value, percent
from agprof.model.straggler_answers import StragglerAnswer, StragglerRow
from agprof.model.system_answers import GpuMapping

SIGNIFICANCE = 0.01
"""Of all ranks together (Holm)."""
LEAST_EXCESS = 0.02
"""Of the step: a rank that is slower by less is named by nobody, however surely."""
WORTH_A_WORD = 0.02
"""Of the step: less waiting than this is no waiting."""
MOST_CELLS = 200_000
"""Of ranks x steps that are kept; of longer runs every k-th step is."""
MOST_LOOKED_INTO = 32
"""Ranks whose cause is looked for: those that are slower by most where they are the slowest."""
NOT_LOOKED_INTO = LikelyCause("not known", f"not looked into: {MOST_LOOKED_INTO} ranks are slower", "measured")

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]


def analyse_stragglers(view: View, calls: pl.DataFrame, mapping: Sequence[GpuMapping] = ()) -> StragglerAnswer | None:
    """`calls` is `matched_calls(view)`. None with one rank, or without a matched collective in a steady step.

    A rank's own time in a step is the step's duration minus what it waited for others in synchronising collectives:
    its stay in each beyond the shortest stay of any rank of the group.
    """
    own = own_times(view, calls)
    steady = own.filter(pl.col("kind") == "steady").drop_nulls("own_ns")
    ranks = tuple(sorted(steady["rank"].unique()))
    if len(ranks) < 2:
        return None
    # A step counts where all of them are known: else the slowest may be missing.
    steady = steady.filter(pl.len().over("step") == len(ranks))
    if not steady.height:
        return None
    slowest = _slowest(steady)
    values = [p_value(slowest.get(rank, 0), steady["step"].n_unique(), len(ranks)) for rank in ranks]
    adjusted = dict(zip(ranks, holm(values), strict=True))
    rows = _rows(view, steady, ranks, slowest, mapping)
    steps = _shown_steps(own, len(ranks))
    top = rows[0]
    step_ns = float(steady["duration_ns"].mean() or 0)  # type: ignore[arg-type]
    # Slow on the whole, and slowest in more steps than chance gives.
    persistent = adjusted[top.rank] < SIGNIFICANCE and (top.excess.value or 0.0) >= LEAST_EXCESS * step_ns
    lost = mean_figure(
        steady["waited_ns"].to_list(), "own stay in synchronising collectives beyond the shortest, per rank and step"
    )
    return StragglerAnswer(
        sentence=_sentence(rows, persistent, adjusted[top.rank], lost.value or 0.0, step_ns, steady["step"].n_unique()),
        steps=steps,
        ranks=ranks,
        own_time_ns=_heat_map(own, ranks, steps),
        lost_per_step=lost,
        persistent=persistent,
        p_value=adjusted[top.rank],
        rows=rows,
    )


# -- own time ---------------------------------------------------------------------------------------------------------


def own_times(view: View, calls: pl.DataFrame) -> pl.DataFrame:
    """Per rank and complete step: rank, step, kind, duration_ns, waited_ns, own_ns (null where nothing was matched)."""
    synchronising = pl.any_horizontal(pl.col("op").str.starts_with(op) for op in SYNCHRONISING)
    matched = calls.filter(synchronising).drop_nulls("transfer_ns")
    # What an asynchronous call waited in flight nobody stood in: no more than the stay counts.
    waits = matched.select("rank", "step", waited=pl.min_horizontal("waited_ns", "stood_ns").clip(0))
    waits = pl.concat([waits, _waits_of_reducers(view)])
    sums = waits.group_by("rank", "step").agg(waited_ns=pl.col("waited").sum())
    steps = view.steps.filter(pl.col("kind") != "incomplete").select("rank", "step", "kind", "duration_ns")
    known = steps.join(sums, on=["rank", "step"], how="left", maintain_order="left")
    known = known.with_columns(
        waited_ns=pl.when(pl.col("waited_ns").is_not_null()).then(pl.min_horizontal("waited_ns", "duration_ns"))
    )
    return known.with_columns(own_ns=pl.col("duration_ns") - pl.col("waited_ns"))


def _waits_of_reducers(view: View) -> pl.DataFrame:
    """DDP's waits for its buckets, beyond the shortest wait of any rank of the group for the same backward."""
    waits = reducer_waits(view.tables["collectives"], view.tables["spans"]).with_columns(
        stay=pl.col("end_ns") - pl.col("start_ns")
    )
    match = ["step", "micro_step", "group"]
    whole = waits.filter(pl.col("rank").n_unique().over(match) == pl.col("group_size"))
    return whole.select("rank", "step", waited=pl.col("stay") - pl.col("stay").min().over(match))


def _slowest(steady: pl.DataFrame) -> dict[int, int]:
    """Steps in which a rank's own time was the longest; of equals nobody's."""
    top = steady.filter(pl.col("own_ns") == pl.col("own_ns").max().over("step"))
    top = top.filter(pl.len().over("step") == 1)
    return dict(top.group_by("rank").len().iter_rows())


def _shown_steps(own: pl.DataFrame, ranks: int) -> tuple[int, ...]:
    """All complete steps, or every k-th of very many."""
    steps = tuple(sorted(own["step"].unique()))
    return steps[:: max(1, -(-len(steps) * ranks // MOST_CELLS))]


def _heat_map(own: pl.DataFrame, ranks: tuple[int, ...], steps: tuple[int, ...]) -> tuple[tuple[int | None, ...], ...]:
    kept = own.filter(pl.col("step").is_in(steps))
    known = {(rank, step): value for rank, step, value in kept.select("rank", "step", "own_ns").iter_rows()}
    return tuple(tuple(known.get((rank, step)) for step in steps) for rank in ranks)


# -- chance -----------------------------------------------------------------------------------------------------------


def p_value(times: int, steps: int, ranks: int) -> float:
    """Chance that a rank is the slowest at least so often, when each of them is with the same chance."""
    return tail(times, steps, 1 / ranks)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979), in the same order.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda at: values[at])
    adjusted, highest = [0.0] * len(values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - place) * values[at]))
        adjusted[at] = highest
    return adjusted


# -- rows -------------------------------------------------------------------------------------------------------------


def _rows(
    view: View,
    steady: pl.DataFrame,
    ranks: tuple[int, ...],
    slowest: Mapping[int, int],
    mapping: Sequence[GpuMapping],
) -> tuple[StragglerRow, ...]:
    own = steady.sort("rank", "step")["own_ns"].to_numpy().reshape(len(ranks), -1)
    excess = own - median_of_others(own)
    order = np.argsort(-_excess_where_slowest(own, excess), kind="stable")
    looked = {ranks[at] for at in order[:MOST_LOOKED_INTO]}
    streams = rank_streams(view)
    look = Look.at(view, steady, mapping)
    rows = []
    for at, rank in enumerate(ranks):
        cause = likely_cause(look, rank) if rank in looked else NOT_LOOKED_INTO
        host = streams[rank].header.get("host") if rank in streams else None
        rows.append(
            StragglerRow(
                rank=rank,
                node=view.node_of.get(rank, 0),
                host=None if host is None else str(host),
                slowest_share=slowest.get(rank, 0) / own.shape[1],
                own_time=median_figure(
                    own[at].tolist(), "ns", method="step minus waiting for others, steady steps", reason=""
                ),
                excess=median_figure(
                    excess[at].tolist(), "ns", method="own time above the median of the others, steady steps", reason=""
                ),
                cause=cause.cause,
                evidence=cause.evidence,
                confidence=cause.confidence,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-(row.excess.value or 0.0), -row.slowest_share, row.rank)))


def median_of_others(values: Int64s) -> Float64s:
    """[rank][step]: the median of the step's values of the other ranks.

    >>> median_of_others(np.array([[1], [5], [9], [7]])).tolist()
    [[7.0], [7.0], [5.0], [5.0]]
    """
    n = len(values)
    ordered = np.sort(values, axis=0)
    place = np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable")

    def other(at: int) -> Int64s:
        """The one at that place among the others: behind the rank's own place all move up by one."""
        found: Int64s = np.where(place <= at, ordered[min(at + 1, n - 1)], ordered[at])
        return found

    low, high = other((n - 2) // 2), other((n - 1) // 2)
    return (low + high) / 2


def _excess_where_slowest(own: Int64s, excess: Float64s) -> Float64s:
    """Per rank its mean excess over the steps in which it is the slowest; over all where it never is."""
    slowest = own == own.max(axis=0)
    count = slowest.sum(axis=1)
    sums = np.where(slowest, excess, 0.0).sum(axis=1)
    found: Float64s = np.where(count > 0, sums / np.maximum(count, 1), excess.mean(axis=1))
    return found


def _sentence(
    rows: tuple[StragglerRow, ...], persistent: bool, p: float, lost_ns: float, step_ns: float, steps: int
) -> str:
    share = percent(lost_ns / step_ns) if step_ns else "0 %"
    waiting = f"the mean rank waits {format_value(lost_ns, 'ns')} a step for others ({share} of it)"
    top = rows[0]
    if persistent:
        known = "Likely cause" if top.cause != "not known" else "Cause"
        reason = f" {known}: {top.cause} ({top.evidence})."
        return (
            f"Rank {top.rank} is the slowest in {percent(top.slowest_share)} of {steps} steps (chance: p = {p:.1g}); "
            f"{waiting}.{reason}"
        )
    if lost_ns < WORTH_A_WORD * step_ns:
        return f"The ranks keep in step: {waiting}."
    most = max(rows, key=lambda row: (row.slowest_share, -row.rank))
    turns = (
        f"No rank is slow more often than by chance (rank {most.rank}, the most often, in "
        f"{percent(most.slowest_share)} of {steps} steps), yet {waiting}."
    )
    causes = {row.cause for row in rows if row.slowest_share > 0} - {"not known"}
    if len(causes) == 1:
        example = next(row for row in rows if row.cause in causes)
        return f"{turns} Likely cause, whichever rank is slow: {example.cause} ({example.evidence})."
    return turns
