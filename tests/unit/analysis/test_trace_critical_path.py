"""The critical path of device traces: closed forms, what must always hold, and real traces."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.trace_critical_path import critical_path
from agprof.analysis.trace_window import Window, host_window, typical_window
from agprof.importers.kineto import import_file
from agprof.model.trace_answers import CriticalPath
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace, read_traces
from trace_rows import TraceRows


def path_of(rows: TraceRows, **options: object) -> CriticalPath:
    found = critical_path(rows.trace(), **options)  # type: ignore[arg-type]
    assert found is not None
    check_tiles(found)
    return found


def check_tiles(path: CriticalPath) -> None:
    assert sum(path.by_category_ns.values()) == path.total_ns
    assert all(slack >= 0 for slack in path.slack_by_category_ns.values())
    assert all(slack >= 0 for slack in path.least_slack_by_category_ns.values())
    if path.segments_left_out:
        return
    cursor = path.start_ns
    for segment in path.segments:
        assert segment.start_ns == cursor
        assert segment.duration_ns > 0
        cursor += segment.duration_ns
    assert cursor == path.start_ns + path.total_ns


def kernels(path: CriticalPath) -> list[str]:
    return [segment.name for segment in path.segments if segment.category == "kernel"]


def story(path: CriticalPath) -> list[tuple[str, str, int, int]]:
    return [(each.category, each.name, each.start_ns, each.duration_ns) for each in path.segments]


def test_host_bound_the_path_is_the_host_and_the_last_kernel() -> None:
    rows = TraceRows()
    for number in range(3):
        begin = number * 300
        rows.cpu("aten::mm", begin, begin + 250)
        rows.call("cudaLaunchKernel", begin + 200, begin + 220, correlation=number + 1)
        rows.gpu("gemm", begin + 230, begin + 280, correlation=number + 1)
    path = path_of(rows)
    # The last kernel is launched until 820 and runs from 830 to 880; before that the host works, with gaps of 50.
    assert path.total_ns == 880
    assert path.by_category_ns == {"host": 100, "operator": 660, "launch": 60, "launch latency": 10, "kernel": 50}
    # Off the path: two kernels; of the last operator what came after its launch.
    assert path.slack_by_category_ns == {"kernel": 100, "operator": 30, "launch": 0}


def test_device_bound_the_path_is_the_stream() -> None:
    rows = TraceRows()
    for number in range(5):
        rows.call("cudaLaunchKernel", number * 10, number * 10 + 5, correlation=number + 1)
        rows.gpu(f"k{number}", 10 + number * 100, 110 + number * 100, correlation=number + 1)
    path = path_of(rows)
    assert story(path) == [
        ("launch", "cudaLaunchKernel", 0, 5),
        ("launch latency", "k0", 5, 5),
        *[("kernel", f"k{number}", 10 + number * 100, 100) for number in range(5)],
    ]
    assert path.slack_by_category_ns == {"kernel": 0, "launch": 20}


def test_a_synchronising_call_leads_to_the_activity_it_waited_for() -> None:
    rows = TraceRows()
    rows.cpu("first", 0, 30)
    rows.call("cudaLaunchKernel", 10, 20, correlation=1)
    rows.gpu("long", 25, 500, correlation=1)
    rows.call("cudaDeviceSynchronize", 40, 510, correlation=2)
    rows.cpu("last", 520, 700)
    assert story(path_of(rows)) == [
        ("operator", "first", 0, 10),
        ("launch", "cudaLaunchKernel", 10, 10),
        ("launch latency", "long", 20, 5),
        ("kernel", "long", 25, 475),
        ("synchronisation", "cudaDeviceSynchronize", 500, 10),
        ("host", "(nothing recorded)", 510, 10),
        ("operator", "last", 520, 180),
    ]


def test_a_synchronising_call_that_found_the_device_done_is_the_hosts_own_time() -> None:
    rows = TraceRows()
    rows.cpu("first", 0, 100)
    rows.call("cudaLaunchKernel", 10, 20, correlation=1)
    rows.gpu("short", 25, 50, correlation=1)
    rows.call("cudaStreamSynchronize", 200, 220, correlation=2)
    rows.cpu("last", 220, 300)
    path = path_of(rows)
    assert path.by_category_ns == {"host": 100, "operator": 170, "launch": 10, "synchronisation": 20}


@pytest.mark.parametrize(("memory", "waits"), [("Pageable", True), ("Pinned", False)])
def test_an_asynchronous_copy_blocks_the_host_only_when_its_memory_is_pageable(memory: str, waits: bool) -> None:
    rows = TraceRows()
    rows.cpu("before", 0, 100)
    rows.call("cudaMemcpyAsync", 100, 400, correlation=1)
    rows.gpu(f"Memcpy DtoH (Device -> {memory})", 150, 390, correlation=1, kind=GpuKind.MEMCPY)
    rows.cpu("after", 400, 500)
    path = path_of(rows)
    assert path.by_category_ns.get("memcpy", 0) == (240 if waits else 0)


def test_a_blocking_copy_blocks_the_host() -> None:
    rows = TraceRows()
    rows.cpu("before", 0, 100)
    rows.call("cudaMemcpy", 100, 400, correlation=1)
    rows.gpu("Memcpy DtoH (Device -> Pinned)", 150, 390, correlation=1, kind=GpuKind.MEMCPY)
    rows.cpu("after", 400, 500)
    path = path_of(rows)
    assert path.by_category_ns == {"operator": 200, "synchronisation": 60, "memcpy": 240}


def two_streams(*, recorded: bool) -> TraceRows:
    """Stream 20 waits for the kernel on stream 7, and not for the later one there."""
    rows = TraceRows()
    rows.call("cudaLaunchKernel", 0, 1_000, correlation=1)
    rows.gpu("producer", 2_000, 60_000, stream=7, correlation=1)
    rows.call("cudaEventRecord", 1_000, 2_000, correlation=2)
    rows.call("cudaStreamWaitEvent", 2_000, 3_000, correlation=3)
    rows.call("cudaLaunchKernel", 3_000, 4_000, correlation=4)
    rows.call("cudaLaunchKernel", 4_000, 5_000, correlation=5)
    rows.gpu("bystander", 60_000, 62_000, stream=7, correlation=5)
    rows.gpu("consumer", 63_000, 100_000, stream=20, correlation=4)
    if recorded:
        rows.gpu("Stream Wait Event", 2_000, 3_000, stream=20, correlation=3, kind=GpuKind.SYNC)
        rows.add("event_waits", correlation=3, waited_stream=7, record_correlation=2)
    return rows


def test_a_recorded_event_wait_leads_to_the_other_stream() -> None:
    path = path_of(two_streams(recorded=True))
    assert kernels(path) == ["producer", "consumer"]
    assert path.by_category_ns["idle"] == 3_000
    assert "inferred" not in path.note


def test_a_wait_between_streams_that_was_not_recorded_is_inferred_and_said_so() -> None:
    path = path_of(two_streams(recorded=False))
    assert kernels(path) == ["producer", "bystander", "consumer"]
    assert "1 waits between streams on the path are inferred" in path.note


def test_an_event_synchronisation_leads_to_what_ran_before_the_record() -> None:
    rows = TraceRows()
    rows.call("cudaLaunchKernel", 0, 10, correlation=1)
    rows.gpu("awaited", 20, 300, stream=7, correlation=1)
    rows.call("cudaEventRecord", 10, 20, correlation=2)
    rows.call("cudaLaunchKernel", 20, 30, correlation=3)
    rows.gpu("other", 40, 305, stream=9, correlation=3)
    rows.call("cudaEventSynchronize", 30, 310, correlation=4)
    rows.gpu("Event Sync", 30, 310, stream=-1, correlation=4, kind=GpuKind.SYNC)
    rows.add("event_waits", correlation=4, waited_stream=7, record_correlation=2)
    rows.cpu("after", 310, 400)
    path = path_of(rows)
    assert kernels(path) == ["awaited"]


def test_communication_bound_the_path_goes_through_the_collective() -> None:
    rows = TraceRows()
    rows.step(3, 0, 1000)
    rows.call("cudaLaunchKernel", 0, 10, correlation=1)
    rows.gpu("gemm", 15, 100, correlation=1)
    rows.call("cudaLaunchKernel", 20, 30, correlation=2)
    rows.gpu("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 100, 900, correlation=2)
    rows.call("cudaLaunchKernel", 40, 50, correlation=3)
    rows.gpu("adam", 900, 1000, correlation=3)
    path = path_of(rows)
    assert path.step == 3
    assert path.by_category_ns["communication"] == 800
    assert path.by_category_ns["kernel"] == 185


def test_graph_kernels_follow_one_another_and_then_their_launch() -> None:
    rows = TraceRows()
    rows.cpu("replay", 0, 60)
    rows.call("cudaGraphLaunch", 10, 50, correlation=1)
    for number in range(4):
        rows.gpu(f"node{number}", 60 + number * 100, 160 + number * 100, correlation=1, graph_node=number)
    path = path_of(rows)
    assert path.by_category_ns == {"operator": 10, "launch": 40, "launch latency": 10, "kernel": 400}


def test_backward_runs_on_a_thread_of_its_own_and_the_path_goes_over_and_back() -> None:
    rows = TraceRows()
    rows.cpu("forward", 0, 100, thread=1, forward_thread=0)
    rows.cpu("<built-in method run_backward>", 110, 520, thread=1, kind=CpuKind.PYTHON)
    rows.cpu("autograd::engine::evaluate_function: MmBackward0", 120, 500, thread=2, forward_thread=1)
    rows.cpu("optimizer", 530, 600, thread=1)
    path = path_of(rows)
    assert [(each.name, each.lane, each.duration_ns) for each in path.segments] == [
        ("forward", 1, 100),
        ("(nothing recorded)", 2, 20),
        ("autograd::engine::evaluate_function: MmBackward0", 2, 380),
        ("<built-in method run_backward>", 1, 20),
        ("(nothing recorded)", 1, 10),
        ("optimizer", 1, 70),
    ]


def test_the_least_slack_is_the_time_to_what_is_on_the_path_or_waits() -> None:
    rows = TraceRows()
    for number, (name, begin, end, stream) in enumerate([
        ("first", 100, 300, 7), ("second", 400, 600, 7),
        ("third", 650, 900, 7),
        ("ncclKernel_AllReduce", 150, 200, 20),
    ], start=1):  # fmt: skip
        rows.call("cudaLaunchKernel", number * 10, number * 10 + 5, correlation=number)
        rows.gpu(name, begin, end, stream=stream, correlation=number)
    rows.cpu("busy", 50, 645)
    rows.call("cudaLaunchKernel", 645, 650, correlation=9)
    rows.gpu("late", 905, 909, stream=30, correlation=9)
    rows.call("cudaDeviceSynchronize", 650, 910, correlation=5)
    rows.cpu("after", 910, 1_000)
    path = path_of(rows)
    assert kernels(path)[-1] == "late"
    # The call waited for `late`. Beside the path, on stream 7, the last kernel may end 10 later, when the call returns;
    # those before it may end later by the gaps too. The collective has 710.
    assert path.least_slack_by_category_ns == {"kernel": 10, "communication": 710}


def test_a_stream_that_waits_limits_the_slack_of_what_it_waits_for() -> None:
    rows = two_streams(recorded=True)
    rows.call("cudaLaunchKernel", 5_500, 5_600, correlation=6)
    rows.gpu("beside", 5_700, 5_800, stream=30, correlation=6)
    path = path_of(rows)
    # The bystander ends at 62 us and the window at 100 us; `beside` is alone.
    assert path.least_slack_by_category_ns == {"kernel": 38_000}


def test_launches_that_are_missing_are_said() -> None:
    rows = TraceRows()
    for number in range(4):
        rows.gpu("k", number * 100, number * 100 + 90)
    path = path_of(rows)
    assert path.by_category_ns == {"kernel": 360, "idle": 30}
    assert "4 of 4 activities have no launch in the trace" in path.note


def test_without_a_device_the_path_is_the_hosts() -> None:
    rows = TraceRows()
    rows.cpu("outer", 0, 100)
    rows.cpu("inner", 20, 60)
    path = path_of(rows)
    assert story(path) == [
        ("operator", "outer", 0, 20), ("operator", "inner", 20, 40), ("operator", "outer", 60, 40),
    ]  # fmt: skip
    assert "No device activity" in path.note


def test_nothing_is_no_path() -> None:
    assert critical_path(TraceRows().trace()) is None
    assert critical_path(TraceRows().trace(), step=1) is None
    rows = TraceRows()
    rows.cpu("op", 0, 10)
    assert critical_path(rows.trace(), step=1) is None


def test_too_many_segments_leave_the_shortest_out_and_change_no_sum() -> None:
    rows = TraceRows()
    for number in range(50):
        rows.cpu(f"op{number % 3}", number * 100, number * 100 + 60)
    whole, short = path_of(rows), path_of(rows, max_segments=10)
    assert (len(whole.segments), len(short.segments), short.segments_left_out) == (99, 10, 89)
    assert short.by_category_ns == whole.by_category_ns


def test_monstrous_names_are_cut() -> None:
    rows = TraceRows()
    rows.cpu("op" * 1_000_000, 0, 100)
    assert [len(segment.name) for segment in path_of(rows).segments] == [1_000]


def test_times_count_from_the_origin_given() -> None:
    rows = TraceRows()
    rows.cpu("op", 1_000, 1_100)
    assert path_of(rows).start_ns == 0
    assert path_of(rows, origin=400).start_ns == path_of(rows, origin=400).segments[0].start_ns == 600


@st.composite
def any_trace(draw: st.DrawFn) -> RankTrace:
    """Rows at random: overlapping, badly nested, out of order, without launch, launched after they ran."""
    rows = TraceRows()
    times = st.integers(0, 40).map(lambda time: time * 500)
    calls = ["cudaLaunchKernel", "cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaMemcpy", "cudaStreamWaitEvent"]
    for _ in range(draw(st.integers(0, 12))):
        begin, length = draw(times), draw(times)
        name = draw(st.sampled_from(["gemm", "ncclKernel_AllReduce", "Memcpy DtoH (Device -> Pageable)", "sync"]))
        kind = GpuKind.MEMCPY if name.startswith("Memcpy") else GpuKind.SYNC if name == "sync" else GpuKind.KERNEL
        correlation = draw(st.none() | st.integers(1, 6))
        stream = draw(st.sampled_from([None, 7, 20]))
        rows.gpu(name, begin, begin + length, stream=stream, correlation=correlation, kind=kind)
    for _ in range(draw(st.integers(0, 15))):
        begin, length, thread = draw(times), draw(times), draw(st.sampled_from([None, 1, 2, 3]))
        if draw(st.booleans()):
            rows.call(draw(st.sampled_from(calls)), begin, begin + length, draw(st.integers(1, 6)), thread)
        else:
            kind = draw(st.sampled_from([CpuKind.OP, CpuKind.PYTHON, CpuKind.ANNOTATION]))
            rows.cpu("op", begin, begin + length, thread, kind=kind, forward_thread=1 if thread == 2 else None)
    for correlation in range(1, 4):
        rows.add("event_waits", correlation=correlation, waited_stream=draw(st.sampled_from([None, 7, 20])),
                 record_correlation=draw(st.none() | st.integers(1, 6)))  # fmt: skip
    return rows.trace()


@given(any_trace(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_segments_tile_the_window_whatever_the_trace_holds(trace: RankTrace, whole: bool) -> None:
    path = critical_path(trace, window=None if whole else Window(step=None, start_ns=2_000, end_ns=12_000))
    if path is not None:
        check_tiles(path)
        assert path == critical_path(trace, window=None if whole else Window(step=None, start_ns=2_000, end_ns=12_000))


@pytest.fixture(scope="module")
def imported(traces_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RankTrace]:
    def read(name: str) -> RankTrace:
        run = tmp_path_factory.mktemp("run")
        import_file(traces_dir / f"{name}.json.gz", run, 0)
        return read_traces(run)[0]

    return read


# What bounds the step, as HTA's critical path (reference.json, TRACES.md section 3) and the breakdown have it.
REAL = {
    "v100_train_rank1of2": ("host", 0.95),  # HTA: cpu bound, 100 %
    "a100_nccl_args": ("host", 0.95),  # the device idles 76 % of the time
    "b200_eager_rank0of8_multimem": ("host", 0.95),  # idle 86 %
    "simple_add": ("host", 0.95),  # of 41 s 16 ms are kernels
    "alexnet_small": ("host", 0.95),
    "cuda_event_sync": ("host", 0.80),
    "cuda_event_sync_multi_stream": ("host", 0.95),
    "v100_ns_timestamps": ("device", 0.97),  # busy 98.3 %
    "h100_qwen_0.5b": ("device", 0.85),  # busy 91.9 %
    "torch_compile_triton": ("device", 0.95),  # busy all the time
    "dlrm_8ranks_v100/rank0": ("host", 0.75),
    "cpu_only_rank34": ("host", 1.0),
}
DEVICE = ("kernel", "communication", "memcpy")


@pytest.mark.parametrize("name", REAL)
def test_real_traces_are_bound_by_what_is_known_to_bound_them(name: str, imported: Callable[[str], RankTrace]) -> None:
    path = critical_path(imported(name))
    assert path is not None
    check_tiles(path)
    bound, share = REAL[name]
    on_device = sum(path.by_category_ns.get(category, 0) for category in DEVICE) / path.total_ns
    idle = path.by_category_ns.get("idle", 0) / path.total_ns
    assert (on_device if bound == "device" else 1 - on_device - idle) >= share


# Share of the path that HTA 0.5.0 (pandas 2.3.3) calls gpu_compute_bound, of the step of that number. HTA's path is
# shorter than the step (it leaves out time that its graph does not explain), except where the device is the bound.
HTA_DEVICE_BOUND = {
    ("v100_ns_timestamps", 103): (0.979, 0.012),
    ("h100_qwen_0.5b", 6): (0.867, 0.03),
    ("a100_nccl_args", 5): (0.0, 0.002),
    ("mi250_rocm62", 1): (0.0, 0.005),
    ("dlrm_8ranks_v100/rank0", 10): (0.022, 0.02),
}


@pytest.mark.parametrize(("name", "step"), HTA_DEVICE_BOUND)
def test_the_share_of_compute_kernels_is_near_that_of_htas_critical_path(
    name: str, step: int, imported: Callable[[str], RankTrace]
) -> None:
    trace = imported(name)
    path = critical_path(trace, window=host_window(trace, step))
    assert path is not None
    expected, within = HTA_DEVICE_BOUND[name, step]
    assert path.by_category_ns.get("kernel", 0) / path.total_ns == pytest.approx(expected, abs=within)


@pytest.mark.parametrize(
    ("name", "step"), [("v100_train_rank1of2", 5), ("a100_nccl_args", 5), ("v100_resnet50_old_categories", 10)]
)
def test_the_path_of_training_goes_through_the_backward_thread(
    name: str, step: int, imported: Callable[[str], RankTrace]
) -> None:
    trace = imported(name)
    path = critical_path(trace, window=typical_window(trace, step))
    assert path is not None
    lanes = {segment.lane for segment in path.segments if segment.category == "operator"}
    assert len(lanes) == 2
    # Host-bound: there is hardly an operator off the path.
    assert path.slack_by_category_ns["operator"] < 0.01 * path.by_category_ns["operator"]


def test_a_recorded_event_synchronisation_is_on_the_real_path(imported: Callable[[str], RankTrace]) -> None:
    trace = imported("cuda_event_sync")
    path = critical_path(trace, window=host_window(trace, 100))
    assert path is not None
    names = [segment.name for segment in path.segments]
    place = names.index("cudaEventSynchronize")
    # cuda_sync says: it waits for the event recorded (1533) behind the kernel that runs until then.
    assert path.segments[place - 1].category == "kernel"
    assert path.segments[place].category == "synchronisation"
