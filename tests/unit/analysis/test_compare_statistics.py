"""The statistics of comparisons, against hand computations, exhaustive ones and known distributions."""

import math
import random
from fractions import Fraction
from itertools import combinations, pairwise
from statistics import mean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.compare_statistics import (
    RESAMPLES,
    block_length,
    block_resamples,
    difference_of_repeats,
    difference_of_steps,
    holm,
    interval_of_steps,
    least_permutation_p,
    permutation_p,
)
from agprof.analysis.student import t_beyond, two_sided_p

VALUES = st.lists(st.integers(1, 10**6).map(float), min_size=2, max_size=5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 40.0])
def test_students_t_has_its_closed_forms_with_one_two_and_four_degrees(t: float) -> None:
    assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, rel=1e-12, abs=1e-15)
    assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-10, abs=1e-15)
    s = t / math.sqrt(4 + t * t)
    assert two_sided_p(t, 4) == pytest.approx(1 - 1.5 * s + 0.5 * s**3, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("freedom", "table"), [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (60, 2.000)])
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: int, table: float) -> None:
    assert t_beyond(0.05, freedom) == pytest.approx(table, abs=5e-4)


def test_a_permutation_test_counts_every_way_to_deal() -> None:
    a, b = [1.0, 4.0, 2.0], [3.0, 9.0]
    everything = [Fraction(int(value)) for value in (*a, *b)]
    seen = abs(Fraction(7, 3) - 6)
    hits = 0
    ways = list(combinations(range(5), 3))
    for chosen in ways:
        mine = sum(everything[at] for at in chosen) / 3
        others = sum(everything[at] for at in range(5) if at not in chosen) / 2
        hits += abs(mine - others) >= seen
    assert permutation_p(a, b) == hits / len(ways)


@pytest.mark.parametrize(
    ("a", "b", "least"), [(2, 2, 2 / 6), (3, 3, 0.1), (4, 4, 2 / 70), (1, 3, 0.25), (3, 5, 1 / 56)]
)
def test_the_least_p_is_that_of_the_farthest_repeats(a: int, b: int, least: float) -> None:
    assert least_permutation_p(a, b) == pytest.approx(least)
    assert permutation_p([float(i) for i in range(a)], [1000.0 + i for i in range(b)]) == pytest.approx(least)


def test_many_repeats_are_dealt_at_random_and_come_near_the_exact_p() -> None:
    drawn = random.Random(1)
    a, b = ([drawn.gauss(0, 1) for _ in range(9)] for _ in range(2))  # 48,620 ways: beyond what is enumerated
    total, seen = sum(a) + sum(b), abs(mean(a) - mean(b))
    exact = [abs(sum(some) / 9 - (total - sum(some)) / 9) >= seen - 1e-12 for some in combinations([*a, *b], 9)]
    assert permutation_p(a, b) == pytest.approx(mean(exact), abs=0.015)  # four standard errors of 20,000 draws


@given(VALUES, VALUES)
@settings(max_examples=30, deadline=None)
def test_swapping_repeats_mirrors_the_difference(a: list[float], b: list[float]) -> None:
    there, back = difference_of_repeats(a, b), difference_of_repeats(b, a)
    assert there.absolute == (-back.absolute[0], -back.absolute[2], -back.absolute[1])
    assert there.p == back.p
    assert there.relative is not None
    assert back.relative is not None
    assert there.relative[0] == pytest.approx(1 / (1 + back.relative[0]) - 1, rel=1e-6, abs=1e-9)
    # The upper ends have all their digits; of a lower one next to -1 some are lost.
    assert there.relative[1] == pytest.approx(1 / (1 + back.relative[2]) - 1, rel=1e-6, abs=1e-9)
    assert back.relative[1] == pytest.approx(1 / (1 + there.relative[2]) - 1, rel=1e-6, abs=1e-9)


def test_few_repeats_have_welchs_interval() -> None:
    """By hand: variances 4 and 7, standard error sqrt(11/3), 4 x (11/3)² x 2 / (...) degrees of freedom."""
    found = difference_of_repeats([100.0, 102.0, 104.0], [110.0, 111.0, 115.0])
    error = math.sqrt(4 / 3 + 7 / 3)
    freedom = (11 / 3) ** 2 / ((4 / 3) ** 2 / 2 + (7 / 3) ** 2 / 2)
    half = t_beyond(0.05, freedom) * error
    assert found.absolute == pytest.approx((10.0, 10 - half, 10 + half))
    assert freedom == pytest.approx(242 / 65)
    assert found.relative is not None
    assert found.relative[0] == pytest.approx(112 / 102 - 1)
    low, high = (math.log1p(end) - math.log(112 / 102) for end in found.relative[1:])
    assert low == pytest.approx(-high)
    assert (found.p, found.least_p) == (0.1, 0.1)


