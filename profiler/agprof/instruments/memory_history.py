"""torch's memory history of the profile step on a CUDA device: blocks that no tensor of ours explains, and the pools.

The caching allocator records every allocation with its Python stack (`stacks="python"`: C++ frames take minutes to
name). At the step's end the history is replayed here, in the rank, and what comes of it is written as rows: no pickle,
no file. It sees what the account of tensors can't: workspaces and temporaries that operations allocate inside.

It is off where somebody else records, before the training touched CUDA, and outside of the step.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from agprof.instruments.op_watch import OpWatch
from agprof.instruments.profile_step import StepPart
from agprof.instruments.recorder import Recorder
from agprof.model.allocator_history import LiveBlock, peak_of, pools_of, usable

INSTRUMENT = "memory history"
FACT = "memory.history"
MAX_ENTRIES = 100_000
"""Events that the ring keeps: 2 to 3 KB each with Python stacks. A step has some ten thousand."""
TOP_BLOCKS = 20
MIN_BYTES = 2**20
"""Smaller blocks are not listed."""
MAX_STACK = 4000
MAX_POOLS = 16
PART = "unexplained"

Sizes = Callable[[], Counter[int]]
"""Bytes of the storages that were alive at the account's peak, with how many there are of each."""


class MemoryHistory(StepPart):
    """Writes `allocations` (at="peak", space="device") and the fact `memory.history`, on every rank."""

    def __init__(self, recorder: Recorder, torch: Any, explained: Sizes) -> None:
        """`explained` is asked at the step's end, after the account has ended."""
        self._recorder = recorder
        self._torch = torch
        self._explained = explained
        self._device: int | None = None
        self._pid = os.getpid()
        self._theirs = False
        recorder.patches.on_undo(self.abandon)

    def begin(self, step: int, watch: OpWatch) -> None:
        cuda = self._torch.cuda
        # Nothing here may be what starts the driver.
        if not cuda.is_initialized() or (hindrance := self._hindrance()) is not None:
            if cuda.is_initialized():
                self._recorder.fact(FACT, {"absent": hindrance})
            return
        self._notice_others(cuda.memory)
        device = int(cuda.current_device())
        cuda.memory._record_memory_history("all", context="alloc", stacks="python", max_entries=MAX_ENTRIES)
        self._device, self._theirs = device, False

    def end(self, step: int) -> None:
        device = self._device
        if device is None:
            return
        try:
            snapshot = self._torch.cuda.memory._snapshot()
        finally:
            self.abandon()
        self._write(step, device, snapshot)

    def abandon(self) -> None:
        device, self._device = self._device, None
        # A forked child has its parent's flags and no device.
        if device is not None and not self._theirs and os.getpid() == self._pid:
            try:
                self._torch.cuda.memory._record_memory_history(None)
            except Exception as error:
                self._recorder.fault(INSTRUMENT, "stop", error)

    def _hindrance(self) -> str | None:
        cuda = self._torch.cuda
        if cuda.memory.get_allocator_backend() != "native":
            return "the allocator is not torch's own"
        if getattr(self._torch._C, "_cuda_isHistoryEnabled", bool)():
            return "somebody else records the memory history"
        if cuda.is_current_stream_capturing():
            return "a CUDA graph is being captured"
        return None

    def _notice_others(self, memory: Any) -> None:
        """Whoever begins to record within the step owns the recording from then on: it stays as it is."""

        def around(original: Any) -> Any:
            def record(*args: Any, **kwargs: Any) -> Any:
                if self._device is not None:
                    self._theirs = True
                return original(*args, **kwargs)

            record.__signature__ = getattr(original, "__signature__", None)  # type: ignore[attr-defined]
            record.__doc__, record.__name__ = original.__doc__, original.__name__
            return record

        self._recorder.patches.replace(memory, "_record_memory_history", around)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _write(self, step: int, device: int, snapshot: Any) -> None:
        segments = [row for row in snapshot["segments"] if row.get("device", device) == device]
        traces = snapshot.get("device_traces") or []
        raw = traces[device] if device < len(traces) else []
        left_out: Counter[str] = Counter()
        peak = peak_of(usable(raw, left_out), segments)
        append = self._recorder.writer.rows("allocations")
        for block in unexplained(peak.blocks, self._explained()):
            append(_row(step, block))
        self._recorder.fact(
            FACT,
            {
                "step": step,
                "events": len(raw),
                # A full ring has forgotten the step's begin: its peak may have been there.
                "complete": len(raw) < MAX_ENTRIES,
                "left_out": sum(left_out.values()),
                "peak_requested_bytes": peak.allocated_bytes,
                "reserved_at_peak_bytes": peak.reserved_bytes,
                "pools_at_end": [
                    {
                        "pool": pool.name,
                        "reserved_bytes": pool.reserved_bytes,
                        "live_bytes": pool.live_bytes,
                        "rounding_bytes": pool.rounding_bytes,
                        "awaiting_bytes": pool.awaiting_bytes,
                        "free_bytes": pool.free_bytes,
                        "cached_bytes": pool.cached_bytes,
                    }
                    for pool in pools_of(segments)[:MAX_POOLS]
                ],
            },
        )


def unexplained(blocks: tuple[LiveBlock, ...], explained: Counter[int]) -> list[LiveBlock]:
    """The largest blocks that no tensor of the account has the size of; each tensor explains one block.

    A block is what a storage asked for, to the byte. One of the same size may stand in for another: the list then names
    the other, and its sum stays right.
    """
    left = Counter(explained)
    found: list[LiveBlock] = []
    for block in blocks:
        if block.bytes < MIN_BYTES or len(found) >= TOP_BLOCKS:
            break
        if left[block.bytes] > 0:
            left[block.bytes] -= 1
        else:
            found.append(block)
    return found


def _row(step: int, block: LiveBlock) -> tuple[Any, ...]:
    stack = "\n".join(block.frames)
    return (step, "peak", "device", PART, block.bytes, "", "", "", "", "", stack[-MAX_STACK:])
