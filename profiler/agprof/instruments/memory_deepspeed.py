"""Where DeepSpeed keeps its tensors: attributes of its optimizers and parameters, by the part of the account.

Read in DeepSpeed 0.19.8: runtime/zero/stage_1_and_2.py, stage3.py, partition_parameters.py, bf16_optimizer.py,
fp16/fused_optimizer.py, fp16/unfused_optimizer.py. An attribute that another version lacks is not found, and what it
held stays unexplained.
"""

from collections.abc import Iterator
from typing import Any

from agprof.instruments.memory_tensors import tensors_in

Owned = tuple[Any, str, str, str]
"""tensor, part, detail, name"""

_STAGE_3 = "_DeepSpeedZeroOptimizer_Stage3__"

MASTER_WEIGHTS = (
    "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition",
    "fp32_groups_flat", "fp32_groups",
)  # fmt: skip
OPTIMIZER_ATTRIBUTES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "parameters",
        "trainable",
        (
            "bit16_groups_flat", "bf16_groups_flat", "fp16_groups_flat", "lp_param_buffer",
            "fp16_partitioned_groups_flat", "param_groups_fp16_flat_cpu_memory",
        ),
    ),
    ("master_weights", "", MASTER_WEIGHTS),
    ("buckets", "reduction", ("ipg_buckets", "extra_large_param_to_reduce", "_muon_allgather_buffers")),
    ("gradients", "", (
        "averaged_gradients", "all_grad_tensors", "grads_in_partition", "accumulated_grads_in_cpu",
        "grad_partitions_flat_buffer", f"{_STAGE_3}param_id_to_grad_partition", "fp32_groups_gradients_flat",
    )),
    ("buffers", "offload", ("param_buffer_of_bit16_for_cpu_offload_groups",)),
    ("buckets", "offload", ("temp_grad_buffer_for_cpu_offload", "temp_grad_buffer_for_gpu_offload")),
)  # fmt: skip
PINNED = ("lp_params_pin_buffers", "hp_params_pin_buffers", "lp_grad_partitions_flat_pin_buffers")
"""Made by `offload_states`."""


def of_parameter(parameter: Any, name: str) -> Iterator[Owned]:
    """A parameter's partition under ZeRO-3, the whole of it where it is gathered, and its accumulated gradients."""
    partition = getattr(parameter, "ds_tensor", None)
    if partition is None:
        return
    detail = "trainable" if parameter.requires_grad else "frozen"
    yield partition, "parameters", detail, name
    secondary = getattr(parameter, "ds_secondary_tensor", None)
    if secondary is not None:
        yield secondary, "parameters", "secondary partition", name
    whole = "persistent" if getattr(parameter, "ds_persist", False) else "gathered"
    yield parameter.data, "parameters", whole, name


def gradient_of_parameter(parameter: Any, name: str) -> Iterator[Owned]:
    """What ZeRO 1 and 2 accumulate in beside `.grad`."""
    accumulated = getattr(parameter, "grad_accum", None)
    if accumulated is not None:
        yield accumulated, "gradients", "accumulated", name


def of_buckets(optimizer: Any) -> Iterator[Owned]:
    """Buffers that gradients are gathered in to be reduced. To be asked before gradients: these are views of them."""
    for bucket in list(vars(optimizer).get("ipg_buckets", {}).values()):
        for tensor in tensors_in(bucket.buffer):
            yield tensor, "buckets", "reduction", "ipg_buckets"


def of_optimizer(optimizer: Any) -> Iterator[Owned]:
    """`optimizer` is what DeepSpeed put around the job's own: ZeRO's, or that of 16-bit training."""
    attributes = vars(optimizer)
    for part, detail, names in OPTIMIZER_ATTRIBUTES:
        for name in names:
            for tensor in tensors_in(attributes.get(name)):
                yield tensor, part, detail, name
    for name in PINNED:
        for tensor in tensors_in(attributes.get(name)):
            yield tensor, "buffers", "pinned", name
    for name in MASTER_WEIGHTS:
        for copy in tensors_in(attributes.get(name)):
            # The job's optimizer knows them only while ZeRO updates.
            if copy.is_leaf and copy.grad is not None:
                yield copy.grad, "gradients", "fp32", f"grad of {name}"


def of_rest(optimizer: Any) -> Iterator[Owned]:
    """Whatever else it holds, under the attribute's name. To be asked last: these may be views of what is named."""
    for name, value in list(vars(optimizer).items()):
        for tensor in tensors_in(value):
            yield tensor, "buckets", name, name
