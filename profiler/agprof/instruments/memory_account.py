"""The memory account of a rank: what stands before the profile step, and what the step's highest point is made of.

The parts come from the tensors themselves (`memory_walk`, `memory_tracker`); the total comes from torch's allocators,
which know nothing of parts. What the parts leave of the total is unexplained, and the analysis says so.
"""

import importlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from agprof.instruments.memory_frames import format_frames
from agprof.instruments.memory_holders import holders
from agprof.instruments.memory_tensors import local
from agprof.instruments.memory_totals import Total, Totals
from agprof.instruments.memory_tracker import PEAK, UNEXPLAINED, Allocation, MemoryTracker, Space
from agprof.instruments.memory_walk import Owners, find_owners, gradients, owned, reducer_bytes
from agprof.instruments.op_watch import OpWatch
from agprof.instruments.profile_step import StepPart
from agprof.instruments.recorder import Recorder

INSTRUMENT = "memory account"
TOP_ALLOCATIONS = 40
CURVE_POINTS = 2000
GENERATE = "generate"
"""The range that instruments.rlhf opens around generate."""
ALLOCATED, GENERATION = "allocated", "generation"
LAST_COUNTED_STEP = 50
"""Until the profile step every allocation is counted, 1-2 us each: for a later one that would be too long."""
MAX_TEXT = 4000
REDUCER = "ddp reducer"
MAX_ASKED = 64
"""Tensors without an owner, the largest, whose holders are looked for."""
METHODS = {
    "inputs": "tensors of datasets, those that the model was called after, and what only the job itself holds",
    "activations": "made in forward or by the loss, still alive when backward began",
    "temporary": "made in the step and freed in the same pass",
    "buckets": "tensors that the framework reduces or copies gradients in",
    "kv_cache": "made by the cache of keys and values during generation",
}
WALKED = "tensors that belong to modules, optimizers and the framework's own objects"

Row = tuple[Any, ...]


