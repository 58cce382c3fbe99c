"""What torch.distributed's functions are: one name per kind of operation, and where an operation's bytes are found.

A reader has its function's own signature, so a call's arguments bind as torch binds them. It returns the tensors whose
size counts, whether they are multiplied by the group's size, the group, and whether the call is asynchronous.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Reading = tuple[Any, bool, Any, bool]
"""(tensor, list of tensors or None; multiplied by the group's size; group; asynchronous)"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One function of torch.distributed."""

    kind: str
    """Name in the tables."""
    read: Callable[..., Reading]
    call: str
    """Name in the ledger, which has to tell some calls of a kind apart."""


def _operation(kind: str, read: Callable[..., Reading], call: str | None = None) -> Operation:
    return Operation(kind, read, call or kind)


def _all_reduce(tensor: Any, op: Any = None, group: Any = None, async_op: bool = False) -> Reading:
    return tensor, False, group, async_op


def _all_reduce_coalesced(tensors: Any, op: Any = None, group: Any = None, async_op: bool = False) -> Reading:
    return tensors, False, group, async_op


def _broadcast(
    tensor: Any, src: Any = None, group: Any = None, async_op: bool = False, group_src: Any = None
) -> Reading:
    return tensor, False, group, async_op


def _reduce(
    tensor: Any, dst: Any = None, op: Any = None, group: Any = None, async_op: bool = False, group_dst: Any = None
) -> Reading:
    return tensor, False, group, async_op


def _all_gather(tensor_list: Any, tensor: Any, group: Any = None, async_op: bool = False) -> Reading:
    return tensor, True, group, async_op


def _all_gather_single(output_tensor: Any, input_tensor: Any, group: Any = None, async_op: bool = False) -> Reading:
    return input_tensor, True, group, async_op


def _all_gather_coalesced(
    output_tensor_lists: Any, input_tensor_list: Any, group: Any = None, async_op: bool = False
) -> Reading:
    return input_tensor_list, True, group, async_op


def _reduce_scatter(output: Any, input_list: Any, op: Any = None, group: Any = None, async_op: bool = False) -> Reading:
    return output, True, group, async_op


def _reduce_scatter_single(
    output: Any, input: Any, op: Any = None, group: Any = None, async_op: bool = False
) -> Reading:
    return output, True, group, async_op


def _gather(
    tensor: Any,
    gather_list: Any = None,
    dst: Any = None,
    group: Any = None,
    async_op: bool = False,
    group_dst: Any = None,
) -> Reading:
    return tensor, True, group, async_op


def _scatter(
    tensor: Any,
    scatter_list: Any = None,
    src: Any = None,
    group: Any = None,
    async_op: bool = False,
    group_src: Any = None,
) -> Reading:
    return tensor, True, group, async_op


def _all_to_all(output_tensor_list: Any, input_tensor_list: Any, group: Any = None, async_op: bool = False) -> Reading:
    return input_tensor_list, False, group, async_op


def _all_to_all_single(
    output: Any,
    input: Any,
    output_split_sizes: Any = None,
    input_split_sizes: Any = None,
    group: Any = None,
    async_op: bool = False,
) -> Reading:
    return input, False, group, async_op


def _barrier(group: Any = None, async_op: bool = False, device_ids: Any = None, timeout: Any = None) -> Reading:
    return None, False, group, async_op


def _monitored_barrier(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> Reading:
    return None, False, group, False


def _send(tensor: Any, dst: Any = None, group: Any = None, tag: int = 0, group_dst: Any = None) -> Reading:
    return tensor, False, group, False


def _isend(tensor: Any, dst: Any = None, group: Any = None, tag: int = 0, group_dst: Any = None) -> Reading:
    return tensor, False, group, True


def _recv(tensor: Any, src: Any = None, group: Any = None, tag: int = 0, group_src: Any = None) -> Reading:
    return tensor, False, group, False


def _irecv(tensor: Any, src: Any = None, group: Any = None, tag: int = 0, group_src: Any = None) -> Reading:
    return tensor, False, group, True


def _batch(p2p_op_list: Any) -> Reading:
    """nccl-tests' S of what each rank sends and receives at once is what goes one way: here the larger of the two."""
    sent = [op.tensor for op in p2p_op_list if is_sending(op)]
    received = [op.tensor for op in p2p_op_list if not is_sending(op)]
    larger = max(sent, received, key=lambda tensors: sum(tensor.nbytes for tensor in tensors))
    return larger, False, p2p_op_list[0].group, True


def is_sending(op: Any) -> bool:
    """Whether a P2POp sends. Its function may be one of ours."""
    return bool(op.op.__name__ == "isend")


def _objects(position: int) -> Callable[..., Reading]:
    """An object collective: its bytes are those of the calls inside it. `position`: of the argument `group`."""

    def read(*args: Any, **kwargs: Any) -> Reading:
        return None, False, args[position] if len(args) > position else kwargs.get("group"), False

    return read


OPERATIONS: dict[str, Operation] = {
    "all_reduce": _operation("all_reduce", _all_reduce),
    "all_reduce_coalesced": _operation("all_reduce", _all_reduce_coalesced),
    "broadcast": _operation("broadcast", _broadcast),
    "reduce": _operation("reduce", _reduce),
    "all_gather": _operation("all_gather", _all_gather),
    "all_gather_single": _operation("all_gather", _all_gather_single),
    "all_gather_into_tensor": _operation("all_gather", _all_gather_single),
    "_all_gather_base": _operation("all_gather", _all_gather_single),
    "all_gather_coalesced": _operation("all_gather", _all_gather_coalesced),
    "reduce_scatter": _operation("reduce_scatter", _reduce_scatter, "reduce_scatter_list"),
    "reduce_scatter_single": _operation("reduce_scatter", _reduce_scatter_single),
    "reduce_scatter_tensor": _operation("reduce_scatter", _reduce_scatter_single),
    "_reduce_scatter_base": _operation("reduce_scatter", _reduce_scatter_single),
    "gather": _operation("gather", _gather),
    "scatter": _operation("scatter", _scatter),
    "all_to_all": _operation("all_to_all", _all_to_all),
    "all_to_all_single": _operation("all_to_all", _all_to_all_single),
    "barrier": _operation("barrier", _barrier),
    "monitored_barrier": _operation("monitored_barrier", _monitored_barrier),
    "send": _operation("send", _send),
    "isend": _operation("send", _isend),
    "recv": _operation("recv", _recv),
    "irecv": _operation("recv", _irecv),
    "batch_isend_irecv": _operation("send_recv", _batch),
    "all_gather_object": _operation("all_gather_object", _objects(2)),
    "gather_object": _operation("gather_object", _objects(3)),
    "broadcast_object_list": _operation("broadcast_object", _objects(2)),
    "scatter_object_list": _operation("scatter_object", _objects(3)),
    "send_object_list": _operation("send_object", _objects(2)),
    "recv_object_list": _operation("recv_object", _objects(2)),
}
"""Functions of torch.distributed by name. A torch that lacks one of them is fine."""


def size_and_dtype(tensors: Any) -> tuple[int | None, Any, str | None]:
    """Bytes, dtype and device type of a tensor or a list of tensors; three None for None."""
    if tensors is None:
        return None, None, None
    if isinstance(tensors, (list, tuple)):
        if not tensors:
            return 0, None, None
        first = tensors[0]
        return sum(tensor.nbytes for tensor in tensors), first.dtype, first.device.type
    # `is_cpu` first: making a torch.device object costs five times as much.
    return tensors.nbytes, tensors.dtype, "cpu" if tensors.is_cpu else tensors.device.type
