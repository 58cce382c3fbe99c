"""Normalised step timelines: which share of ranks is in which phase at which part of a step."""

import numpy as np
import polars as pl

from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.intervals import covered_until, innermost, self_time_until
from agprof.analysis.parts import OWN_PHASES, main_thread_phases, standing_in_collectives
from agprof.model.figure import Curve

POINTS = 100
MOST_STEPS = 50
"""Steady steps that are looked at, evenly spaced."""
_MILLION = 1_000_000

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def overlay(side: ComparedSide) -> tuple[Curve, ...]:
    """One curve per phase over the share of a step (x in millionths): the share of ranks and steps that is in it.

    Over each hundredth of a step its mean; `other` is what is left, so that they add up to 1 everywhere. Of repeats the
    first run. () without steady steps.
    """
    shares = _shares(side.first)
    places = tuple((2 * at + 1) * _MILLION // (2 * POINTS) for at in range(POINTS))
    return tuple(
        Curve(label=name, unit="ratio", x_ns=places, y=tuple(float(value) for value in values.tolist()))
        for name, values in shares.items()
    )


def _shares(run: ComparedRun) -> dict[str, Floats]:
    steps = _chosen(run)
    if not steps.height:
        return {}
    view = run.view
    ranks = steps.select("rank").unique()
    lasts = (steps["start_ns"].min(), steps["end_ns"].max())
    near = {
        name: view.tables[name].join(ranks, on="rank", how="semi") for name in ("spans", "collectives", "waits")
    }  # fmt: skip
    spans = main_thread_phases(near["spans"]).filter((pl.col("end_ns") >= lasts[0]) & (pl.col("start_ns") <= lasts[1]))
    standing = standing_in_collectives(near["collectives"], near["waits"], near["spans"])
    segments = innermost(spans)
    borders = steps.select("rank", *(_border(at).alias(str(at)) for at in range(POINTS + 1)))
    points = borders.unpivot(index="rank", value_name="at_ns").select("rank", "at_ns")
    times = _grid(points["at_ns"], steps.height)
    lengths = np.diff(times, axis=0)

    def share(covered: pl.Series) -> Floats:
        found: Floats = (np.diff(_grid(covered, steps.height), axis=0) / lengths).mean(axis=1)
        return found

    shares = {"communication": share(covered_until(points, standing))}
    for name in OWN_PHASES:
        own = segments.filter(pl.col("name") == name)
        shares[name] = share(self_time_until(points, own, standing))
    shares["other"] = np.clip(1.0 - np.sum(list(shares.values()), axis=0), 0.0, 1.0)
    return shares


def _chosen(run: ComparedRun) -> pl.DataFrame:
    """Steady steps long enough to be divided."""
    steady = run.view.steady.filter(pl.col("duration_ns") >= POINTS)
    numbers = steady.select("step").unique().sort("step")
    stride = max(1, -(-numbers.height // MOST_STEPS))
    return steady.join(numbers.gather_every(stride), on="step", how="semi")


def _border(at: int) -> pl.Expr:
    return pl.col("start_ns") + pl.col("duration_ns") * at // POINTS


def _grid(values: pl.Series, steps: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """One row per border, one column per rank and step."""
    return values.to_numpy().astype(np.int64).reshape(POINTS + 1, steps)
