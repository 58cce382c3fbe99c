"""What the backward pass of one operation will cost, judged while its forward runs.

Multiplying two matrices costs the same again for each operand that needs a gradient. Whether one does is known at the
call: its `requires_grad`, with gradients enabled. So frozen weights, adapters and encoders under no_grad come out
right, which "backward is twice forward" does not (it overstates LoRA by half).
"""

from typing import Any

METHOD = (
    "per operation of the forward pass: its flops once for each operand that needs a gradient (attention: half for "
    "each of its four backward products); recomputation by activation checkpointing is not counted"
)


class Totals:
    """Flops of one forward and of the backward that belongs to it."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.forward = 0.0
        self.backward = 0.0
        self.checkpointed = 0
        """Reentrant checkpoints in progress: they run without gradients now and again with them later."""

    def add(self, kind: str, flops: float, matrix: bool, args: Any, kwargs: Any) -> None:
        """Count one call. `kind`: attention | addmm | einsum | other; `matrix`: made of multiply-adds."""
        self.forward += flops
        if self.checkpointed or self._torch.is_grad_enabled():
            self.backward += flops * self._factor(kind, matrix, args, kwargs)

    def _factor(self, kind: str, matrix: bool, args: Any, kwargs: Any) -> float:
        needs = [self._needs_gradient(tensor) for tensor in self._tensors((*args, *kwargs.values()))]
        if kind == "attention":
            query, key, value = (*needs[:3], False, False, False)[:3]
            return (value + (query or key) + query + key) / 2
        if kind == "addmm":
            return sum(needs[1:3])
        if kind == "einsum":
            return sum(needs)
        return sum(needs[:2]) if matrix else any(needs)

    def _tensors(self, values: Any) -> list[Any]:
        found = []
        for value in values:
            if isinstance(value, self._torch.Tensor):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                found.extend(self._tensors(value))
        return found

    def _needs_gradient(self, tensor: Any) -> bool:
        if not self.checkpointed:
            return bool(tensor.requires_grad)
        # Without gradients nothing but a parameter, or a view of one, says whether it will need one.
        for owner in (tensor, tensor._base):
            if isinstance(owner, self._torch.nn.Parameter):
                return bool(owner.requires_grad)
        return bool(tensor.is_floating_point())


class CheckpointWatch:
    """Stands for torch's reentrant CheckpointFunction while a forward is profiled."""

    def __init__(self, original: Any, totals: Totals, torch: Any) -> None:
        self._original = original
        self._totals = totals
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def apply(self, *args: Any) -> Any:
        differentiated = self._torch.is_grad_enabled() and any(
            isinstance(arg, self._torch.Tensor) and arg.requires_grad for arg in args
        )
        self._totals.checkpointed += differentiated
        try:
            return self._original.apply(*args)
        finally:
            self._totals.checkpointed -= differentiated
