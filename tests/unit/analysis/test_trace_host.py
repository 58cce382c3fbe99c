"""A thread's time cut by its innermost events."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.trace_host import MAX_DEPTH, IntArray, innermost_pieces, nesting


def arrays(events: list[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    """Begin and end, in the order in which tables hold them."""
    ordered = sorted(events, key=lambda event: (event[0], event[0] - event[1]))
    start, end = np.array(ordered, dtype=np.int64).reshape(-1, 2).T
    return start, end


def test_a_child_hides_its_parent_which_goes_on_after_it() -> None:
    pieces = innermost_pieces(*arrays([(10, 50), (20, 30), (60, 70)]), 0, 100)
    assert pieces.start_ns.tolist() == [0, 10, 20, 30, 50, 60, 70]
    assert pieces.end_ns.tolist() == [10, 20, 30, 50, 60, 70, 100]
    assert pieces.event.tolist() == [-1, 0, 1, 0, -1, 2, -1]


def test_what_outlives_its_container_is_cut_and_what_follows_is_not_lost() -> None:
    # Rounded times: the child ends one after its parent, where the next one begins.
    pieces = innermost_pieces(*arrays([(0, 10), (5, 11), (10, 50), (20, 30)]), 0, 50)
    assert pieces.event.tolist() == [0, 1, 2, 3, 2]
    assert pieces.end_ns.tolist() == [5, 10, 20, 30, 50]


def test_deeper_than_the_limit_counts_to_what_is_above() -> None:
    events = [(depth, 10_000 - depth) for depth in range(MAX_DEPTH + 10)]
    levels, _ = nesting(*arrays(events))
    assert len(levels) == MAX_DEPTH
    assert innermost_pieces(*arrays(events), 0, 10_000).event.max() == MAX_DEPTH - 1


@st.composite
def nested(draw: st.DrawFn) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    stack = [(0, 100)]
    while stack:
        begin, end = stack.pop()
        for _ in range(draw(st.integers(0, 2))):
            if end - begin < 2 or len(found) > 15:
                break
            middle = draw(st.integers(begin + 1, end))
            found.append((begin, middle))
            stack.append((begin + 1, middle))
            begin = middle
    return found


@given(nested())
def test_the_innermost_is_the_last_begun_of_those_open(events: list[tuple[int, int]]) -> None:
    start, end = arrays(events)
    pieces = innermost_pieces(start, end, 0, 100)
    for begin, until, event in zip(
        pieces.start_ns.tolist(), pieces.end_ns.tolist(), pieces.event.tolist(), strict=True
    ):
        for time in range(begin, until):
            open_ = [row for row in range(len(events)) if start[row] <= time < end[row]]
            assert event == max(open_, default=-1)


@given(st.lists(st.tuples(st.integers(-20, 120), st.integers(0, 80)), max_size=30))
def test_pieces_tile_the_window_whatever_the_events(spans: list[tuple[int, int]]) -> None:
    pieces = innermost_pieces(*arrays([(begin, begin + length) for begin, length in spans]), 0, 100)
    assert pieces.start_ns[0] == 0
    assert pieces.end_ns[-1] == 100
    assert (pieces.start_ns[1:] == pieces.end_ns[:-1]).all()
    assert (pieces.end_ns > pieces.start_ns).all()
