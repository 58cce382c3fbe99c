"""How the nodes' clocks were brought onto one axis, and how sure that is."""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Figure

ClockMethod = Literal["pings", "wall clocks", "one node"]
ClockState = Literal["reconciled", "doubtful", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockPoint:
    """One exchange with the reference node, or the best of a burst."""

    time_ns: int
    """Since the run's origin."""
    residual_ns: int
    """Measured offset minus that of the line."""
    uncertainty_ns: int
    """Half of the exchange's round trip: the offset can't be farther off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClock:
    """One node's monotonic clock against that of the reference node: reference = offset + (1 + drift) local."""

    node: int
    host: str | None
    method: ClockMethod
    offset: Figure
    """ns, at the run's origin, with its bounds."""
    drift: Figure
    """Parts of 1 (2e-4 is 200 ppm)."""
    uncertainty_ns: int | None
    """Largest distance of the line from the truth within the run; None: not known (wall clocks)."""
    points: tuple[ClockPoint, ...]
    wall_clock_steps: int
    """Times that the node's wall clock was set while the run went on, by more than 1 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockConflict:
    """A collective that contradicts the clocks: a rank left before the last one entered."""

    op: str
    group: str
    step: int
    early_rank: int
    late_rank: int
    by_ns: int
    """How much earlier it left than the other entered, beyond both nodes' uncertainty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockAnswer:
    """All nodes' clocks."""

    sentence: str
    state: ClockState
    """refused: times of different nodes are not compared anywhere; those within a node are."""
    reference: int | None
    nodes: tuple[NodeClock, ...]
    checked: int
    """Collectives over more than one node that were held against the clocks."""
    conflicts: tuple[ClockConflict, ...]
    """The worst ones."""
