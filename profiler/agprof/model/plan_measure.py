"""What the planning process counts on the meta device, and hands to the command as lines of JSON.

One `Scenario` is one way to build the job: as its workload is written, or with one thing changed.
"""

from dataclasses import dataclass
from typing import Literal

from agprof.model.plan_answers import ModelSize, Varied

PlannedDevice = Literal["gpu", "cpu"]
"""What the job is planned for: it decides which attention and dropout kernels hold what."""
Change = Literal["micro_batch", "sequence_length", "checkpointing", "lora"]
"""What a model function can be asked to change."""
OptimizerKernel = Literal["fused", "torch"]
"""fused: updates in place (DeepSpeed's Adam); torch: torch.optim, which makes temporary copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How the model is trained, as its function says. Counts are per rank."""

    framework: str
    """deepspeed, ddp, fsdp2 or plain; horovod holds what plain does."""
    ranks: int
    zero_stage: int
    offload_optimizer: bool
    offload_param: bool
    accumulation: int
    dtype: str
    """Element type of the parameters as they are trained, as `bfloat16`."""
    optimizer: str
    """adam, adamw or sgd: what it keeps per trained element."""
    optimizer_kernel: OptimizerKernel
    bucket_elements: int
    """DeepSpeed's reduce_bucket_size."""
    micro_batch: int | None
    sequence_length: int | None
    checkpointing: bool | None
    lora: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKind:
    """One kind of micro-step, run once on tensors without data."""

    name: str
    per_step: float
    by_chance: str
    forward_flops: float
    backward_flops: float
    recomputed_flops: float
    activation_bytes: int
    """Highest bytes over what stood before, parameters' gradients not counted."""
    activation_and_gradient_bytes: int
    """Highest bytes over what stood before, when it stood without gradients."""
    input_bytes: int
    """What the micro-step read and nobody made or owns as parameter or buffer: its batch."""
    peak_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One way to build the job, counted."""

    varied: Varied
    label: str
    job: Job
    size: ModelSize
    update_copies: int
    """Elements of the copies that torch's Adam has at once where it updates one trained parameter after the other."""
    small_params: int
    """Elements of parameters that ZeRO-3 keeps whole: those of up to 100,000 elements."""
    group_params: int = 0
    """Elements that FSDP2 gathers at once where each block of the model is a group: what is in no block stays whole
    in forward and backward, and one block beside it."""
    kinds: tuple[MeasuredKind, ...]
    seconds: float
    """What building and counting took."""
