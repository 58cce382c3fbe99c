"""Every operation of one profiled step, as torch dispatches it: what it was, for which module, in which pass, how long.

One dispatch mode feeds all instruments that look at operations (FLOPs, memory), so that a step is slowed once. It works
the same for every framework, and for tensors without data (meta device).

An operation of a backward pass belongs to the module whose forward made the autograd node that is running: at the time
of a forward operation its node has just been numbered (`_get_sequence_nr() - 1`), and the running node tells its number
again in backward. Inside a backward pass only recomputation runs with gradients enabled.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, Literal

Pass = Literal["forward", "backward", "recomputed", "outside"]
"""outside: neither in a call of a module nor in a backward pass (loss, optimizer, communication)."""


class Operation:
    """One dispatched operation. Valid only while a listener is called: holding it would keep its tensors."""

    __slots__ = ("args", "duration_ns", "function", "in_pass", "kwargs", "module", "result", "root")

    def __init__(self) -> None:
        self.function: Any = None
        """torch.ops overload, as `aten.mm.default`; a higher-order operator has no `overloadpacket`."""
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.result: Any = None
        self.in_pass: Pass = "outside"
        self.module: Any = None
        """Innermost module that it works for, also in backward; None when there is none."""
        self.root: Any = None
        """Outermost watched module of that call."""
        self.duration_ns: int | None = None
        """Time of the call; None where calls return before the device has done them."""


Listener = Callable[[Operation], None]

_Owner = tuple[Any, Any]
"""Innermost and outermost module."""
_NOBODY: _Owner = (None, None)


class ModuleCall:
    """A call of a module in progress."""

    __slots__ = ("module", "recomputed")

    def __init__(self, module: Any, recomputed: bool) -> None:
        self.module = module
        self.recomputed = recomputed


class OpWatch:
    """Owns the dispatch mode and the hooks that tell which module is in progress.

    Listeners run on the training's thread with the mode off; what they raise goes to `on_error`, never into the
    training. `timed` is False on a device that works asynchronously.
    """

    def __init__(self, torch: Any, on_error: Callable[[str, BaseException], None], *, timed: bool = True) -> None:
        self.torch = torch
        self.listeners: list[Listener] = []
        self.on_call: list[Callable[[ModuleCall], None]] = []
        """Called when a call of a watched module begins."""
        self.on_return: list[Callable[[ModuleCall], None]] = []
        """Called when it ends, also by an exception."""
        self._on_error = on_error
        self._timed = timed
        self._calls: list[ModuleCall] = []
        self._owners: dict[tuple[int, int], _Owner] = {}
        """Thread and number of an autograd node -> modules whose forward made it; each thread numbers its own."""
        self._forward_thread = 0
        self._outer_task: int | None = None
        """Backward pass in progress, without those inside it (a reentrant checkpoint's)."""
        self._watched: set[int] = set()
        self._handles: list[Any] = []
        self._mode: Any = None

    # -- which modules ---------------------------------------------------------------------------------------------

    def watch(self, root: Any) -> None:
        """Hook `root` and all modules in it; what is hooked already stays as it is.

        Inside a pre-hook of `root` itself torch does not see hooks added now: follow with `enter(root)`.
        """
        for module in root.modules():
            if id(module) in self._watched:
                continue
            self._watched.add(id(module))
            self._handles.append(module.register_forward_pre_hook(self._before_call))
            self._handles.append(module.register_forward_hook(self._after_call, always_call=True))

    def enter(self, module: Any) -> None:
        """A call of `module` is in progress, whose pre-hooks were missed."""
        self._before_call(module, ())

    @property
    def calls(self) -> Sequence[ModuleCall]:
        """Calls in progress, outermost first."""
        return self._calls

    def _before_call(self, module: Any, _inputs: Any) -> None:
        call = ModuleCall(module, self._recomputes())
        self._calls.append(call)
        self._tell(self.on_call, call)

    def _after_call(self, module: Any, _inputs: Any, _output: Any) -> None:
        if not any(call.module is module for call in self._calls):
            return  # its begin was missed
        while self._calls:
            call = self._calls.pop()
            self._tell(self.on_return, call)
            if call.module is module:
                return

    # -- the mode --------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return self._mode is not None and self._mode.watch is not None

    def start(self) -> None:
        """Watch the calling thread's operations from here on, and those of its backward passes."""
        if self._mode is None:
            self._mode = _mode_class()(self)
            self._mode.__enter__()

    def stop(self) -> bool:
        """Watch no more. False when somebody else's mode lies above ours, or ours is another thread's: then it stays,
        does nothing, and a later call takes it away."""
        mode = self._mode
        if mode is None:
            return True
        mode.watch = None
        stack = self.torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        if not stack or stack[-1] is not mode:
            return False
        self._mode = None
        mode.__exit__(None, None, None)
        return True

    def remove(self) -> None:
        """Take all hooks away. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._watched.clear()
        self._calls.clear()
        self._owners.clear()

    # -- one operation -----------------------------------------------------------------------------------------------

    def _recomputes(self) -> bool:
        code = self.torch._C
        return bool(code._current_graph_task_id() != -1 and self.torch.is_grad_enabled())

    def dispatched(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = Operation()
        operation.function, operation.args, operation.kwargs = function, args, kwargs
        try:
            operation.in_pass, (operation.module, operation.root) = self._place()
        except Exception as error:
            self._on_error("place", error)
        begin = perf_counter_ns()
        operation.result = result = function(*args, **kwargs)
        if self._timed:
            operation.duration_ns = perf_counter_ns() - begin
        self._tell(self.listeners, operation)
        return result

    def _place(self) -> "tuple[Pass, _Owner]":
        code = self.torch._C
        task, thread = code._current_graph_task_id(), threading.get_ident()
        if task == -1:
            self._forward_thread, self._outer_task = thread, None
            return self._place_forward("forward", thread)
        if self._outer_task is None:
            self._outer_task = task
        if self.torch.is_grad_enabled():
            return self._place_forward("recomputed", thread)
        node = code._current_autograd_node()
        if node is None:
            return "backward", _NOBODY
        # On a GPU autograd has threads of its own. What a pass inside the pass differentiates was recomputed there.
        made_on = self._forward_thread if task == self._outer_task else thread
        return "backward", self._owners.get((made_on, node._sequence_nr()), _NOBODY)

    def _place_forward(self, which: Literal["forward", "recomputed"], thread: int) -> "tuple[Pass, _Owner]":
        if not self._calls:
            # A checkpoint around bare functions recomputes without any call of a module.
            return ("recomputed" if which == "recomputed" else "outside"), _NOBODY
        owner = (self._calls[-1].module, self._calls[0].module)
        # The first operation after a node was numbered is the one that it was made for; later ones with the same
        # number run inside it (a function of its own, as a checkpoint) or have no node at all.
        self._owners.setdefault((thread, self.torch._C._autograd._get_sequence_nr() - 1), owner)
        return which, owner

    def _tell(self, listeners: Sequence[Callable[[Any], None]], what: Any) -> None:
        for listener in listeners:
            try:
                listener(what)
            except Exception as error:
                self._on_error(getattr(listener, "__name__", "listener"), error)


def _mode_class() -> Any:
    """The dispatch mode, made when torch is there."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class OpMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True

        def __init__(self, watch: OpWatch) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.watch: OpWatch | None = watch

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            watch = self.watch
            if watch is None:
                return func(*args, **(kwargs or {}))
            if any(hasattr(kind, "__tensor_flatten__") or kind.__name__ == "DTensor" for kind in types):
                # A tensor made of others (DTensor): what it does with them comes here again, in local shapes.
                return NotImplemented
            return watch.dispatched(func, args, kwargs or {})

    return OpMode


@contextlib.contextmanager
def watching(torch: Any, *roots: Any, listeners: Sequence[Listener]) -> Any:
    """Watch what runs inside, for the modules of `roots`: for planning on the meta device, and for tests.

    An error of a listener is raised at the end.
    """
    errors: list[BaseException] = []
    watch = OpWatch(torch, lambda _where, error: errors.append(error))
    watch.listeners.extend(listeners)
    for root in roots:
        watch.watch(root)
    try:
        with contextlib.ExitStack() as stack:
            watch.start()
            stack.callback(watch.stop)
            yield watch
    finally:
        watch.remove()
    if errors:
        raise errors[0]
