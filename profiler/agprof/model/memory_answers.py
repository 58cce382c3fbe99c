"""The answers about memory: the account that closes, the ZeRO formulas beside it, plan against measurement, OOM.

Part of `RunAnswers`. Definitions: docs/memory.md.
"""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Curve, Figure, Source

MemoryMoment = Literal["standing", "peak", "generation", "oom"]
"""standing: between steps; peak: the highest of the profile step; generation: the highest of a `generate` in it; oom:
when memory ran out."""
Space = Literal["device", "host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    rank: int
    peak: Figure
    """Highest of what was seen: allocator on a GPU, resident set on a CPU."""
    peak_at: str
    """Phase border nearest the peak, as `the end of forward in step 3`."""
    standing_bytes: float | None
    """Median at the end of steady steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPart:
    """One part of an account."""

    part: str
    """parameters, gradients, optimizer_states, master_weights, activations, temporary, buckets, buffers, kv_cache,
    inputs, context, fragmentation, unexplained: in the order in which they are drawn."""
    bytes: float
    share: float | None
    """Of the total."""
    source: Source
    method: str
    details: tuple[tuple[str, float], ...]
    """What it is made of, in bytes: (`trainable`, ...), (`frozen`, ...); empty when it is one thing."""
    formula_bytes: float | None
    """What the formula of this run's ZeRO stage says of it; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAccount:
    """What held a rank's memory at one moment. The parts, `unexplained` included, add up to `total` exactly."""

    rank: int
    step: int
    at: MemoryMoment
    space: Space
    total: Figure
    """Measured on its own, not as the sum of the parts."""
    parts: tuple[MemoryPart, ...]
    unexplained_bytes: float
    """total - parts; negative when the parts say more than was measured."""
    held_by: str
    """`backward of step 4, in llama_model.layers.3.mlp`; empty when not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroRow:
    """What a rank holds between and within steps under one ZeRO stage, by formula. Bytes."""

    stage: int
    offload_optimizer: bool
    offload_param: bool
    is_this_run: bool
    parameters: float
    gradients: float
    """At their highest, within a step."""
    master_weights: float
    optimizer_states: float
    device_total: float
    host_total: float
    deepspeed_device: float | None
    """What DeepSpeed's own estimator says; None where it has none (stages 0 and 1)."""
    deepspeed_host: float | None
    method: str
    """The formula with this run's numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRow:
    """One of the largest tensors alive at a moment."""

    rank: int
    at: MemoryMoment
    part: str
    bytes: int
    shape: str
    dtype: str
    operation: str
    module: str
    phase: str
    stack: tuple[str, ...]
    """Python frames, outermost first: `file:line function`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A figure of `agprof plan` beside what the run measured."""

    label: str
    unit: str
    predicted: float
    measured: float | None
    ratio: float | None
    """predicted / measured."""
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OomAnswer:
    """The run ran out of memory."""

    sentence: str
    rank: int | None
    space: Space
    error: str
    """The error's own text, or what the kernel recorded."""
    step: int | None
    phase: str
    module: str
    wanted_bytes: int | None
    """What could not be allocated."""
    limit_bytes: int | None
    """The device's memory, or the cgroup's or host's limit."""
    account: MemoryAccount | None
    allocations: tuple[AllocationRow, ...]
    would_fit: tuple[tuple[str, str], ...]
    """(change, what it gives): `zero-stage: 2`, `frees 3.1 GiB: would fit`."""
    certainty: Literal["known", "likely"] = "known"
    """known: an error or the kernel's counter says so; likely: SIGKILL while memory was nearly full."""
    caught: int = 0
    """How often the training caught such an error and went on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPhase:
    """A stretch of the profile step of one rank in which one phase was in progress."""

    rank: int
    phase: str
    begin_ns: int
    """Since the step's begin, as x of `MemoryAnswer.step_curves`."""
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAnswer:
    """How high each rank went, what held it, and what the formulas say."""

    sentence: str
    kind: Literal["device", "host"]
    peak: Figure
    ranks: tuple[RankMemory, ...]
    curves: tuple[Curve, ...]
    accounts: tuple[MemoryAccount, ...]
    account_hint: str
    """Why there is no account; empty when there is one."""
    step_curves: tuple[Curve, ...]
    """Bytes of live tensors over the profile step, per rank; x counts from the step's begin."""
    zero: tuple[ZeroRow, ...]
    """Stages 0-3 without and with offload, for this run's parameters, element types and world size."""
    zero_sentence: str
    allocations: tuple[AllocationRow, ...]
    predictions: tuple[Prediction, ...]
    step_phases: tuple[StepPhase, ...] = ()
    """Phases behind `step_curves`, in order of rank and time; empty when not known."""
    oom: OomAnswer | None = None
    """None when memory did not run out."""
