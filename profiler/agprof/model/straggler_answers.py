"""Answers on stragglers: which rank is slow, when, and what its resources did then."""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Confidence, Figure

Cause = Literal["more work", "data", "CPU taken away", "lower clock", "heat", "memory pressure", "network", "not known"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerRow:
    """One rank over the steady steps."""

    rank: int
    node: int
    host: str | None
    slowest_share: float
    """Share of the steady steps in which its own time was the longest; of two equals nobody's was."""
    own_time: Figure
    """ns a step that it does not wait for others: duration minus skew."""
    excess: Figure
    """ns a step above the median own time of the other ranks."""
    cause: Cause
    evidence: str
    """Figures that speak for the cause: `its CPU share is 61 % against 99 %`."""
    confidence: Confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerAnswer:
    """The section on ranks that others wait for."""

    sentence: str
    steps: tuple[int, ...]
    ranks: tuple[int, ...]
    own_time_ns: tuple[tuple[int | None, ...], ...]
    """[rank][step]: time of the step that the rank did not wait for others; None where it is not known."""
    lost_per_step: Figure
    """ns that the mean rank waits for slower ones."""
    persistent: bool
    """Whether the same rank is slow: its share is beyond what chance gives (binomial, Holm over ranks)."""
    p_value: float | None
    rows: tuple[StragglerRow, ...]
    """The slowest first."""
