"""ImageBind's other four towers: AnomalyGPT loads them with the rest and never runs them, so they have weights only.

Names and shapes are those of the released checkpoint.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from agprof_workloads.anomalygpt.sizes import Tower, UnusedTowers

NORM_EPS = 1e-6
IMU_CHANNELS, IMU_LENGTH, IMU_KERNEL = 6, 2000, 8
STEMS = {"audio": (16, 10, (128, 204)), "depth": (16, 16, (224, 224)), "thermal": (16, 16, (224, 224))}
"""Kernel, stride and height x width of what each tower that looks at pictures would read."""
SCALES = {"audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
HEAD_DROPOUT = {"imu": 0.5}


def add_unused_towers(encoder: Any, towers: UnusedTowers, shared_width: int) -> None:
    """Put audio, depth, thermal and IMU beside the towers that `encoder` has."""
    parts = {
        name: getattr(encoder, f"modality_{name}") for name in ("preprocessors", "trunks", "heads", "postprocessors")
    }
    for name in STEMS | {"imu": ()}:
        tower: Tower = getattr(towers, name)
        parts["preprocessors"][name] = ImuStem(tower.width) if name == "imu" else PictureStem(name, tower.width)
        parts["trunks"][name] = Trunk(tower)
        parts["heads"][name] = head(tower.width, shared_width, HEAD_DROPOUT.get(name))
        parts["postprocessors"][name] = nn.Sequential(nn.Identity(), FixedScale(SCALES[name]))


class Stem(nn.Module):
    """What turns an input into tokens: a projection and a norm."""

    def __init__(self, projection: nn.Module, width: int) -> None:
        super().__init__()
        self.proj = projection
        self.norm_layer = nn.LayerNorm(width)


class Positions(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)


class PictureStem(nn.Module):
    """One channel in patches, a class token and positions."""

    def __init__(self, tower: str, width: int) -> None:
        super().__init__()
        kernel, stride, sides = STEMS[tower]
        patches = math.prod((side - kernel) // stride + 1 for side in sides)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        stem = Stem(nn.Conv2d(1, width, kernel, stride, bias=False), width)
        self.add_module("depth_stem" if tower == "depth" else "rgbt_stem", stem)
        self.pos_embedding_helper = Positions(1 + patches, width)


class ImuStem(nn.Module):
    """Windows of eight readings of six channels, a class token and positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.imu_stem = Stem(nn.Linear(IMU_CHANNELS * IMU_KERNEL, width, bias=False), width)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + IMU_LENGTH // IMU_KERNEL, width) * 0.02)


class Block(nn.Module):
    """As the other towers' block, with a learned key and value beside the tokens' own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=True)
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, 4 * width))
        self.mlp.add_module("fc2", nn.Linear(4 * width, width))


class Trunk(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(tower.width, tower.heads) for _ in range(tower.blocks))


def head(width: int, shared_width: int, dropout: float | None) -> nn.Sequential:
    between = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(
        nn.LayerNorm(width, eps=NORM_EPS),
        nn.Identity(),
        *between,
        nn.Linear(width, shared_width, bias=False),
    )


class FixedScale(nn.Module):
    """A temperature that is not learned."""

    log_logit_scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(math.log(scale)))
