"""The two pixel losses as the original really runs them; the third, cross-entropy, comes with the language model."""

import torch
from torch import Tensor

FOCUS = 2
SMOOTH = 1e-5


def focal(probabilities: Tensor, target: Tensor, *, on_device: bool = False) -> Tensor:
    """Mean of ``-(1 - p_t)^2 log p_t``, where ``p_t`` is the probability given to the right channel.

    ``probabilities``: B x 2 x H x W after the softmax; ``target``: B x H x W of 0 and 1. All class weights are one.
    """
    one_hot = one_hot_here(target) if on_device else one_hot_by_the_host(target)
    one_hot = one_hot.to(probabilities.dtype).clamp(SMOOTH, 1 - SMOOTH)
    right = (one_hot * probabilities).sum(dim=1) + SMOOTH
    return (-((1 - right) ** FOCUS) * right.log()).mean()


def one_hot_here(target: Tensor) -> Tensor:
    """B x 2 x H x W: one in the channel that is right."""
    return torch.stack([1 - target, target], dim=1)


def one_hot_by_the_host(target: Tensor) -> Tensor:
    """The same, as the original makes it: the target goes to the host, is scattered there and sent back."""
    channel = target.cpu().long().unsqueeze(1)
    return torch.zeros(len(target), 2, *target.shape[1:]).scatter_(1, channel, 1).to(target.device)


def dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`` per sample, averaged. Sums, not sums of squares.

    ``probabilities`` and ``target``: B x H x W.
    """
    p, t = probabilities.flatten(1), target.flatten(1).to(probabilities.dtype)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()
