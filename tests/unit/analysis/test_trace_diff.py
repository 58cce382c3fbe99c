"""Two traces compared: closed forms, and that changes add up to the change of the totals."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis import trace_diff, trace_likeness
from agprof.analysis.trace_critical_path import critical_path
from agprof.analysis.trace_diff import diff_traces
from agprof.analysis.trace_likeness import match_names
from agprof.analysis.trace_memory import memory
from agprof.analysis.trace_timeline import timeline
from agprof.model.diff import DiffRow, TraceDiff
from trace_rows import TraceRows


def run(kernels: list[tuple[str, int]], *, steps: int = 0, rank_count: int = 1) -> dict[int, object]:
    """Ranks with kernels (name, duration); in `steps` equal steps, or in none."""
    found = {}
    for rank in range(rank_count):
        rows = TraceRows()
        at, correlation = 0, 1
        for step in range(max(steps, 1)):
            begin = at
            for name, duration in kernels:
                rows.call("cudaLaunchKernel", at, at + 1, correlation)
                rows.gpu(name, at + 1, at + 1 + duration, correlation=correlation)
                at, correlation = at + duration + 1, correlation + 1
            if steps:
                rows.step(step, begin, at)
        found[rank] = rows.trace(rank)
    return found


def diff(a: dict[int, object], b: dict[int, object]) -> TraceDiff:
    return diff_traces(a, b)  # type: ignore[arg-type]


def by_name(rows: tuple[DiffRow, ...]) -> dict[str, DiffRow]:
    return {row.name: row for row in rows}


def test_of_operators_with_one_interval_the_inner_one_has_the_time_whatever_their_order() -> None:
    """Traces in microseconds are full of them, and neither files nor sorting keep their order."""

    def traces(*names: str) -> dict[int, object]:
        rows = TraceRows()
        for name in names:
            rows.cpu(name, 1_000, 2_000, external_id={"aten::outer": 7, "inner": 8}[name])
        return {0: rows.trace(0)}

    found = diff(traces("aten::outer", "inner"), traces("inner", "aten::outer"))
    assert {row.name: (row.sum_a_ns, row.sum_b_ns) for row in found.operators} == {
        "aten::outer": (0, 0), "inner": (1_000, 1_000),
    }  # fmt: skip


def test_what_appeared_vanished_changed_and_stayed() -> None:
    before = run([("same", 100), ("slower", 100), ("gone", 50), ("often", 10)])
    after = run([("same", 100), ("slower", 300), ("new", 70), ("often", 10), ("often", 10)])
    found = diff(before, after)
    rows = by_name(found.device)
    assert {name: row.state for name, row in rows.items()} == {
        "same": "same", "slower": "changed", "gone": "vanished", "new": "appeared", "often": "changed",
    }  # fmt: skip
    assert [row.name for row in found.device] == ["slower", "new", "gone", "often", "same"]
    assert (rows["slower"].change_ns, rows["slower"].change_count) == (200, 0)
    assert (rows["often"].change_ns, rows["often"].change_count) == (10, 1)
    assert (found.a.device_ns, found.b.device_ns) == (260, 490)
    assert "(+0.000 ms, +88.5%)" in found.sentence
    assert "slower +0.000 ms" in found.sentence


def test_the_sentence_names_what_explains_the_change() -> None:
    found = diff(run([("a", 10_000_000), ("b", 1_000_000)]), run([("a", 4_000_000), ("b", 1_100_000)]))
    assert found.sentence == (
        "Device time per rank (whole traces, because not all ranks mark steps): 11.000 ms -> 5.100 ms (-5.900 ms, "
        "-53.6%). 102% of the change: a -6.000 ms."
    )


def test_with_steps_on_both_sides_sums_are_per_step() -> None:
    found = diff(run([("k", 100)], steps=2), run([("k", 100)], steps=5, rank_count=2))
    assert found.per == "step"
    assert (found.a.units, found.b.units, found.b.ranks, found.b.steps) == (2, 10, 2, 10)
    (row,) = found.device
    assert (row.state, row.change_ns, row.change_count) == ("same", 0, 0)
    assert (row.sum_a_ns, row.sum_b_ns) == (200, 1_000)
    assert found.a.step_ns == 101  # from launch to launch


def test_without_steps_on_one_side_whole_traces_are_compared_per_rank() -> None:
    found = diff(run([("k", 100)], steps=4), run([("k", 100)], rank_count=2))
    assert (found.per, found.a.units, found.b.units, found.a.step_ns) == ("rank", 1, 2, None)
    assert by_name(found.device)["k"].change_ns == -300


def test_operators_count_their_own_time_only() -> None:
    rows = TraceRows()
    rows.cpu("outer", 0, 100)
    rows.cpu("inner", 20, 60)
    rows.call("cudaLaunchKernel", 25, 30, correlation=1)
    rows.cpu("outer", 10, 30, thread=2)
    found = diff({}, {0: rows.trace()})
    assert {row.name: (row.count_b, row.sum_b_ns) for row in found.operators} == {"outer": (2, 80), "inner": (1, 40)}
    assert found.b.operator_ns == 120


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("triton_poi_fused_add_3", "triton_poi_fused_add_17"),
        ("void f::kernel<float, 4>(float*)", "void f::kernel<bf16, g<8> >(bf16*)"),
    ],
)
def test_names_that_are_alike_are_matched_and_said_to_be(one: str, other: str) -> None:
    (row,) = diff(run([(one, 10)]), run([(other, 30)])).device
    assert (row.state, row.name, row.similar_name, row.change_ns) == ("changed", one, other, 20)


def test_equal_names_are_matched_before_similar_ones_and_long_ones_first() -> None:
    assert match_names({"k1": 5, "k2": 9, "k3": 1}, {"k2": 1, "k7": 3, "other": 2}) == [
        ("k2", "k2"), ("k1", "k7"), ("k3", None), (None, "other"),
    ]  # fmt: skip


def test_kinds_are_never_mixed() -> None:
    rows = TraceRows()
    rows.cpu("k", 0, 10)
    found = diff(run([("k", 10)]), {0: rows.trace()})
    assert [row.state for row in found.device] == ["vanished"]
    assert [row.state for row in found.operators] == ["appeared"]


def test_nothing_against_nothing_is_said() -> None:
    found = diff({0: TraceRows().trace()}, {0: TraceRows().trace()})
    assert found.sentence == "Device time: none on either side."
    assert found.device == found.operators == ()


def test_inputs_of_hostile_size_are_looked_at_in_part_only() -> None:
    found = diff(run([("<" * 1_000_000, 1)]), run([("k<" * 500_000, 1)]))
    assert {row.state for row in found.device} == {"vanished", "appeared"}


names = st.sampled_from(["a", "a1", "a2", "b<1>", "b<2>", "ncclKernel_AllReduce", "c", "c(int)"])
kernels = st.lists(st.tuples(names, st.integers(0, 1_000)), max_size=12)


@given(kernels, kernels, st.integers(0, 3), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_changes_of_all_rows_add_up_to_the_change_of_the_totals(
    one: list[tuple[str, int]], other: list[tuple[str, int]], steps_a: int, steps_b: int, ranks_b: int
) -> None:
    found = diff(run(one, steps=steps_a), run(other, steps=steps_b, rank_count=ranks_b))
    assert sum(row.sum_a_ns for row in found.device) == found.a.device_ns
    assert sum(row.sum_b_ns for row in found.device) == found.b.device_ns
    exact = [Fraction(row.sum_b_ns, found.b.units) - Fraction(row.sum_a_ns, found.a.units) for row in found.device]
    assert sum(exact) == Fraction(found.b.device_ns, found.b.units) - Fraction(found.a.device_ns, found.a.units)
    assert [row.change_ns for row in found.device] == [float(each) for each in exact]
    assert sum(row.count_a for row in found.device) <= max(steps_a, 1) * len(one)


@given(kernels, st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_a_run_against_itself_changed_nothing(one: list[tuple[str, int]], steps: int) -> None:
    found = diff(run(one, steps=steps), run(one, steps=steps))
    assert all(row.state == "same" and row.change_ns == 0 for row in found.device)


def test_the_examples_in_the_docstrings_hold() -> None:
    import doctest

    for module in (trace_diff, trace_likeness):
        assert doctest.testmod(module).failed == 0


def test_no_analysis_changes_what_it_is_given() -> None:
    trace = run([("k", 100), ("ncclKernel_AllReduce", 50)], steps=2)[0]
    before = {name: frame.collect() for name, frame in trace.tables.items()}  # type: ignore[attr-defined]
    hashes = {name: frame.hash_rows().to_list() for name, frame in before.items()}
    critical_path(trace)  # type: ignore[arg-type]
    timeline(trace)  # type: ignore[arg-type]
    memory(trace)  # type: ignore[arg-type]
    diff({0: trace}, {0: trace})
    after = {name: frame.collect() for name, frame in trace.tables.items()}  # type: ignore[attr-defined]
    assert {name: frame.hash_rows().to_list() for name, frame in after.items()} == hashes
