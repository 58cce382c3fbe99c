"""The third tap: functional collectives, which DTensor uses (FSDP2's gradient norm, tensor parallelism).

They go from Python straight to C++, past torch.distributed's functions and c10d's operators. A call returns a tensor
that is complete only after `wait_tensor`, which is where its row ends.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

from agprof.instruments.comm_groups import Groups
from agprof.instruments.comm_ops import size_and_dtype
from agprof.instruments.ledger import Ledger
from agprof.instruments.recorder import Recorder

MAX_OPEN = 1024
# function: (kind, position of the group, whether the input's size is multiplied by the group's)
FUNCTIONS: dict[str, tuple[str, int, bool]] = {
    "all_reduce": ("all_reduce", 2, False),
    "broadcast": ("broadcast", 2, False),
    "all_gather_single": ("all_gather", 2, True),
    "all_gather_tensor": ("all_gather", 2, True),
    "reduce_scatter_single": ("reduce_scatter", 3, False),
    "reduce_scatter_tensor": ("reduce_scatter", 3, False),
    "all_to_all_single": ("all_to_all", 3, False),
    "all_gather_single_autograd": ("all_gather", 2, True),
    "all_gather_tensor_autograd": ("all_gather", 2, True),
    "reduce_scatter_single_autograd": ("reduce_scatter", 3, False),
    "reduce_scatter_tensor_autograd": ("reduce_scatter", 3, False),
    "all_to_all_single_autograd": ("all_to_all", 3, False),
    "all_reduce_coalesced": ("all_reduce", 2, False),
    "all_gather_single_coalesced": ("all_gather", 1, True),
    "all_gather_into_tensor_coalesced": ("all_gather", 1, True),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 3, False),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 3, False),
}
"""Some of them call others: the outermost makes the row. Those that this torch lacks are left out."""


class _Inside(threading.local):
    def __init__(self) -> None:
        self.depth = 0


class FunctionalTap:
    """Wraps the functions of torch.distributed._functional_collectives."""

    def __init__(
        self, torch: Any, recorder: Recorder, groups: Groups, ledger: Ledger | None, failed: Callable[..., None]
    ) -> None:
        self._recorder = recorder
        self._groups = groups
        self._ledger = ledger
        self._failed = failed
        self._compiling = torch.compiler.is_compiling
        self._plain = (torch.Tensor, torch.nn.Parameter)
        self._inside = _Inside()
        self._rows = recorder.writer.rows("collectives")
        self._wait_rows = recorder.writer.rows("waits")
        self._open: dict[int, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}
        """By the address of the result: (columns before end_ns, columns after wait_ns)."""
        self._module: Any = None

    def arm(self, module: Any) -> None:
        """`module` is torch.distributed._functional_collectives."""
        self._module = module
        for name, function in FUNCTIONS.items():
            self._recorder.patches.replace(module, name, functools.partial(self._around, *function))
        self._recorder.patches.replace(module, "wait_tensor", self._around_wait)
        self._recorder.on_finish.append(("comm", self.finish))

    def _around(self, kind: str, position: int, scaled: bool, original: Any) -> Any:
        recorder, compiling, inside, are_plain = self._recorder, self._compiling, self._inside, self._are_plain

        @functools.wraps(original)
        def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if compiling() or not recorder.is_on("comm") or inside.depth or not are_plain(tensor):
                return original(tensor, *args, **kwargs)
            inside.depth = 1
            start = recorder.clock()
            try:
                result = original(tensor, *args, **kwargs)
            finally:
                inside.depth = 0
            try:
                group = kwargs["group"] if "group" in kwargs else args[position - 1]
                self._note(kind, group, tensor, scaled, result, start)
            except Exception as error:
                self._failed(kind, error)
            return result

        return call

    def _are_plain(self, tensors: Any) -> bool:
        """A tensor that stands for another one (a tracer's) is not communicated."""
        if isinstance(tensors, list):
            return bool(tensors) and all(type(tensor) in self._plain for tensor in tensors)
        return type(tensors) in self._plain

    def _note(self, kind: str, group: Any, tensor: Any, scaled: bool, result: Any, start: int) -> None:
        recorder = self._recorder
        end = recorder.clock()
        c10d = self._module.c10d
        handle = c10d._resolve_process_group(self._module._resolve_group_name(group))
        described = self._groups.get(handle)
        if described is None:
            return
        size, dtype, device = size_and_dtype(tensor)
        if scaled and size is not None:
            size *= described.size
        if self._ledger is not None:
            self._ledger.note(end, described, kind, device, size)
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        call = (kind, described.name, described.size, size, name, True)
        before = (recorder.step, recorder.micro_step, *call, start, end)
        if len(self._open) >= MAX_OPEN:
            self.finish()
        # Of several tensors that are complete together, the first that is waited for ends the row.
        key = _address(result[0] if isinstance(result, list) else result)
        earlier = self._open.pop(key, None)
        if earlier is not None:  # never waited for through here, and its memory is used again
            self._rows((*earlier[0], None, 0, *earlier[1]))
        self._open[key] = (before, ("functional", threading.get_ident(), recorder.phase(), None))

    def _around_wait(self, original: Any) -> Any:
        recorder, compiling = self._recorder, self._compiling

        @functools.wraps(original)
        def wait_tensor(tensor: Any) -> Any:
            if compiling() or not recorder.enabled or not self._open:
                return original(tensor)
            start = recorder.clock()
            result = original(tensor)
            try:
                self._waited(tensor, start)
            except Exception as error:
                self._failed("wait_tensor", error)
            return result

        return wait_tensor

    def _waited(self, tensor: Any, start: int) -> None:
        pending = self._open.pop(_address(tensor), None)
        if pending is None:
            return
        end = self._recorder.clock()
        before, after = pending
        # On a device the wait only orders streams: the end is not known.
        done = end if tensor.device.type == "cpu" else None
        self._rows((*before, done, end - start, *after))
        self._wait_rows((self._recorder.step, before[2], start, end, threading.get_ident()))

    def finish(self) -> None:
        """Write what was never waited for, with an unknown end."""
        while self._open:
            before, after = self._open.popitem()[1]
            self._rows((*before, None, 0, *after))


def _address(tensor: Any) -> int:
    inner = getattr(tensor, "elem", tensor)  # AsyncCollectiveTensor
    return int(inner.data_ptr())
