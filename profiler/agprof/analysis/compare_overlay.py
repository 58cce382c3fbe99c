"""Normalised step timelines: which share of ranks is in which phase at which part of a step."""

import numpy as np
import polars as pl

from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.intervals import innermost
from agprof.analysis.parts import OWN_PHASES, main_thread_phases, standing_in_collectives
from agprof.model.figure import Curve

POINTS = 100
MOST_STEPS = 100
"""Steady steps that are looked at, evenly spaced."""
_MILLION = 1_000_000
_LANES = ("communication", *OWN_PHASES)

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def overlay(side: ComparedSide) -> tuple[Curve, ...]:
    """One curve per phase over the share of a step (x in millionths): the share of ranks and steps that is in it.

    `other` is what is left, so that they add up to 1 everywhere. Of repeats the first run. () without steady steps.
    """
    counts, total = _counts(side.first)
    if not total:
        return ()
    places = tuple((2 * at + 1) * _MILLION // (2 * POINTS) for at in range(POINTS))
    rest: Ints = total - np.sum(list(counts.values()), axis=0)
    return tuple(
        Curve(label=name, unit="ratio", x_ns=places, y=tuple(float(value) / total for value in values.tolist()))
        for name, values in (*counts.items(), ("other", rest))
    )


def _counts(run: ComparedRun) -> tuple[dict[str, Ints], int]:
    """How many (rank, step) are in each phase at each place; how many there are."""
    view = run.view
    counts: dict[str, Ints] = {name: np.zeros(POINTS, dtype=np.int64) for name in _LANES}
    steady = view.steady
    numbers = steady["step"].unique().sort()
    steps = steady.join(numbers.gather_every(max(1, -(-len(numbers) // MOST_STEPS))).to_frame(), on="step", how="semi")
    if not steps.height:
        return counts, 0
    chosen = pl.DataFrame({"rank": steps["rank"], "step": steps["step"]})
    near = {
        name: view.tables[name].join(chosen, on=["rank", "step"], how="semi")
        for name in ("spans", "collectives", "waits")
    }
    standing = standing_in_collectives(near["collectives"], near["waits"])
    segments = innermost(main_thread_phases(near["spans"]))
    for (rank,), rows in steps.group_by("rank", maintain_order=True):
        places = _places(rows)
        stood = _inside(places, standing.filter(pl.col("rank") == rank))
        counts["communication"] += stood.sum(axis=0)
        own = segments.filter(pl.col("rank") == rank)
        for name in OWN_PHASES:
            counts[name] += (_inside(places, own.filter(pl.col("name") == name)) & ~stood).sum(axis=0)
    return counts, steps.height


def _places(steps: pl.DataFrame) -> Ints:
    """Times in the middle of each hundredth of each step: one row per step."""
    starts, durations = (steps[name].to_numpy().astype(np.int64) for name in ("start_ns", "duration_ns"))
    middles = 2 * np.arange(POINTS, dtype=np.int64) + 1
    found: Ints = starts[:, None] + (durations[:, None] * middles) // (2 * POINTS)
    return found


def _inside(times: Ints, disjoint: pl.DataFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which times lie in one of some disjoint intervals."""
    if not disjoint.height:
        return np.zeros(times.shape, dtype=np.bool_)
    ordered = disjoint.sort("start_ns")
    starts, ends = (ordered[name].to_numpy() for name in ("start_ns", "end_ns"))
    at = np.searchsorted(starts, times, side="right") - 1
    found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (at >= 0) & (times < ends[np.maximum(at, 0)])
    return found
