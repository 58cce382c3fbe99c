"""Backward and optimizer phases, micro-steps and optimizer steps of any training loop built on torch."""

import functools
import importlib
import sys
import threading
import weakref
from typing import Any

from agprof.instruments.recorder import Loss, Recorder, Span

INSTRUMENT = "training"
TAKE_OVER_STEPS = 20
"""Updates that another optimizer makes without one of the owner's before it becomes the owner."""


class _State(threading.local):
    def __init__(self) -> None:
        self.backward_depth = 0
        self.optimizers: list[tuple[int, Span | None]] = []
        """Optimizers whose step is in progress, innermost last; only the outermost has a span."""
        self.inside_engine = 0


class TrainingLoop:
    """What is known of the loop: who owns the step boundary, and how deep in backward we are.

    The owner is the optimizer or DeepSpeed engine that stepped first; of optimizers that take turns it is, from the
    second round on, the last of a round. A loop with several makes one step per update of the owner; when the owner is
    gone, or steps no more while another does, the other becomes the owner.
    """

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._state = _State()
        self._owner: weakref.ref[Any] | None = None
        self._others: dict[int, int] = {}
        self._updates = 0
        """Of the first owner."""
        self._last_other: weakref.ref[Any] | None = None
        self._backwards = 0
        self._step_pending = False
        self._unscaled: tuple[weakref.ref[Any], Any] | None = None
        self._begin_backward = recorder.guard(INSTRUMENT, self._do_begin_backward)
        self._end_backward = recorder.guard(INSTRUMENT, self._do_end_backward, ends=True)

    def arm(self) -> None:
        """Patch Tensor.backward, torch.autograd.backward and GradScaler, and hook every optimizer's step."""
        recorder, torch = self._recorder, self._torch
        recorder.patches.replace(torch.Tensor, "backward", self.around_backward)
        recorder.patches.replace(torch.autograd, "backward", self.around_backward)
        recorder.patches.replace(torch.amp.GradScaler, "scale", self._around_scale)
        recorder.patches.replace(torch.amp.GradScaler, "step", self._around_scaler_step)
        # torch.optim deletes the name `optimizer` from its namespace; the module is there all the same.
        optimizer = importlib.import_module("torch.optim.optimizer")
        pre = recorder.guard(INSTRUMENT, self._before_step)
        post = recorder.guard(INSTRUMENT, self._after_step, ends=True)
        recorder.patches.on_undo(optimizer.register_optimizer_step_pre_hook(_step_hook(pre)).remove)
        recorder.patches.on_undo(optimizer.register_optimizer_step_post_hook(_step_hook(post)).remove)

    # -- backward --------------------------------------------------------------------------------------------------

    def around_backward(self, original: Any) -> Any:
        """Wrap a function whose first argument is the loss (or the engine followed by the loss)."""

        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            # A backward inside a running one (activation checkpointing) is part of it, on whatever thread it runs.
            if self._torch._C._current_graph_task_id() != -1:
                return original(*args, **kwargs)
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
        if state.backward_depth > 1:
            return None
        span = self._recorder.open("phase", "backward")
        self._backwards += 1
        return span

    def _do_end_backward(self, span: Span | None, finished: bool, args: Any, kwargs: Any) -> None:
        state = self._state
        state.backward_depth = max(0, state.backward_depth - 1)
        if span is None:
            return
        if not finished:
            self._recorder.failing(sys.exc_info()[1])
        self._backwards = max(0, self._backwards - 1)
        self._recorder.close(span)
        if finished:
            self._recorder.end_micro_step(self._loss_of(args, kwargs))
        if self._step_pending and self._backwards == 0:
            self._step_pending = False
            self._recorder.end_step()

    def _loss_of(self, args: Any, kwargs: Any) -> Loss | None:
        """The loss among the arguments: a one-element tensor. It is never waited for; None where there is none."""
        try:
            for value in (*args[:2], kwargs.get("loss"), kwargs.get("tensors")):
                if isinstance(value, (list, tuple)) and len(value) == 1:
                    (value,) = value  # noqa: PLW2901
                if isinstance(value, self._torch.Tensor) and value.numel() == 1:
                    return read_loss(self._torch, self._before_scaling(value))
        except Exception:
            # Anything may be differentiated: what has no plain value (complex, meta, functorch) has no loss here.
            return None
        return None

    def _before_scaling(self, loss: Any) -> Any:
        unscaled, self._unscaled = self._unscaled, None
        return unscaled[1] if unscaled is not None and unscaled[0]() is loss else loss

    # -- GradScaler ------------------------------------------------------------------------------------------------

    def _around_scale(self, original: Any) -> Any:
        remember = self._recorder.guard(INSTRUMENT, self._remember_unscaled)

        @functools.wraps(original)
        def scale(scaler: Any, outputs: Any) -> Any:
            scaled = original(scaler, outputs)
            remember(outputs, scaled)
            return scaled

        return scale

    def _remember_unscaled(self, outputs: Any, scaled: Any) -> None:
        if isinstance(scaled, self._torch.Tensor) and scaled is not outputs and scaled.numel() == 1:
            # Detached: holding the loss itself would hold the graph.
            self._unscaled = (weakref.ref(scaled), outputs.detach())

    def _around_scaler_step(self, original: Any) -> Any:
        """The scaler leaves out updates with infinite gradients; the loop's step ends all the same."""
        recorder = self._recorder
        skipped = recorder.guard(INSTRUMENT, self._after_scaler_step)

        @functools.wraps(original)
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            before = recorder.step
            result = original(scaler, optimizer, *args, **kwargs)
            skipped(optimizer, before)
            return result

        return step

    def _after_scaler_step(self, optimizer: Any, step_before: int) -> None:
        owner = self._owner() if self._owner is not None else None
        if self._recorder.step == step_before and (owner is None or owner is optimizer):
            self.stepped(optimizer)

    # -- optimizer -------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Any) -> None:
        state = self._state
        if state.inside_engine:
            return
        running = [number for number, _span in state.optimizers]
        if id(optimizer) in running:
            # Its step before raised: no post-hook ran.
            for _number, span in state.optimizers[running.index(id(optimizer)) :]:
                if span is not None:
                    self._recorder.discard(span)
            del state.optimizers[running.index(id(optimizer)) :]
        outermost = not state.optimizers
        state.optimizers.append((id(optimizer), None))
        if outermost:
            state.optimizers[0] = (id(optimizer), self._recorder.open("phase", "optimizer"))

    def _after_step(self, optimizer: Any) -> None:
        state = self._state
        if state.inside_engine or not any(number == id(optimizer) for number, _span in state.optimizers):
            return
        while state.optimizers:
            number, span = state.optimizers.pop()
            if number == id(optimizer):
                break
        if state.optimizers:
            return
        if span is not None:
            self._recorder.close(span)
        self.stepped(optimizer)

    def stepped(self, stepper: Any) -> None:
        """An optimizer or engine made an update: end the step if it owns the boundary."""
        owner = self._owner() if self._owner is not None else None
        if owner is None:
            self._owner = weakref.ref(stepper)
            self._updates = 1
        elif owner is stepper:
            self._updates += 1
            last = self._last_other() if self._last_other is not None else None
            if self._updates == 2 and last is not None:
                # A round of several optimizers ends with the last of them, which the first round shows.
                self._owner = weakref.ref(last)
                self._others.clear()
                return
        else:
            if isinstance(stepper, self._torch.optim.Optimizer):
                self._last_other = weakref.ref(stepper)
            count = self._others[id(stepper)] = self._others.get(id(stepper), 0) + 1
            if count < TAKE_OVER_STEPS:
                return
            self._owner = weakref.ref(stepper)
            self._last_other = None
        self._others.clear()
        if self._backwards:
            # An update made by a gradient hook: the step ends with the backward pass it is part of.
            self._step_pending = True
        else:
            self._recorder.end_step()

    def enter_engine(self) -> bool:
        """A step of an engine begins on this thread. False: it is part of one that began before."""
        self._state.inside_engine += 1
        return self._state.inside_engine == 1

    def leave_engine(self) -> None:
        self._state.inside_engine = max(0, self._state.inside_engine - 1)


def read_loss(torch: Any, tensor: Any) -> Loss | None:
    """The value of a one-element tensor: at once on a CPU, through an event-guarded copy on a CUDA device.

    None where reading it would wait, communicate, or be captured into a CUDA graph.
    """
    detached = tensor.detach()
    if hasattr(detached, "placements"):
        # A DTensor: only a replicated one has its value on this rank.
        if not all(placement.is_replicate() for placement in detached.placements):
            return None
        detached = detached.to_local()
    if detached.is_complex():
        return None
    if detached.device.type == "cpu":
        return Loss(float(detached.item()))
    if detached.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    host = torch.empty((), dtype=torch.float32, pin_memory=True)
    host.copy_(detached.reshape(()), non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return Loss(ready=lambda: float(host) if event.query() else None)


def _step_hook(callback: Any) -> Any:
    def step_hook(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        callback(optimizer)

    # A compiler that traces the optimizer's step must call this and not trace it (torch.compiler.disable without
    # importing the compiler).
    step_hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    return step_hook
