"""DeepSpeed's own estimates of model states, so that they can be said without DeepSpeed.

Ported from DeepSpeed 0.19.8, deepspeed/runtime/zero/stage_1_and_2.py (`estimate_zero2_model_states_mem_needs`) and
stage3.py (`estimate_zero3_model_states_mem_needs`); a test compares them with the installed functions. They take 16-bit
parameters, 18 bytes an element without offload, every parameter as trained, and the host's figure for a whole node.
There are none for stages 0 and 1.
"""

from dataclasses import dataclass

BUFFER_FACTOR = 1.5
"""DeepSpeed's default `additional_buffer_factor`, on the host's figure."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes: of one device, and of one node's host memory."""

    device: int
    host: int


def estimate_zero2(
    params: int,
    *,
    ranks_per_node: int = 1,
    nodes: int = 1,
    offload_optimizer: bool = False,
    buffer_factor: float = BUFFER_FACTOR,
) -> Estimate:
    """Device: 2 psi + 18 psi / ranks, with offload 2 psi.

    >>> estimate_zero2(1_000_000_000, ranks_per_node=8).device
    4250000000
    """
    ranks = ranks_per_node * nodes
    if offload_optimizer:
        return Estimate(2 * params, int(params * max(4 * ranks, 16) * buffer_factor))
    return Estimate(2 * params + int(18 * params / ranks), int(params * 4 * ranks_per_node * buffer_factor))


def estimate_zero3(
    params: int,
    largest_layer_params: int,
    *,
    ranks_per_node: int = 1,
    nodes: int = 1,
    offload_optimizer: bool = False,
    offload_param: bool = False,
    zero_init: bool = True,
    buffer_factor: float = BUFFER_FACTOR,
) -> Estimate:
    """Device: 4 bytes for each element of the largest layer + 18 psi / ranks.

    `zero_init`: the model is made under `deepspeed.zero.Init`, so that no rank ever holds it whole. `offload_param`
    counts with `offload_optimizer` only, as in DeepSpeed.
    """
    ranks = ranks_per_node * nodes
    share = 1 / nodes
    layer = 4 * largest_layer_params
    if not offload_optimizer:
        at_start = largest_layer_params if zero_init else params
        return Estimate(layer + int(18 * params / ranks), int(at_start * 4 * ranks_per_node * buffer_factor))
    kept = 18 if offload_param else 16
    host = params * kept * share if zero_init else params * max(4 * ranks_per_node, kept * share)
    device = layer if offload_param else layer + int(2 * params / ranks)
    return Estimate(device, int(host * buffer_factor))
