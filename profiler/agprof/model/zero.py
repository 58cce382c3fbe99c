"""What a rank's model states take, by formula: the ZeRO paper's figure, and what the frameworks really hold.

Model states are parameters, gradients, master weights (fp32 copies that the optimizer updates) and optimizer states.
`paper_memory` is Rajbhandari et al. 2020 (arXiv 1910.02054), sections 3 and 5: with psi parameters in 16 bits and Adam
2 + 2 + 12 bytes each, of which stage 1 divides the optimizer's 12 by the ranks, stage 2 also the gradients' 2, stage 3
also the parameters' 2; offload as in ZeRO-Offload (Ren et al. 2021, arXiv 2101.06840), figure 3.

`held_memory` is what DeepSpeed 0.19.8, DDP and FSDP2 allocate, read in their sources (the places are named below).
They differ from the paper where it matters: a second fp32 copy in fp32 training, fp32 gradients beside 16-bit ones
in the optimizer's update, whole small parameters in stage 3, host buffers of offload. Padding for alignment (a few
elements per parameter group) is left out. All figures are bytes on one rank; elements are counted whole.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

Framework = Literal["deepspeed", "ddp", "fsdp2", "plain"]
Moment = Literal["standing", "backward", "update"]
"""standing: between steps; backward: at the end of the last backward pass; update: in the optimizer's update."""

STAGES = (0, 1, 2, 3)
FP32 = 4
ADAM_STATES = 2
"""Adam keeps two values per trained element, exp_avg and exp_avg_sq."""
REUSE_DISTANCE = 1_000_000_000
"""DeepSpeed's `stage3_max_reuse_distance` and `stage3_max_live_parameters`: elements that stage 3 leaves gathered."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's `sub_group_size`: elements that stage 3 updates at a time."""

PARTS = ("parameters", "gradients", "master_weights", "optimizer_states", "buckets", "buffers")
"""In the words of the table `memory_parts`."""
MODEL_STATES = PARTS[:4]

ELEMENT_BYTES: dict[str, float] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1,
    "uint8": 1, "int4": 0.5, "nf4": 0.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStates:
    """What is trained and how it is spread: the input of every formula here. Counts are elements of the whole model."""

    trainable: int
    frozen: int = 0
    stage: int = 0
    """ZeRO's, 0-3. DDP and plain training are 0, FSDP2 shards as 3 does."""
    ranks: int = 1
    """Over which it is divided: the data-parallel world."""
    framework: Framework = "deepspeed"
    offload_optimizer: bool = False
    """DeepSpeed's, to the host: stages 1-3. In stage 0 DeepSpeed accepts the key and moves nothing."""
    offload_param: bool = False
    """DeepSpeed's, to the host: stage 3."""
    parameter_bytes: float = 2
    """Per element as the training computes with it: 2 for bf16 and fp16, 4 for fp32."""
    frozen_bytes: float | None = None
    """Per frozen element; None: as the trained ones."""
    accumulation_bytes: float | None = None
    """Per element of accumulated gradients (`data_types.grad_accum_dtype`); None: as the parameters (default)."""
    state_bytes: float | None = None
    """Per trained element of optimizer states; None: Adam's, in fp32 under DeepSpeed, else as the parameters."""
    accumulates: bool = False
    """More than one micro-step in a step."""
    persistent: int = 0
    """Elements of parameters that stage 3 keeps whole on every rank: those up to
    `stage3_param_persistence_threshold` (100,000) elements each."""
    owned: int | None = None
    """Elements of the trained parameters of which this rank's partition holds any part, counted whole (stages 1-2);
    None: trainable / ranks. Larger where a border cuts a parameter."""
    gathered: int | None = None
    """Elements that are whole at once inside a step (stage 3, FSDP2), persistent ones included; None: for stage 3
    all, up to REUSE_DISTANCE; for FSDP2 none."""
    bucket: int = 0
    """`reduce_bucket_size` in elements; 0 leaves buckets out of the figures."""
    overlap_comm: bool = False
    """Two buckets instead of one (stages 1-2)."""

    @property
    def frozen_element_bytes(self) -> float:
        return self.parameter_bytes if self.frozen_bytes is None else self.frozen_bytes

    @property
    def accumulated_bytes(self) -> float:
        return self.parameter_bytes if self.accumulation_bytes is None else self.accumulation_bytes

    @property
    def is_mixed(self) -> bool:
        """The optimizer updates fp32 copies of parameters in fewer bits."""
        return self.parameter_bytes < FP32

    @property
    def optimizer_bytes(self) -> float:
        """Optimizer states per trained element."""
        if self.state_bytes is not None:
            return self.state_bytes
        return ADAM_STATES * (FP32 if self.framework == "deepspeed" else self.parameter_bytes)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Where bytes are: on the device that trains, or in the host's memory."""

    device: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        """What a CPU run, whose device is the host, holds."""
        return self.device + self.host


