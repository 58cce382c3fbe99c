"""The second tap: c10d's operators in torch's dispatcher, which DDP's C++ reducer calls without any Python function.

Installed only once a DistributedDataParallel exists, because it costs every collective about 10 us. It passes each
call on unchanged and reads the Work that comes back.
"""

from collections.abc import Callable
from typing import Any

from agprof.instruments.comm_works import pop, push
from agprof.instruments.recorder import Recorder

# operator: (kind, position of the tensors whose size counts, position of the group, multiplied by the group's size,
# position of the Work in the result or None where the result is the Work)
OPERATORS: dict[str, tuple[str, int, int, bool, int | None]] = {
    "allreduce_": ("all_reduce", 0, 1, False, 1),
    "allreduce_coalesced_": ("all_reduce", 0, 1, False, None),
    "broadcast_": ("broadcast", 0, 1, False, 1),
    "reduce_": ("reduce", 0, 1, False, None),
    "allgather_": ("all_gather", 1, 2, True, 1),
    "_allgather_base_": ("all_gather", 1, 2, True, 1),
    "allgather_coalesced_": ("all_gather", 1, 2, True, None),
    "allgather_into_tensor_coalesced_": ("all_gather", 1, 2, True, None),
    "reduce_scatter_": ("reduce_scatter", 0, 2, True, 1),
    "_reduce_scatter_base_": ("reduce_scatter", 0, 2, True, 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 0, 2, True, None),
    "alltoall_": ("all_to_all", 1, 2, False, 1),
    "alltoall_base_": ("all_to_all", 1, 2, False, None),
    "gather_": ("gather", 1, 2, True, None),
    "scatter_": ("scatter", 0, 2, True, 1),
}
KEYS = ("AutogradCPU", "AutogradCUDA")


class DispatcherTap:
    """Overrides of c10d's operators above autograd's key."""

    def __init__(
        self,
        torch: Any,
        c10d: Any,
        recorder: Recorder,
        thread: Any,
        note: Callable[..., None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        """`note(kind, call, group, tensors, scaled, work, start_ns)` is called for calls outside wrapped functions."""
        self._torch = torch
        self._c10d = c10d
        self._recorder = recorder
        self._thread = thread
        self._note = note
        self._failed = failed
        self._library: Any = None

    @property
    def armed(self) -> bool:
        return self._library is not None

    def arm(self) -> None:
        """Install the overrides. Operators that this torch lacks are left out."""
        self._library = self._torch.library.Library("c10d", "IMPL")
        for name, operator in OPERATORS.items():
            packet = getattr(self._torch.ops.c10d, name, None)
            if packet is None:
                continue
            override = self._override(name, packet.default, *operator)
            for key in KEYS:
                self._library.impl(name, override, key, with_keyset=True)

    def disarm(self) -> None:
        if self._library is not None:
            self._library._destroy()
            self._library = None

    def _override(
        self, name: str, operator: Any, kind: str, tensors: int, group: int, scaled: bool, work: int | None
    ) -> Callable[..., Any]:
        below = self._torch._C._after_autograd_keyset
        recorder, thread = self._recorder, self._thread

        def override(keyset: Any, *args: Any, **kwargs: Any) -> Any:
            if thread.depth or not recorder.enabled:
                return operator.redispatch(keyset & below, *args, **kwargs)
            nvtx = push(recorder, kind)
            start = recorder.clock()
            try:
                result = operator.redispatch(keyset & below, *args, **kwargs)
            finally:
                pop(recorder, nvtx)
            try:
                handle = self._c10d.ProcessGroup.unbox(args[group])
                done = self._c10d.Work.unbox(result if work is None else result[work])
                call = "reduce_scatter_list" if name == "reduce_scatter_" else kind
                self._note(kind, call, handle, args[tensors], scaled, done, start)
            except Exception as error:
                self._failed(kind, error)
            return result

        return override
