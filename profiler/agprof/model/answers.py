"""The answers of a run: what `analysis` returns, `report.json` holds and the HTML report draws.

Every value is frozen plain data. Field names carry units; a figure carries unit, source, n and spread, and a figure
that was not measured has value None and the reason. `report.json` is `RunAnswers` field by field; its keys are
documented in docs/report-json.md and change only with ANSWERS_VERSION.
"""

from dataclasses import dataclass
from typing import Literal

from agprof.model.clock_answers import ClockAnswer
from agprof.model.comm_answers import (
    ArrivalRow,
    CeilingRow,
    GroupRow,
    OverlapAnswer,
    SizeBin,
    TalkMatrix,
)
from agprof.model.compute_answers import ComputeAnswer
from agprof.model.energy_answers import EnergyAnswer
from agprof.model.figure import Confidence, Figure, Kpi
from agprof.model.memory_answers import MemoryAnswer
from agprof.model.straggler_answers import StragglerAnswer
from agprof.model.system_answers import SystemAnswer
from agprof.model.trace_answers import TraceAnswer

ANSWERS_VERSION = 1

Phase = Literal["data", "forward", "backward", "communication", "optimizer", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What ran, where, how it ended."""

    name: str
    run_id: str
    """Name of the run folder."""
    description: str
    started_realtime_ns: int | None
    duration_ns: int | None
    world_size: int | None
    nodes: int | None
    framework: str | None
    """deepspeed, ddp, fsdp, plain; with the ZeRO stage where there is one: `DeepSpeed ZeRO-2`."""
    device: str | None
    """`CPU` or the GPU's product name."""
    dtype: str | None
    status: Literal["finished", "failed", "killed", "interrupted", "running", "imported", "unknown"]
    status_sentence: str
    """`finished, 20 steps on 2 ranks` or `rank 1 ended at step 41: killed (SIGKILL)`."""
    kind: Literal["training", "command"] = "training"
    """command: under `agprof monitor`, sampled with no instrument in it; it has no ranks and no steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the run is bound by."""

    bound_by: Literal[
        "data", "forward", "backward", "communication", "optimizer", "other", "straggler", "unknown",
        "compute", "copies", "launch", "kernel wait", "synchronisation",
    ]  # fmt: skip
    """The last five only of imported runs, which are judged by their device's time: see docs/trace-analysis.md."""
    headline: str
    """One sentence with figures."""
    evidence: tuple[str, ...]
    confidence: Confidence
    confidence_sentence: str
    next_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An opportunity or a fault, with evidence."""

    key: str
    title: str
    evidence: str
    section: str
    """Anchor of the proof's section: time, communication, compute, memory, oom, system, ranks, quality, trace."""
    saving_ns_per_step: Figure | None
    """None when it is not about time."""
    confidence: Confidence
    change: str
    """What to change: the very key of the workload file or DeepSpeed JSON."""
    check: str
    """How to see that it worked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPhases:
    """Mean time per steady step and phase of one rank. The parts add up to `step_ns` exactly (before rounding)."""

    rank: int
    steps: int
    step_ns: float
    parts_ns: dict[str, float]
    """Every phase of `Phase` -> mean ns per step, self time: communication is cut out of the phase around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One optimizer step of one rank; the parts add up to duration_ns exactly."""

    rank: int
    step: int
    start_ns: int
    """Since the run's first step began (host clock)."""
    duration_ns: int
    kind: Literal["warm-up", "steady", "profiled", "incomplete"]
    """Only steady steps count in statistics; incomplete: other ranks have no such step (one died, or is missing)."""
    loss: float | None
    parts_ns: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSpan:
    """One bar of the time line of a window of steps."""

    rank: int
    lane: Literal["phase", "communication", "range"]
    name: str
    start_ns: int
    """Since the window began."""
    duration_ns: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseLine:
    """The phases of one rank over the run, one after another: what it did at a moment. Outermost phases only."""

    rank: int
    names: tuple[str, ...]
    phase: tuple[int, ...]
    """Index into `names`."""
    start_ns: tuple[int, ...]
    """Since the run's first step began."""
    duration_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAnswer:
    """Where a step's time goes."""

    sentence: str
    step_time: Figure
    """Median over steady steps of the slowest rank's step, with interval."""
    warmup_steps: int
    warmup_rule: str
    steady_steps: int
    profiled_steps: tuple[int, ...]
    ranks: tuple[RankPhases, ...]
    steps: tuple[StepRow, ...]
    timeline_steps: tuple[int, int] | None
    timeline: tuple[TimelineSpan, ...]
    timeline_note: str = ""
    """What the time line leaves out: `shows the first 8 of 64 ranks`; empty when nothing."""
    ranges: tuple["RangeRow", ...]
    phase_line: PhaseLine | None = None
    """Of the lowest rank, for hovers; None where there are none, or too many to carry (long runs)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeRow:
    """The user's own ranges, summed per name over ranks and steady steps."""

    name: str
    calls_per_step: float
    ns_per_step: float
    """Mean per rank and step, children included."""
    share: float
    """Of the mean step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRow:
    """Collectives of one kind, group and size, over steady steps, per rank."""

    op: str
    group: str
    group_size: int
    dtype: str | None
    caller: str
    calls_per_step: float
    bytes_per_call: Figure
    bytes_per_step: float | None
    exposed_ns_per_step: float
    """Mean per rank: time in which the caller stood in it."""
    total_ns_per_step: float
    """Mean per rank: from entry to completion."""
    share: float
    """Exposed time over the mean step."""
    algorithm_bandwidth: Figure
    """S / t, t the shortest duration over the ranks of matching calls where they can be matched, else the median."""
    bus_bandwidth: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenRow:
    """Collectives that torch's flight recorder saw and our taps did not."""

    rank: int
    group: str
    op: str
    recorded: int
    seen: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicationAnswer:
    sentence: str
    calls_per_step: Figure
    bytes_per_step: Figure
    exposed_per_step: Figure
    exposed_share: Figure
    total_per_step: Figure
    rows: tuple[CollectiveRow, ...]
    unseen: tuple[UnseenRow, ...]
    ledger_sentence: str
    """`The flight recorder confirms all 240 collectives.` or what is unseen, or why there is no ledger."""
    overlap: OverlapAnswer | None = None
    sizes: tuple[SizeBin, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    matrix: TalkMatrix | None = None
    ceilings: tuple[CeilingRow, ...] = ()
    arrivals: tuple[ArrivalRow, ...] = ()
    ceilings_sentence: str = ""
    """What the ceilings say, or why there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRow:
    rank: int
    node: int | None
    host: str | None
    pid: int | None
    device: str | None
    steps: int
    step_time: Figure
    ended: str
    """`clean`, `exit code 3`, `killed (SIGKILL)`, `no end record`."""
    last_step: int | None
    last_phase: str | None
    faults: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How complete the data is, and what agprof itself cost."""

    sentence: str
    ranks_expected: int | None
    ranks_present: int
    problems: tuple[str, ...]
    """Whole sentences: missing ranks, torn streams, gaps, lost rows, instruments' faults, unseen collectives."""
    cost: tuple[Kpi, ...]
    notes: tuple[str, ...]


RlhfGroup = Literal[
    "generate", "score", "train actor", "train critic", "train unsupervised", "train", "EMA", "data", "other"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfPart:
    """One part of an RLHF iteration; means per rank and steady iteration. All parts add up to the iteration."""

    name: str
    """The range: generate, score/actor, score/reference, score/reward, score/critic, train/actor, train/critic,
    train/unsupervised, ema, data; `other` is what no range covers. Engines whose role is not known have numbers."""
    group: RlhfGroup
    ns_per_iteration: float
    share: float
    """Of the iteration."""
    calls_per_iteration: float
    memory_peak: Figure
    """Highest at the borders of phases inside the part: live tensors of the allocator on a GPU, resident set on a
    CPU."""
    collectives_per_iteration: float
    """Collectives issued inside the part."""
    communication_bytes_per_iteration: float | None
    communication_ns_per_iteration: float
    """Time in which the caller stood in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfRank:
    """Mean steady iteration of one rank. The parts add up to `iteration_ns` exactly (before rounding)."""

    rank: int
    iterations: int
    iteration_ns: float
    parts_ns: dict[str, float]
    """Every part's name -> mean ns per iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfGeneration:
    """What `generate` delivers, over steady iterations."""

    tokens_per_second: Figure
    """All ranks; positions after a sequence's end marker count."""
    latency_per_token: Figure
    """Time of a call over the tokens that it adds to each sequence."""
    batch: Figure
    """Sequences of one call."""
    prompt_tokens: Figure
    new_tokens: Figure
    """Per sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfMetric:
    """One of the metrics that DeepSpeed-Chat prints in stage 3."""

    key: str
    label: str
    upstream: Figure
    """By upstream's formula."""
    corrected: Figure
    flaws: tuple[int, ...]
    """Flaws (by `number`) for which the two may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfFlaw:
    """A flaw in the formulas of DeepSpeed-Chat's printed metrics."""

    number: int
    title: str
    explanation: str
    applies: bool
    """Whether it changes a figure of this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfAnswer:
    """Where an iteration of reinforcement learning from human feedback goes."""

    sentence: str
    iteration_time: Figure
    """Median over steady iterations of the slowest rank's iteration, with interval."""
    iterations: int
    steady_iterations: int
    parts: tuple[RlhfPart, ...]
    ranks: tuple[RlhfRank, ...]
    generation: RlhfGeneration
    metrics: tuple[RlhfMetric, ...]
    flaws: tuple[RlhfFlaw, ...]
    notes: tuple[str, ...]
    """Whole sentences: what an iteration is here, what the metrics could not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAnswers:
    """All answers of one run."""

    version: int
    agprof_version: str
    identity: Identity
    verdict: Verdict
    findings: tuple[Finding, ...]
    kpis: tuple[Kpi, ...]
    time: TimeAnswer
    communication: CommunicationAnswer
    compute: ComputeAnswer
    memory: MemoryAnswer
    system: SystemAnswer
    ranks: tuple[RankRow, ...]
    configuration: tuple[tuple[str, str], ...]
    """Key and value, in order: command, workload, framework's settings, environment allow-list, versions."""
    quality: Quality
    methods: tuple[tuple[str, str], ...]
    """Term and how it is measured."""
    rlhf: RlhfAnswer | None = None
    """None when the run is no RLHF: nothing was generated, or nothing was trained on what was."""
    trace: TraceAnswer | None = None
    """None when the run holds no device trace."""
    clocks: ClockAnswer | None = None
    """None with one node."""
    stragglers: StragglerAnswer | None = None
    """None with one rank, or without a common collective."""
    energy: EnergyAnswer | None = None
    """None when no GPU was seen and no RAPL could be read."""
