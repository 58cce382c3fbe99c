"""A LLaMA-like decoder in plain torch, with what the closed forms of its FLOPs need: every shape is a name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from agprof.instruments.flops_count import FlopsCount
from agprof.instruments.flops_totals import Totals
from agprof.instruments.op_watch import watching

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """L layers of width h, whose keys and values are `kv` wide, with an MLP of f; V words; B sequences of S tokens."""

    L: int = 4
    h: int = 32
    kv: int = 32
    f: int = 48
    V: int = 64
    heads: int = 4
    B: int = 2
    S: int = 8

    @property
    def T(self) -> int:
        """Tokens."""
        return self.B * self.S

    @property
    def layer(self) -> int:
        """Parameters of a layer that are multiplied."""
        return 2 * self.h * self.h + 2 * self.h * self.kv + 3 * self.h * self.f

    @property
    def forward(self) -> int:
        """2 N_mm T + 4 L S h T, with all scores."""
        return 2 * (self.L * self.layer + self.h * self.V) * self.T + self.L * self.attention

    @property
    def attention(self) -> int:
        """Forward of one layer: scores, and the values summed by them."""
        return 4 * self.S * self.h * self.T


class Attention(nn.Module):
    def __init__(self, shape: Shape, kernel: str) -> None:
        super().__init__()
        self.heads, self.width, self.kernel = shape.heads, shape.h // shape.heads, kernel
        self.q_proj = nn.Linear(shape.h, shape.h, bias=False)
        self.k_proj = nn.Linear(shape.h, shape.kv, bias=False)
        self.v_proj = nn.Linear(shape.h, shape.kv, bias=False)
        self.o_proj = nn.Linear(shape.h, shape.h, bias=False)

    def forward(self, tokens: Any) -> Any:
        batch, length, _ = tokens.shape
        query, key, value = (
            project(tokens).view(batch, length, -1, self.width).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        repeats = self.heads // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        if self.kernel == "sdpa":
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = query @ key.transpose(2, 3) / self.width**0.5
            future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
            mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.h, shape.f, bias=False)
        self.up_proj = nn.Linear(shape.h, shape.f, bias=False)
        self.down_proj = nn.Linear(shape.f, shape.h, bias=False)

    def forward(self, tokens: Any) -> Any:
        return self.down_proj(functional.silu(self.gate_proj(tokens)) * self.up_proj(tokens))


class Layer(nn.Module):
    def __init__(self, shape: Shape, kernel: str) -> None:
        super().__init__()
        self.input_norm, self.mlp_norm = nn.RMSNorm(shape.h), nn.RMSNorm(shape.h)
        self.attention = Attention(shape, kernel)
        self.mlp = Mlp(shape)

    def forward(self, tokens: Any) -> Any:
        tokens = tokens + self.attention(self.input_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class LlamaLike(nn.Module):
    """Returns the loss. `checkpointing`: None, or whether its checkpoints are reentrant."""

    def __init__(
        self, shape: Shape, kernel: str = "eager", *, checkpointing: bool | None = None, tied: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.V, shape.h)
        self.layers = nn.ModuleList(Layer(shape, kernel) for _ in range(shape.L))
        self.norm = nn.RMSNorm(shape.h)
        self.head = nn.Linear(shape.h, shape.V, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.checkpointing = checkpointing

    def forward(self, ids: Any) -> Any:
        tokens = self.embedding(ids)
        for layer in self.layers:
            if self.checkpointing is None:
                tokens = layer(tokens)
            else:
                tokens = checkpoint(layer, tokens, use_reentrant=self.checkpointing)
        logits = self.head(self.norm(tokens))
        return functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


class Lora(nn.Module):
    """A frozen linear layer and a trainable detour of rank r."""

    def __init__(self, base: Any, r: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, r, bias=False)
        self.up = nn.Linear(r, base.out_features, bias=False)

    def forward(self, tokens: Any) -> Any:
        return self.base(tokens) + self.up(self.down(tokens))


def add_lora(model: Any, names: Iterable[str], r: int, layers: Iterable[int]) -> None:
    """Freezes the model, and puts adapters on the named linear layers of some layers."""
    model.requires_grad_(False)
    for index in layers:
        for part in (model.layers[index].attention, model.layers[index].mlp):
            for name in names:
                if hasattr(part, name):
                    setattr(part, name, Lora(getattr(part, name), r))


def batch(shape: Shape, device: str = "cpu") -> Any:
    return torch.zeros(shape.B, shape.S, dtype=torch.long, device=device)


def count(model: Any, step: Callable[[], Any]) -> FlopsCount:
    """Counts what `step()`, which returns the loss, and its backward do."""
    flops = FlopsCount(torch)
    with watching(torch, model, listeners=[flops.listen]) as watch:
        watch.on_call.append(flops.called)
        step().backward()
    return flops


def count_training(model: Any, shape: Shape, device: str = "cpu") -> FlopsCount:
    return count(model, lambda: model(batch(shape, device)))


def by_path(flops: FlopsCount, root: Any) -> dict[str, Totals]:
    return {path: totals for path, _module, totals in flops.modules(root)}