NOTHING = Bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes of one rank by part."""

    parameters: Bytes = NOTHING
    gradients: Bytes = NOTHING
    master_weights: Bytes = NOTHING
    optimizer_states: Bytes = NOTHING
    buckets: Bytes = NOTHING
    """Buffers in which gradients are reduced."""
    buffers: Bytes = NOTHING
    """Other buffers that grow with the model: the 16-bit copy of a partition under offload."""
    notes: tuple[str, ...] = field(default=())
    """What of it is not as one would expect, in words."""

    def part(self, name: str) -> Bytes:
        """By the part's name, one of PARTS."""
        if name not in PARTS:
            raise KeyError(name)
        value: Bytes = getattr(self, name)
        return value

    @property
    def device(self) -> float:
        return sum(self.part(name).device for name in PARTS)

    @property
    def host(self) -> float:
        return sum(self.part(name).host for name in PARTS)

    @property
    def total(self) -> float:
        return self.device + self.host


def zero_memory(states: ModelStates, moment: Moment = "standing") -> StateBytes:
    """What the framework holds at `moment`; the name by which plan and report ask. See `held_memory`."""
    return held_memory(states, moment)


def paper_memory(states: ModelStates) -> StateBytes:
    """Model states as the ZeRO paper counts them: their highest within a step, gradients included.

    >>> full = ModelStates(trainable=7_500_000_000, ranks=64)
    >>> [round(paper_memory(replace(full, stage=stage)).total / 1e9, 1) for stage in STAGES]  # the paper's figure 1
    [120.0, 31.4, 16.6, 1.9]
    """
    stage, shard = states.stage, states.trainable / states.ranks
    trained = states.trainable
    optimizer = shard if stage >= 1 else trained
    gradient = shard if stage >= 2 else trained
    divisor = states.ranks if stage >= 3 else 1
    weights = (trained * states.parameter_bytes + states.frozen * states.frozen_element_bytes) / divisor
    aside = states.offload_optimizer and stage >= 1
    return StateBytes(
        parameters=_place(weights, states.offload_param and stage >= 3),
        gradients=_place(gradient * states.parameter_bytes, aside),
        master_weights=_place(optimizer * FP32 if states.is_mixed else 0.0, aside),
        optimizer_states=_place(optimizer * ADAM_STATES * FP32, aside),
    )


def held_memory(states: ModelStates, moment: Moment = "standing") -> StateBytes:
    """What the framework really allocates on a rank at `moment`, under the default options not named in `states`."""
    if states.framework in ("ddp", "plain"):
        return _replicated(states)
    if states.framework == "fsdp2":
        return _fsdp2(states, moment)
    if states.stage == 0:
        return _stage_0(states, moment)
    if states.stage == 3:
        return _stage_3(states, moment)
    return _stages_1_and_2(states, moment)


