"""ImageBind's vision and text towers, with the released checkpoint's parameter names.

The original instantiates six towers and runs these two; the other four only occupy memory (`unused_towers`).
Activations run sequence-first (tokens x batch x width), as the taps are handed to the decoder in that layout.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from agprof_workloads.anomalygpt.sizes import GRID_SIDE, PATCH_SIDE, TEXT_CONTEXT, Size
from agprof_workloads.anomalygpt.unused_towers import add_unused_towers

FRAMES = 2
"""An image enters the video stem as two equal frames."""
NORM_EPS = 1e-6
MAX_LOGIT_SCALE = 100.0


class Block(nn.Module):
    """Pre-norm transformer block: attention and a fourfold GELU MLP, each around a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        return cast(Tensor, x + self.mlp(self.norm_2(x)))


class Trunk(nn.Module):
    """A stack of blocks, which also hands out what some of them put out."""

    def __init__(self, width: int, blocks: int, heads: int, *, pre_norm: bool) -> None:
        super().__init__()
        first: nn.Module = nn.LayerNorm(width, eps=NORM_EPS) if pre_norm else nn.Identity()
        self.pre_transformer_layer = nn.Sequential(first)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))

    def forward(self, x: Tensor, mask: Tensor | None, taps: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        x = self.pre_transformer_layer(x)
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x, mask)
            if index in taps:
                tapped.append(x)
        return x, tapped


class RepeatFrames(nn.Module):
    """B x 3 x H x W -> B x 3 x 2 x H x W."""

    def forward(self, image: Tensor) -> Tensor:
        return image.unsqueeze(2).repeat(1, 1, FRAMES, 1, 1)


class Patches(nn.Module):
    """B x 3 x 224 x 224 -> B x 256 x width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = (FRAMES, PATCH_SIDE, PATCH_SIDE)
        self.proj = nn.Sequential(RepeatFrames(), nn.Conv3d(3, width, kernel_size=kernel, stride=kernel, bias=False))

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.proj(image)).flatten(2).transpose(1, 2)


class Positions(nn.Module):
    """Adds what each place in the sequence has learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + GRID_SIDE**2, width) * 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.pos_embed


class VisionStem(nn.Module):
    """Image -> 257 tokens: one class token and a 16x16 grid of patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.rgbt_stem = Patches(width)
        self.pos_embedding_helper = Positions(width)

    def forward(self, image: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(len(image), -1, -1), self.rgbt_stem(image)], dim=1)
        return cast(Tensor, self.pos_embedding_helper(tokens)).transpose(0, 1)


class TextStem(nn.Module):
    """Token ids -> embedded tokens; holds the causal mask, as the checkpoint does."""

    mask: Tensor

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(torch.randn(1, TEXT_CONTEXT, width) * 0.01)
        self.register_buffer("mask", torch.full((TEXT_CONTEXT, TEXT_CONTEXT), -math.inf).triu(1))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.token_embedding(ids) + self.pos_embed).transpose(0, 1)


class TextHead(nn.Module):
    """The end marker's token -> the shared space."""

    def __init__(self, width: int, shared_width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, shared_width, bias=False))

    def forward(self, end: Tensor) -> Tensor:
        return cast(Tensor, self.proj(end))


class LogitScale(nn.Module):
    """A learnable temperature, kept as its logarithm and capped.

    The checkpoint has it without a dimension. Here it has one, as DeepSpeed 0.19 cannot broadcast a parameter without.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))
        self.register_load_state_dict_pre_hook(self.with_dimension)  # type: ignore[no-untyped-call]

    @staticmethod
    def with_dimension(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: object) -> None:
        key = f"{prefix}log_logit_scale"
        if key in state:
            state[key] = state[key].reshape(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)


class ImageBind(nn.Module):
    """The two towers that AnomalyGPT runs. ``vision`` and ``text`` are its forward passes."""

    def __init__(self, size: Size, *, unused_towers: bool = False) -> None:
        super().__init__()
        self.taps = size.taps
        self.modality_preprocessors = nn.ModuleDict(
            {"vision": VisionStem(size.vision_width), "text": TextStem(size.text_width, size.text_vocabulary)}
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": Trunk(size.vision_width, size.vision_blocks, size.vision_heads, pre_norm=True),
                "text": Trunk(size.text_width, size.text_blocks, size.text_heads, pre_norm=False),
            }
        )
        self.modality_heads = nn.ModuleDict(
            {
                # the checkpoint counts "take the class token" as layer 1, so the linear layer is number 2
                "vision": nn.Sequential(
                    nn.LayerNorm(size.vision_width, eps=NORM_EPS),
                    nn.Identity(),
                    nn.Linear(size.vision_width, size.shared_width, bias=False),
                ),
                "text": TextHead(size.text_width, size.shared_width),
            }
        )
        self.modality_postprocessors = nn.ModuleDict({"text": nn.Sequential(nn.Identity(), LogitScale())})
        if unused_towers:
            add_unused_towers(self, size.unused_towers, size.shared_width)

    def vision(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """B x 3 x 224 x 224 -> unit embeddings B x shared, and four taps of 257 x B x width."""
        tokens, tapped = self.modality_trunks["vision"](self.modality_preprocessors["vision"](image), None, self.taps)
        return normalize(self.modality_heads["vision"](tokens[0]), dim=-1), tapped

    def text(self, ids: Tensor) -> Tensor:
        """N x 77 token ids -> N x shared embeddings, of the length that the learned temperature gives."""
        stem = cast(TextStem, self.modality_preprocessors["text"])
        tokens, _ = self.modality_trunks["text"](stem(ids), stem.mask, ())
        # the end marker has the highest id, and its token has seen the whole sentence
        ends = tokens[ids.argmax(dim=-1), torch.arange(ids.shape[0], device=ids.device)]
        unit = normalize(self.modality_heads["text"](ends), dim=-1)
        return cast(Tensor, self.modality_postprocessors["text"](unit))
