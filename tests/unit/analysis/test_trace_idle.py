"""Why the device idles, on time lines drawn by hand."""

import pytest

from agprof.analysis.trace import analyse_traces
from agprof.model.trace_answers import TraceBreakdown
from agprof.model.trace_tables import CpuKind, GpuKind
from synthetic_trace import MAIN, TraceBuilder


def _window(build: TraceBuilder) -> TraceBreakdown:
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    return answer.windows[0]


def _idle(build: TraceBuilder) -> dict[str, int]:
    return {cause: ns for cause, ns in _window(build).idle_by_cause_ns.items() if ns}


def _two_kernels(launched_at: int) -> TraceBuilder:
    """The device is busy until 100 and again from 200 on."""
    build = TraceBuilder().launch("a", 0, 10, 90, correlation=1)
    return build.launch("b", launched_at, 200, 50, correlation=2)


def test_until_the_launch_returns_the_host_is_late_and_from_then_on_the_kernel_waits() -> None:
    assert _idle(_two_kernels(launched_at=180)) == {"launch": 82, "kernel wait": 18}


def test_a_launch_that_takes_long_is_the_hosts_time() -> None:
    """The first launch of a kernel may load its module for seconds: nothing waits on the device meanwhile."""
    build = TraceBuilder().launch("a", 0, 10, 90, correlation=1)
    build.cpu("cudaLaunchKernel", 110, 200, kind=CpuKind.RUNTIME, correlation=2).gpu("b", 300, 50, correlation=2)
    assert _idle(build) == {"launch": 200}


def test_gaps_inside_a_graph_are_waits_also_while_its_launch_runs() -> None:
    build = TraceBuilder().launch("a", 0, 10, 90, correlation=1)
    build.cpu("cudaGraphLaunch", 120, 200, kind=CpuKind.RUNTIME, correlation=2)
    for number, start in enumerate((200, 260)):
        build.gpu("k", start, 50, correlation=2, graph_node=number)
    assert _idle(build) == {"launch": 100, "kernel wait": 10}


def test_what_was_launched_before_the_gap_only_waits() -> None:
    assert _idle(_two_kernels(launched_at=50)) == {"kernel wait": 100}


def test_a_synchronising_call_on_the_launching_thread() -> None:
    build = _two_kernels(launched_at=180).cpu("cudaStreamSynchronize", 40, 90, kind=CpuKind.RUNTIME)
    assert _idle(build) == {"synchronisation": 30, "launch": 52, "kernel wait": 18}


@pytest.mark.parametrize("call", ["cudaFree", "cudaStreamSynchronize", "cudaMemcpy"])
def test_a_call_that_begins_on_an_idle_device_has_nothing_to_wait_for(call: str) -> None:
    """cudaFree(0) sets up a context for seconds; that is the host's own work."""
    build = _two_kernels(launched_at=180).cpu(call, 110, 60, kind=CpuKind.RUNTIME)
    assert _idle(build) == {"launch": 82, "kernel wait": 18}


def test_a_call_that_began_in_an_earlier_gap_waits_for_what_ran_meanwhile() -> None:
    build = TraceBuilder().launch("before", 0, 10, 20, correlation=1).launch("a", 40, 50, 50, correlation=2)
    build.launch("b", 180, 200, 50, correlation=3).cpu("cudaStreamSynchronize", 45, 85, kind=CpuKind.RUNTIME)
    assert _idle(build) == {"synchronisation": 30, "launch": 64, "kernel wait": 26}


@pytest.mark.parametrize(
    "call", ["hipDeviceSynchronize", "cuCtxSynchronize", "cudaMemcpy_v3020", "cudaEventSynchronize"]
)
def test_every_call_that_waits(call: str) -> None:
    build = _two_kernels(launched_at=180).cpu(call, 40, 90, kind=CpuKind.RUNTIME)
    assert _idle(build)["synchronisation"] == 30


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaLaunchKernel", "cudaEventQuery", "cuMemcpyHtoDAsync_v2"])
def test_calls_that_do_not_wait(call: str) -> None:
    build = _two_kernels(launched_at=180).cpu(call, 40, 90, kind=CpuKind.RUNTIME)
    assert "synchronisation" not in _idle(build)


def test_another_threads_wait_says_nothing() -> None:
    build = _two_kernels(launched_at=180)
    build.cpu("cudaStreamSynchronize", 40, 90, kind=CpuKind.RUNTIME, thread=MAIN + 1)
    assert _idle(build) == {"launch": 82, "kernel wait": 18}


