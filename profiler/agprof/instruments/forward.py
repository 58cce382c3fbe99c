"""The forward phase: the outermost module call.

torch's global module hooks see every call of every module (about 2 us each), and a compiler that meets them traces
them. So the global hook is taken away as soon as an outermost call has begun, and comes back when that call ends: inner
modules never meet it, and between calls no module carries anything of ours.
"""

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from agprof.instruments.recorder import Recorder, Span

INSTRUMENT = "forward"
MAX_ROOTS = 256
"""Roots that are announced to other instruments; calls of later ones are timed all the same."""


class _Inside(threading.local):
    """The outermost module call in progress on the calling thread."""

    def __init__(self) -> None:
        self.calls = 0
        self.span: Span | None = None
        self.root: Any = None
        self.handle: Any = None
        self.steps = 0
        self.handled: Any = None
        """Number of the exception that was being handled when it began: a failed call has another."""


class ForwardPhases:
    """Opens and closes the phase `forward` around outermost module calls."""

    def __init__(self, recorder: Recorder, torch: Any, on_root: Callable[[Any], None]) -> None:
        """`on_root(module)` is called at a root's first call."""
        self._recorder = recorder
        self._torch = torch
        self._on_root = on_root
        self._inside = _Inside()
        self._roots: dict[int, weakref.ref[Any]] = {}
        self._stale: list[Any] = []
        self._hooks: Any = {}
        self._key = 0
        self._enter = recorder.guard(INSTRUMENT, self._do_enter)
        self._leave = recorder.guard(INSTRUMENT, self._do_leave, ends=True)
        # Attributes of this object would be looked up while a compiler traces the hook.
        self._is_compiling = torch.compiler.is_compiling
        self._graph_task_id = torch._C._current_graph_task_id

    def arm(self) -> None:
        recorder, module = self._recorder, self._torch.nn.modules.module
        handle = module.register_module_forward_pre_hook(self._any_module)
        self._hooks, self._key = handle.hooks_dict_ref(), handle.id
        recorder.patches.on_undo(self._disarm)
        recorder.patches.replace(module.Module, "compile", self._around_compile)
        recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_ended))

    def arm_compiled(self, eval_frame: Any) -> None:
        """`eval_frame` is torch._dynamo.eval_frame. A compiled module warns about global hooks: it must see none."""
        self._recorder.patches.replace(eval_frame.OptimizedModule, "__call__", self._around_compiled_call)

    # -- the global hook -------------------------------------------------------------------------------------------

    def _any_module(self, module: Any, _inputs: Any) -> None:
        if self._is_compiling():
            return
        # Inside a running backward pass this is activation checkpointing's recomputation: part of the backward phase.
        if self._inside.calls or self._graph_task_id() != -1:
            return
        if not self._recorder.is_on(INSTRUMENT):
            # Switched off after failures, or a forked child: cost nothing more.
            self._hooks.pop(self._key, None)
            return
        self._enter(module, by_hook=True)

    def _after_call(self, module: Any, _inputs: Any, _output: Any) -> None:
        if module is self._inside.root:
            self._leave()

    def _do_enter(self, module: Any, by_hook: bool) -> None:
        inside = self._inside
        if inside.calls:
            inside.calls += 1
            return
        self._remove_stale()
        if by_hook:
            inside.handle = self._hook_after(module)
            if inside.handle is None:
                return
            inside.root = module
        inside.calls = 1
        inside.steps = 0
        inside.handled = _handled()
        self._hooks.pop(self._key, None)
        self._announce(module)
        self._recorder.note_forward(self._torch.is_grad_enabled())
        inside.span = self._recorder.open("phase", "forward")

    def _do_leave(self) -> None:
        inside = self._inside
        inside.calls -= 1
        if inside.calls <= 0:
            if _handled() != inside.handled:
                self._recorder.failing(sys.exc_info()[1])
            self._reset()

    def _reset(self) -> None:
        """The outermost call is over: close its phase and look out for the next one."""
        inside = self._inside
        span, handle = inside.span, inside.handle
        inside.calls, inside.span, inside.handle, inside.root = 0, None, None, None
        if handle is not None:
            self._stale.append(handle)
            if sys.exc_info()[0] is None:
                self._remove_stale()
            # else torch may be iterating over the module's hooks, which it does not copy after a failed forward
        if self._recorder.is_on(INSTRUMENT):
            self._hooks[self._key] = self._any_module
        if span is not None:
            self._recorder.close(span)

    def _remove_stale(self) -> None:
        while self._stale:
            self._stale.pop().remove()

    def _hook_after(self, module: Any) -> Any:
        """A hook on this one call's end; None for modules that take no hooks (TorchScript)."""
        try:
            return module.register_forward_hook(self._after_call, always_call=True)
        except RuntimeError:
            return None

    def _announce(self, module: Any) -> None:
        known = self._roots.get(id(module))
        if known is not None and known() is module:
            return
        if len(self._roots) >= MAX_ROOTS:
            self._roots = {key: root for key, root in self._roots.items() if root() is not None}
        if len(self._roots) < MAX_ROOTS:
            self._roots[id(module)] = weakref.ref(module)
            self._on_root(module)

    def _step_ended(self, _step: int) -> None:
        # always_call hooks don't run for KeyboardInterrupt and its like: a call that outlives a whole step is over.
        inside = self._inside
        if inside.calls:
            inside.steps += 1
            if inside.steps > 1:
                self._reset()

    def _disarm(self) -> None:
        self._hooks.pop(self._key, None)
        if self._inside.handle is not None:
            self._stale.append(self._inside.handle)
        self._remove_stale()

    # -- compiled modules ------------------------------------------------------------------------------------------

    def _around_compiled_call(self, original: Any) -> Any:
        @functools.wraps(original)
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_compiling() or self._graph_task_id() != -1:
                return original(module, *args, **kwargs)
            self._enter(module, by_hook=False)
            try:
                return original(module, *args, **kwargs)
            finally:
                self._leave()

        return call

    def _around_compile(self, original: Any) -> Any:
        """Module.compile() in place: time the compiled call from outside, so that nothing of ours is traced."""

        @functools.wraps(original)
        def compile(module: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(module, *args, **kwargs)
            compiled = module._compiled_call_impl
            if compiled is not None and self._recorder.enabled:
                reference = weakref.ref(module)
                timed = self._around_compiled_call(lambda _module, *args, **kwargs: compiled(*args, **kwargs))
                module._compiled_call_impl = _bound(timed, compiled, reference)
            return result

        return compile

    def __deepcopy__(self, memo: Any) -> "ForwardPhases":
        """A module copied during its own call keeps our hook, which ignores the copy."""
        return self

    def __reduce__(self) -> Any:
        """A module pickled during its own call must not fail; its hook comes back as one that does nothing."""
        return (_Unpickled, ())


def _handled() -> int | None:
    """Number of the exception that is being handled; None: none is."""
    error = sys.exc_info()[1]
    return None if error is None else id(error)


def _bound(timed: Any, compiled: Any, reference: Any) -> Any:
    # wraps copies the marks by which an outer torch.compile recognises and inlines the compiled call.
    @functools.wraps(compiled)
    def compiled_call(*args: Any, **kwargs: Any) -> Any:
        return timed(reference(), *args, **kwargs)

    return compiled_call


class _Unpickled:
    """Stands for the hook's owner in a module that was pickled during its call."""

    def _after_call(self, _module: Any, _inputs: Any, _output: Any) -> None:
        return None
