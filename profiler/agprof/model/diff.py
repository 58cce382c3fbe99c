"""What changed between two sets of device traces: the answer of `agprof diff`. Definitions: docs/diff.md."""

from dataclasses import dataclass
from typing import Literal

RowKind = Literal["compute", "communication", "memcpy", "memset", "operator"]
RowState = Literal["appeared", "vanished", "changed", "same"]
Per = Literal["step", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRow:
    """A kernel (copy, memset) or an operator on both sides. Counts and sums are whole; `change_*` are per unit."""

    kind: RowKind
    state: RowState
    name: str
    """In the first where it is there, else in the second."""
    similar_name: str | None
    """In the second, where the two were matched by likeness and not by name."""
    count_a: int
    count_b: int
    sum_a_ns: int
    sum_b_ns: int
    change_count: float
    change_ns: float
    """sum_b_ns / units_b - sum_a_ns / units_a."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffSide:
    """One of the two."""

    label: str
    ranks: int
    steps: int
    """Over all ranks; 0 where the trace marks none."""
    units: int
    """What sums are divided by: steps over all ranks, or ranks."""
    step_ns: float | None
    """Mean time of a step; None where whole traces are compared."""
    device_ns: int
    """Sum of all device activities; that of the rows' sums."""
    operator_ns: int
    """Sum of the operators' own time on the host; that of the rows' sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceDiff:
    """Two sets of traces, compared. The changes of all rows add up to the difference of the totals per unit."""

    a: DiffSide
    b: DiffSide
    per: Per
    """step: sums are per step and rank; rank: of whole traces, per rank, because a side has no steps."""
    sentence: str
    operator_sentence: str
    device: tuple[DiffRow, ...]
    """By absolute change of time, largest first."""
    operators: tuple[DiffRow, ...]
