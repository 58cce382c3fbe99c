"""The forward phase: the outermost module call, found without touching every module's call for long.

torch's global module hooks see every call of every module (about 2 us each), so they stay only while roots are being
discovered: a module called from outside any other module is a root and gets hooks of its own; once two steps pass
without a new root, the global hooks go. They come back for one step in fifty, for models that are first called late.
"""

import threading
from collections.abc import Callable
from typing import Any

from agprof.instruments.recorder import Recorder, Span

INSTRUMENT = "forward"
MAX_ROOTS = 64
QUIET_STEPS = 2
LOOK_AGAIN_STEPS = 50


class _Depth(threading.local):
    def __init__(self) -> None:
        self.calls = 0
        self.span: Span | None = None


class ForwardPhases:
    """Opens and closes the phase `forward` around calls of root modules."""

    def __init__(self, recorder: Recorder, module_code: Any, on_root: Callable[[Any], None]) -> None:
        """`module_code` is torch.nn.modules.module; `on_root(module)` is called at a root's first call."""
        self._recorder = recorder
        self._code = module_code
        self._on_root = recorder.guard(INSTRUMENT, on_root)
        self._inside = _Depth()
        self._roots: set[int] = set()
        self._handles: list[Any] = []
        self._global: list[Any] = []
        self._quiet_steps = 0
        self._enter = recorder.guard(INSTRUMENT, self._do_enter)
        self._leave = recorder.guard(INSTRUMENT, self._do_leave)

    def arm(self) -> None:
        self._discover()
        self._recorder.on_step_end.append(self._recorder.guard(INSTRUMENT, self._step_ended))
        self._recorder.patches.on_undo(self._remove_all)

    def _discover(self) -> None:
        if not self._global:
            self._global.append(self._code.register_module_forward_pre_hook(self._any_module))

    def _step_ended(self, step: int) -> None:
        if not self._global:
            if step % LOOK_AGAIN_STEPS == 0:
                self._quiet_steps = QUIET_STEPS - 1
                self._discover()
            return
        self._quiet_steps += 1
        if self._quiet_steps >= QUIET_STEPS:
            self._global.pop().remove()

    def _any_module(self, module: Any, _inputs: Any) -> None:
        if self._inside.calls or id(module) in self._roots or len(self._roots) >= MAX_ROOTS:
            return
        self._adopt(module)

    def _adopt(self, module: Any) -> None:
        self._quiet_steps = 0
        self._roots.add(id(module))
        self._on_root(module)
        # torch collected this call's pre-hooks before ours ran, so the pre-hook registered here fires from the next
        # call on; the forward hook is looked up after the forward and fires for this one too.
        self._handles.append(module.register_forward_pre_hook(self._pre))
        self._handles.append(module.register_forward_hook(self._post, always_call=True))
        self._enter()

    def _pre(self, _module: Any, _inputs: Any) -> None:
        self._enter()

    def _post(self, _module: Any, _inputs: Any, _output: Any) -> None:
        self._leave()

    def _do_enter(self) -> None:
        inside = self._inside
        inside.calls += 1
        if inside.calls == 1:
            inside.span = self._recorder.open("phase", "forward")

    def _do_leave(self) -> None:
        inside = self._inside
        inside.calls -= 1
        if inside.calls <= 0:
            inside.calls = 0
            if inside.span is not None:
                self._recorder.close(inside.span)
                inside.span = None

    def _remove_all(self) -> None:
        for handle in (*self._handles, *self._global):
            handle.remove()
        self._handles.clear()
        self._global.clear()

    def __deepcopy__(self, memo: Any) -> "ForwardPhases":
        """A copy of an instrumented module (an EMA model, say) reports to the same recorder."""
        return self

    def __reduce__(self) -> Any:
        """Pickling an instrumented module must not fail: its hooks come back as ones that do nothing."""
        return (_Unpickled, ())


class _Unpickled:
    """Stands for the hooks' owner in a module that was pickled while instrumented."""

    def _pre(self, _module: Any, _inputs: Any) -> None:
        return None

    def _post(self, _module: Any, _inputs: Any, _output: Any) -> None:
        return None