def highest(states: ModelStates) -> StateBytes:
    """Per part the highest of the three moments."""
    moments = [held_memory(states, moment) for moment in ("standing", "backward", "update")]
    parts = {
        name: Bytes(max(m.part(name).device for m in moments), max(m.part(name).host for m in moments))
        for name in PARTS
    }
    return StateBytes(**parts, notes=moments[0].notes)


def with_stage(
    states: ModelStates, stage: int, *, offload_optimizer: bool = False, offload_param: bool = False
) -> ModelStates:
    """The same model under another stage of DeepSpeed's ZeRO."""
    return replace(
        states, framework="deepspeed", stage=stage, offload_optimizer=offload_optimizer, offload_param=offload_param
    )


def _place(amount: float, on_host: bool) -> Bytes:
    return Bytes(host=amount) if on_host else Bytes(device=amount)


def _whole_parameters(states: ModelStates) -> float:
    return states.trainable * states.parameter_bytes + states.frozen * states.frozen_element_bytes


def _replicated(states: ModelStates) -> StateBytes:
    """DDP and plain training, at any moment: a step ends with the update, before the loop sets gradients to None."""
    gradients = states.trainable * states.parameter_bytes
    return StateBytes(
        parameters=Bytes(_whole_parameters(states)),
        gradients=Bytes(gradients),
        optimizer_states=Bytes(states.trainable * states.optimizer_bytes),
        # torch/csrc/distributed/c10d/reducer.cpp: buckets stay, and are copies unless gradient_as_bucket_view
        buckets=Bytes(gradients) if states.framework == "ddp" else NOTHING,
    )


def _fsdp2(states: ModelStates, moment: Moment) -> StateBytes:
    """torch.distributed.fsdp.fully_shard: parameters, gradients and states in shards; a group at a time is whole.

    Gradients stand as with DDP.
    """
    shard = states.trainable / states.ranks
    inside = (states.gathered or 0) if moment == "backward" else 0
    return StateBytes(
        parameters=Bytes(_whole_parameters(states) / states.ranks + inside * states.parameter_bytes),
        gradients=Bytes(shard * states.parameter_bytes),
        optimizer_states=Bytes(shard * states.optimizer_bytes),
    )


def _stage_0(states: ModelStates, moment: Moment) -> StateBytes:
    """Without ZeRO. In 16 bits deepspeed/runtime/fp16/fused_optimizer.py keeps the fp32 copy; fp32 keeps none.

    `offload_optimizer` only makes the optimizer DeepSpeed's CPUAdam: nothing moves.
    """
    gradients = {
        "standing": 0.0,
        "backward": states.trainable * states.parameter_bytes,
        # step() flattens them in fp32 before it lets go of the 16-bit ones
        "update": states.trainable * (states.parameter_bytes + (FP32 if states.is_mixed else 0)),
    }
    notes = ("offload_optimizer moves nothing in stage 0",) if states.offload_optimizer else ()
    return StateBytes(
        parameters=Bytes(_whole_parameters(states)),
        gradients=Bytes(gradients[moment]),
        master_weights=Bytes(states.trainable * FP32 if states.is_mixed else 0.0),
        optimizer_states=Bytes(states.trainable * states.optimizer_bytes),
        notes=notes,
    )