class MemoryAccount(StepPart):
    """Writes `memory_parts`, `allocations`, `memory_curve` and the facts `memory.*`, on every rank."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        step = recorder.settings.profile_step
        self._totals = Totals(torch, counts=step is not None and step <= LAST_COUNTED_STEP)
        self._step = step or 0
        self._tracker: MemoryTracker | None = None
        self._owners: Owners | None = None
        self._handle: Any = None
        self._peak = PEAK
        """Name of the tracker's high that is the step's peak: the allocator's where it can be read."""
        self.peak_sizes: Counter[int] = Counter()
        """Bytes of the storages on the device that were alive at the peak: what the memory history need not list."""
        self._phase_end = recorder.guard(INSTRUMENT, self._mark_owned)
        recorder.on_fork.append(self._totals.stop)
        recorder.patches.on_undo(self.abandon)

    # -- the profile step ------------------------------------------------------------------------------------------

    def begin(self, step: int, watch: OpWatch) -> None:
        recorder, torch = self._recorder, self._torch
        # Before anything of ours is made.
        totals = self._totals.now()
        space: Space = "device" if torch.cuda.is_initialized() else "host"
        tracker = MemoryTracker(torch, space=space, clock=recorder.clock, phase=recorder.phase, meta=False)
        self._owners = _include_all(tracker)
        self._tracker, self._step = tracker, step
        standing = tracker.alive_now()
        self._write_parts("standing", standing, self._totals.begin(totals, standing, tracker), tracker)
        tracker.on_high.append(self._high)
        watch.listeners.append(recorder.guard(INSTRUMENT, self._listen))
        recorder.on_phase_end.append(self._phase_ended)
        self._hook_optimizers()
        tracker.start()

    def root(self, module: Any, number: int) -> None:
        if self._tracker is not None and self._owners is not None:
            prefix = "" if number == 0 else f"model{number}."
            self._tracker.name_modules(module, prefix)
            self._owners.name_modules(module)

    def end(self, step: int) -> None:
        tracker = self._tracker
        if tracker is None:
            return
        try:
            self._mark_owned()
            tracker.stop()
            peak = tracker.at_high(self._peak)
            self._write_parts("peak", peak, self._totals.peak(peak), tracker)
            self._write_copies()
            self._write_allocations("peak", peak, tracker)
            self.peak_sizes = Counter(record.bytes for record in peak if record.space == "device")
            generation = tracker.at_high(GENERATION)
            if generation:
                self._write_parts(GENERATION, generation, self._totals.high(GENERATION, generation), tracker)
            append = self._recorder.writer.rows("memory_curve")
            for point in tracker.curve.points(CURVE_POINTS):
                append((self._step, *point))
            self._write_facts(tracker)
        finally:
            self.abandon()

    def abandon(self) -> None:
        tracker, self._tracker, self._owners = self._tracker, None, None
        if tracker is not None:
            tracker.stop()
        if self._phase_ended in self._recorder.on_phase_end:
            self._recorder.on_phase_end.remove(self._phase_ended)
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()
        self._totals.stop()

    # -- within it -------------------------------------------------------------------------------------------------

    def _listen(self, operation: Any) -> None:
        tracker = self._tracker
        if tracker is not None:
            tracker.listen(operation)
            is_collective = getattr(operation.function, "namespace", "") == "c10d"
            if self._totals.sample(tracker, is_collective=is_collective):
                self._peak = ALLOCATED
                tracker.mark_high(ALLOCATED, operation, always=True)
                if is_collective:
                    self._high()
            # A generation needs no gradients: asking for the ranges in progress is left out elsewhere.
            is_generating = not self._torch.is_grad_enabled() and GENERATE in self._recorder.open_ranges()
            if is_generating and tracker.mark_high(GENERATION, operation):
                self._totals.note_high(GENERATION)

    def _high(self) -> None:
        tracker, owners = self._tracker, self._owners
        if tracker is not None and owners is not None:
            self._totals.sample_slowly(tracker)
            for tensor, part, detail, name in gradients(owners):
                tracker.mark(tensor, part, detail, name)

    def _phase_ended(self, _phase: str, _time_ns: int) -> None:
        self._phase_end()

    def _mark_owned(self) -> None:
        """Say whose the storages are that were made in the step and have found an owner since."""
        tracker, owners = self._tracker, self._owners
        if tracker is not None and owners is not None:
            for tensor, part, detail, name in owned(owners):
                tracker.mark(tensor, part, detail, name)

    def _hook_optimizers(self) -> None:
        mark = self._phase_end

        def step_hook(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
            mark()

        # a compiler that traces the optimizer's step must leave this out
        step_hook._torchdynamo_disable = True  # type: ignore[attr-defined]
        # torch.optim deletes the name `optimizer` from its namespace; the module is there all the same
        module = importlib.import_module("torch.optim.optimizer")
        self._handle = module.register_optimizer_step_pre_hook(step_hook)

    # -- rows ------------------------------------------------------------------------------------------------------

    def _write_parts(self, at: str, records: list[Allocation], totals: Iterable[Total], tracker: MemoryTracker) -> None:
        append = self._recorder.writer.rows("memory_parts")
        # DDP's buckets are C++ objects; those that a collective showed to Python or that this step made are in records.
        shown = sum(record.bytes for record in records if tracker.part_of(record)[1] == REDUCER)
        buckets = reducer_bytes(self._owners) - shown if self._owners is not None else 0
        for row in part_rows(self._step, at, records, totals, tracker):
            append(row)
        if buckets > 0:
            how = "as many bytes as the trained parameters have: these of DDP's buckets are seen by no Python object"
            space = "device" if self._torch.cuda.is_initialized() else "host"
            append((self._step, at, space, "buckets", REDUCER, buckets, None, "modelled", how))

    def _write_copies(self) -> None:
        copied = self._totals.copied_bytes
        if copied:
            how = "what the allocator held more after collectives than the tensors that it was given: gloo's copies"
            row = (self._step, "peak", "host", "buckets", "copies in collectives", copied, None, "measured", how)
            self._recorder.writer.append("memory_parts", row)

    def _write_allocations(self, at: str, records: list[Allocation], tracker: MemoryTracker) -> None:
        append = self._recorder.writer.rows("allocations")
        for row in allocation_rows(self._step, at, records, tracker):
            append(row)

    def _write_facts(self, tracker: MemoryTracker) -> None:
        fact = self._recorder.fact
        high = tracker.high(self._peak)
        fact("memory.peak_phase", high.phase)
        fact("memory.peak_module", high.module)
        fact("memory.peak_time_ns", high.time_ns)
        fact("memory.method", self._totals.method)

    # -- out of memory ---------------------------------------------------------------------------------------------

    def account_now(self, at: str = "oom") -> tuple[list[Row], list[Row]]:
        """Rows of `memory_parts` and `allocations` for this moment, to be called where memory ran out.

        Allocates no tensor and raises nothing; what could not be found out is left out.
        """
        try:
            return self._account_now(at)
        except Exception as error:
            self._recorder.fault(INSTRUMENT, "account_now", error)
            return [], []

    def _account_now(self, at: str) -> tuple[list[Row], list[Row]]:
        totals = self._totals.now()
        tracker = self._tracker
        if tracker is None:
            space: Space = "device" if self._torch.cuda.is_initialized() else "host"
            tracker = MemoryTracker(self._torch, space=space, stacks=False, meta=False)
            _include_all(tracker, asks_holders=False)
        else:
            self._mark_owned()
        step = self._recorder.step
        records = sorted(tracker.alive_now(), key=lambda record: record.bytes, reverse=True)
        parts = list(part_rows(step, at, records, self._totals.stated(totals, records), tracker))
        allocations = list(allocation_rows(step, at, records, tracker))
        if tracker is not self._tracker:
            tracker.stop()
        return parts, allocations


def _include_all(tracker: MemoryTracker, *, asks_holders: bool = True) -> Owners:
    """Give the tracker every tensor there is, with its owner. Returns the owners."""
    owners, tensors = find_owners()
    for tensor, part, detail, name in owned(owners):
        tracker.include(tensor, part, detail, name)
    unknown = []
    for tensor in map(local, tensors):
        # Results that the loop still holds, a loss or logits, keep what backward did not free.
        if tensor.requires_grad and not tensor.is_leaf:
            tracker.include(tensor, "activations", "left of the step before", type(tensor).__name__)
        elif tracker.include(tensor, UNEXPLAINED, "", type(tensor).__name__):
            unknown.append(tensor)
    _mark_reducer(tracker, unknown, reducer_bytes(owners))
    if asks_holders:
        unknown.sort(key=lambda tensor: tensor.numel() * tensor.element_size(), reverse=True)
        del unknown[MAX_ASKED:]
        for tensor, holder in zip(unknown, holders(unknown, (tensors,)), strict=True):
            if holder is not None:
                tracker.mark(tensor, "inputs", "held by the job", holder)
    return owners


def _mark_reducer(tracker: MemoryTracker, unknown: list[Any], size: int) -> None:
    """Flat tensors that nobody else owns are DDP's buckets, as far as these go."""
    for tensor in unknown if size else ():
        taken = tensor.numel() * tensor.element_size()
        if tensor.dim() == 1 and taken <= size:
            tracker.mark(tensor, "buckets", REDUCER, "bucket")
            size -= taken


def part_rows(
    step: int, at: str, records: Iterable[Allocation], totals: Iterable[Total], tracker: MemoryTracker
) -> Iterable[Row]:
    """Rows of `memory_parts`: the totals as they were measured, and the records summed by space, part and detail."""
    for total in totals:
        yield (step, at, total.space, total.part, "", total.bytes, None, "measured", total.method)
    sums: dict[tuple[str, str, str], list[int]] = {}
    for record in records:
        part, detail = tracker.part_of(record)
        if part == UNEXPLAINED or not record.bytes:
            continue
        found = sums.setdefault((record.space, part, detail), [0, 0])
        found[0] += record.bytes
        found[1] += record.bytes // record.item_bytes
    for (space, part, detail), (size, elements) in sums.items():
        yield (step, at, space, part, detail, size, elements, "measured", METHODS.get(part, WALKED))


def allocation_rows(step: int, at: str, records: list[Allocation], tracker: MemoryTracker) -> Iterable[Row]:
    """Rows of `allocations` for the first of `records`."""
    for record in records[:TOP_ALLOCATIONS]:
        part, _detail = tracker.part_of(record)
        yield (
            step, at, record.space, part, record.bytes, record.shape, record.dtype, record.operation,
            (record.module or record.name)[:MAX_TEXT], record.phase, format_frames(record.frames)[:MAX_TEXT],
        )  # fmt: skip
