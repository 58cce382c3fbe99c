"""Interval sets against the plain way: a mask of every nanosecond."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.trace_intervals import Disjoint, both, gaps, together, union, without

LAST = 60
INTERVALS = st.lists(st.tuples(st.integers(0, 50), st.integers(-2, 9)), max_size=12)
Rows = list[tuple[int, int]]


def _set(rows: Rows) -> Disjoint:
    start = np.array([s for s, _ in rows], dtype=np.int64)
    return union(start, start + np.array([d for _, d in rows], dtype=np.int64))


def _mask(found: Disjoint) -> list[bool]:
    mask = [False] * LAST
    for start, end in zip(found.start.tolist(), found.end.tolist(), strict=True):
        assert start < end
        for at in range(start, end):
            assert not mask[at], "intervals overlap"
            mask[at] = True
    assert (found.start[1:] > found.end[:-1]).all(), "intervals touch"
    return mask


def _plain(rows: Rows) -> list[bool]:
    return [any(s <= at < s + d for s, d in rows) for at in range(LAST)]


@given(INTERVALS)
def test_union_covers_what_any_covers(rows: Rows) -> None:
    found = _set(rows)
    assert _mask(found) == _plain(rows)
    assert found.total_ns == sum(_plain(rows))


@given(INTERVALS, INTERVALS)
def test_two_sets(one: Rows, other: Rows) -> None:
    a, b = _plain(one), _plain(other)
    first, second = _set(one), _set(other)
    assert _mask(both(first, second)) == [x and y for x, y in zip(a, b, strict=True)]
    assert _mask(without(first, second)) == [x and not y for x, y in zip(a, b, strict=True)]
    assert _mask(together(first, second)) == [x or y for x, y in zip(a, b, strict=True)]


@given(INTERVALS, st.integers(0, 30), st.integers(30, LAST))
def test_gaps_are_the_rest_of_a_window(rows: Rows, start: int, end: int) -> None:
    want = [start <= at < end and not busy for at, busy in enumerate(_plain(rows))]
    assert _mask(gaps(_set(rows), start, end)) == want


@given(INTERVALS, st.lists(st.integers(0, LAST), max_size=8))
def test_points(rows: Rows, at: list[int]) -> None:
    mask, points, found = _plain(rows), np.array(at, dtype=np.int64), _set(rows)
    assert found.until(points).tolist() == [sum(mask[:p]) for p in at]
    assert found.holds(points).tolist() == [p < LAST and mask[p] for p in at]
    assert found.between(points[:1], points[-1:]).tolist() == [
        sum(mask[p:q]) for p, q in zip(at[:1], at[-1:], strict=True)
    ]


def test_inputs_are_not_changed() -> None:
    start, end = np.array([5, 0, 2, 9]), np.array([7, 3, 5, 9])
    kept = start.copy(), end.copy()
    union(start, end)
    assert (start == kept[0]).all()
    assert (end == kept[1]).all()
