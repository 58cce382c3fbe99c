"""Backward and optimizer phases, micro-steps and optimizer steps of any training loop built on torch."""

import functools
import importlib
import threading
from typing import Any

from agprof.instruments.recorder import Loss, Recorder, Span

INSTRUMENT = "training"


class _State(threading.local):
    def __init__(self) -> None:
        self.backward_depth = 0
        self.optimizer_span: Span | None = None
        self.inside_engine = 0


class TrainingLoop:
    """What is known of the loop: who owns the step boundary, and how deep in backward we are."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._state = _State()
        self._primary: int | None = None
        self.engine_owns_steps = False
        """Set once a DeepSpeed engine exists: it alone decides where a step ends."""
        self._begin_backward = recorder.guard(INSTRUMENT, self._do_begin_backward)
        self._end_backward = recorder.guard(INSTRUMENT, self._do_end_backward)

    def arm(self) -> None:
        """Patch Tensor.backward and torch.autograd.backward, and hook every optimizer's step."""
        recorder, torch = self._recorder, self._torch
        recorder.patches.replace(torch.Tensor, "backward", self.around_backward)
        recorder.patches.replace(torch.autograd, "backward", self.around_backward)
        # torch.optim deletes the name `optimizer` from its namespace; the module is there all the same.
        optimizer = importlib.import_module("torch.optim.optimizer")
        pre = recorder.guard(INSTRUMENT, self._before_step)
        post = recorder.guard(INSTRUMENT, self._after_step)
        recorder.patches.on_undo(optimizer.register_optimizer_step_pre_hook(_pre_hook(pre)).remove)
        recorder.patches.on_undo(optimizer.register_optimizer_step_post_hook(_post_hook(post)).remove)

    # -- backward --------------------------------------------------------------------------------------------------

    def around_backward(self, original: Any) -> Any:
        """Wrap a function whose first argument is the loss (or the engine followed by the loss)."""

        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            span = self._begin_backward()
            finished = False
            try:
                result = original(*args, **kwargs)
                finished = True
                return result
            finally:
                self._end_backward(span, finished, args, kwargs)

        return backward

    def _do_begin_backward(self) -> Span | None:
        state = self._state
        state.backward_depth += 1
        return self._recorder.open("phase", "backward") if state.backward_depth == 1 else None

    def _do_end_backward(self, span: Span | None, finished: bool, args: Any, kwargs: Any) -> None:
        state = self._state
        state.backward_depth = max(0, state.backward_depth - 1)
        if span is None:
            return
        self._recorder.close(span)
        if finished:
            self._recorder.end_micro_step(self._loss_of(args, kwargs))

    def _loss_of(self, args: Any, kwargs: Any) -> Loss | None:
        """The loss among the arguments: a one-element tensor. It is never waited for."""
        candidates = [*args[:2], kwargs.get("loss"), kwargs.get("tensors")]
        for value in candidates:
            if isinstance(value, self._torch.Tensor) and value.numel() == 1:
                return read_loss(self._torch, value)
        return None

    # -- optimizer -------------------------------------------------------------------------------------------------

    def _before_step(self, _optimizer: Any) -> None:
        state = self._state
        if state.inside_engine:
            return
        if state.optimizer_span is not None:
            self._recorder.close(state.optimizer_span)  # the step before raised: its post-hook never ran
        state.optimizer_span = self._recorder.open("phase", "optimizer")

    def _after_step(self, optimizer: Any) -> None:
        state = self._state
        if state.inside_engine or state.optimizer_span is None:
            return
        self._recorder.close(state.optimizer_span)
        state.optimizer_span = None
        if self.engine_owns_steps:
            return
        # A loop with several optimizers makes one step per update of the one that stepped first.
        if self._primary is None:
            self._primary = id(optimizer)
        if id(optimizer) == self._primary:
            self._recorder.end_step()

    def enter_engine(self) -> None:
        self._state.inside_engine += 1

    def leave_engine(self) -> None:
        self._state.inside_engine = max(0, self._state.inside_engine - 1)


def read_loss(torch: Any, tensor: Any) -> Loss:
    """The value of a one-element tensor: at once on a CPU, through an event-guarded copy on a device."""
    detached = tensor.detach()
    if detached.device.type == "cpu":
        return Loss(float(detached))
    host = torch.empty((), dtype=torch.float32, pin_memory=True)
    host.copy_(detached.reshape(()), non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return Loss(ready=lambda: float(host) if event.query() else None)


def _pre_hook(callback: Any) -> Any:
    def before_step(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        callback(optimizer)

    return before_step


def _post_hook(callback: Any) -> Any:
    def after_step(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        callback(optimizer)

    return after_step
