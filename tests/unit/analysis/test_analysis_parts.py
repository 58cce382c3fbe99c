"""The parts of a step against a brute force that paints every nanosecond."""

from itertools import pairwise
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.intervals import covered_until, innermost, union
from agprof.analysis.parts import OWN_PHASES, main_thread_phases, step_parts
from agprof.model.tables import BY_NAME, PHASES
from agprof.store.reader import schema

TIME = st.integers(0, 40)
RANK = st.integers(0, 1)
INTERVAL = st.tuples(RANK, TIME, TIME)


def frame(table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns = schema(BY_NAME[table])
    return pl.DataFrame([{name: row.get(name) for name in columns} for row in rows], schema=columns, orient="row")


SPANS = st.lists(
    st.builds(
        lambda rank, start, end, name, thread, depth, category: {
            "rank": rank, "start_ns": start, "end_ns": end, "name": name, "thread": thread, "depth": depth,
            "category": category,
        },
        RANK, TIME, TIME, st.sampled_from([*OWN_PHASES, "foreign"]), st.integers(1, 2), st.integers(0, 2),
        st.sampled_from(["phase", "phase", "phase", "range"]),
    ),
    max_size=10,
)  # fmt: skip
CALLS = st.lists(
    st.builds(
        lambda rank, start, issue, thread: {
            "rank": rank, "start_ns": start, "issue_end_ns": start + issue, "thread": thread,
        },
        RANK, TIME, st.integers(-2, 8), st.integers(1, 3),
    ),
    max_size=5,
)  # fmt: skip
WAITS = st.lists(
    st.builds(lambda rank, start, end: {"rank": rank, "start_ns": start, "end_ns": end}, RANK, TIME, TIME), max_size=4
)


def steps_of(borders: dict[int, list[int]]) -> pl.DataFrame:
    rows = []
    for rank, times in borders.items():
        ordered = sorted(times)
        for step, (start, end) in enumerate(pairwise(ordered)):
            rows.append({"rank": rank, "step": step, "start_ns": start, "end_ns": end})
    return frame("steps", rows)


def paint(step: dict[str, Any], spans: list[dict[str, Any]], calls: list[Any], waits: list[Any]) -> dict[str, int]:
    """Each nanosecond by the rule as it is written, one at a time."""
    painted = dict.fromkeys(PHASES, 0)
    for now in range(step["start_ns"], step["end_ns"]):
        stands = any(c["start_ns"] <= now < c["issue_end_ns"] for c in calls if c["rank"] == step["rank"])
        stands |= any(w["start_ns"] <= now < w["end_ns"] for w in waits if w["rank"] == step["rank"])
        open_ = [s for s in spans if s["rank"] == step["rank"] and s["start_ns"] <= now < s["end_ns"]]
        if stands:
            painted["communication"] += 1
        elif open_:
            inner = max(open_, key=lambda s: (s["start_ns"], s["depth"], s["span"]))
            painted[inner["name"]] += 1
        else:
            painted["other"] += 1
    return painted


@settings(max_examples=150, deadline=None)
@given(st.lists(TIME, max_size=5), st.lists(TIME, max_size=5), SPANS, CALLS, WAITS)
def test_parts_equal_a_paint_of_every_nanosecond(
    first: list[int], second: list[int], spans: list[dict[str, Any]], calls: list[Any], waits: list[Any]
) -> None:
    for number, span in enumerate(spans):
        span["span"] = number
    steps = steps_of({0: first, 1: second})
    table = frame("spans", spans)
    main = main_thread_phases(table)
    got = step_parts(steps, table, frame("collectives", calls), frame("waits", waits))
    assert got.height == steps.height
    for row in got.iter_rows(named=True):
        want = paint(row, main.to_dicts(), calls, waits)
        assert {phase: row[phase] for phase in PHASES} == want
        assert sum(want.values()) == row["end_ns"] - row["start_ns"]


@given(st.lists(INTERVAL, max_size=12))
def test_union_covers_the_same_time_without_overlap(intervals: list[tuple[int, int, int]]) -> None:
    columns = {"rank": pl.Int64, "start_ns": pl.Int64, "end_ns": pl.Int64}
    got = union(pl.DataFrame(intervals, schema=columns, orient="row")).rows()
    want = {(rank, now) for rank, start, end in intervals for now in range(start, end)}
    cells = [(rank, now) for rank, start, end in got for now in range(start, end)]
    assert len(cells) == len(set(cells))
    assert set(cells) == want


@given(st.lists(INTERVAL, max_size=8), st.lists(st.tuples(RANK, TIME), max_size=8))
def test_covered_until_counts_what_lies_before(
    intervals: list[tuple[int, int, int]], points: list[tuple[int, int]]
) -> None:
    columns = {"rank": pl.Int64, "start_ns": pl.Int64, "end_ns": pl.Int64}
    disjoint = union(pl.DataFrame(intervals, schema=columns, orient="row"))
    at = pl.DataFrame(points, schema={"rank": pl.Int64, "at_ns": pl.Int64}, orient="row")
    cells = {(rank, now) for rank, start, end in intervals for now in range(start, end)}
    want = [sum(rank == r and now < at_ns for r, now in cells) for rank, at_ns in points]
    assert covered_until(at, disjoint).to_list() == want


def test_the_inner_phase_wins_and_the_outer_goes_on_after_it() -> None:
    spans = frame(
        "spans",
        [
            {"rank": 0, "span": 0, "name": "backward", "start_ns": 0, "end_ns": 100, "depth": 0},
            {"rank": 0, "span": 1, "name": "forward", "start_ns": 20, "end_ns": 50, "depth": 1},
        ],
    )
    assert innermost(spans).select("name", "start_ns", "end_ns").rows() == [
        ("backward", 0, 20),
        ("forward", 20, 50),
        ("backward", 50, 100),
    ]


def test_the_main_thread_is_the_one_with_most_phase_time() -> None:
    spans = frame(
        "spans",
        [
            {"rank": 0, "span": 0, "category": "phase", "name": "forward", "start_ns": 0, "end_ns": 9, "thread": 7},
            {"rank": 0, "span": 1, "category": "phase", "name": "backward", "start_ns": 0, "end_ns": 5, "thread": 3},
            {"rank": 0, "span": 2, "category": "range", "name": "x", "start_ns": 0, "end_ns": 99, "thread": 3},
        ],
    )
    assert main_thread_phases(spans)["thread"].to_list() == [7]
