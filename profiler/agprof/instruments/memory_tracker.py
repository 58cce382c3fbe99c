"""Bytes of live tensors, operation by operation: the curve, its highest point, and what was alive there.

Storages are followed by weak references, so that nothing lives longer than without us. Tensors without data (meta
device) have storages with sizes too.
"""

import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from agprof.instruments.memory_curve import Curve
from agprof.instruments.memory_frames import Frames, Maker, frames_of_caller
from agprof.instruments.memory_resizes import Resizes
from agprof.instruments.op_places import Operation

Space = Literal["device", "host"]

HIGH_STEP = 1.01
"""`on_high` is called when the live bytes are this much above where it was called last."""
MAX_DEAD = 20_000
"""Records of freed storages that may wait until they are thinned out."""
PEAK = "peak"
UNEXPLAINED = "unexplained"
"""Part of a tensor that existed before and that nobody is known to own."""


class Allocation:
    """One storage: its size, when it lived (numbers of the tracker's events), and who made it."""

    __slots__ = (
        "born", "bytes", "counted", "detail", "died", "dtype", "frames", "in_pass", "is_foreign", "is_kept",
        "item_bytes", "maker", "module", "name", "operation", "part", "phase", "shape", "space", "with_grad",
    )  # fmt: skip

    def __init__(self, size: int, born: int, space: Space) -> None:
        self.bytes = size
        self.born = born
        self.died: int | None = None
        self.space = space
        self.counted = True
        """False: it was there before and nobody counted it among the base, so that its end frees nothing."""
        self.is_foreign = False
        """Its memory is not from torch's allocator: numpy's, shared with other processes, a mapped file."""
        self.part: str | None = None
        """Set by who knows its owner; otherwise `part_of` concludes it."""
        self.detail = ""
        self.name = ""
        self.shape = ""
        self.dtype = ""
        self.item_bytes = 1
        self.operation = ""
        self.module = ""
        self.phase = ""
        self.in_pass = "outside"
        self.with_grad = True
        """Gradients were enabled."""
        self.is_kept = False
        """Made in forward and still alive when a backward pass began."""
        self.maker: Maker = None
        self.frames: Frames = ()


@dataclass(frozen=True, slots=True)
class High:
    """A moment at which much was alive."""

    bytes: int
    event: int
    time_ns: int | None = None
    phase: str = ""
    module: str = ""


class _Reference(weakref.ref[Any]):
    __slots__ = ("key",)
    key: int


