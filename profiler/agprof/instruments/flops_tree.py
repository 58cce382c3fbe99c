"""The module tree of one profiled forward, as rows of the table `modules`."""

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_KEPT_CALLS = 20_000
"""Calls that are kept one by one: a module called for each token of a long loop must not fill the memory."""


class Call(NamedTuple):
    """One call of a module's forward."""

    module: int
    """Its `id`."""
    start_ns: int
    end_ns: int
    depth: int
    """Modules in progress around it."""


class ModuleWatch:
    """Counts and times the calls of every module, through hooks of its own."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._stack: list[tuple[Any, int]] = []
        self.calls: dict[int, int] = {}
        self.duration_ns: dict[int, int] = {}
        self.each_call: list[Call] = []
        """In the order in which they ended, up to MAX_KEPT_CALLS."""
        self._handles: list[Any] = []

    def attach(self, root: Any) -> None:
        for module in root.modules():
            self._handles.append(module.register_forward_pre_hook(self.enter))
            self._handles.append(module.register_forward_hook(self.leave))

    def enter(self, module: Any, _inputs: Any) -> None:
        self._stack.append((module, self._clock()))

    def leave(self, module: Any, _inputs: Any, _output: Any) -> None:
        now = self._clock()
        while self._stack:
            inner, start = self._stack.pop()
            if inner is module:
                key = id(module)
                self.calls[key] = self.calls.get(key, 0) + 1
                self.duration_ns[key] = self.duration_ns.get(key, 0) + now - start
                if len(self.each_call) < MAX_KEPT_CALLS:
                    self.each_call.append(Call(key, start, now, len(self._stack)))
                return

    @property
    def current(self) -> Any:
        """The innermost module in progress."""
        return self._stack[-1][0] if self._stack else None

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def rows(step: int, root: Any, own_flops: Callable[[Any], float], watch: ModuleWatch) -> list[tuple[Any, ...]]:
    """Rows of `modules`. `own_flops(module)`: of all its calls, without its descendants."""
    table = []
    for order, (path, module) in enumerate(root.named_modules()):
        params, trainable = parameters(module)
        table.append(
            (
                step,
                path,
                None if order == 0 else path.rpartition(".")[0],
                path.count(".") + 1 if path else 0,
                type(module).__name__,
                order,
                params,
                trainable,
                float(sum(own_flops(inner) for inner in module.modules())),
                watch.duration_ns.get(id(module)),
                watch.calls.get(id(module), 0),
            )
        )
    return table


def parameters(module: Any) -> tuple[int, int]:
    """Parameters and trainable ones, shared ones once; ZeRO-3's partitioned ones count whole (`ds_numel`)."""
    total = trainable = 0
    for parameter in module.parameters():  # torch leaves out what it has seen already
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable
