"""The flops of one micro-step: counted once, at the profile step, on rank 0.

Counting patches functions and hooks every module, so it lasts for one forward only; the step is marked as profiled on
every rank, because the others wait for this one.
"""

import os
import sys
import weakref
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
        self._step = recorder.settings.profile_step
        self._counts_here = os.environ.get("RANK", "0") == "0"
        self._roots: list[weakref.ref[Any]] = []
        self._waiting: list[Any] = []
        self._session: _Session | None = None
        self._armed = False
        self._begin = recorder.guard(INSTRUMENT, self._do_begin)
        self._finish = recorder.guard(INSTRUMENT, self._do_finish, ends=True)
        self._at_root = recorder.guard(INSTRUMENT, self._do_at_root)

    def arm(self) -> None:
        if self._step is None:
            return
        self._armed = True
        recorder = self._recorder
        recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_ended, ends=True))
        recorder.patches.on_undo(self._clean_up)
        if self._step == recorder.step:
            recorder.profiled = True

    def on_root(self, module: Any) -> None:
        """A module was called from outside any other for the first time; the call is in progress."""
        self._at_root(module)

    def _do_at_root(self, module: Any) -> None:
        target = _inner(module)
        if not self._armed or any(root() is target for root in self._roots):
            return
        self._roots.append(weakref.ref(target))
        if self._recorder.step != self._step or self._session is not None:
            return
        if target is module:
            self._begin(target)
        else:
            self._wait_for(target)

    def _step_ended(self, ended: int) -> None:
        if not self._armed or self._step is None:
            return
        if ended + 1 == self._step:
            self._recorder.profiled = True
            alive = [root for root in (reference() for reference in self._roots) if root is not None]
            if alive:
                self._wait_for(max(alive, key=_importance))
        elif ended >= self._step:
            self._armed = False
            self._clean_up()

    def _wait_for(self, target: Any) -> None:
        if self._counts_here:
            self._waiting.append(target.register_forward_pre_hook(lambda module, _inputs: self._begin(module)))

    def _clean_up(self) -> None:
        for handle in self._waiting:
            handle.remove()
        self._waiting.clear()
        self._roots.clear()
        session, self._session = self._session, None
        if session is not None:
            session.restore()
            session.dispose()

    def _do_begin(self, target: Any) -> None:
        # A forward without gradients (generation, evaluation) is not the one that a training step is made of.
        if self._session is not None or not self._counts_here or not self._torch.is_grad_enabled():
            return
        for handle in self._waiting:
            handle.remove()
        self._waiting.clear()
        if _is_compiled(target):
            self._armed = False
            self._recorder.fact("compute.profiler_absent", "the model is compiled, and counting would compile it anew")
            return
        self._session = _Session(self._recorder, self._torch, target, self._finish)
        self._session.start()

    def _do_finish(self) -> None:
        if self._session is not None:
            self._session.finish()


class _Session:
    """One profiled forward."""

    def __init__(self, recorder: Recorder, torch: Any, target: Any, finish: Any) -> None:
        """`finish` is called when the forward ends, also by an exception."""
        self._recorder = recorder
        self._torch = torch
        self._target = target
        self._finish = finish
        self._step = recorder.step
        self._totals = Totals(torch)
        self._watch = ModuleWatch(recorder)
        self._counter: Any = None
        self._checkpoint: Any = sys.modules.get("torch.utils.checkpoint")
        self._checkpoint_function: Any = None
        self._handle: Any = None
        self._over = False

    def start(self) -> None:
        """Runs inside the target's pre-hooks: what is registered there now misses the call in progress."""
        try:
            self._watch.attach(self._target)
            self._start_counter()
            self._watch.enter(self._target, ())
            if self._checkpoint is not None:
                self._checkpoint_function = self._checkpoint.CheckpointFunction
                watch = CheckpointWatch(self._checkpoint_function, self._totals, self._torch)
                vars(self._checkpoint)["CheckpointFunction"] = watch
            # Registered last: the other hooks on the target's end must have run before.
            finish = self._finish
            self._handle = self._target.register_forward_hook(lambda *_: finish(), always_call=True)
        except BaseException:
            self.restore()
            self.dispose()
            raise

    def _start_counter(self) -> None:
        kinds: list[Any] = [DeepSpeedCounter, TorchCounter] if "deepspeed" in sys.modules else [TorchCounter]
        for number, kind in enumerate(kinds):
            try:
                counter = kind(self._torch, self._target, self._totals, self._watch)
                counter.start()
                self._counter = counter
                return
            except Exception as error:
                if number + 1 == len(kinds):
                    raise
                self._recorder.fault(INSTRUMENT, f"{kind.name} counter", error)

    def finish(self) -> None:
        """The forward ended."""
        if self._over:
            return
        self.restore()
        if not self._watch.calls.get(id(self._target)):
            return  # it raised: torch is iterating over the target's hooks, so they stay until the step's end
        try:
            self._counter.stop()
            self._write()
        finally:
            self.dispose()

    def restore(self) -> None:
        """Give torch its functions back. Touches no hooks of modules."""
        self._over = True
        if self._checkpoint_function is not None:
            vars(self._checkpoint)["CheckpointFunction"] = self._checkpoint_function
            self._checkpoint_function = None
        if self._counter is not None:
            self._counter.restore()

    def dispose(self) -> None:
        """Take all hooks away. Safe to call twice."""
        self._watch.remove()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._counter is not None:
            self._counter.end()
            self._counter = None

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
