"""The two ways to count a forward's flops: DeepSpeed's profiler where the job uses DeepSpeed, else torch's counter."""

import functools
import sys
from typing import Any

from agprof.instruments.flops_rules import Totals
from agprof.instruments.flops_tree import ModuleWatch

_PROFILER = "deepspeed.profiling.flops_profiler.profiler"


class DeepSpeedCounter:
    """DeepSpeed's FlopsProfiler through its API, with its wrappers of torch's functions made safe.

    Its own ones raise into the training when a formula does not fit a call, and count a linear layer twice under
    ZeRO-3 (once as F.linear and once as the matmul inside DeepSpeed's replacement of it).
    """

    name = "deepspeed"

    def __init__(self, torch: Any, module: Any, totals: Totals, watch: ModuleWatch) -> None:
        """Raises ImportError or AttributeError where this DeepSpeed has no such profiler."""
        self._code: Any = sys.modules.get(_PROFILER)
        if self._code is None:
            import importlib

            self._code = importlib.import_module(_PROFILER)
        self._torch = torch
        self._totals = totals
        self._depth = 0
        self._root = module
        self._saved: list[tuple[Any, dict[str, Any]]] = []
        self._ours: set[int] = set()
        """Ids of the wrappers and of what they stand for."""
        self._profiler = self._code.FlopsProfiler(module)

    def start(self) -> None:
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
            self.restore()
            raise
        finally:
            self._code.wrapFunc = original
            self._code.logger.disabled = previous
        # This runs inside the root's own pre-hook: those registered now would miss the call in progress.
        for key, hook in list(self._root._forward_pre_hooks.items()):
            if key not in before:
                hook(self._root, ())

    def stop(self) -> None:
        """Take the hooks away. The counts stay readable until `end`."""
        try:
            self._profiler.stop_profile()
        finally:
            self.restore()

    def restore(self) -> None:
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

    def own_flops(self, module: Any) -> float:
        return float(getattr(module, "__flops__", 0))

    def end(self) -> None:
        previous, self._code.logger.disabled = self._code.logger.disabled, True
        try:
            self._profiler.end_profile()
        finally:
            self._code.logger.disabled = previous
            self.restore()

    def _wrap(self, function: Any, formula: Any) -> Any:
        """In the place of DeepSpeed's wrapFunc, with the same bookkeeping, by which it restores the function."""
        name = function.__str__
        code = self._code
        code.old_functions[name] = function
        kind = _kind(formula.__name__)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._depth == 0:
                self._count(name, kind, formula, args, kwargs)
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1

        counted.__str__ = name  # type: ignore[method-assign]
        self._ours.update((id(function), id(counted)))
        return counted

    def _count(self, name: Any, kind: str, formula: Any, args: Any, kwargs: Any) -> None:
        try:
            flops, macs = formula(*args, **kwargs)
        except Exception:
            return  # a call that the formula does not understand counts nothing
        code = self._code
        if code.module_flop_count:
            code.module_flop_count[-1].append((name, flops))
        if code.module_mac_count and macs:
            code.module_mac_count[-1].append((name, macs))
        self._totals.add(kind, flops, bool(macs), args, kwargs)


class TorchCounter:
    """torch's FlopCounterMode, whose formulas are asked per call so that each goes to the module in progress."""

    name = "torch"

    def __init__(self, torch: Any, module: Any, totals: Totals, watch: ModuleWatch) -> None:
        self._totals = totals
        self._watch = watch
        self._own: dict[int, float] = {}
        self._entered = False
        from torch.utils import flop_counter

        registry = {**flop_counter.flop_registry, **_cpu_attention(torch, flop_counter)}
        self._mode: Any = flop_counter.FlopCounterMode(
            display=False,
            custom_mapping={packet: self._noting(packet, formula) for packet, formula in registry.items()},
        )

    def start(self) -> None:
        self._mode.__enter__()
        self._entered = True

    def stop(self) -> None:
        self.restore()

    def restore(self) -> None:
        if self._entered:
            self._entered = False
            self._mode.__exit__(None, None, None)

    def own_flops(self, module: Any) -> float:
        return self._own.get(id(module), 0.0)

    def end(self) -> None:
        self._own.clear()

    def _noting(self, packet: Any, formula: Any) -> Any:
        kind = _kind(str(packet))

        def noted(*args: Any, out_val: Any = None, **kwargs: Any) -> Any:
            flops = formula(*args, out_val=out_val, **kwargs)
            key = id(self._watch.current)
            self._own[key] = self._own.get(key, 0.0) + flops
            self._totals.add(kind, flops, True, args, kwargs)
            return flops

        noted._get_raw = True  # type: ignore[attr-defined]
        return noted


def _kind(name: str) -> str:
    for mark, kind in (("attn", "attention"), ("attention", "attention"), ("addmm", "addmm"), ("baddbmm", "addmm")):
        if mark in name:
            return kind
    return "einsum" if "einsum" in name else "other"


def _cpu_attention(torch: Any, flop_counter: Any) -> dict[Any, Any]:
    """The CPU's attention kernel, which torch's own registry lacks."""
    packet = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if packet is None or packet in flop_counter.flop_registry:
        return {}

    def flops(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return int(flop_counter.sdpa_flop_count(query.shape, key.shape, value.shape))

    return {packet: flops}
