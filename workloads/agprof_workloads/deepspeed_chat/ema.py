"""A slow copy of the actor: after every mini-batch its weights move a little towards the actor's."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

BETA = 0.992


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, beta: float = BETA) -> None:
    """``average = beta * average + (1 - beta) * model``, parameter by parameter. Collective under ZeRO-3."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        with gathered([slow, fast], writes=True):
            slow.lerp_(fast.to(slow.device, slow.dtype), 1 - beta)


def gathered(parameters: Iterable[nn.Parameter], *, writes: bool = False) -> Any:
    """The whole parameters: each rank has only a part of one that ZeRO-3 manages, and all must ask."""
    from contextlib import nullcontext

    parts = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not parts:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if writes else None)
