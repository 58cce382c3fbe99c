"""Every operation of one profiled step, as torch dispatches it: what it was, for which module, in which pass, how long.

One dispatch mode feeds all instruments that look at operations (FLOPs, memory), so that a step is slowed once. It works
the same for every framework, and for tensors without data (meta device).
"""

import contextlib
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

from agprof.instruments.op_places import ModuleCall, Operation, OpPlaces
from agprof.instruments.op_timer import OpTimer

Listener = Callable[[Operation], None]


class OpWatch:
    """Owns the dispatch mode and the hooks that tell which module is in progress.

    Listeners run on the training's thread with the mode off; what they raise goes to `on_error`, never into the
    training. `timer` is given where a device works asynchronously.
    """

    def __init__(
        self, torch: Any, on_error: Callable[[str, BaseException], None], *, timer: OpTimer | None = None
    ) -> None:
        self.torch = torch
        self.listeners: list[Listener] = []
        self.on_call: list[Callable[[ModuleCall], None]] = []
        """Called when a call of a watched module begins."""
        self.on_return: list[Callable[[ModuleCall], None]] = []
        """Called when it ends, also by an exception."""
        self._on_error = on_error
        self._timer = timer
        self._places = OpPlaces(torch)
        self._watched: set[int] = set()
        self._handles: list[Any] = []
        self._mode: Any = None
        self._removed = False

    # -- which modules ---------------------------------------------------------------------------------------------

    def watch(self, root: Any) -> None:
        """Hook `root` and all modules in it; what is hooked already stays as it is.

        Inside a pre-hook of `root` itself torch does not see hooks added now: follow with `enter(root)`.
        """
        for module in root.modules():
            if id(module) in self._watched:
                continue
            self._watched.add(id(module))
            try:
                self._handles.append(module.register_forward_pre_hook(self._before_call))
                self._handles.append(module.register_forward_hook(self._after_call, always_call=True))
            except RuntimeError:
                continue  # TorchScript's modules take no hooks: their operations belong to the module around them

    def enter(self, module: Any) -> None:
        """A call of `module` is in progress, whose pre-hooks were missed."""
        self._before_call(module, ())

    @property
    def calls(self) -> Sequence[ModuleCall]:
        """Calls in progress, outermost first."""
        return self._places.calls

    def _before_call(self, module: Any, _inputs: Any) -> None:
        if self._removed:
            return  # a copy that was made of a module in the step
        try:
            call = self._places.enter(module)
        except Exception as error:
            self._on_error("enter", error)
            return
        if call is not None:
            self._tell(self.on_call, call)

    def _after_call(self, module: Any, _inputs: Any, _output: Any) -> None:
        for call in self._places.leave(module):
            self._tell(self.on_return, call)

    def __deepcopy__(self, memo: Any) -> "OpWatch":
        """A module copied in the step keeps our hooks, which tell of the copy's calls as of its own."""
        return self

    def __reduce__(self) -> Any:
        """A module pickled in the step must not fail; its hooks come back as ones that do nothing."""
        return (_Unpickled, ())

    # -- the mode --------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return self._mode is not None and self._mode.watch is not None

    def start(self) -> None:
        """Watch the calling thread's operations from here on, and those of its backward passes."""
        if self._mode is None:
            self._places.begin()
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
        self._removed = True
        self._handles.clear()
        self._watched.clear()
        self._places.clear()

    # -- one operation -----------------------------------------------------------------------------------------------

    def dispatched(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operation = Operation(function, args, kwargs)
        try:
            self._places.place(operation)
        except Exception as error:
            self._on_error("place", error)
        event = self._begin_event()
        begin = perf_counter_ns()
        operation.result = result = function(*args, **kwargs)
        if self._timer is None or not self._is_on_device((*args, result)):
            operation.duration_ns = perf_counter_ns() - begin
        else:
            self._end_event(operation, event)
        self._tell(self.listeners, operation)
        return result

    def _begin_event(self) -> Any:
        if self._timer is None:
            return None
        try:
            return self._timer.begin()
        except Exception as error:
            self._on_error("begin event", error)
            return None

    def _end_event(self, operation: Operation, event: Any) -> None:
        try:
            operation.pair = self._timer.end(event) if self._timer is not None else None
        except Exception as error:
            self._on_error("end event", error)

    def _is_on_device(self, values: tuple[Any, ...]) -> bool:
        """Any of an operation's tensors is."""
        for value in values:
            for held in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(held, self.torch.Tensor) and not held.is_cpu:
                    return True
        return False

    def _tell(self, listeners: Sequence[Callable[[Any], None]], what: Any) -> None:
        for listener in listeners:
            try:
                listener(what)
            except Exception as error:
                self._on_error(getattr(listener, "__name__", "listener"), error)


class _Unpickled:
    """Stands for the hooks' owner in a module that was pickled in the profile step."""

    def _before_call(self, _module: Any, _inputs: Any) -> None:
        return None

    def _after_call(self, _module: Any, _inputs: Any, _output: Any) -> None:
        return None


def _mode_class() -> Any:
    """The dispatch mode, made when torch is there."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    composite = torch._C.DispatchKey.CompositeImplicitAutograd

    def is_composite(function: Any) -> bool:
        return isinstance(function, torch._ops.OpOverload) and bool(
            torch._C._dispatch_has_kernel_for_dispatch_key(function._name, composite)
        )

    class OpMode(TorchDispatchMode):
        supports_higher_order_operators = True

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """torch would import its compiler at the first operation, to keep it out of this mode."""
            return False

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
            if torch.is_inference_mode_enabled() and is_composite(func):
                # Below autograd's key everything has been taken apart; inference has no such key.
                with self:
                    return func._op_dk(composite, *args, **(kwargs or {}))
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
