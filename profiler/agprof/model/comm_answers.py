"""Answers on communication beyond the table of collectives: sizes, groups, ceilings, overlap, who came last."""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Figure

Parallelism = Literal["data", "tensor", "pipeline", "all", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeBin:
    """Messages of one operation within a factor of two of size."""

    op: str
    low_bytes: int
    high_bytes: int
    """Half open: low <= S < high."""
    calls_per_step: float
    bytes_per_step: float
    exposed_ns_per_step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One process group."""

    group: str
    ranks: tuple[int, ...]
    nodes: int
    kind: Parallelism
    evidence: str
    """Why it is taken for that kind."""
    bytes_per_step: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkMatrix:
    """Bytes that each pair of ranks has to pass in a step, by the ring (or the direct way of point-to-point and
    all-to-all) of each collective: a model, said so."""

    ranks: tuple[int, ...]
    bytes_per_step: tuple[tuple[float, ...], ...]
    """[source][target]."""
    between_nodes: float
    """Of all bytes, the share that leaves its node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CeilingRow:
    """A kind of collective against what the same link was measured to do."""

    op: str
    group: str
    group_size: int
    bytes: int
    measured: Figure
    """Transfer time of a call, ns."""
    predicted: Figure
    """alpha + beta S of the ceiling's curve, with its error."""
    reached: Figure
    """Predicted over measured: 1 is the ceiling."""
    far_below: bool
    saving_ns_per_step: float
    """If it reached the ceiling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRow:
    """How a rank comes to the collectives of its groups, over steady steps."""

    rank: int
    node: int
    last: int
    """Collectives to which it came last."""
    first: int
    matched: int
    lateness: Figure
    """ns behind the first arrival, median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapAnswer:
    """Communication in flight, by what the same rank did meanwhile: exposed + overlapped = in flight."""

    in_flight: Figure
    """ns per rank and step: |union of communication|."""
    exposed: Figure
    """|communication minus compute|."""
    overlapped: Figure
    issue: Figure
    """ns per rank and step in which the host issued calls."""
    transfer: Figure
    """ns per step of the shortest durations over the ranks."""
    skew: Figure
    """ns per step that ranks waited for the last one."""
