"""Steps that a trace marks: the same as those that an import makes of it."""

from pathlib import Path

import pytest

from agprof.analysis.trace_steps import host_steps
from agprof.importers.kineto import import_file
from agprof.importers.trace_ranges import classified, host_ranges
from agprof.importers.trace_steps import find_steps
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace, read_traces
from synthetic_trace import TraceBuilder

Spans = list[tuple[int, int, int]]


def _ours(trace: RankTrace) -> Spans:
    return [(step.number, step.start, step.end) for step in host_steps(trace)]


def _imported(trace: RankTrace) -> Spans:
    found = find_steps(host_ranges(trace, classified(trace)))
    return list(found.select("step", "start_ns", "end_ns").iter_rows())


def _marked(*names: str, kind: CpuKind = CpuKind.ANNOTATION) -> RankTrace:
    build = TraceBuilder().gpu("k", 0, 1)
    for index, name in enumerate(names):
        build.cpu(name, index * 100, 100, kind=kind)
    return build.build()


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("ProfilerStep#4", "ProfilerStep#5"), [4, 5]),
        (("step 7", "step 8"), [7, 8]),
        (("iteration_12", "iteration_13"), [12, 13]),
        (("Training Step: 3",), [3]),
        (("iteration", "iteration"), [0, 1]),
        (("ProfilerStep#4", "step 9", "iteration 3"), [4]),
        (("ProfilerStep#4", "ProfilerStep#4"), [4]),
        (("steps are great", "step by step 5"), []),
    ],
)
def test_ways_of_marking(names: tuple[str, ...], numbers: list[int]) -> None:
    trace = _marked(*names)
    assert [number for number, _, _ in _ours(trace)] == numbers
    assert _ours(trace) == _imported(trace)


def test_old_traces_hold_steps_among_operators() -> None:
    assert [number for number, _, _ in _ours(_marked("ProfilerStep#1", kind=CpuKind.OP))] == [1]
    assert _ours(_marked("step 1", kind=CpuKind.OP)) == []


def test_overlapping_and_empty_ones_do_not_count() -> None:
    build = TraceBuilder().cpu("ProfilerStep#1", 0, 100, kind=CpuKind.ANNOTATION)
    build.cpu("ProfilerStep#2", 50, 100, kind=CpuKind.ANNOTATION).cpu("ProfilerStep#3", 100, 0, kind=CpuKind.ANNOTATION)
    build.cpu("ProfilerStep#4", 100, 10, kind=CpuKind.ANNOTATION)
    assert _ours(build.build()) == [(1, 0, 100), (4, 100, 110)]


@pytest.mark.parametrize("name", ["v100_train_rank1of2", "v100_resnet50_old_categories", "cpu_only_rank34"])
def test_real_traces(name: str, traces_dir: Path, tmp_path: Path) -> None:
    import_file(traces_dir / f"{name}.json.gz", tmp_path, 0, processes=1)
    trace = read_traces(tmp_path)[0]
    assert _ours(trace)
    assert _ours(trace) == _imported(trace)
