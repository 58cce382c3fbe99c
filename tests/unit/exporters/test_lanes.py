"""Spans laid out in lanes: none lost, none crossing."""

from itertools import groupby, pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.exporters.lanes import COLOURS, Lane, borders, flat_lanes, nested_lanes

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)).map(lambda p: (p[0], p[0] + p[1])), max_size=60)


def in_order(spans):
    return sorted(spans, key=lambda span: (span[0], -span[1]))


def by_lane(spans, lanes):
    rows = sorted(zip(lanes, spans, strict=True), key=lambda row: row[0])
    return [[span for _, span in group] for _, group in groupby(rows, key=lambda row: row[0])]


def crosses(a, b):
    return a[0] < b[0] < a[1] < b[1] or b[0] < a[0] < b[1] < a[1]


@given(SPANS)
@settings(max_examples=300)
def test_nested_lanes_never_cross(spans):
    spans = in_order(spans)
    lanes = nested_lanes(*zip(*spans, strict=True)) if spans else nested_lanes([], [])
    assert len(lanes) == len(spans)
    for lane in by_lane(spans, lanes):
        assert not any(crosses(a, b) for a in lane for b in lane)
    assert set(lanes) == set(range(len(set(lanes)))), "a lane is left empty"


@given(SPANS)
@settings(max_examples=300)
def test_flat_lanes_never_overlap(spans):
    spans = in_order(spans)
    lanes = flat_lanes(*zip(*spans, strict=True)) if spans else flat_lanes([], [])
    assert len(lanes) == len(spans)
    for lane in by_lane(spans, lanes):
        assert all(before[1] <= after[0] for before, after in pairwise(lane))
    # No more lanes than spans that run at one time: the fewest there can be.
    most = max((sum(s <= t < e or s == t for s, e in spans) for t in {s for s, _ in spans}), default=0)
    assert len(set(lanes)) <= max(most, 1)


def test_what_nests_needs_one_lane():
    assert nested_lanes([0, 1, 2, 5, 9], [10, 8, 3, 8, 10]) == [0, 0, 0, 0, 0]


@given(SPANS)
def test_borders_are_balanced_and_in_time(spans):
    spans = in_order(spans)
    lanes = nested_lanes(*zip(*spans, strict=True)) if spans else []
    first = [span for span, lane in zip(spans, lanes, strict=True) if lane == 0]
    frame = pl.DataFrame(
        {"start_ns": [s for s, _ in first], "end_ns": [e for _, e in first]},
        schema={"start_ns": pl.Int64, "end_ns": pl.Int64},
    )
    lane = Lane(thread=1, name="x", domain="agprof", spans=frame)
    stack, last, seen = [], 0, []
    for time_ns, row in borders(lane):
        assert time_ns >= last
        last = time_ns
        if row is None:
            start = stack.pop()
            assert time_ns == first[start][1]
        else:
            assert time_ns == first[row][0]
            stack.append(row)
            seen.append(row)
    assert not stack
    assert seen == list(range(len(first)))


def test_colours_are_the_report_s():
    css = {
        "forward": 0x56B4E9,
        "backward": 0x0072B2,
        "optimizer": 0x009E73,
        "communication": 0xD55E00,
        "data": 0xCC79A7,
    }
    assert {name: COLOURS[name] for name in css} == css
