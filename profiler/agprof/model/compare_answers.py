"""What `agprof compare` says: runs beside one another, and the difference explained. `compare.json` is this.

A candidate is compared with the baseline. A side is one run or a group of repeats of the same setup.
"""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Curve, Figure

COMPARE_VERSION = 1
Comparable = Literal["comparable", "with reservations", "not comparable"]
Weight = Literal["breaks", "matters", "expected", "harmless"]
"""breaks: the runs do not do the same work; matters: a cause of differences that was perhaps not meant; expected: what
the comparison is about (nodes, framework); harmless: paths, names, times."""
Test = Literal["permutation over repeats", "block bootstrap over steps", "none"]
Quantity = Literal["step time", "memory peak", "energy per step"]
Direction = Literal["lower is better", "higher is better", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One column."""

    label: str
    runs: tuple[str, ...]
    """Names of its run folders; more than one: repeats."""
    ranks: int
    nodes: int
    hosts: tuple[str, ...]
    framework: str | None
    steady_steps: int
    status: str
    """Of its runs: `ended well`, `2 of 3 ended well`."""
    setup: str | None
    problems: tuple[str, ...]
    """`3 of 4 ranks are there`: what makes its figures doubtful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationRow:
    """A key that is not the same everywhere: configuration, environment, versions, hardware."""

    key: str
    values: tuple[str | None, ...]
    """One per side; None: the side has no such key."""
    weight: Weight
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Candidate against baseline."""

    absolute: Figure
    """In the figure's unit."""
    relative: Figure
    """ratio: 0.05 is 5 % more; low and high are a 95 % interval."""
    p_value: float | None
    """Holm-corrected over all rows; None where nothing was tested."""
    test: Test
    verdict: Literal["better", "worse", "no change shown", "not tested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KpiRow:
    """One quantity of all sides."""

    key: str
    """As gates name it: step_time, memory.peak, throughput.tokens ..."""
    label: str
    direction: Direction
    values: tuple[Figure, ...]
    """One per side."""
    changes: tuple[Change | None, ...]
    """One per side; None at the baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallPart:
    """One step of the way from the baseline's value to the candidate's."""

    key: str
    """compute.forward, communication.bytes, communication.bandwidth, communication.latency, communication.skew, data,
    optimizer, host, other ..."""
    label: str
    group: str
    """compute | communication | data | optimizer | other: parts of one colour."""
    baseline: float
    candidate: float
    change: float
    """candidate - baseline, exactly."""
    evidence: str
    """`24 calls of 4.2 MB at 118 MB/s against 1.9 GB/s`"""
    method: str
    """measured, or how a split was modelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """The difference explained: the parts' changes add up to the difference of the totals, to the last digit shown."""

    quantity: Quantity
    unit: str
    side: int
    """Index of the candidate."""
    baseline: float
    candidate: float
    parts: tuple[WaterfallPart, ...]
    sentence: str
    note: str
    """What the totals are: `mean over ranks and steady steps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedRow:
    """A module, collective, kernel or range that moved."""

    kind: Literal["module", "collective", "kernel", "range", "phase"]
    name: str
    side: int
    baseline: float | None
    candidate: float | None
    change: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPoint:
    """One side as a point over the number of ranks."""

    side: int
    ranks: int
    nodes: int
    throughput: Figure
    """samples/s or tokens/s."""
    efficiency: Figure
    """Throughput per rank over that of the smallest side; of strong scaling T(1) / (n T(n))."""
    step_time: Figure
    exposed: Figure
    energy_per_token: Figure
    cost: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingAnswer:
    """How it scales; only where the sides differ in ranks."""

    sentence: str
    kind: Literal["weak", "strong", "neither"]
    """weak: the same batch per rank; strong: the same batch over all."""
    points: tuple[ScalingPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastRow:
    """Predicted step time of a setup that was not run, or was, to check the model."""

    label: str
    ranks: int
    nodes: int
    link: str
    predicted: Figure
    measured: Figure | None
    """Where a side has this setup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastAnswer:
    """Step time of other setups, from compute time and the alpha-beta fit."""

    sentence: str
    basis: str
    """Which side and which ceiling."""
    rows: tuple[ForecastRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One condition of a gate."""

    condition: str
    """As given: `step_time<=+5%`."""
    passed: bool | None
    """None: the quantity was not measured on both sides."""
    found: str
    """`+3.1 % [+1.0, +5.2]`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAnswer:
    """Everything that the comparison page draws."""

    version: int
    agprof_version: str
    sentence: str
    comparable: Comparable
    reasons: tuple[str, ...]
    """Why not, or which reservations."""
    baseline: int
    """Index of the side that the others are compared with."""
    sides: tuple[Side, ...]
    configuration: tuple[ConfigurationRow, ...]
    kpis: tuple[KpiRow, ...]
    waterfalls: tuple[Waterfall, ...]
    moved: tuple[MovedRow, ...]
    scaling: ScalingAnswer | None
    forecast: ForecastAnswer | None
    overlays: tuple[tuple[Curve, ...], ...]
    """One tuple per side: curves over the share of a step (x in millionths), `forward`, `communication` ... as the
    share of ranks in that phase."""
    gates: tuple[GateRow, ...]
    methods: tuple[tuple[str, str], ...]
