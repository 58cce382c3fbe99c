"""How big the model is: the original's numbers, and two smaller sets with the same geometry."""

from dataclasses import dataclass

IMAGE_SIDE = 224
PATCH_SIDE = 14
GRID_SIDE = IMAGE_SIDE // PATCH_SIDE
TEXT_CONTEXT = 77
PROMPT_GRID_SIDE = 3
"""The prompt learner ends in a 3x3 map, whatever the size: 9 tokens beside 9 free ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    width: int
    blocks: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedTowers:
    """The towers of ImageBind that AnomalyGPT holds and never runs."""

    audio: Tower
    depth: Tower
    thermal: Tower
    imu: Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Widths, depths and head counts. Images stay at 224 px with 14 px patches, so every grid is the full model's."""

    vision_width: int
    vision_blocks: int
    vision_heads: int
    taps: tuple[int, int, int, int]
    """0-based vision blocks whose outputs the decoder reads."""
    text_width: int
    text_blocks: int
    text_heads: int
    text_vocabulary: int
    shared_width: int
    """Width of the space that images and sentences are embedded in."""
    prompt_channels: tuple[int, int, int, int, int, int]
    llm_width: int
    llm_mlp_width: int
    llm_blocks: int
    llm_heads: int
    llm_vocabulary: int
    lora_rank: int
    unused_towers: UnusedTowers


TINY = Size(
    vision_width=64,
    vision_blocks=4,
    vision_heads=4,
    taps=(0, 1, 2, 3),
    text_width=32,
    text_blocks=2,
    text_heads=4,
    text_vocabulary=512,
    shared_width=32,
    prompt_channels=(1, 2, 4, 8, 16, 32),
    llm_width=64,
    llm_mlp_width=128,
    llm_blocks=2,
    llm_heads=4,
    llm_vocabulary=512,
    lora_rank=8,
    unused_towers=UnusedTowers(
        audio=Tower(width=64, blocks=2, heads=4),
        depth=Tower(width=32, blocks=2, heads=4),
        thermal=Tower(width=64, blocks=2, heads=4),
        imu=Tower(width=32, blocks=1, heads=4),
    ),
)

SMALL = Size(
    vision_width=768,
    vision_blocks=12,
    vision_heads=12,
    taps=(2, 5, 8, 11),
    text_width=512,
    text_blocks=12,
    text_heads=8,
    text_vocabulary=49408,
    shared_width=512,
    prompt_channels=(1, 4, 16, 64, 256, 512),
    llm_width=1024,
    llm_mlp_width=2752,
    llm_blocks=12,
    llm_heads=16,
    llm_vocabulary=32000,
    lora_rank=16,
    unused_towers=UnusedTowers(
        audio=Tower(width=384, blocks=6, heads=6),
        depth=Tower(width=192, blocks=6, heads=4),
        thermal=Tower(width=384, blocks=6, heads=6),
        imu=Tower(width=256, blocks=3, heads=4),
    ),
)

FULL = Size(
    vision_width=1280,
    vision_blocks=32,
    vision_heads=16,
    taps=(7, 15, 23, 31),
    text_width=1024,
    text_blocks=24,
    text_heads=16,
    text_vocabulary=49408,
    shared_width=1024,
    prompt_channels=(1, 4, 16, 64, 256, 1024),
    llm_width=4096,
    llm_mlp_width=11008,
    llm_blocks=32,
    llm_heads=32,
    llm_vocabulary=32000,
    lora_rank=32,
    unused_towers=UnusedTowers(
        audio=Tower(width=768, blocks=12, heads=12),
        depth=Tower(width=384, blocks=12, heads=8),
        thermal=Tower(width=768, blocks=12, heads=12),
        imu=Tower(width=512, blocks=6, heads=8),
    ),
)

SIZES = {"tiny": TINY, "small": SMALL, "full": FULL}
