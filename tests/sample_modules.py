"""Modules of hand-made models: leaves with their FLOPs, from which tests/sample_compute_answers.py makes answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leaf:
    """A module without children: its own forward, and what of its backward runs."""

    path: str
    type: str
    flops: float
    """One forward of one micro-step."""
    params: int
    trains: bool = False
    input_grad: bool = True
    recomputed: bool = False
    kind: str = "matmul"
    intensity: float = 24.0
    slowness: float = 1.0
    """Device time over what its place on the roof allows."""
    root: int = 0


def frozen_trunks(depth: int = 4) -> list[Leaf]:
    """AnomalyGPT at its tiny size: two frozen towers without gradients, a frozen language model, two trained parts."""
    leaves = []
    for block in range(depth):
        for name, flops, kind in (("attention", 0.105e9, "attention"), ("mlp", 0.186e9, "matmul")):
            leaves.append(Leaf(f"visual.{block}.{name}", name.title(), flops, 200_000, input_grad=False, kind=kind))
    for block in range(2):
        for name, flops, kind in (("attention", 0.1e9, "attention"), ("mlp", 0.2e9, "matmul")):
            leaves.append(Leaf(f"text.{block}.{name}", name.title(), flops, 300_000, input_grad=False, kind=kind))
    leaves.append(Leaf("decoder.fc", "Linear", 0.05e9, 131_072, trains=True, input_grad=False))
    leaves.append(
        Leaf("prompt.conv", "Conv2d", 0.02e9, 873_046, trains=True, kind="convolution", intensity=9, slowness=5)
    )
    for block in range(2):
        for name, flops, kind in (("self_attn", 0.21e9, "attention"), ("mlp", 0.37e9, "matmul")):
            leaves.append(Leaf(f"llm.layers.{block}.{name}", name.title(), flops, 300_000, kind=kind, intensity=14))
    leaves.append(Leaf("llm.lm_head", "Linear", 0.3e9, 506_090, intensity=60, slowness=1.6))
    return leaves


def checkpointed_llama(blocks: int = 32, *, trains: bool = True, recomputed: bool = True) -> list[Leaf]:
    """A LLaMA of seven billion parameters; its blocks are computed again in backward, its head is not."""
    leaves = [Leaf("model.embed_tokens", "Embedding", 0.0, 131_072_000, trains=trains, input_grad=False)]
    for block in range(blocks):
        at = f"model.layers.{block}"
        common = {"trains": trains, "recomputed": recomputed}
        leaves.append(
            Leaf(f"{at}.self_attn", "LlamaAttention", 0.62e12, 67_108_864, kind="attention", intensity=180, **common)  # type: ignore[arg-type]
        )
        leaves.append(
            Leaf(f"{at}.mlp", "LlamaMLP", 1.11e12, 135_266_304, intensity=420, slowness=1.5, **common)  # type: ignore[arg-type]
        )
    leaves.append(Leaf("lm_head", "Linear", 1.07e12, 131_072_000, trains=trains, intensity=700, slowness=1.3))
    return leaves
