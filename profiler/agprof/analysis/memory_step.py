"""The profile step as memory saw it: curves of live tensors, the phases behind them, the largest tensors."""

from typing import cast

import polars as pl

from agprof.analysis.curves import curve
from agprof.analysis.memory_account import MOMENTS
from agprof.analysis.view import View
from agprof.model.figure import Curve
from agprof.model.memory_answers import AllocationRow, MemoryMoment, StepPhase

MAX_POINTS = 1000
MAX_ALLOCATIONS = 40
"""Per rank and moment."""
MAX_TEXT = 500
MAX_FRAMES = 20


def step_curves(view: View) -> tuple[Curve, ...]:
    """Live bytes over the profile step, one curve a rank."""
    curves = []
    for (number,), found in view.tables["memory_curve"].group_by("rank", maintain_order=True):
        rank = int(str(number))
        rows = found.filter(pl.col("step") == found["step"][-1]).sort("time_ns", maintain_order=True)
        begin = _begin(view, rank, int(rows["step"][0]))
        begin = int(rows["time_ns"][0]) if begin is None else begin
        times = [max(0, time_ns - begin) for time_ns in rows["time_ns"].to_list()]
        points = list(zip(times, (float(value) for value in rows["live_bytes"].to_list()), strict=True))
        curves.append(curve(f"rank {rank}", "bytes", points, MAX_POINTS, rank=rank))
    return tuple(made for made in curves if made is not None)


def step_phases(view: View) -> tuple[StepPhase, ...]:
    """Outermost phases of the step that the curves show, of each rank that has one."""
    found = []
    for (number,), rows in view.tables["memory_curve"].group_by("rank", maintain_order=True):
        rank, step = int(str(number)), int(rows["step"][-1])
        begin = _begin(view, rank, step)
        if begin is None:
            continue
        spans = view.tables["spans"].filter(
            (pl.col("rank") == rank) & (pl.col("step") == step) & (pl.col("category") == "phase")
        )
        end = begin
        for name, start_ns, end_ns in spans.sort("start_ns", "depth").select("name", "start_ns", "end_ns").iter_rows():
            if start_ns < end or end_ns <= start_ns:
                continue  # inside the one before
            end = end_ns
            found.append(StepPhase(rank=rank, phase=name[:MAX_TEXT], begin_ns=start_ns - begin, end_ns=end_ns - begin))
    return tuple(sorted(found, key=lambda phase: (phase.rank, phase.begin_ns)))


def _begin(view: View, rank: int, step: int) -> int | None:
    rows = view.steps.filter((pl.col("rank") == rank) & (pl.col("step") == step))
    return int(rows["start_ns"][0]) if rows.height else None


def allocation_rows(view: View, ranks: tuple[int, ...]) -> tuple[AllocationRow, ...]:
    """The largest tensors of `ranks` at the peak, and of all ranks where memory ran out, largest first."""
    table = view.tables["allocations"].filter(pl.col("at").is_in(MOMENTS))
    table = table.filter((pl.col("at") == "oom") | pl.col("rank").is_in(list(ranks)))
    chosen = (
        table.sort("bytes", descending=True, maintain_order=True)
        .group_by("rank", "at", maintain_order=True)
        .head(MAX_ALLOCATIONS)
        .sort("rank", "at", "bytes", descending=[False, False, True], maintain_order=True)
    )
    return tuple(_allocation(row) for row in chosen.iter_rows(named=True))


def _allocation(row: dict[str, object]) -> AllocationRow:
    text = {key: str(row[key])[:MAX_TEXT] for key in ("part", "shape", "dtype", "operation", "module", "phase")}
    frames = str(row["stack"]).split("\n")[:MAX_FRAMES] if row["stack"] else []
    return AllocationRow(
        rank=cast(int, row["rank"]),
        at=cast(MemoryMoment, row["at"]),
        bytes=cast(int, row["bytes"]),
        stack=tuple(frame[:MAX_TEXT] for frame in frames),
        **text,
    )
