"""Which step and phase lie at a moment of the run: what hovers over the run's charts say beside the time."""

import math

from agprof.model.answers import StepRow, TimeAnswer
from agprof_reports.charts.pieces import WORDS
from agprof_reports.data import Spec

TICKS_PER_S = 10_000
_MOST_STEPS = 4_000
"""Stretches of steps that the page carries; in longer runs each holds several steps."""


def moments(time: TimeAnswer) -> Spec | None:
    """Steps of the lowest rank and its phases; whole numbers of 0.1 ms, begins as distances to the one before.

    assets/moments.js reads it back.
    """
    if not time.steps:
        return None
    rank = min(row.rank for row in time.steps)
    rows = sorted((row for row in time.steps if row.rank == rank), key=lambda row: row.start_ns)
    size = math.ceil(len(rows) / _MOST_STEPS)
    stretches = [rows[at : at + size] for at in range(0, len(rows), size)]
    line = time.phase_line if time.phase_line is not None and time.phase_line.rank == rank else None
    return {
        "rank": rank,
        "steps": {
            "first": [stretch[0].step for stretch in stretches],
            "last": [stretch[-1].step for stretch in stretches],
            "at": _distances([stretch[0].start_ns for stretch in stretches]),
            "long": [_ticks(_end(stretch[-1]) - stretch[0].start_ns) for stretch in stretches],
        },
        "phases": {
            "names": [WORDS.get(name, name) for name in line.names],
            "name": list(line.phase),
            "at": _distances(line.start_ns),
            "long": [_ticks(ns) for ns in line.duration_ns],
        }
        if line is not None
        else None,
    }


def _end(row: StepRow) -> int:
    return row.start_ns + row.duration_ns


def _ticks(ns: int) -> int:
    return ns * TICKS_PER_S // 1_000_000_000


def _distances(times_ns: list[int] | tuple[int, ...]) -> list[int]:
    ticks = [_ticks(ns) for ns in times_ns]
    return [tick - before for tick, before in zip(ticks, [0, *ticks], strict=False)]
