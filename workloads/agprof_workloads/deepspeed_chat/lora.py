"""Low-rank adaptation as the original has it: its own layer, with names and scale other than peft's."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SCOPE = "decoder.layers."
RIGHT, LEFT = "lora_right_weight", "lora_left_weight"


class LowRankLinear(nn.Module):
    """A linear layer whose weight is frozen, plus ``x @ right @ left / rank``. The bias stays trainable."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = 1 / rank
        self.lora_right_weight = nn.Parameter(linear.weight.new_empty(linear.in_features, rank))
        self.lora_left_weight = nn.Parameter(linear.weight.new_zeros(rank, linear.out_features))
        nn.init.kaiming_uniform_(self.lora_right_weight, a=math.sqrt(5))
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        low_rank = (x @ self.lora_right_weight) @ self.lora_left_weight
        return functional.linear(x, self.weight, self.bias) + low_rank * self.scale


def fused(weight: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """The one weight that does what the frozen weight and the two factors do together."""
    rank = right.shape[1]
    update = (right.float() @ left.float()).T / rank
    return (weight.float() + update).to(weight.dtype)


def add_lora(model: nn.Module, rank: int, scope: str = SCOPE) -> int:
    """Replace every linear layer whose name contains ``scope``; how many there were."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = [(name, module) for name, module in found if scope in name]
    for name, linear in chosen:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LowRankLinear(linear, rank))
    return len(chosen)


def only_optimize_lora(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name))


def is_lora(name: str) -> bool:
    return name.endswith((RIGHT, LEFT))


def fused_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with every low-rank pair worked into its weight and taken out."""
    result = {name: weight for name, weight in state.items() if not is_lora(name)}
    for name in [name for name in state if name.endswith(RIGHT)]:
        prefix = name.removesuffix(RIGHT)
        with torch.no_grad():
            result[f"{prefix}weight"] = fused(state[f"{prefix}weight"], state[name], state[f"{prefix}{LEFT}"])
    return result
