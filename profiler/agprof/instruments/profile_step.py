"""The profile step: one optimizer step in which every operation is looked at.

Arms nothing before it and leaves nothing after it. What looks at operations is a `StepPart`; parts share one OpWatch,
and none of them can disturb another or the training.
"""

import itertools
import sys
import weakref
from typing import Any

from agprof.instruments.op_timer import cuda_op_timer
from agprof.instruments.op_watch import OpWatch
from agprof.instruments.recorder import Recorder

INSTRUMENT = "profile step"


class StepPart:
    """What looks at the profile step. Runs on the training's thread; what a method raises becomes a fault.

    Between `begin` and `end` (or `abandon`) a part may hold modules; never tensors.
    """

    def begin(self, step: int, watch: OpWatch) -> None:
        """The step begins, nothing of it has run. The part adds its listeners to `watch`, under a guard of its own."""

    def root(self, module: Any, number: int) -> None:
        """A root module: called after `begin` for those seen before, and later when one is first called.

        `module` is the user's own model, without DeepSpeed's engine or DDP around it. `number`: as in the facts
        `model<number>.*` and the table `modules`.
        """

    def end(self, step: int) -> None:
        """The step ended; operations are no longer looked at, and the watch's hooks are gone. Write the rows."""

    def abandon(self) -> None:
        """The step has no end: the training ended in it, or it can't be looked at. Forget everything."""


class ProfileStep:
    """Turns the watch on at the begin of the profile step and off at its end, on every rank."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._step = recorder.settings.profile_step
        self._parts: list[tuple[str, StepPart]] = []
        self._numbers = itertools.count()
        self._roots: list[tuple[weakref.ref[Any], int]] = []
        self._watch: OpWatch | None = None
        self._running = False
        self._over = False

    def add(self, instrument: str, part: StepPart) -> None:
        """Before `arm`. Faults of `part` are those of `instrument`."""
        self._parts.append((instrument, part))

    def arm(self) -> None:
        if self._step is None or not self._parts:
            self._over = True
            return
        recorder = self._recorder
        recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_ended, ends=True))
        recorder.on_fork.append(self._forget_in_child)
        recorder.patches.on_undo(self._give_up)
        if self._step == recorder.step:
            recorder.profiled = True

    def on_root(self, module: Any) -> None:
        """A module was called from outside any other for the first time; the call is in progress."""
        number = next(self._numbers)
        target = unwrapped(module)
        if self._step is None or self._over or any(root() is target for root, _number in self._roots):
            return
        self._roots.append((weakref.ref(target), number))
        if self._recorder.step != self._step:
            return
        if not self._running:
            self._begin()
        else:
            self._add_root(target, number)
        if target is module and self._watch is not None and self._running:
            self._watch.enter(module)  # this runs inside its pre-hooks, and those added now miss the call in progress

    # -- begin and end -----------------------------------------------------------------------------------------------

    def _step_ended(self, ended: int) -> None:
        if self._over:
            self._stop()  # only if it could not be stopped at the step's own end
            return
        if self._step is None:
            return
        if self._running:
            self._end(ended)
        elif ended + 1 == self._step:
            self._recorder.profiled = True
            # At step 0 no root has been seen yet: then the first one begins it.
            if self._roots:
                self._begin()
        elif ended >= self._step:
            self._over = True
            self._roots.clear()

    def _begin(self) -> None:
        assert self._step is not None
        hindrance = self._hindrance()
        if hindrance is not None:
            self._refuse(hindrance)
            return
        # A device that works asynchronously returns before it has done an operation.
        timer = cuda_op_timer(self._torch) if self._torch.cuda.is_initialized() else None
        self._watch = OpWatch(self._torch, self._note_fault, timer=timer)
        self._running = True
        for instrument, part in self._parts:
            self._recorder.guard(instrument, part.begin)(self._step, self._watch)
        for root, number in self._alive():
            self._add_root(root, number)
        if self._running:
            self._watch.start()

    def _add_root(self, module: Any, number: int) -> None:
        if self._watch is None:
            return
        if _is_compiled(module):
            self._refuse(_COMPILED)
            return
        self._watch.watch(module)
        for instrument, part in self._parts:
            self._recorder.guard(instrument, part.root)(module, number)

    def _end(self, step: int) -> None:
        self._stop()
        self._running, self._over = False, True
        self._roots.clear()
        for instrument, part in self._parts:
            self._recorder.guard(instrument, part.end, ends=True)(step)

    def _stop(self) -> None:
        """Ours may lie below a mode of the job's, or on another thread: then it does nothing, and a later step's end
        takes it away."""
        watch = self._watch
        if watch is None:
            return
        watch.remove()
        if watch.stop():
            self._watch = None

    def _give_up(self) -> None:
        was_running, self._running, self._over = self._running, False, True
        self._stop()
        self._roots.clear()
        if was_running:
            for instrument, part in self._parts:
                try:
                    part.abandon()
                except Exception as error:
                    self._recorder.fault(instrument, "abandon", error)

    def _forget_in_child(self) -> None:
        """A forked child inherits the mode of the thread that forked, and the modules' hooks."""
        self._give_up()

    def _refuse(self, why: str) -> None:
        self._recorder.fact("compute.profiler_absent", why)
        self._give_up()

    # -- what can't be looked at -------------------------------------------------------------------------------------

    def _hindrance(self) -> str | None:
        if any(_is_compiled(root) for root, _number in self._alive()):
            return _COMPILED
        if _compiled_anything():
            return _COMPILED_PARTS
        if self._torch.utils._python_dispatch._get_current_dispatch_mode_stack():
            # Leaving it, the job would take ours off the stack in the place of its own.
            return "the job has a dispatch mode of its own around the step"
        return None

    def _alive(self) -> list[tuple[Any, int]]:
        roots = ((reference(), number) for reference, number in self._roots)
        return [(root, number) for root, number in roots if root is not None]

    def _note_fault(self, where: str, error: BaseException) -> None:
        self._recorder.fault(INSTRUMENT, where, error)


_COMPILED = "the model is compiled, and counting would compile it anew"
_COMPILED_PARTS = "the job compiles functions, and while operations are looked at those would run uncompiled"


def unwrapped(module: Any) -> Any:
    """The user's own model inside DeepSpeed's engine or DDP."""
    wrapper = _is_named(module, "DeepSpeedEngine", "DistributedDataParallel")
    return getattr(module, "module", module) if wrapper else module


def _is_named(module: Any, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(module).__mro__)


def _is_compiled(module: Any) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    return any(
        hasattr(inner, "_orig_mod") or getattr(inner, "_compiled_call_impl", None) is not None
        for inner in module.modules()
    )


def _compiled_anything() -> bool:
    utilities = sys.modules.get("torch._dynamo.utils")
    return utilities is not None and bool(utilities.counters["frames"].get("ok"))
