"""What `agprof plan` says of a training job before it runs: sizes, FLOPs, memory per rank and what would change them.

`plan.json` of a run folder is a `PlanAnswer` as `dataclasses.asdict` gives it; `model.plan_json` reads it back.
Definitions: docs/plan.md.
"""

from dataclasses import dataclass
from typing import Literal

from agprof.model.memory_answers import Prediction, Space

PLAN_VERSION = 1
"""Version of `plan.json`. Raised when a field changes its meaning or goes away."""

GPU_SIZES_GB = (24, 40, 80, 141)
"""Memory of common GPUs in GB of 10**9 bytes: RTX 3090/4090 and A10 or L4; A100; A100, H100; H200."""

Varied = Literal["as written", "zero_stage", "offload", "lora", "micro_batch", "sequence_length", "checkpointing"]
"""What a row changes against the configuration as written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Parameters of the model, shared ones once."""

    params: int
    trainable_params: int
    frozen_params: int
    by_dtype: tuple[tuple[str, int, int], ...]
    """(element type as the model was built, parameters, of them trainable), largest first."""
    buffer_bytes: int
    largest_layer_params: int
    """Most parameters that one module holds itself: what ZeRO-3 gathers at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroStepPlan:
    """One kind of micro-step, counted on the meta device. FLOPs and bytes are of one such micro-step on one rank."""

    name: str
    per_step: float
    """How many of them an optimizer step has; an expected value where chance decides."""
    by_chance: str
    """Name of the choice that chance makes between this kind and others of the same name; empty when it is fixed."""
    forward_flops: float
    backward_flops: float
    recomputed_flops: float
    activation_bytes: int
    """Highest bytes of tensors made in the micro-step over those that stood before it, gradients of parameters not
    counted."""
    peak_at: str
    """`backward in layers.3.mlp`: the pass and module in which that was; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart:
    """Bytes of one part at the peak, on one rank. Parts have the names of the table `memory_parts`."""

    part: str
    space: Space
    bytes: float
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One configuration: memory per rank and FLOPs per optimizer step of one rank."""

    varied: Varied
    label: str
    """`ZeRO-3, parameters and optimizer on the host`, `micro-batch 2`: what was changed."""
    zero_stage: int
    offload_optimizer: bool
    offload_param: bool
    micro_batch: int | None
    sequence_length: int | None
    """Positions; None where the workload does not say."""
    checkpointing: bool | None
    lora: bool | None
    trainable_params: int
    parts: tuple[PlanPart, ...]
    device_bytes: float
    """Sum of the parts on the device."""
    host_bytes: float
    """Sum of the parts on the host."""
    forward_flops: float
    backward_flops: float
    recomputed_flops: float
    fits_gb: tuple[int, ...]
    """Of `PlanAnswer.gpu_sizes_gb`, those that hold device_bytes and the margin."""
    note: str
    """What does not hold exactly for this row; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """The plan of one workload."""

    version: int
    workload: str
    sentence: str
    basis: Literal["meta", "run"]
    """meta: the model was built and run without data; run: a run's own facts, its activations not scaled."""
    framework: str
    """deepspeed, ddp, fsdp2, horovod ...; empty when the workload does not say."""
    ranks: int
    accumulation: int
    dtype: str
    """Of the computation: fp32, bf16 or fp16."""
    optimizer: str
    model: ModelSize
    micro_steps: tuple[MicroStepPlan, ...]
    """The kinds of micro-step of the configuration as written."""
    as_written: PlanRow
    rows: tuple[PlanRow, ...]
    """Variants, each changing one thing of `as_written`."""
    gpu_sizes_gb: tuple[int, ...]
    margin_context_bytes: int
    """Modelled: what the CUDA context and the communication library take of a GPU before the first tensor."""
    margin_fragmentation_ratio: float
    """Modelled: share of the tensors' bytes that the allocator holds in addition."""
    margin_method: str
    notes: tuple[str, ...]
    """What was assumed and what could not be varied, in sentences."""
    run: str
    """Folder name of the measured run beside which the plan stands; empty without one."""
    predictions: tuple[Prediction, ...]
    """Prediction beside what that run measured."""
