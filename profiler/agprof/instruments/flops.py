"""The flops of one micro-step: counted once, at the profile step, on rank 0.

Counting patches functions and hooks every module, so it lasts for one forward only; the step is marked as profiled on
every rank, because the others wait for this one.
"""

import os
import sys
from typing import Any

from agprof.instruments.flops_counters import DeepSpeedCounter, TorchCounter
from agprof.instruments.flops_rules import METHOD, CheckpointWatch, Totals
from agprof.instruments.flops_tree import ModuleWatch, parameters, rows
from agprof.instruments.recorder import Recorder

INSTRUMENT = "flops"


class FlopsInstrument:
    """Writes `modules` and the facts `compute.*`."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._roots: list[Any] = []
        self._waiting: list[Any] = []
        self._session: _Session | None = None
        self._step = recorder.settings.profile_step
        self._mine = os.environ.get("RANK", "0") == "0"
        self._begin = recorder.guard(INSTRUMENT, self._do_begin)
        self._finish = recorder.guard(INSTRUMENT, self._do_finish)
        self._armed = False

    def arm(self) -> None:
        if self._step is None:
            return
        self._armed = True
        recorder = self._recorder
        recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_ended))
        recorder.patches.on_undo(self._stop_waiting)
        recorder.patches.on_undo(self._abandon)
        if self._step == recorder.step:
            recorder.profiled = True

    def on_root(self, module: Any) -> None:
        """A module was called from outside any other for the first time; the call is in progress."""
        _record_sharding(self._recorder, module)
        target = _inner(module)
        if not self._armed or any(target is known for known in self._roots):
            return
        self._roots.append(target)
        if self._mine and self._recorder.step == self._step and self._session is None:
            if target is module:
                self._begin(target)
            else:
                self._wait_for(target)

    def _step_ended(self, ended: int) -> None:
        if self._step is None:
            return
        if ended + 1 == self._step:
            self._recorder.profiled = True
            if self._mine and self._roots:
                self._wait_for(max(self._roots, key=_importance))
        elif ended == self._step:
            self._stop_waiting()
            self._roots.clear()
            self._armed = False

    def _wait_for(self, target: Any) -> None:
        self._waiting.append(target.register_forward_pre_hook(lambda module, _inputs: self._begin(module)))

    def _stop_waiting(self) -> None:
        for handle in self._waiting:
            handle.remove()
        self._waiting.clear()

    def _do_begin(self, target: Any) -> None:
        if self._session is not None:
            return
        self._stop_waiting()
        if _is_compiled(target):
            self._recorder.fact("compute.profiler", None)
            self._recorder.fact("compute.profiler_absent", "the model is compiled; counting would compile it anew")
            self._armed = False
            return
        self._session = _Session(self._recorder, self._torch, target, self._finish)

    def _do_finish(self) -> None:
        session = self._session
        if session is not None and not session.closed:
            session.close()

    def _abandon(self) -> None:
        if self._session is not None and not self._session.closed:
            self._session.close(keep=False)


class _Session:
    """One profiled forward."""

    def __init__(self, recorder: Recorder, torch: Any, target: Any, finish: Any) -> None:
        self._recorder = recorder
        self._target = target
        self._step = recorder.step
        self.closed = False
        self._torch = torch
        self._totals = Totals(torch)
        self._checkpoint: Any = sys.modules.get("torch.utils.checkpoint")
        self._checkpoint_function: Any = None
        self._watch = ModuleWatch(target, recorder.clock)
        self._counter: Any = None
        self._handle: Any = None
        try:
            self._start_counter()
            if self._checkpoint is not None:
                self._checkpoint_function = self._checkpoint.CheckpointFunction
                watch = CheckpointWatch(self._checkpoint_function, self._totals, torch)
                vars(self._checkpoint)["CheckpointFunction"] = watch
            self._watch.enter(target, ())  # its hook on the root misses the call in progress
            # Registered last: the counter's own hooks on the root's end must have run before.
            self._handle = target.register_forward_hook(lambda *_: finish(), always_call=True)
        except BaseException:
            self.close(keep=False)
            raise

    def _start_counter(self) -> None:
        kinds: list[Any] = [DeepSpeedCounter, TorchCounter] if "deepspeed" in sys.modules else [TorchCounter]
        for number, kind in enumerate(kinds):
            try:
                self._counter = kind(self._torch, self._target, self._totals, self._watch)
                self._counter.start()
                return
            except Exception as error:
                self._counter = None
                if number + 1 == len(kinds):
                    raise
                self._recorder.fault(INSTRUMENT, f"{kind.name} counter", error)

    def close(self, keep: bool = True) -> None:
        """Put everything back; with `keep`, write what was counted."""
        self.closed = True
        try:
            if self._counter is not None:
                self._counter.stop()
        finally:
            if self._checkpoint_function is not None:
                vars(self._checkpoint)["CheckpointFunction"] = self._checkpoint_function
            self._watch.remove()
            if self._handle is not None:
                self._handle.remove()
        if self._counter is None:
            return
        try:
            # A forward that raised never left the root.
            if keep and self._watch.calls.get(id(self._target)):
                self._write()
        finally:
            self._counter.end()

    def _write(self) -> None:
        recorder = self._recorder
        for row in rows(self._step, self._target, self._counter.own_flops, self._watch):
            recorder.writer.append("modules", row)
        recorder.fact("compute.profiler", self._counter.name)
        recorder.fact("compute.forward_flops", self._totals.forward)
        recorder.fact("compute.backward_flops", self._totals.backward)
        recorder.fact("compute.backward_method", METHOD)


def _inner(module: Any) -> Any:
    """The user's own model inside DeepSpeed's engine or DDP."""
    wrapper = _is_named(module, "DeepSpeedEngine", "DistributedDataParallel")
    return getattr(module, "module", module) if wrapper else module


def _importance(module: Any) -> tuple[bool, int]:
    """The model that trains comes first, then the largest."""
    params, trainable = parameters(module)
    return trainable > 0, params


def _is_named(module: Any, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(module).__mro__)


def _is_compiled(module: Any) -> bool:
    return any(
        hasattr(inner, "_orig_mod") or getattr(inner, "_compiled_call_impl", None) is not None
        for inner in module.modules()
    )


def _record_sharding(recorder: Recorder, module: Any) -> None:
    if any(_is_named(inner, "FSDPModule", "FullyShardedDataParallel") for inner in module.modules()):
        recorder.fact("framework", "fsdp")
