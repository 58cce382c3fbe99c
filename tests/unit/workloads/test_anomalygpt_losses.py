import math

import pytest
import torch

from agprof_workloads.anomalygpt.losses import dice, focal


def maps(abnormal: list[list[float]]) -> torch.Tensor:
    one = torch.tensor([abnormal])
    return torch.stack([1 - one, one], dim=1)


def test_focal_on_a_two_by_two_map() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    probabilities = maps([[0.8, 0.3], [0.1, 0.5]])
    right = [0.8, 0.7, 0.9, 0.5]
    # the one-hot target is clamped to [1e-5, 1 - 1e-5], and 1e-5 is added to what it selects
    p_t = [(1 - 1e-5) * p + 1e-5 * (1 - p) + 1e-5 for p in right]
    expected = sum(-((1 - p) ** 2) * math.log(p) for p in p_t) / 4
    assert focal(probabilities, target).item() == pytest.approx(expected, rel=1e-5)


def test_focal_is_almost_nothing_when_right_and_large_when_wrong() -> None:
    target = torch.ones(1, 2, 2)
    assert focal(maps([[1.0, 1.0], [1.0, 1.0]]), target).item() == pytest.approx(0, abs=1e-8)
    assert focal(maps([[0.0, 0.0], [0.0, 0.0]]), target).item() == pytest.approx(-math.log(2e-5), rel=1e-3)


def test_dice_uses_plain_sums() -> None:
    p = torch.tensor([[[0.8, 0.3], [0.1, 0.5]]])
    t = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert dice(p, t).item() == pytest.approx(1 - (2 * 1.3 + 1) / (1.7 + 2 + 1), rel=1e-6)


def test_dice_of_a_perfect_map_and_of_an_empty_one() -> None:
    t = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert dice(t, t).item() == pytest.approx(0, abs=1e-7)
    assert dice(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).item() == pytest.approx(0, abs=1e-7)


def test_dice_averages_over_samples_not_pixels() -> None:
    p = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])
    t = torch.stack([torch.ones(2, 2), torch.ones(2, 2)])
    assert dice(p, t).item() == pytest.approx((0 + (1 - 1 / 5)) / 2, rel=1e-6)


def test_the_one_hot_target_is_the_same_by_way_of_the_host_and_not() -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(2, 224, 224, generator=generator) > 0.5).float()
    abnormal = torch.rand(2, 224, 224, generator=generator)
    probabilities = torch.stack([1 - abnormal, abnormal], dim=1)
    by_the_host = focal(probabilities, target)
    assert torch.equal(by_the_host, focal(probabilities, target, on_device=True))
