"""Device time by operator, module and phase; launches; kernels by name."""

import pytest

from agprof.analysis.trace import analyse_traces
from agprof.analysis.trace_groups import MAX_GROUPS
from agprof.analysis.trace_kernels import MAX_NAME, MAX_ROWS
from agprof.model.trace_answers import TraceAnswer
from agprof.model.trace_tables import CpuKind, GpuKind
from synthetic_trace import MAIN, TraceBuilder

AUTOGRAD = MAIN + 1


def _answer(build: TraceBuilder) -> TraceAnswer:
    answer = analyse_traces({build.rank: build.build()})
    assert answer is not None
    return answer


def _groups(build: TraceBuilder, by: str) -> dict[str, int]:
    return {row.name: row.sum_ns for row in _answer(build).groups if row.by == by}


def _step() -> TraceBuilder:
    """One training step: a linear layer forward, its backward on autograd's thread, the optimizer."""
    build = TraceBuilder()
    build.cpu("nn.Module: Linear_0", 0, 50, kind=CpuKind.PYTHON)
    build.cpu("aten::linear", 1, 40, sequence=11).cpu("aten::addmm", 2, 30)
    build.launch("gemm", 10, 100, 60, correlation=1)
    backward = "autograd::engine::evaluate_function: AddmmBackward0"
    build.cpu(backward, 60, 40, thread=AUTOGRAD, sequence=11, forward_thread=1)
    build.cpu("aten::mm", 65, 30, thread=AUTOGRAD)
    build.launch("gemm", 70, 170, 80, correlation=2, thread=AUTOGRAD)
    build.cpu("Optimizer.step#SGD.step", 110, 40, kind=CpuKind.ANNOTATION)
    build.cpu("aten::add_", 115, 20)
    build.launch("elementwise", 120, 260, 10, correlation=3)
    return build


def test_innermost_operator() -> None:
    assert _groups(_step(), "op") == {"aten::addmm": 60, "aten::mm": 80, "aten::add_": 10}


def test_backward_belongs_to_the_module_of_its_forward() -> None:
    assert _groups(_step(), "module") == {"Linear_0": 140, "no module": 10}


def test_phases() -> None:
    assert _groups(_step(), "phase") == {"forward": 60, "backward": 80, "optimizer": 10}


def test_an_operator_that_ended_holds_nothing() -> None:
    build = TraceBuilder().cpu("aten::outer", 0, 100).cpu("aten::inner", 10, 10)
    build.launch("a", 15, 200, 1, correlation=1).launch("b", 30, 210, 2, correlation=2)
    build.launch("c", 150, 220, 4, correlation=3)
    assert _groups(build, "op") == {"aten::inner": 1, "aten::outer": 2, "no operator": 4}


def test_operators_of_another_thread_hold_nothing() -> None:
    build = TraceBuilder().cpu("aten::add", 0, 100, thread=AUTOGRAD).launch("a", 15, 200, 1, correlation=1)
    assert _groups(build, "op") == {"no operator": 1}


def test_external_id_where_the_launch_is_missing() -> None:
    build = TraceBuilder().cpu("aten::mm", 0, 10, external_id=5).gpu("gemm", 50, 3, correlation=9, external_id=5)
    build.gpu("gemm", 60, 7, correlation=10)
    assert _groups(build, "op") == {"aten::mm": 3, "launch not in the trace": 7}


def test_deep_nesting() -> None:
    build = TraceBuilder()
    for depth in range(400):
        build.cpu(f"level {depth}", depth, 2000 - 2 * depth)
    build.launch("k", 1000, 3000, 5, correlation=1)
    ((name, sum_ns),) = _groups(build, "op").items()
    assert sum_ns == 5
    assert name.startswith("level ")


def test_launch_delay_and_queue() -> None:
    build = TraceBuilder()
    for number, (at, start) in enumerate([(0, 10), (20, 100), (30, 200), (40, 300)]):
        build.launch("k", at, start, 50, correlation=number + 1)
    build.gpu("lost", 400, 10, correlation=99)
    row = _answer(build).launches[0]
    assert (row.activities, row.without_launch, row.graph_kernels) == (5, 1, 0)
    assert (row.delay_median_ns, row.delay_p95_ns, row.delay_max_ns) == (80, 260, 260)
    assert row.queue_max == 3  # at 40 three wait: those that begin at 100, 200, 300
    assert row.queue_mean == pytest.approx((10 + 80 + 170 + 260) / 300)


