"""Latency and bandwidth fitted to times: exact where they are, within their errors where there is noise."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.model.alpha_beta import fit, fit_points, predict_ns
from agprof.model.comm_ceiling import CommPoint

SIZES = [1024 * 4**k for k in range(9)]
amounts = st.floats(min_value=1e-3, max_value=1e9)


@given(alpha=amounts, beta=st.floats(min_value=1e-3, max_value=1e3))
def test_exact_times_give_the_parameters_back(alpha: float, beta: float) -> None:
    found = fit([(size, alpha + beta * size) for size in SIZES])
    assert found is not None
    assert found.beta_ns_per_byte == pytest.approx(beta, rel=1e-6)
    assert found.alpha_ns == pytest.approx(alpha, rel=1e-6, abs=1e-6 * beta * SIZES[0])
    assert found.relative_rms < 1e-6
    assert predict_ns(found, 12345) == pytest.approx(alpha + beta * 12345, rel=1e-6)


def test_errors_cover_the_truth_under_noise() -> None:
    alpha, beta, trials = 2e5, 8.0, 400
    inside = [0, 0]
    for seed in range(trials):
        noise = random.Random(seed)
        found = fit([(size, (alpha + beta * size) * noise.gauss(1, 0.05)) for size in SIZES])
        assert found is not None
        assert 0.01 < found.relative_rms < 0.1
        # 2.36: Student's t for 7 degrees of freedom, 95 %
        inside[0] += abs(found.alpha_ns - alpha) < 2.36 * found.alpha_error_ns
        inside[1] += abs(found.beta_ns_per_byte - beta) < 2.36 * found.beta_error_ns_per_byte
    assert all(0.90 < count / trials < 0.99 for count in inside), inside


def test_one_size_far_off_shows_as_the_worst() -> None:
    times = [1e5 + size for size in SIZES]
    times[4] *= 3
    found = fit(list(zip(SIZES, times, strict=True)))
    assert found is not None
    assert found.worst > 1
    assert found.relative_rms < found.worst


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1024, 1.0)],
        [(1024, 1.0), (2048, 2.0)],
        [(1024, 1.0)] * 5,
        [(1024, 1.0), (2048, 2.0), (2048, 3.0)],
        [(1024, 1.0), (2048, 0.0), (4096, -1.0)],
        [(1024, 1.0), (2048, float("inf")), (4096, float("nan"))],
        [(-1, 1.0), (1024, 1.0), (2048, 2.0)],
    ],
)
def test_too_little_gives_no_fit(points: list[tuple[float, float]]) -> None:
    assert fit(points) is None


def test_no_parameter_is_negative() -> None:
    falling = fit([(1e3, 3e3), (1e4, 2e3), (1e5, 1e3)])
    assert falling is not None
    assert falling.beta_ns_per_byte == 0
    assert falling.alpha_ns > 0
    steep = fit([(1e3, 1.0), (1e4, 1e2), (1e5, 1e4)])
    assert steep is not None
    assert steep.alpha_ns == 0
    assert steep.beta_ns_per_byte > 0


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.floats(min_value=1, max_value=1e15)), max_size=20),
    st.floats(min_value=1e-3, max_value=1e3),
)
def test_any_times_give_finite_parameters_that_scale_with_them(
    points: list[tuple[float, float]], factor: float
) -> None:
    found = fit(points)
    scaled = fit([(size, time * factor) for size, time in points])
    if found is None or scaled is None:
        return
    assert 0 <= found.alpha_ns < float("inf")
    assert 0 <= found.beta_ns_per_byte < float("inf")
    at = max(size for size, _ in points)
    assert predict_ns(scaled, at) == pytest.approx(predict_ns(found, at) * factor, rel=1e-3)


def test_sizes_that_hardly_differ_do_not_divide_by_nothing() -> None:
    found = fit([(2**50, 1e9), (2**50 + 1, 1e9), (2**50 + 2, 1e9)])
    assert found is None or found.alpha_ns + found.beta_ns_per_byte * 2**50 == pytest.approx(1e9, rel=1e-3)


def test_a_curve_is_fitted_by_its_medians() -> None:
    points = [CommPoint(bytes=size, repeats=3, median_ns=1000 + 2 * size, low_ns=1, high_ns=10**12) for size in SIZES]
    found = fit_points(points)
    assert found is not None
    assert (found.alpha_ns, found.beta_ns_per_byte) == pytest.approx((1000, 2), rel=1e-6)
