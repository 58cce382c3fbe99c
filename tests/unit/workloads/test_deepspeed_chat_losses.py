"""Losses and rewards against values worked out by hand, and advantages against their definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agprof_workloads.deepspeed_chat import losses

PAD = 0


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


def test_reward_loss_covers_the_divergent_span_up_to_the_later_end() -> None:
    # one leading pad belongs to the text; they part at 2, the chosen one ends at 5 and the rejected one at 4
    chosen, rejected = ids([PAD, 5, 6, 7, 8, PAD, PAD]), ids([PAD, 5, 9, 9, PAD, PAD, PAD])
    c, r = torch.tensor([[9.0, 9, 1, 2, 3, 9, 9]]), torch.tensor([[-9.0, -9, 0, 0, 1, -9, -9]])
    outcome = losses.pairwise(c, r, chosen, rejected, PAD, leading=1)
    expected = (minus_log_sigmoid(1) + minus_log_sigmoid(2) + minus_log_sigmoid(2)) / 3
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-6)
    assert outcome.chosen.tolist() == [3.0]
    assert outcome.rejected.tolist() == [0.0]


def test_reward_loss_of_a_text_that_was_cut_reaches_to_the_last_token() -> None:
    chosen, rejected = ids([PAD, 5, 6, 7]), ids([PAD, 5, 8, PAD])
    c, r = torch.tensor([[0.0, 0, 1, 4]]), torch.tensor([[0.0, 0, 2, 1]])
    outcome = losses.pairwise(c, r, chosen, rejected, PAD, leading=1)
    assert outcome.loss.item() == pytest.approx((minus_log_sigmoid(-1) + minus_log_sigmoid(3)) / 2, rel=1e-6)
    assert (outcome.chosen.tolist(), outcome.rejected.tolist()) == ([4.0], [2.0])


def test_reward_loss_of_an_identical_pair_is_that_of_its_last_position() -> None:
    same = ids([PAD, 5, 6, PAD, PAD])
    c, r = torch.tensor([[1.0, 2, 3, 4, 7]]), torch.tensor([[5.0, 5, 5, 5, 5]])
    outcome = losses.pairwise(c, r, same, same, PAD, leading=1)
    assert outcome.loss.item() == pytest.approx(minus_log_sigmoid(2), rel=1e-6)
    assert (outcome.chosen.tolist(), outcome.rejected.tolist()) == ([3.0], [5.0])


def test_reward_loss_weighs_pairs_alike_whatever_their_spans() -> None:
    chosen = ids([PAD, 5, PAD, PAD], [PAD, 1, 2, 3])
    rejected = ids([PAD, 6, PAD, PAD], [PAD, 4, 5, 6])
    c, r = torch.tensor([[0.0, 2, 0, 0], [0, 1, 1, 1]]), torch.zeros(2, 4)
    outcome = losses.pairwise(c, r, chosen, rejected, PAD, leading=1)
    assert outcome.loss.item() == pytest.approx((minus_log_sigmoid(2) + minus_log_sigmoid(1)) / 2, rel=1e-6)


def test_rows_that_differ_only_behind_their_ends_have_a_finite_loss() -> None:
    chosen, rejected = ids([PAD, 5, PAD, 7]), ids([PAD, 5, PAD, 8])
    outcome = losses.pairwise(torch.ones(1, 4), torch.zeros(1, 4), chosen, rejected, PAD, leading=1)
    assert outcome.loss.item() == pytest.approx(minus_log_sigmoid(1), rel=1e-6)


def test_an_answers_score_is_the_value_at_its_last_token() -> None:
    values = torch.tensor([[0.0, 1, 2, 3, 4], [0.0, 1, 2, 3, 4]])
    rows = ids([PAD, 5, 6, 7, PAD], [PAD, 5, 6, 7, 8])
    assert losses.answer_scores(values, rows, 2, PAD).tolist() == [3.0, 4.0]


def test_log_probabilities_are_of_the_next_token() -> None:
    logits = torch.log(torch.tensor([[[0.1, 0.9], [0.75, 0.25], [0.5, 0.5]]]))
    found = losses.log_probabilities(logits, ids([0, 1, 0]))
    assert found[0].tolist() == pytest.approx([math.log(0.9), math.log(0.75)], rel=1e-6)


def test_rewards_pay_for_divergence_and_end_with_the_clipped_score() -> None:
    # prompt of 2 tokens, so start is 1; five predicted tokens
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    log_probs = torch.tensor([[0.0, -1, -2, -3, -4], [0.0, -1, -1, -1, -1]])
    reference = torch.tensor([[0.0, -2, -2, -1, -4], [0.0, -1, -1, -1, -3]])
    rewards = losses.kl_rewards(log_probs, reference, torch.tensor([7.0, -2.0]), mask, start=1)
    # two answer tokens and their end marker at index 3, which carries the score clipped to 5
    assert rewards[0, 1:].tolist() == pytest.approx([-0.1, 0.0, 0.2 + 5, 0.0], abs=1e-6)
    # cut off: no end marker, the score is at the last token
    assert rewards[1, 1:].tolist() == pytest.approx([0.0, 0.0, 0.0, -0.2 - 2], abs=1e-6)


def test_values_after_the_end_are_zeroed_and_the_given_ones_kept() -> None:
    values = torch.ones(1, 5)
    assert losses.zeroed_after_end(values, torch.tensor([[1, 1, 0, 0, 0]]), start=1).tolist() == [[1, 1, 1, 0, 0]]
    assert values.sum() == 5


numbers = st.floats(-3, 3, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 7), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_discounted_sums_of_surprises(
    data: st.DataObject, rows: int, columns: int, gamma: float, smoothing: float
) -> None:
    start = data.draw(st.integers(0, columns - 1))
    table = st.lists(st.lists(numbers, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
    values = torch.tensor(data.draw(table), dtype=torch.float64)
    rewards = torch.tensor(data.draw(table), dtype=torch.float64)
    advantages, returns = losses.advantages_and_returns(values, rewards, start, gamma, smoothing)
    assert advantages.shape == returns.shape == (rows, columns - start)
    for row in range(rows):
        following = [*values[row, 1:].tolist(), 0.0]
        surprises = [rewards[row, t].item() + gamma * following[t] - values[row, t].item() for t in range(columns)]
        for t in range(start, columns):
            expected = sum((gamma * smoothing) ** (k - t) * surprises[k] for k in range(t, columns))
            assert advantages[row, t - start].item() == pytest.approx(expected, abs=1e-9)
            assert returns[row, t - start].item() == pytest.approx(expected + values[row, t].item(), abs=1e-9)


def test_without_discount_or_smoothing_the_return_is_the_sum_of_what_comes() -> None:
    rewards, values = torch.tensor([[1.0, 2, 4]]), torch.tensor([[0.5, -3, 9]])
    _, returns = losses.advantages_and_returns(values, rewards, 0, gamma=1, smoothing=1)
    assert returns[0].tolist() == pytest.approx([7, 6, 4])


def test_actor_loss_takes_the_worse_of_plain_and_clipped() -> None:
    old = torch.zeros(1, 5)
    ratios = [1.5, 1.5, 0.5, 0.5, 9.0]
    advantages = torch.tensor([[1.0, -1, 1, -1, 100]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    loss = losses.actor_loss(torch.tensor([ratios]).log(), old, advantages, mask)
    # gains are capped at 1.2, a loss at 1.5 is not; at 0.5 a gain is not, a loss is kept at 0.8
    assert loss.item() == pytest.approx((-1.2 + 1.5 - 0.5 + 0.8) / 4, rel=1e-6)


def test_a_clipped_actor_has_no_gradient() -> None:
    log_probs = torch.tensor([[0.5, 0.0]], requires_grad=True)
    losses.actor_loss(log_probs, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2)).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[0.0, -0.5]]


def test_critic_loss_takes_the_worse_of_plain_and_clipped() -> None:
    values, old = torch.tensor([[1.0, 0.1, 5.0]]), torch.zeros(1, 3)
    loss = losses.critic_loss(values, old, torch.tensor([[1.0, 0.3, 0]]), torch.tensor([[1, 1, 0]]))
    # moved from 0 to 1: judged as 0.2, which misses 1 by 0.8; 0.1 is within the clip
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 0.2**2) / 2, rel=1e-5)


def test_answers_without_any_token_have_no_loss() -> None:
    nothing = torch.zeros(1, 2)
    assert losses.actor_loss(nothing, nothing, nothing + 1, nothing).item() == 0
