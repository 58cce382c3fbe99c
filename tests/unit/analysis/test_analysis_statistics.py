import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.statistics import growth, mad, median_figure, median_rank, nothing, two_modes
from agprof.analysis.warmup import detect_warmup


def coverage(n: int, k: int) -> float:
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n


@pytest.mark.parametrize("n", [6, 7, 8, 15, 20, 46, 100, 999, 2000])
def test_the_interval_covers_95_per_cent_and_no_narrower_one_does(n: int) -> None:
    k = median_rank(n)
    assert k is not None
    assert coverage(n, k) >= 0.95
    assert coverage(n, k + 1) < 0.95


def test_the_normal_rule_for_long_runs_meets_the_exact_one() -> None:
    exact = median_rank(5000)
    assert exact is not None
    assert abs(exact - (2500 - 0.98 * math.sqrt(5000))) < 2
    assert median_rank(1_000_000) == 499_020


def test_few_values_give_their_extremes_and_say_so() -> None:
    figure = median_figure([3, 1, 2], "ns", method="x", reason="")
    assert (figure.value, figure.low, figure.high, figure.n) == (2, 1, 3, 3)
    assert "min..max" in figure.method
    assert "order statistics" in median_figure(range(6), "ns", method="x", reason="").method


def test_no_values_give_the_reason() -> None:
    assert median_figure([], "ns", method="x", reason="why") == nothing("ns", "why", method="x")


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60))
def test_the_median_lies_in_its_interval(values: list[int]) -> None:
    figure = median_figure(values, "ns", method="", reason="")
    assert figure.low is not None and figure.high is not None and figure.value is not None
    assert figure.low <= figure.value <= figure.high
    assert figure.value == median(values)


def test_two_modes_are_found_with_their_share() -> None:
    random_ = random.Random(1)
    fast = [100 + random_.random() for _ in range(14)]
    slow = [150 + random_.random() for _ in range(6)]
    found = two_modes(fast + slow)
    assert found is not None
    assert found[0] == pytest.approx(100.5, abs=1)
    assert found[1] == pytest.approx(150.5, abs=1)
    assert found[2] == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_one_mode_is_not_taken_for_two(seed: int) -> None:
    random_ = random.Random(seed)
    assert two_modes([random_.gauss(100, 15) for _ in range(60)]) is None
    assert two_modes([random_.uniform(50, 150) for _ in range(60)]) is None


def test_modes_close_together_or_few_values_say_nothing() -> None:
    assert two_modes([100.0] * 10 + [105.0] * 10) is None
    assert two_modes([100, 200] * 3) is None
    assert two_modes([5.0] * 20) is None


def test_growth_is_a_significant_slope_only() -> None:
    random_ = random.Random(2)
    assert growth([100 + 5 * i + random_.random() for i in range(20)]) == pytest.approx(5, abs=0.2)
    assert growth([100 + random_.random() for _ in range(50)]) is None
    assert growth([100 - i for i in range(50)]) is None
    assert growth([7] * 50) is None
    assert growth([1, 2, 3]) is None


def test_growth_of_a_long_run_is_per_position() -> None:
    assert growth([3.0 * i for i in range(5000)]) == pytest.approx(3.0)


def test_mad() -> None:
    assert mad([]) == 0
    assert mad([1, 1, 2, 2, 4, 6, 9]) == 1


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([], 0),
        ([9, 1], 0),
        ([1, 1, 1], 1),
        ([1] * 30, 1),
        ([9, 5] + [1] * 30, 2),
        ([9] * 3 + [1] * 6, 3),
        ([9] * 10 + [1] * 5, 1),
        ([1, 9] + [1] * 30, 1),
    ],
)
def test_warmup(durations: list[float], expected: int) -> None:
    assert detect_warmup(durations)[0] == expected


@given(st.lists(st.floats(1, 1e9), max_size=50))
def test_warmup_takes_at_most_a_third(durations: list[float]) -> None:
    count, rule = detect_warmup(durations)
    assert 0 <= count <= len(durations) / 3
    assert rule