def test_a_data_loader_comes_before_a_synchronising_call_inside_it() -> None:
    build = _two_kernels(launched_at=180)
    build.cpu("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 110, 40, kind=CpuKind.ANNOTATION)
    build.cpu("cudaStreamSynchronize", 90, 70, kind=CpuKind.RUNTIME)
    assert _idle(build) == {"data": 40, "synchronisation": 20, "launch": 22, "kernel wait": 18}


def test_without_a_launch_nothing_is_claimed() -> None:
    build = TraceBuilder().launch("a", 0, 10, 90, correlation=1).gpu("b", 200, 50, correlation=99)
    assert _idle(build) == {"unknown": 100}


def test_a_launch_after_its_activity_is_no_launch() -> None:
    build = TraceBuilder().launch("a", 0, 10, 90, correlation=1).launch("b", 900, 200, 50, correlation=2)
    assert _idle(build) == {"unknown": 100}


def test_synchronisation_and_annotation_rows_are_never_busy() -> None:
    build = _two_kernels(launched_at=180)
    build.gpu("Stream Sync", 100, 60, kind=GpuKind.SYNC).gpu("ProfilerStep#1", 0, 500, kind=GpuKind.ANNOTATION)
    window = _window(build)
    assert (window.window_ns, window.compute_ns, window.idle_ns) == (240, 140, 100)


def test_what_hides_what() -> None:
    """Compute hides communication, both hide copies, all hide memsets."""
    build = TraceBuilder()
    build.gpu("ncclDevKernel_AllReduce_Sum_f32", 0, 100).gpu("gemm", 40, 100, stream=8)
    build.gpu("Memcpy HtoD", 80, 100, kind=GpuKind.MEMCPY, stream=9)
    build.gpu("Memset (Device)", 160, 100, kind=GpuKind.MEMSET, stream=10).gpu("gemm", 280, 20)
    window = _window(build)
    assert window.window_ns == 300
    assert window.compute_ns == 120
    assert (window.communication_ns, window.overlapped_communication_ns) == (100, 60)
    assert window.exposed_communication_ns == 40
    assert window.exposed_memcpy_ns == 40
    assert window.exposed_memset_ns == 80
    assert window.idle_ns == 20
    assert window.overlap_ratio == 0.6


def test_steps_on_the_device_follow_their_launches() -> None:
    """The host is a step ahead: each step ends on the device when what it launched has ended."""
    build = TraceBuilder()
    for step in range(3):
        build.cpu(f"ProfilerStep#{step + 5}", step * 100, 100, kind=CpuKind.ANNOTATION)
        build.launch("gemm", step * 100 + 10, step * 200 + 50, 180, correlation=step + 1)
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    rows = [(row.step, row.start_ns, row.window_ns, row.compute_ns, row.idle_ns) for row in answer.steps]
    assert rows == [(5, 0, 230, 180, 50), (6, 230, 200, 180, 20), (7, 430, 200, 180, 20)]
    # The first step's wait for its first kernel is not in the window, which begins with that kernel.
    assert answer.steps[0].idle_by_cause_ns["launch"] == 12
    assert sum(row.window_ns for row in answer.steps) == answer.windows[0].window_ns + 50


def test_a_step_that_hardly_uses_the_device_is_not_bound_by_it() -> None:
    """One kernel of 2 ns at the end of a step of 1,000 ns, which waits for its launch nearly all the time."""
    build = TraceBuilder().cpu("ProfilerStep#1", 0, 1000, kind=CpuKind.ANNOTATION)
    answer = analyse_traces({0: build.launch("triton_add", 990, 995, 2, correlation=1).build()})
    assert answer is not None
    (row,) = answer.steps
    assert (row.window_ns, row.compute_ns, row.idle_by_cause_ns["launch"]) == (997, 2, 992)
    assert answer.windows[0].window_ns == 2


def test_work_launched_before_the_trace_belongs_to_no_step() -> None:
    """The device still runs what the step before the trace launched; the traced step begins when that is done."""
    build = TraceBuilder().gpu("earlier", 0, 40, correlation=1).gpu("earlier", 50, 50, correlation=2)
    build.cpu("ProfilerStep#6", 5, 100, kind=CpuKind.ANNOTATION)
    build.launch("gemm", 10, 110, 80, correlation=3).gpu("lost", 195, 5, correlation=4)
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    (row,) = answer.steps
    assert (row.start_ns, row.window_ns, row.compute_ns, row.idle_ns) == (100, 90, 80, 10)
    assert answer.windows[0].window_ns == 200


def test_without_device_there_is_no_window() -> None:
    answer = analyse_traces({0: TraceBuilder().cpu("aten::add", 0, 10).build()})
    assert answer is not None
    assert not answer.has_device
    assert not answer.windows
    assert "not known" in answer.sentence
    assert analyse_traces({}) is None
