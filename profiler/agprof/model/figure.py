"""One figure with everything needed to trust it, and a curve: what all answers are made of."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "counted", "modelled", "declared"]
Confidence = Literal["measured", "modelled", "rule of thumb"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure with everything needed to trust it."""

    value: float | None
    unit: str
    """Base unit: ns, bytes, 1, FLOP, FLOP/s, bytes/s, samples/s, tokens/s, ratio, cores, W, J, °C, Hz."""
    source: Source
    n: int
    """Observations behind it."""
    low: float | None = None
    """Lower end of the interval named in `method`."""
    high: float | None = None
    method: str = ""
    """Formula, API and kind of interval, in one line."""
    reason: str | None = None
    """Why the value is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpi:
    """A figure for the row of cards: key (stable), label, figure, one short line under it."""

    key: str
    label: str
    figure: Figure
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve over time; x in ns since the run's first step began; y None where there is a gap."""

    label: str
    unit: str
    x_ns: tuple[int, ...]
    y: tuple[float | None, ...]
    rank: int | None = None
    node: int | None = None
    gpu: int | None = None
    """NVML index of the GPU on its node."""
