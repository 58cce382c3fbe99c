"""Memory: how high each rank went and where, what held it, what the formulas and the plan say, and out of memory."""

from statistics import median
from typing import Literal

import polars as pl

from agprof.analysis.curves import curve
from agprof.analysis.memory_account import account_sentence, highest_peak, memory_accounts, why_no_account
from agprof.analysis.memory_step import allocation_rows, step_curves, step_phases
from agprof.analysis.memory_zero import formula_bytes, known_states, zero_rows, zero_sentence
from agprof.analysis.oom import analyse_oom
from agprof.analysis.plan_predictions import predict
from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.compute_answers import ComputeAnswer
from agprof.model.figure import Curve, Figure
from agprof.model.format import format_value
from agprof.model.memory_answers import AllocationRow, MemoryAccount, MemoryAnswer, RankMemory, Space
from agprof.model.zero import Moment

MAX_POINTS = 2000
Kind = Literal["device", "host"]

_METHODS = {
    "device": "highest of torch's allocator peak and of live tensors at the borders of phases",
    "host": "highest resident set since the process began (getrusage) and at the borders of phases",
}
_COLUMNS = {"device": ("allocated_bytes", "allocated_peak_bytes"), "host": ("rss_bytes", "rss_peak_bytes")}


def memory_kind(view: View) -> Kind:
    """What is told: the device's allocator where it was read, else the resident set."""
    return "device" if view.tables["memory"]["allocated_bytes"].count() else "host"


def analyse_memory(view: View, compute: ComputeAnswer | None = None) -> MemoryAnswer:
    """The memory section. `compute` is what a plan's FLOPs are compared with."""
    kind = memory_kind(view)
    table = view.tables["memory"].sort("rank", "time_ns", maintain_order=True)
    ranks = tuple(_rank_memory(view, kind, int(str(rank)), rows) for (rank,), rows in _by_rank(table))
    peak = _peak(kind, ranks)
    known = known_states(view)
    accounts = _accounts(view)
    rows = zero_rows(view, known.states) if known.states is not None else ()
    highest = highest_peak(accounts)
    # Without an account there may still be a memory snapshot's word on the largest blocks.
    told_of = view.tables["allocations"]["rank"].unique().sort().to_list()[:1]
    allocations = allocation_rows(view, (highest.rank,) if highest is not None else tuple(told_of))
    return MemoryAnswer(
        sentence=" ".join(filter(None, (_sentence(kind, ranks, peak, allocations), account_sentence(accounts)))),
        kind=kind,
        peak=peak,
        ranks=ranks,
        curves=_curves(view, kind, table),
        accounts=accounts,
        account_hint="" if accounts else why_no_account(view),
        step_curves=step_curves(view),
        zero=rows,
        zero_sentence=zero_sentence(known.states, rows) if known.states else f"No formula: {known.reason}.",
        allocations=allocations,
        predictions=predict(view.run.plan, compute, accounts) if view.run.plan is not None else (),
        step_phases=step_phases(view),
        oom=analyse_oom(view, accounts, allocations, known.states),
    )


def _accounts(view: View) -> tuple[MemoryAccount, ...]:
    is_cpu = view.fact("device.type") != "cuda"
    states = {rank: known_states(view, rank).states for rank in view.ranks}

    def formulas(rank: int, moment: Moment, space: Space) -> dict[str, float]:
        own = states.get(rank)
        return formula_bytes(own, moment, space, is_cpu=is_cpu) if own is not None else {}

    return memory_accounts(view, formulas)


def _by_rank(table: pl.DataFrame) -> list[tuple[tuple[object, ...], pl.DataFrame]]:
    return list(table.group_by("rank", maintain_order=True))


def _rank_memory(view: View, kind: Kind, rank: int, rows: pl.DataFrame) -> RankMemory:
    current, peak_column = _COLUMNS[kind]
    highest = pl.max_horizontal(current, peak_column)
    known = rows.select("step", "at", bytes=highest).drop_nulls()
    if not known.height:
        reason = "no memory was read on this rank"
        return RankMemory(
            rank=rank, peak=nothing("bytes", reason, method=_METHODS[kind]), peak_at="", standing_bytes=None
        )
    value = int(known["bytes"].max())  # type: ignore[arg-type]
    first = known.filter(pl.col("bytes") == value).row(0, named=True)
    return RankMemory(
        rank=rank,
        peak=Figure(value=value, unit="bytes", source="measured", n=known.height, method=_METHODS[kind]),
        peak_at=_border(str(first["at"]), int(first["step"])),
        standing_bytes=standing(view, rows, current),
    )


def standing(view: View, rows: pl.DataFrame, column: str) -> float | None:
    """Median at the end of steady steps."""
    values = step_end_values(view, rows, column)
    return float(median(values)) if values else None


def step_end_values(view: View, rows: pl.DataFrame, column: str) -> list[int]:
    """Values of one rank at the end of its steady steps, in order."""
    steady = view.slowest.filter(pl.col("kind") == "steady").select("step")
    at_end = rows.filter(pl.col("at") == "step.end").join(steady, on="step", how="semi", maintain_order="left")
    return at_end[column].drop_nulls().to_list()


def _peak(kind: Kind, ranks: tuple[RankMemory, ...]) -> Figure:
    known = [rank.peak.value for rank in ranks if rank.peak.value is not None]
    method = f"{_METHODS[kind]}; the highest rank"
    if not known:
        return nothing("bytes", "no memory was read", method=method)
    return Figure(
        value=max(known), unit="bytes", source="measured", n=len(known), low=min(known), high=max(known),
        method=f"{method}, interval: lowest to highest rank",
    )  # fmt: skip


def _sentence(kind: Kind, ranks: tuple[RankMemory, ...], peak: Figure, allocations: tuple[AllocationRow, ...]) -> str:
    if peak.value is None:
        if allocations:
            return (
                "No memory was read at the borders of phases; a memory snapshot lists the largest blocks at its peak."
            )
        return "No memory was read."
    top = next(rank for rank in ranks if rank.peak.value == peak.value)
    what = "Device memory" if kind == "device" else "Resident memory"
    words = f"{what} peaks at {format_value(peak.value, 'bytes')} on rank {top.rank}, by {top.peak_at}"
    if top.standing_bytes is not None:
        words += f"; {format_value(top.standing_bytes, 'bytes')} stand between steps"
    return words + "."


def _curves(view: View, kind: Kind, table: pl.DataFrame) -> tuple[Curve, ...]:
    columns = (
        {"allocated_bytes": "allocated", "reserved_bytes": "reserved"} if kind == "device" else {"rss_bytes": "RSS"}
    )
    curves = []
    for (number,), rows in _by_rank(table):
        rank = int(str(number))
        times = [view.since_origin(time_ns, rank=rank) for time_ns in rows["time_ns"].to_list()]
        for column, label in columns.items():
            points = list(zip(times, rows[column].to_list(), strict=True))
            curves.append(curve(f"rank {rank} {label}", "bytes", points, MAX_POINTS, rank=rank))
    return tuple(c for c in curves if c is not None)


def _border(at: str, step: int) -> str:
    """`forward.end` of step 3 in words."""
    if at == "step.end":
        return f"the end of step {step}"
    return f"the end of {at.removesuffix('.end')} in step {step}"