def _stages_1_and_2(states: ModelStates, moment: Moment) -> StateBytes:
    """deepspeed/runtime/zero/stage_1_and_2.py; bf16 with fp32 accumulation in stage 1: runtime/bf16_optimizer.py.

    `single_partition_of_fp32_groups` is a copy also when the parameters are fp32. Gradients of one partition are
    `averaged_gradients`, in the update also an fp32 copy of it (`single_grad_partition`). Under offload the fp32
    gradient stays (`initialize_optimizer_states`), accumulation in stage 2 adds `accumulated_grads_in_cpu` (whole
    parameters; stage 1 accumulates on the device), and `param_buffer_of_bit16_for_cpu_offload_groups` is a copy of
    the partition.
    """
    shard = states.trainable / states.ranks
    offload = states.offload_optimizer
    notes = [] if states.is_mixed else ["fp32 training keeps its parameters twice: the partition is copied"]
    buffers = NOTHING
    if offload:
        owned = states.owned if states.owned is not None else shard
        accumulated = owned * states.parameter_bytes if states.accumulates and states.stage == 2 else 0.0
        whole = states.trainable * states.accumulated_bytes if states.stage == 1 and moment == "backward" else 0.0
        gradients = Bytes(whole, shard * FP32 + accumulated)
        buffers = Bytes(host=shard * states.parameter_bytes)
        notes.append("the host keeps the partition's fp32 gradient and a copy of its parameters between steps")
    elif states.stage == 1 and states.parameter_bytes == 2 and states.accumulated_bytes == FP32:
        low = 0.0 if moment == "standing" else states.trainable * states.parameter_bytes
        gradients = Bytes(states.trainable * FP32 + low)
        notes.append("the fp32 gradients of all parameters stand between steps")
    else:
        held = {
            "standing": 0.0,
            "backward": (states.trainable if states.stage == 1 else shard) * states.accumulated_bytes,
            "update": shard * (states.accumulated_bytes + FP32),
        }
        gradients = Bytes(held[moment])
    bucket = states.bucket * (2 if states.overlap_comm else 1) * states.parameter_bytes
    return StateBytes(
        parameters=Bytes(_whole_parameters(states)),
        gradients=gradients,
        master_weights=_place(shard * FP32, offload),
        optimizer_states=_place(shard * states.optimizer_bytes, offload),
        buckets=Bytes(bucket) if moment == "backward" else NOTHING,
        buffers=buffers,
        notes=tuple(notes),
    )


def _stage_3(states: ModelStates, moment: Moment) -> StateBytes:
    """deepspeed/runtime/zero/stage3.py.

    Partitions are `lp_param_buffer`, frozen ones each their own; `grad_partitions_flat_buffer` always stands; fp32
    master partitions are copies also when the parameters are fp32 (the test for sharing compares a device with a
    string). The update makes an fp32 gradient of a sub-group at a time; under offload one for all stands on the host.
    Small parameters stay whole (`persistent_parameters`); inside a step nothing is released that is used again within
    REUSE_DISTANCE elements, so that a smaller model is whole from its first forward on.
    """
    shard = states.trainable / states.ranks
    elements = states.trainable + states.frozen
    whole = states.persistent
    if moment == "backward":
        whole = states.gathered if states.gathered is not None else min(elements, REUSE_DISTANCE)
    if states.ranks == 1 and not states.offload_param:
        whole = 0  # NoGatherHandle: the partition itself serves
    mean_bytes = _whole_parameters(states) / elements if elements else 0.0
    partition = _whole_parameters(states) / states.ranks
    gathered = whole * mean_bytes
    accumulated = shard * states.accumulated_bytes
    update = min(shard, SUB_GROUP) * FP32 if moment == "update" else 0.0
    offload = states.offload_optimizer
    notes = [] if states.is_mixed else ["fp32 training keeps its parameters twice: the partition is copied"]
    notes.append("the gradients' partition stands between steps")
    if whole:
        notes.append("parameters that are whole count beside their partition")
    return StateBytes(
        parameters=Bytes(gathered, partition) if states.offload_param else Bytes(gathered + partition),
        gradients=Bytes(host=accumulated + shard * FP32) if offload else Bytes(accumulated + update),
        master_weights=_place(shard * FP32, offload),
        optimizer_states=_place(shard * states.optimizer_bytes, offload),
        buckets=Bytes(states.bucket * states.parameter_bytes),
        notes=tuple(notes),
    )


def element_bytes(dtype: str, default: float = FP32) -> float:
    """Bytes of an element type by torch's name, as `bfloat16`."""
    return ELEMENT_BYTES.get(dtype, default)


assert {f.name for f in fields(StateBytes)} == {*PARTS, "notes"}
