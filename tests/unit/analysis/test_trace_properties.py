"""What must hold for any trace: parts add up, the order of ranks says nothing, inputs stay as they were."""

from dataclasses import replace
from itertools import pairwise

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agprof.analysis.trace import analyse_traces
from agprof.model.trace_answers import TraceAnswer, TraceBreakdown
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace
from synthetic_trace import MAIN, TraceBuilder

KERNELS = ("gemm", "ncclDevKernel_AllReduce_Sum_f32", "multimem_all_reduce_kernel", "elementwise")
CALLS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy", "cudaGetDevice")


@st.composite
def traces(draw: st.DrawFn, rank: int = 0, world: int | None = None) -> RankTrace:
    """Any mixture of activities, launches (some missing, some late), waits and ranges, also of no length."""
    build = TraceBuilder(rank=rank, world_size=world, base_ns=draw(st.sampled_from((0, 1_700_000_000_000_000_000))))
    for number in range(draw(st.integers(0, 14))):
        start, duration = draw(st.integers(0, 200)), draw(st.integers(0, 40))
        kind = draw(st.sampled_from(list(GpuKind)))
        correlation = draw(st.sampled_from((None, number + 1, 1)))
        stream = draw(st.integers(7, 9))
        build.gpu(draw(st.sampled_from(KERNELS)), start, duration, kind=kind, stream=stream, correlation=correlation)
        if draw(st.booleans()):
            at = draw(st.integers(0, 220))
            thread = draw(st.sampled_from((MAIN, MAIN + 1)))
            build.cpu("cudaLaunchKernel", at, 2, kind=CpuKind.RUNTIME, thread=thread, correlation=number + 1)
    for _ in range(draw(st.integers(0, 4))):
        build.cpu(
            draw(st.sampled_from(CALLS)), draw(st.integers(0, 200)), draw(st.integers(0, 60)), kind=CpuKind.RUNTIME
        )
    for _ in range(draw(st.integers(0, 2))):
        name = "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"
        build.cpu(name, draw(st.integers(0, 200)), draw(st.integers(0, 60)), kind=CpuKind.ANNOTATION)
    edge = 0
    for number in range(draw(st.integers(0, 3))):
        length = draw(st.integers(0, 90))
        build.cpu(f"ProfilerStep#{number}", edge, length, kind=CpuKind.ANNOTATION)
        edge += length + draw(st.integers(0, 3))
    return build.build()


def _check(row: TraceBreakdown) -> None:
    exposed = row.exposed_communication_ns + row.exposed_memcpy_ns + row.exposed_memset_ns + row.exposed_other_ns
    assert row.compute_ns + exposed + row.idle_ns == row.window_ns
    assert sum(row.idle_by_cause_ns.values()) == row.idle_ns
    parts = (row.compute_ns, row.exposed_communication_ns, row.exposed_memcpy_ns, row.exposed_memset_ns, row.idle_ns)
    assert min(*parts, *row.idle_by_cause_ns.values()) >= 0
    assert row.exposed_communication_ns == row.communication_ns - row.overlapped_communication_ns


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces())
def test_parts_add_up_to_the_window(trace: RankTrace) -> None:
    answer = analyse_traces({0: trace})
    assert answer is not None
    for row in (*answer.windows, *answer.steps):
        _check(row)
    busy = trace.table("gpu").filter(pl.col("kind") <= int(GpuKind.MEMSET))
    assert answer.has_device == bool(busy.height)
    if not busy.height:
        return
    window = answer.windows[0]
    end = (busy["start_ns"] + busy["duration_ns"]).max()
    assert window.window_ns == end - busy["start_ns"].min()
    # Steps are parts of the window, one after the other; the first may wait for the device's first activity.
    edges = [(row.start_ns, row.start_ns + row.window_ns) for row in answer.steps]
    assert all(start < end <= window.start_ns + window.window_ns for start, end in edges)
    before_window = [row for row in answer.steps if row.start_ns < window.start_ns]
    for row in before_window:
        busy_ns = row.window_ns - row.idle_ns
        assert busy_ns <= max(0, row.start_ns + row.window_ns - window.start_ns)
    assert all(before[1] <= after[0] for before, after in pairwise(edges))
    # Every table of sums holds all activities' time.
    total = int(busy["duration_ns"].sum())
    assert sum(row.sum_ns for row in answer.kernels) == total
    assert sum(row.count for row in answer.kernels) == busy.height
    for by in ("op", "phase"):
        assert sum(row.sum_ns for row in answer.groups if row.by == by) == total


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces(rank=0, world=3), traces(rank=1, world=3), traces(rank=2, world=3), st.permutations((0, 1, 2)))
def test_the_order_of_ranks_says_nothing(a: RankTrace, b: RankTrace, c: RankTrace, order: list[int]) -> None:
    by_rank = {0: a, 1: b, 2: c}
    assert analyse_traces(by_rank) == analyse_traces({rank: by_rank[rank] for rank in order})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces(), st.sampled_from((None, "hta")))
def test_inputs_stay_as_they_were(trace: RankTrace, compat: str | None) -> None:
    frames = {name: frame.collect() for name, frame in trace.tables.items()}
    before = {name: frame.hash_rows().to_list() for name, frame in frames.items()}
    eager = replace(trace, tables={name: frame.lazy() for name, frame in frames.items()})
    analyse_traces({0: eager}, compat=compat)  # type: ignore[arg-type]
    assert {name: frame.hash_rows().to_list() for name, frame in frames.items()} == before
    assert {name: frame.collect().hash_rows().to_list() for name, frame in eager.tables.items()} == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces())
def test_hta_definitions_add_up_too(trace: RankTrace) -> None:
    answer = analyse_traces({0: trace}, compat="hta")
    assert isinstance(answer, TraceAnswer)
    for row in answer.windows:
        exposed = row.exposed_communication_ns + row.exposed_memcpy_ns + row.exposed_memset_ns + row.exposed_other_ns
        assert row.compute_ns + exposed + row.idle_ns == row.window_ns
        assert sum(row.idle_by_cause_ns.values()) == row.idle_ns
