"""What DeepSpeed's flops profiler would print for one forward: its figure, with its faults.

Among them: it counts a linear layer twice under ZeRO-3 (as F.linear, and as the matmul inside DeepSpeed's replacement
of it), parameters that ZeRO-3 has partitioned as none, and takes backward for twice the forward.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

_PROFILER = "deepspeed.profiling.flops_profiler.profiler"


def is_used() -> bool:
    return "deepspeed" in sys.modules


class DeepSpeedFigure:
    """DeepSpeed's FlopsProfiler around one call of a module, through its API, with its wrappers of torch's functions
    made safe: its own ones raise into the training when a formula does not fit a call."""

    def __init__(self, torch: Any, module: Any) -> None:
        """Raises ImportError or AttributeError where this DeepSpeed has no such profiler."""
        self._code: Any = sys.modules.get(_PROFILER)
        if self._code is None:
            import importlib

            self._code = importlib.import_module(_PROFILER)
        self._torch = torch
        self._root = module
        self._saved: list[tuple[Any, dict[str, Any]]] = []
        self._ours: set[int] = set()
        """Ids of the wrappers and of what they stand for."""
        self._handle: Any = None
        self._profiler = self._code.FlopsProfiler(module)
        self.forward_flops: float | None = None
        self.params: int | None = None

    def start(self, finished: Callable[[], None]) -> None:
        """Runs inside the module's own pre-hooks. `finished` is called when the call has ended well."""
        torch = self._torch
        owners = (torch, torch.Tensor, torch.nn.functional, self._code.einops)
        self._saved = [(owner, dict(vars(owner))) for owner in owners]
        original = self._code.wrapFunc
        previous, self._code.logger.disabled = self._code.logger.disabled, True
        self._code.wrapFunc = self._wrap
        before = set(self._root._forward_pre_hooks)
        try:
            self._profiler.start_profile()
        except Exception:
            self.dispose()
            raise
        finally:
            self._code.wrapFunc = original
            self._code.logger.disabled = previous
        # The pre-hooks in progress are a copy: those registered now would miss the call.
        for key, hook in list(self._root._forward_pre_hooks.items()):
            if key not in before:
                hook(self._root, ())
        # Registered last: DeepSpeed's own hooks on the module's end must have run before.
        self._handle = self._root.register_forward_hook(
            lambda _module, _inputs, output: self._finish(output, finished), always_call=True
        )

    def _finish(self, output: Any, finished: Callable[[], None]) -> None:
        self._restore()
        if output is None and sys.exc_info()[0] is not None:
            return  # it raised: torch is iterating over the module's hooks, so they stay until `dispose`
        finished()

    def read(self) -> None:
        """Take the figures; then `dispose`."""
        self.forward_flops = float(self._profiler.get_total_flops())
        self.params = int(self._profiler.get_total_params())

    def dispose(self) -> None:
        """Take everything away. Safe to call twice."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        previous, self._code.logger.disabled = self._code.logger.disabled, True
        try:
            self._profiler.end_profile()
        finally:
            self._code.logger.disabled = previous
            self._restore()

    def _restore(self) -> None:
        """Undo what the profiler does to torch's functions, and what its own undoing leaves behind: methods that
        torch.Tensor inherits, as its own ones."""
        self._code.module_flop_count.clear()
        self._code.module_mac_count.clear()
        for owner, saved in self._saved:
            for name, value in list(vars(owner).items()):
                if id(value) not in self._ours or saved.get(name) is value:
                    continue
                if name in saved:
                    setattr(owner, name, saved[name])
                else:
                    delattr(owner, name)

    def _wrap(self, function: Any, formula: Any) -> Any:
        """In the place of DeepSpeed's wrapFunc, with the same bookkeeping, by which it restores the function."""
        name = function.__str__
        code = self._code
        code.old_functions[name] = function

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._count(name, formula, args, kwargs)
            return function(*args, **kwargs)

        counted.__str__ = name  # type: ignore[method-assign]
        self._ours.update((id(function), id(counted)))
        return counted

    def _count(self, name: Any, formula: Any, args: Any, kwargs: Any) -> None:
        try:
            flops, macs = formula(*args, **kwargs)
        except Exception:
            return  # a call that the formula does not understand counts nothing
        code = self._code
        if code.module_flop_count:
            code.module_flop_count[-1].append((name, flops))
        if code.module_mac_count and macs:
            code.module_mac_count[-1].append((name, macs))
