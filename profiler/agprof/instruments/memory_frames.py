"""Where a tensor was made: Python frames outside torch and agprof, kept as (code, line) and formatted only if asked.

A code object keeps no values alive.
"""

from types import CodeType, FrameType
from typing import Literal

Frames = tuple[tuple[CodeType, int], ...]
"""Innermost first."""
Maker = Literal["gathered", "reduction", "ddp", "kv_cache"] | None
"""What a framework made a buffer for, known by the file in which it was made."""

MAX_FRAMES = 12
MAX_DEPTH = 60
MAKER_DEPTH = 3
"""Shown frames in which a maker is looked for: further out stands whoever called the model."""
_MAKERS: tuple[tuple[str, Maker], ...] = (
    ("deepspeed/runtime/zero/partition_parameters.py", "gathered"),
    ("deepspeed/runtime/zero/partitioned_param_coordinator.py", "gathered"),
    ("torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py", "gathered"),
    ("torch/distributed/fsdp/_fully_shard/_fsdp_param.py", "gathered"),
    ("deepspeed/runtime/zero/stage3.py", "reduction"),
    ("deepspeed/runtime/zero/stage_1_and_2.py", "reduction"),
    ("deepspeed/runtime/bf16_optimizer.py", "reduction"),
    ("transformers/cache_utils.py", "kv_cache"),
)
_DDP = ("torch/nn/parallel/distributed.py", "_pre_forward")
"""File and function in which DDP makes its buckets anew, once, in the second forward."""
_CALLERS = ("backward", "forward", "step")
"""Functions of those files below which the model itself runs, or the optimizer."""
_HIDDEN = ("/torch/", "/agprof/")

_kinds: dict[CodeType, tuple[bool, Maker]] = {}
"""What was found out about a code object: whether it is shown, and what it makes."""


def frames_of_caller(frame: FrameType | None) -> tuple[Frames, Maker]:
    """The stack from `frame` outwards, and the innermost framework that made a buffer there."""
    kept: list[tuple[CodeType, int]] = []
    maker: Maker = None
    for _depth in range(MAX_DEPTH):
        if frame is None or len(kept) >= MAX_FRAMES:
            break
        code = frame.f_code
        kind = _kinds.get(code)
        if kind is None:
            kind = _kinds[code] = _kind_of(code)
        if kind[0]:
            kept.append((code, frame.f_lineno))
        if maker is None and len(kept) <= MAKER_DEPTH:
            maker = kind[1]
        frame = frame.f_back
    return tuple(kept), maker


def _kind_of(code: CodeType) -> tuple[bool, Maker]:
    path = code.co_filename.replace("\\", "/")
    maker = next((maker for ending, maker in _MAKERS if path.endswith(ending)), None)
    if code.co_name in _CALLERS:
        maker = None
    if path.endswith(_DDP[0]) and code.co_name == _DDP[1]:
        maker = "ddp"
    return not any(part in path for part in _HIDDEN), maker


def format_frames(frames: Frames) -> str:
    """Outermost first, one per line: `file:line function`."""
    return "\n".join(f"{code.co_filename}:{line} {code.co_qualname}" for code, line in reversed(frames))
