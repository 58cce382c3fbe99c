"""The module tree of one profiled forward, as rows of the table `modules`."""

from collections.abc import Callable
from typing import Any

from agprof.instruments.recorder import Recorder, Span

MAX_SPANS = 20_000
"""Calls that become spans: a module called for each token of a long loop must not fill the run folder."""


class ModuleWatch:
    """Counts and times the calls of every module, through hooks of its own; each is a span of category `module`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._stack: list[tuple[Any, int, Span | None]] = []
        self._names: dict[int, str] = {}
        self._spans = 0
        self.calls: dict[int, int] = {}
        self.duration_ns: dict[int, int] = {}
        self._handles: list[Any] = []

    def attach(self, root: Any) -> None:
        for path, module in root.named_modules():
            self._names[id(module)] = path or type(module).__name__
            self._handles.append(module.register_forward_pre_hook(self.enter))
            self._handles.append(module.register_forward_hook(self.leave))

    def enter(self, module: Any, _inputs: Any) -> None:
        self._spans += 1
        name = self._names.get(id(module), type(module).__name__)
        span = self._recorder.open("module", name) if self._spans <= MAX_SPANS else None
        self._stack.append((module, self._recorder.clock(), span))

    def leave(self, module: Any, _inputs: Any, _output: Any) -> None:
        now = self._recorder.clock()
        while self._stack:
            inner, start, span = self._stack.pop()
            if inner is module:
                key = id(module)
                self.calls[key] = self.calls.get(key, 0) + 1
                self.duration_ns[key] = self.duration_ns.get(key, 0) + now - start
                if span is not None:
                    self._recorder.close(span)
                return
            if span is not None:
                self._recorder.discard(span)

    @property
    def current(self) -> Any:
        """The innermost module in progress."""
        return self._stack[-1][0] if self._stack else None

    def remove(self) -> None:
        while self._stack:  # a forward that raised
            span = self._stack.pop()[2]
            if span is not None:
                self._recorder.discard(span)
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
