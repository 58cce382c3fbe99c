"""Losses and rewards of stages 2 and 3 as plain functions. Rows are sequences, columns tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

KL_WEIGHT = 0.1
LARGEST_SCORE = 5.0
GAMMA, LAMBDA = 1.0, 0.95
RATIO_CLIP = VALUE_CLIP = 0.2


@dataclass(frozen=True, slots=True)
class PairOutcome:
    """The loss of a batch of pairs, and each answer's score: its value at the last token before the end."""

    loss: Tensor
    chosen: Tensor
    rejected: Tensor


def pairwise(
    chosen_values: Tensor, rejected_values: Tensor, chosen_ids: Tensor, rejected_ids: Tensor, pad: int, leading: int
) -> PairOutcome:
    """``-log sigmoid(chosen - rejected)``, averaged over each pair's divergent span and then over the pairs.

    The span goes from the first token that differs up to the later one of the two ends. A pair of identical sequences
    has none: its last position alone counts. ``leading``: pads that the tokenizer puts before the text.
    """
    length = chosen_ids.shape[1]
    losses, chosen, rejected = [], [], []
    for c_values, r_values, c_ids, r_ids in zip(chosen_values, rejected_values, chosen_ids, rejected_ids, strict=True):
        c_end, r_end = end_of(c_ids, pad, leading), end_of(r_ids, pad, leading)
        differs = (c_ids != r_ids).nonzero()
        if len(differs) == 0:
            begin, end, r_end = length - 1, length, c_end
        else:
            end = max(c_end, r_end)
            # behind both ends lies text only where the rows hold the pad token themselves
            begin = min(int(differs[0]), end - 1)
        losses.append(-functional.logsigmoid((c_values[begin:end] - r_values[begin:end]).float()).mean())
        chosen.append(c_values[c_end - 1])
        rejected.append(r_values[r_end - 1])
    return PairOutcome(torch.stack(losses).mean(), torch.stack(chosen), torch.stack(rejected))


def end_of(ids: Tensor, pad: int, leading: int) -> int:
    """Where a row ends: its ``leading + 1``-th pad, or its length when the text was cut."""
    pads = (ids == pad).nonzero()
    return int(pads[leading]) if len(pads) > leading else len(ids)


def answer_scores(values: Tensor, ids: Tensor, prompt_length: int, pad: int) -> Tensor:
    """The value at the last token of each generated answer."""
    ends = [prompt_length + end_of(row[prompt_length:], pad, leading=0) for row in ids]
    return torch.stack([row[end - 1] for row, end in zip(values, ends, strict=True)])


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Of each token but the first, given the ones before it."""
    chosen = functional.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, ids[:, 1:].unsqueeze(-1))
    return chosen.squeeze(-1)


def answer_ends(mask: Tensor, start: int) -> list[int]:
    """Exclusive end of each answer among the predicted tokens, its end marker included where there is one.

    ``mask``: attention mask without its first column, which leaves end markers out because they are pads.
    """
    ends: list[int] = (start + mask[:, start:].sum(dim=1) + 1).clamp(max=mask.shape[1]).tolist()
    return ends


def kl_rewards(log_probs: Tensor, reference: Tensor, scores: Tensor, mask: Tensor, start: int) -> Tensor:
    """Each token pays for leaving the reference model; the answer's clipped score is added at its last token.

    Zero after the end. What stands before ``start`` belongs to the prompt and is never read.
    """
    rewards = -KL_WEIGHT * (log_probs - reference)
    for row, score, end in zip(
        rewards, scores.clamp(-LARGEST_SCORE, LARGEST_SCORE), answer_ends(mask, start), strict=True
    ):
        row[end - 1] += score
        row[end:] = 0
    return rewards


def zeroed_after_end(values: Tensor, mask: Tensor, start: int) -> Tensor:
    values = values.clone()
    for row, end in zip(values, answer_ends(mask, start), strict=True):
        row[end:] = 0
    return values


def advantages_and_returns(
    values: Tensor, rewards: Tensor, start: int, gamma: float = GAMMA, smoothing: float = LAMBDA
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the columns from ``start``, not whitened; returns = advantage + value."""
    length = rewards.shape[1]
    advantage = torch.zeros_like(rewards[:, 0])
    backwards = []
    for t in range(length - 1, start - 1, -1):
        following = values[:, t + 1] if t + 1 < length else torch.zeros_like(advantage)
        surprise = rewards[:, t] + gamma * following - values[:, t]
        advantage = surprise + gamma * smoothing * advantage
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages.detach(), (advantages + values[:, start:]).detach()


def actor_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """PPO's clipped surrogate, averaged over the tokens of the mask."""
    ratio = ((log_probs - old) * mask).exp()
    worse = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - RATIO_CLIP, 1 + RATIO_CLIP))
    return masked_mean(worse, mask)


def critic_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Half the squared error, where a value may move no further than the clip from its old one to be judged better."""
    values = values.float()
    clipped = torch.clamp(values, old.float() - VALUE_CLIP, old.float() + VALUE_CLIP)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # no token at all, when every answer is empty: a loss of zero, not of nan
    return (values * mask).sum() / mask.sum().clamp(min=1)