class MemoryTracker:
    """A listener for OpWatch. Give it what exists already with `include`, then `start`; `stop` when the step ended.

    A storage is new when an operation's result has it and none of its arguments does.
    """

    def __init__(
        self,
        torch: Any,
        *,
        base_bytes: int = 0,
        space: Space = "host",
        clock: Callable[[], int] = time.monotonic_ns,
        phase: Callable[[], str] | None = None,
        stacks: bool = True,
        meta: bool = True,
    ) -> None:
        """`base_bytes`: held before and not given by `include`. `space`: the one whose peak is looked for; a tracker
        on the meta device counts everything there. `phase`: name of the phase in progress. `meta`: tensors without
        data count as if they had it."""
        self._torch = torch
        self._tensor = torch.Tensor
        self._space: Space = space
        self._clock = clock
        self._phase = phase
        self._stacks = stacks
        self._meta = meta
        self.on_high: list[Callable[[], None]] = []
        """Called at new highs, HIGH_STEP apart, before the operation's own temporaries are gone."""
        self.live_bytes = base_bytes
        self.peak_bytes = base_bytes
        self.curve = Curve()
        self._base_bytes = base_bytes
        self._events = 0
        self._highs: dict[str, High] = {PEAK: High(base_bytes, 0)}
        self._high = 0.0
        self._alive: dict[int, tuple[Allocation, _Reference]] = {}
        self._records: list[Allocation] = []
        self._dead = 0
        self._pass = "outside"
        self._fresh: list[Allocation] = []
        """Made since the pass changed last."""
        self._modules: dict[int, str] = {}
        self._resizes: Resizes | None = None
        self._operation: Operation | None = None

    # -- before and after ------------------------------------------------------------------------------------------

    def name_modules(self, root: Any, prefix: str = "") -> None:
        """Paths by which the modules of `root` are called in the records."""
        for path, module in root.named_modules():
            self._modules.setdefault(id(module), f"{prefix}{path}")

    def include(self, tensor: Any, part: str | None, detail: str = "", name: str = "") -> bool:
        """A tensor that exists before `start`. False when its storage is known already, or it has none."""
        storage = self._storage(tensor)
        if storage is None or storage._cdata in self._alive:
            return False
        record = self._follow(tensor, storage)
        record.part, record.detail, record.name = part, detail, name
        if record.space == self._space:
            self._base_bytes += record.bytes
            self.live_bytes += record.bytes
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return True

    def mark(self, tensor: Any, part: str, detail: str = "", name: str = "") -> None:
        """Say who owns a storage, also when it was made since `start`; the first who says it is right."""
        storage = self._storage(tensor)
        known = self._alive.get(storage._cdata) if storage is not None else None
        if known is not None and known[0].part in (None, UNEXPLAINED):
            record = known[0]
            is_whole = part == "parameters" and record.maker == "gathered"
            record.part, record.detail = part, "gathered" if is_whole else detail
            record.name = name or record.name

    def start(self) -> None:
        """Follow resizes of storages, which are no operations."""
        self._high = self.live_bytes * HIGH_STEP
        self._note()
        self.mark_high(PEAK, always=True)
        self._resizes = Resizes(self._torch.UntypedStorage, self._resized)

    def stop(self) -> None:
        """Follow nothing any more. What was seen stays. Safe to call twice."""
        if self._resizes is not None:
            self._resizes.remove()
            self._resizes = None
        self._alive.clear()
        self._fresh.clear()

    # -- one operation ---------------------------------------------------------------------------------------------

    def listen(self, operation: Operation) -> None:
        if operation.in_pass != self._pass:
            self._pass_changed(operation.in_pass)
        before = self._events
        self._operation = operation
        try:
            self._see(operation.result, operation)
        finally:
            self._operation = None
        if self._events != before:
            self._note()
            if self.live_bytes > self._high:
                self._high = self.live_bytes * HIGH_STEP
                for callback in self.on_high:
                    callback()

    def _see(self, result: Any, operation: Operation) -> None:
        if isinstance(result, self._tensor):
            self._see_tensor(result, operation)
        elif isinstance(result, (list, tuple)):
            for item in result:
                self._see(item, operation)

    def _see_tensor(self, tensor: Any, operation: Operation) -> None:
        storage = self._storage(tensor)
        if storage is None:
            return
        known = self._alive.get(storage._cdata)
        if known is not None:
            size = storage.nbytes()
            if size != known[0].bytes:
                self._resized(storage, size)
            return
        if storage._cdata in self._keys(operation.args) or storage._cdata in self._keys(operation.kwargs.values()):
            # It was there before us, and whoever gave us the base did not see it.
            self._follow(tensor, storage).counted = False
            return
        self._events += 1
        record = self._follow(tensor, storage)
        self._describe(record, operation)
        self._count(record)

    def _keys(self, values: Iterable[Any]) -> Iterator[int]:
        for value in values:
            if isinstance(value, self._tensor):
                storage = self._storage(value)
                if storage is not None:
                    yield storage._cdata
            elif isinstance(value, (list, tuple)):
                yield from self._keys(value)

    def _storage(self, tensor: Any) -> Any:
        """None for tensors that have no storage of their own (sparse ones, wrappers) or none that counts."""
        try:
            if not self._meta and tensor.is_meta:
                return None
            return tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return None

    def _follow(self, tensor: Any, storage: Any) -> Allocation:
        kind = storage.device.type
        space: Space = self._space if kind == "meta" else "host" if kind == "cpu" else "device"
        record = Allocation(storage.nbytes(), self._events, space)
        record.shape = _shape(tensor)
        record.dtype = str(tensor.dtype).removeprefix("torch.")
        record.item_bytes = tensor.element_size()
        record.is_foreign = kind == "cpu" and (not storage.resizable() or storage.is_shared())
        reference = _Reference(storage, self._died)
        reference.key = storage._cdata
        self._alive[storage._cdata] = record, reference
        self._records.append(record)
        return record

    def _describe(self, record: Allocation, operation: Operation | None) -> None:
        if operation is not None:
            record.operation = str(operation.function)
            record.module = self._name(operation.module)
            record.in_pass = operation.in_pass
        else:
            record.in_pass = self._pass
        record.phase = self._phase() if self._phase is not None else record.in_pass
        record.with_grad = self._torch.is_grad_enabled()
        if self._stacks:
            record.frames, record.maker = frames_of_caller(sys._getframe(1))
        self._fresh.append(record)

    def _name(self, module: Any) -> str:
        return self._modules.get(id(module), type(module).__name__) if module is not None else ""

    # -- live bytes ------------------------------------------------------------------------------------------------

    def _count(self, record: Allocation) -> None:
        if record.space != self._space:
            return
        self.live_bytes += record.bytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self._highs[PEAK] = High(self.peak_bytes, self._events, self._clock(), record.phase, record.module)

    def _died(self, reference: _Reference) -> None:
        known = self._alive.get(reference.key)
        if known is None or known[1] is not reference:
            return
        del self._alive[reference.key]
        self._end(known[0])

    def _end(self, record: Allocation) -> None:
        self._events += 1
        record.died = self._events
        if record.counted and record.space == self._space:
            self.live_bytes -= record.bytes
        self._dead += 1
        if self._dead > MAX_DEAD:
            self._thin()

    def _thin(self) -> None:
        """Who is dead and was not alive at the peak will not be at a later one either."""
        events = [high.event for high in self._highs.values()]
        self._records = [
            record
            for record in self._records
            if record.died is None or any(_was_alive(record, event) for event in events)
        ]
        self._dead = 0

    def _resized(self, storage: Any, size: int) -> None:
        known = self._alive.get(storage._cdata)
        if known is None or size == known[0].bytes:
            return
        old, reference = known
        self._end(old)
        new = Allocation(size, self._events, old.space)
        for name in ("shape", "dtype", "item_bytes", "name", "part", "detail"):
            setattr(new, name, getattr(old, name))
        self._describe(new, self._operation)
        new.operation = new.operation or "resize_"
        self._alive[storage._cdata] = new, reference
        self._records.append(new)
        self._count(new)
        self._note()

    def _note(self) -> None:
        self.curve.add(self._clock(), self.live_bytes, self._phase, self._module_in_progress)

    def _module_in_progress(self) -> str:
        return self._name(self._operation.module) if self._operation is not None else ""

    # -- which part ------------------------------------------------------------------------------------------------

    def _pass_changed(self, now: str) -> None:
        """What forward left behind when backward begins is what backward needs; what data left behind is its input."""
        before, self._pass = self._pass, now
        fresh, self._fresh = self._fresh, []
        for record in fresh:
            if record.died is not None:
                continue
            if now == "backward" and record.in_pass != "backward":
                record.is_kept = True
            elif now == "forward" and before == "outside" and record.phase in ("data", "other", "outside"):
                record.detail = record.detail or "batch"
            elif record.in_pass in ("forward", "outside"):
                self._fresh.append(record)

    def part_of(self, record: Allocation) -> tuple[str, str]:
        """Part of the account and detail of a storage; final only when the step has ended."""
        if record.part is not None:
            return record.part, record.detail
        if record.maker == "kv_cache" and not record.with_grad:
            return "kv_cache", ""
        if record.maker == "gathered":
            return "parameters", "gathered"
        if record.maker == "ddp" or (record.maker == "reduction" and record.phase != "optimizer"):
            return "buckets", "ddp reducer" if record.maker == "ddp" else "reduction"
        if record.detail == "batch" or record.phase == "data":
            return "inputs", "batch"
        if record.is_kept and record.in_pass == "recomputed":
            return "activations", "recomputed"
        if record.is_kept and record.phase not in ("optimizer", "communication"):
            return "activations", "forward" if record.in_pass == "forward" else "loss"
        return "temporary", record.phase if record.phase in ("optimizer", "communication") else record.in_pass

    def mark_high(self, name: str, operation: Operation | None = None, *, always: bool = False) -> bool:
        """Remember this moment under a name of its own if nothing of that name was higher, or always; True if so."""
        if not always and name in self._highs and self.live_bytes <= self._highs[name].bytes:
            return False
        phase = self._phase() if self._phase is not None else self._pass
        module = self._name(operation.module) if operation is not None else ""
        self._highs[name] = High(self.live_bytes, self._events, self._clock(), phase, module)
        return True

    def high(self, name: str = PEAK) -> High:
        """When and where a high was; PEAK's if there is none of that name."""
        return self._highs.get(name, self._highs[PEAK])

    def at_high(self, name: str) -> list[Allocation]:
        """What was alive at a high, largest first; storages of 0 bytes left out. Empty where there was none."""
        if name not in self._highs:
            return []
        event = self._highs[name].event
        found = [record for record in self._records if record.bytes and record.counted and _was_alive(record, event)]
        return sorted(found, key=lambda record: record.bytes, reverse=True)

    def at_peak(self) -> list[Allocation]:
        """What was alive when the live bytes were highest, largest first."""
        return self.at_high(PEAK)

    def parts_at_peak(self) -> dict[str, int]:
        """Bytes by part in the tracker's own space; with the base that was given as a number they sum to the peak."""
        parts: dict[str, int] = {}
        for record in self.at_peak():
            if record.space == self._space:
                part, _detail = self.part_of(record)
                parts[part] = parts.get(part, 0) + record.bytes
        return parts

    def alive_now(self) -> list[Allocation]:
        """What is alive at this moment, in no order."""
        return [record for record, _reference in list(self._alive.values())]


def _was_alive(record: Allocation, event: int) -> bool:
    return record.born <= event and (record.died is None or record.died > event)


def _shape(tensor: Any) -> str:
    """Empty for what has no one shape (nested tensors)."""
    try:
        return "x".join(map(str, tensor.shape))
    except RuntimeError:
        return ""
