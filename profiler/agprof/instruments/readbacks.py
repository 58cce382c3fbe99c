"""Values that the host reads back from tensors in the profile step, by the place in the job's code.

On a GPU each makes the host wait for the device. There they are seen as operations: `_local_scalar_dense` (`item`,
`bool`, `float`, formatting), copies to the host, and results whose size depends on values (`nonzero`, masks). On a CPU
nothing is waited for, and of copies nothing happens at all; to say what they would be on a GPU, the explicit ones
(`cpu`, `numpy`, `tolist`) are counted by standing in for these methods during the step.
"""

import functools
import sys
import threading
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from agprof.instruments.op_places import Operation
from agprof.instruments.op_watch import OpWatch
from agprof.instruments.places import Places
from agprof.instruments.profile_step import StepPart
from agprof.instruments.recorder import Recorder

INSTRUMENT = "readbacks"
ITEM, COPY, SIZE = "item", "copy", "size"
MAX_PLACES = 200

_ITEMS = ("_local_scalar_dense", "equal")
_COPIES = ("_to_copy", "copy_")
_SIZES = ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive")
_METHODS = ("cpu", "numpy", "tolist")
"""Of torch.Tensor: what brings a whole tensor to the host, by name."""


class Readbacks(StepPart):
    """Writes `readbacks`."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._places = Places()
        self._found: dict[tuple[str, str, str | None], tuple[int, int | None]] = {}
        """(kind, place, package) -> calls, ns or None where calls don't tell."""
        self._restore: list[Callable[[], None]] = []
        self._inside = threading.local()
        self._count = recorder.guard(INSTRUMENT, self._do_count)

    def begin(self, step: int, watch: OpWatch) -> None:
        self._found.clear()
        self._places = Places()  # only now is it known what the job was started as
        watch.listeners.append(self._recorder.guard(INSTRUMENT, self._listen))
        if not self._torch.cuda.is_initialized():
            self._stand_in()

    def end(self, step: int) -> None:
        self._take_away()
        found, self._found = self._found, {}
        emit = self._recorder.writer.rows("readbacks")
        rows = sorted(found.items(), key=lambda item: (-item[1][0], item[0][:2]))
        for (kind, place, package), (calls, duration_ns) in rows[:MAX_PLACES]:
            emit((step, kind, place, calls, duration_ns, package))

    def abandon(self) -> None:
        self._take_away()
        self._found.clear()

    # -- operations --------------------------------------------------------------------------------------------------

    def _listen(self, operation: Operation) -> None:
        kind = self._kind(operation)
        if kind is not None and not getattr(self._inside, "method", False):
            self._do_count(kind, operation.duration_ns)

    def _kind(self, operation: Operation) -> str | None:
        name = _name(operation.function)
        if name in _ITEMS:
            return ITEM
        if name in _SIZES or (name == "index" and _has_mask(self._torch, operation.args)):
            return SIZE
        return COPY if name in _COPIES and _goes_to_host(self._torch, operation) else None

    def _do_count(self, kind: str, duration_ns: int | None) -> None:
        # A sampler that shuffles on the host reads tensors that no device has ever seen.
        if self._recorder.phase() == "data":
            return
        asked = self._places.of(sys._getframe())
        if asked is None:
            return
        calls, total_ns = self._found.get((kind, *asked), (0, 0))
        known = None if duration_ns is None or total_ns is None else total_ns + duration_ns
        self._found[kind, *asked] = calls + 1, known

    # -- methods, on a CPU -------------------------------------------------------------------------------------------

    def _stand_in(self) -> None:
        """Not through the recorder's undo list, which is for the whole run: these are gone when the step is over."""
        owner = self._torch.Tensor
        for name in _METHODS:
            original = getattr(owner, name)
            own = vars(owner).get(name)
            replacement = self._counting(original)
            setattr(owner, name, replacement)
            self._restore.append(functools.partial(_restore, owner, name, replacement, own))
        self._recorder.patches.on_undo(self._take_away)

    def _take_away(self) -> None:
        while self._restore:
            self._restore.pop()()

    def _counting(self, original: Any) -> Any:
        inside, count = self._inside, self._count

        @functools.wraps(original)
        def method(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(inside, "method", False):
                return original(tensor, *args, **kwargs)
            inside.method = True
            begin = perf_counter_ns()
            try:
                return original(tensor, *args, **kwargs)
            finally:
                inside.method = False
                count(COPY, perf_counter_ns() - begin)

        return method


def _restore(owner: Any, name: str, replacement: Any, own: Any) -> None:
    if vars(owner).get(name) is not replacement:
        return  # somebody patched over us: taking ours back would take theirs back too
    if own is None:
        delattr(owner, name)
    else:
        setattr(owner, name, own)


def _name(function: Any) -> str:
    packet = getattr(function, "overloadpacket", None)
    return str(getattr(packet, "__name__", ""))


def _has_mask(torch: Any, args: tuple[Any, ...]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in indices)


def _goes_to_host(torch: Any, operation: Operation) -> bool:
    """A copy from a device to the host that is waited for."""
    source = operation.args[1] if _name(operation.function) == "copy_" else operation.args[0]
    target = operation.result
    if not isinstance(source, torch.Tensor) or not isinstance(target, torch.Tensor):
        return False
    late = operation.kwargs.get("non_blocking") or (len(operation.args) > 2 and operation.args[2] is True)
    return source.device.type not in ("cpu", "meta") and target.device.type == "cpu" and not late