@pytest.mark.parametrize("repeats", [2, 3, 5, 8])
def test_the_interval_over_repeats_covers_the_truth(repeats: int) -> None:
    """Of 250 made-up comparisons of normal runs."""
    drawn = random.Random(repeats)
    covered = 0
    for _ in range(250):
        a, b = ([drawn.gauss(1000 + shift, 20) for _ in range(repeats)] for shift in (0, 30))
        _, low, high = difference_of_repeats(a, b).absolute
        covered += low <= 30 <= high
    assert covered / 250 >= 0.92


def test_independent_steps_make_blocks_of_one_and_alike_ones_longer_blocks() -> None:
    drawn = random.Random(3)
    independent = [drawn.gauss(0, 1) for _ in range(400)]
    assert block_length(independent) == 1
    series, value = [], 0.0
    for _ in range(400):
        value = 0.9 * value + drawn.gauss(0, 1)
        series.append(value)
    off = [x - mean(series) for x in series]
    r = sum(x * y for x, y in pairwise(off)) / sum(x * x for x in off)
    assert block_length(series) == math.ceil((2 * r / (1 - r * r)) ** (2 / 3) * 400 ** (1 / 3))
    assert block_length(series) > 20


def test_blocks_are_at_most_a_quarter_of_the_steps() -> None:
    assert block_length([float(i) for i in range(40)]) == 10
    assert block_length([1.0, 1.0]) == 1


def test_resampled_blocks_hold_neighbours_and_as_many_steps() -> None:
    series = [float(i) for i in range(12)]
    means, length = block_resamples(series, "mean")
    assert length == 3
    assert len(means) == RESAMPLES
    # Four blocks of three neighbours: their mean is a quarter of sums of middles 1..10.
    assert all((4 * value) == pytest.approx(round(4 * value), abs=1e-9) for value in means.tolist())
    assert min(means) >= 1
    assert max(means) <= 10


def test_blocks_keep_what_single_steps_lose() -> None:
    """The standard error of the mean of an AR(1) series is sqrt((1+r)/(1-r)) times that of independent steps."""
    drawn = random.Random(5)
    series, value = [], 0.0
    for _ in range(3000):
        value = 0.8 * value + drawn.gauss(0, 1)
        series.append(value)
    means, _ = block_resamples(series, "mean")
    true_error = 1 / (1 - 0.8) / math.sqrt(3000)
    assert float(means.std()) == pytest.approx(true_error, rel=0.25)
    independent = 1 / math.sqrt(1 - 0.64) / math.sqrt(3000)
    assert float(means.std()) > 2 * independent


@given(st.integers(0, 2**32), st.floats(0.5, 2))
@settings(max_examples=20, deadline=None)
def test_swapping_single_runs_mirrors_the_difference(seed: int, factor: float) -> None:
    drawn = random.Random(seed)
    a = [100 + drawn.random() for _ in range(20)]
    b = [factor * (100 + drawn.random()) for _ in range(31)]
    there, back = difference_of_steps(a, b, "median"), difference_of_steps(b, a, "median")
    assert there.absolute == (-back.absolute[0], -back.absolute[2], -back.absolute[1])
    assert there.p == pytest.approx(back.p)
    assert there.absolute[0] == median(b) - median(a)


def test_a_run_and_itself_differ_by_nothing() -> None:
    steps = [100.0, 103.0, 99.0, 101.0, 108.0, 100.0, 97.0]
    found = difference_of_steps(steps, list(steps), "median")
    assert found.absolute == (0.0, 0.0, 0.0)
    assert found.relative == (0.0, 0.0, 0.0)
    assert found.p == 1.0


def test_a_time_and_its_rate_have_the_same_p() -> None:
    drawn = random.Random(8)
    a, b = ([drawn.lognormvariate(shift, 0.4) for _ in range(21)] for shift in (0.0, 0.3))
    rates = [[1 / value for value in reversed(values)] for values in (a, b)]
    p = difference_of_steps(a, b, "median").p
    assert 0.001 < p < 0.5
    assert difference_of_steps(*rates, "median").p == pytest.approx(p, rel=0.2)  # resampled anew


def test_constant_steps_that_differ_do_so_for_certain() -> None:
    found = difference_of_steps([100.0] * 8, [101.0] * 8, "median")
    assert found.absolute == (1.0, 1.0, 1.0)
    assert found.p == 0.0


def test_equal_runs_are_seldom_told_apart() -> None:
    """Of 300 pairs of runs that differ by chance alone, about one in twenty has p below 0.05."""
    drawn = random.Random(11)
    small = 0
    for _ in range(300):
        a, b = ([drawn.gauss(100, 3) for _ in range(30)] for _ in range(2))
        small += difference_of_steps(a, b, "mean").p < 0.05
    assert small / 300 < 0.09


def test_the_interval_of_one_run_needs_six_steps() -> None:
    assert interval_of_steps([1.0] * 5, "median") is None
    ends = interval_of_steps([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "mean")
    assert ends is not None
    assert ends[0] <= 3.5 <= ends[1]


def test_holm_steps_down_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]