def test_a_graph_launches_many_kernels_at_once() -> None:
    build = TraceBuilder().cpu("cudaGraphLaunch", 0, 5, kind=CpuKind.RUNTIME, correlation=1)
    for number in range(10):
        build.gpu("k", 10 + number * 20, 15, correlation=1, graph_node=number)
    answer = _answer(build)
    row = answer.launches[0]
    assert (row.graph_kernels, row.without_launch) == (10, 0)
    assert (row.delay_median_ns, row.queue_max) == (None, None)
    assert answer.windows[0].idle_by_cause_ns["kernel wait"] == answer.windows[0].idle_ns == 45


def test_kernels_by_name() -> None:
    build = TraceBuilder().gpu("a", 0, 10).gpu("a", 20, 30).gpu("b", 60, 50)
    build.gpu("Memset", 120, 10, kind=GpuKind.MEMSET)
    rows = {row.name: row for row in _answer(build).kernels}
    a = rows["a"]
    assert (a.count, a.sum_ns, a.mean_ns, a.min_ns, a.max_ns, a.share) == (2, 40, 20.0, 10, 30, 0.4)
    assert [row.name for row in _answer(build).kernels] == ["b", "a", "Memset"]


def test_kernels_of_all_ranks() -> None:
    traces = {rank: TraceBuilder(rank=rank).gpu("a", 0, 10 + rank).build() for rank in range(3)}
    answer = analyse_traces(traces)
    assert answer is not None
    (row,) = answer.kernels
    assert (row.count, row.ranks, row.sum_ns, row.min_ns, row.max_ns) == (3, 3, 33, 10, 12)


def test_long_names_are_cut_and_hostile_ones_kept_as_text() -> None:
    build = TraceBuilder().gpu("x" * 1_000_000, 0, 10).gpu("<script>alert(1)</script>", 20, 5)
    names = [row.name for row in _answer(build).kernels]
    assert len(names[0]) < MAX_NAME + 40
    assert "1,000,000 characters" in names[0]
    assert names[1] == "<script>alert(1)</script>"


@pytest.mark.parametrize("name", ["", "(no name)"])
def test_activities_without_a_name_are_said(name: str) -> None:
    notes = _answer(TraceBuilder().gpu(name, 0, 10).gpu("gemm", 10, 10)).quality[0].notes
    assert any(note.startswith("1 activities have no name") for note in notes)


def test_what_stands_in_a_trace_twice_is_said() -> None:
    build = TraceBuilder().launch("a", 0, 10, 5, correlation=1).gpu("a", 10, 5, correlation=1)
    build.gpu("b", 10, 5, correlation=2, stream=8).gpu("c", 20, 0, correlation=3).gpu("c", 20, 0, correlation=3)
    said = " ".join(_answer(build).quality[0].notes)
    assert "1 activities stand in the trace more than once" in said


@pytest.mark.parametrize(("later_s", "said"), [(3_599, False), (3_601, True)])
def test_a_time_that_is_hardly_possible_is_said(later_s: int, said: bool) -> None:
    build = TraceBuilder().launch("a", 0, 10, 5, correlation=1)
    build.launch("b", 20, 15 + later_s * 10**9, 5, correlation=2)
    assert any("may be damaged" in note for note in _answer(build).quality[0].notes) == said


def test_quality_is_said() -> None:
    build = TraceBuilder().launch("a", 0, 10, 5, correlation=1).gpu("b", 50, 5, correlation=7)
    build.gpu("mystery", 0, 500, kind=GpuKind.OTHER)
    row = _answer(build).quality[0]
    assert row.kernels_without_launch == 1
    said = " ".join(row.notes)
    assert "1 of 2 activities have no launch" in said
    assert "1 device rows are of a category" in said
    assert "marks no step" in said
    assert "1 activities without a launch" in _answer(build).quality_sentence


def test_names_beyond_the_table_are_one_row() -> None:
    build = TraceBuilder()
    for number in range(MAX_ROWS + 500):
        build.cpu(f"op {number}", number * 10, 8)
        build.launch(f"k{number}", number * 10 + 1, number * 10 + 3, 1 + number % 5, correlation=number + 1)
    answer = _answer(build)
    assert len(answer.kernels) == MAX_ROWS + 1
    assert answer.kernels[-1].name == "(500 more names)"
    assert sum(row.count for row in answer.kernels) == MAX_ROWS + 500
    assert sum(row.share for row in answer.kernels) == pytest.approx(1)
    ops = [row for row in answer.groups if row.by == "op"]
    assert ops[-1].name == f"({MAX_ROWS + 500 - MAX_GROUPS:,} more names)"
    assert sum(row.sum_ns for row in ops) == sum(row.sum_ns for row in answer.kernels)
