"""Many samples as few points: what must never be lost."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.decimation import Grid, averaged, decimated

VALUES = st.lists(st.none() | st.floats(-1e9, 1e9) | st.just(float("nan")), min_size=1, max_size=300)


def frame(values: list[float | None], period: int = 10) -> pl.DataFrame:
    times = [index * period for index in range(len(values))]
    return pl.DataFrame({"at_ns": times, "value": values}, schema={"at_ns": pl.Int64, "value": pl.Float64})


def thinned(rows: pl.DataFrame, most: int) -> list[tuple[int, float | None]]:
    return list(decimated(rows, ["value"], Grid.over(0, rows["at_ns"].max() or 0, most))["value"])


@given(VALUES, st.integers(5, 60))
def test_lowest_highest_ends_and_gaps_stay(values: list[float | None], most: int) -> None:
    clean = [None if value != value else value for value in values]
    points = thinned(frame(values), most)
    zero = len(clean) > 2 and all(value == 0 for value in clean)
    assert len(points) <= most
    assert [at for at, _ in points] == sorted({at for at, _ in points})
    assert set(points) <= {(index * 10, value) for index, value in enumerate(clean)}
    assert points[0] == (0, clean[0])
    assert points[-1] == ((len(clean) - 1) * 10, clean[-1])
    known = [value for value in clean if value is not None]
    left = [value for _, value in points if value is not None]
    if known:
        assert (min(left), max(left)) == (min(known), max(known))
    if not zero:
        assert (None in [value for _, value in points]) == (None in clean)


def test_short_series_come_back_whole() -> None:
    assert thinned(frame([1.0, None, 3.0]), 5) == [(0, 1.0), (10, None), (20, 3.0)]


def test_a_curve_of_zeros_is_its_ends() -> None:
    assert thinned(frame([0.0] * 300), 50) == [(0, 0.0), (2990, 0.0)]


def test_each_stretch_keeps_a_spike_of_one_sample_and_its_place() -> None:
    values: list[float | None] = [1.0] * 100_000
    values[54_321], values[54_400] = 9.0, -9.0
    points = thinned(frame(values), 60)
    assert (543_210, 9.0) in points
    assert (544_000, -9.0) in points
    assert len(points) <= 60


def test_averages_are_exact_over_equal_stretches_and_a_hole_is_a_gap() -> None:
    rows = frame([0.0, 1.0] * 50)
    assert {value for _, value in averaged(rows, "value", 10)} == {0.5}
    holed = rows.filter(~pl.col("at_ns").is_between(200, 590))
    points = averaged(holed, "value", 10)
    assert [value for _, value in points].count(None) == 1
    assert [at for at, _ in points] == sorted(at for at, _ in points)
    assert averaged(frame([0.1, None, 0.3]), "value", 10) == [(0, 0.1), (20, 0.3)]


@pytest.mark.parametrize("most", [5, 17, 2000])
def test_a_grid_has_as_many_stretches_as_points_allow(most: int) -> None:
    grid = Grid.over(0, 86_400, most)
    assert 86_400 // grid.width_ns + 1 <= max(1, (most - 2) // 3) + 1
    assert grid.width_ns * ((most - 2) // 3) > 86_400
