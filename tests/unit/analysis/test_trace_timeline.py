"""The time line of a device trace: lanes without overlaps, within the limit, and nothing left out in silence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis import trace_timeline
from agprof.analysis.trace_timeline import timeline
from agprof.model.trace_answers import TraceLane, TraceTimeline
from agprof.model.trace_tables import CpuKind, GpuKind
from trace_rows import TraceRows


def drawn(rows: TraceRows, **options: int) -> TraceTimeline:
    found = timeline(rows.trace(), **options)  # type: ignore[arg-type]
    assert found is not None
    check(found)
    return found


def check(found: TraceTimeline) -> None:
    for lane in found.lanes:
        ends = [start + duration for start, duration in zip(lane.start_ns, lane.duration_ns, strict=True)]
        assert all(end <= start for end, start in zip(ends, lane.start_ns[1:], strict=False))
        assert lane.start_ns[0] >= 0
        assert ends[-1] <= found.window_ns
        assert len(lane.name) == len(lane.kind) == len(ends)
        assert all(0 <= name < len(found.names) for name in lane.name)
        assert all(0 <= kind < len(found.kinds) for kind in lane.kind)
    assert len(set(found.names)) == len(found.names)


def texts(found: TraceTimeline, lane: TraceLane) -> list[tuple[str, str]]:
    return [(found.names[name], found.kinds[kind]) for name, kind in zip(lane.name, lane.kind, strict=True)]


def test_streams_and_threads_by_depth() -> None:
    rows = TraceRows()
    rows.cpu("aten::linear", 1_000, 1_100)
    rows.cpu("aten::mm", 1_010, 1_090)
    rows.call("cudaLaunchKernel", 1_020, 1_030, correlation=1)
    rows.gpu("gemm", 1_040, 1_200, correlation=1)
    rows.gpu("ncclDevKernel_AllReduce", 1_050, 1_150, stream=20)
    found = drawn(rows)
    assert (found.start_ns, found.window_ns, found.step, found.note) == (0, 200, None, "")
    assert [(lane.group, lane.label, lane.depth) for lane in found.lanes] == [
        ("device", "stream 7", 0), ("device", "stream 20", 0),
        ("host", "thread 1", 0), ("host", "thread 1", 1), ("host", "thread 1", 2),
    ]  # fmt: skip
    assert [texts(found, lane) for lane in found.lanes] == [
        [("gemm", "compute")], [("ncclDevKernel_AllReduce", "communication")],
        [("aten::linear", "operator")], [("aten::mm", "operator")], [("cudaLaunchKernel", "launch")],
    ]  # fmt: skip
    assert (found.lanes[0].start_ns, found.lanes[0].duration_ns) == ((40,), (160,))


def test_overlapping_activities_of_one_stream_lie_on_further_lanes() -> None:
    rows = TraceRows()
    for begin in (0, 50, 90, 200):
        rows.gpu("k", begin, begin + 100)
    found = drawn(rows)
    assert [(lane.depth, lane.start_ns) for lane in found.lanes] == [(0, (0, 200)), (1, (50,)), (2, (90,))]


def test_ranges_and_waits_of_a_stream_have_lanes_of_their_own() -> None:
    rows = TraceRows()
    rows.gpu("k", 0, 100)
    rows.gpu("forward", 0, 100, kind=GpuKind.ANNOTATION)
    rows.gpu("Stream Wait Event", 10, 20, kind=GpuKind.SYNC)
    rows.gpu("memset", 100, 110, kind=GpuKind.MEMSET)
    found = drawn(rows)
    assert [(lane.label, [kind for _, kind in texts(found, lane)]) for lane in found.lanes] == [
        ("stream 7", ["compute", "memset"]), ("stream 7 waits", ["synchronisation"]),
        ("stream 7 ranges", ["annotation"]),
    ]  # fmt: skip


def test_a_step_shows_its_host_and_its_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_timeline, "WHOLE_TRACE_SLICES", 0)
    rows = TraceRows()
    for number in range(3):
        begin = number * 1_000
        rows.step(number, begin, begin + 900 + number * 10)
        rows.call("cudaLaunchKernel", begin + 800, begin + 810, correlation=number + 1)
        rows.gpu(f"k{number}", begin + 850, begin + 980, correlation=number + 1)
    found = drawn(rows, step=1)
    # On the device step 1 goes from 980, the end of k0, to 1980, the end of k1.
    assert (found.step, found.start_ns, found.window_ns) == (1, 980, 1_000)
    assert [text for text, _ in texts(found, found.lanes[0])] == ["k1"]
    assert drawn(rows).step is not None
    assert timeline(rows.trace(), step=9) is None


def test_a_small_trace_is_drawn_whole() -> None:
    rows = TraceRows()
    rows.step(1, 0, 100)
    rows.cpu("op", 0, 100)
    rows.step(2, 100, 200)
    rows.cpu("op", 100, 200)
    assert (drawn(rows).step, drawn(rows).window_ns) == (None, 200)


def test_the_longest_slices_are_kept_and_what_is_left_out_is_said() -> None:
    rows = TraceRows()
    for number in range(100):
        rows.cpu("op", number * 1_000, number * 1_000 + 10 + number)
        rows.gpu("k", number * 1_000, number * 1_000 + 1)
    found = drawn(rows, max_slices=40)
    assert sum(len(lane.start_ns) for lane in found.lanes) == 40
    assert found.note == "The 160 shortest slices are left out."
    host = next(lane for lane in found.lanes if lane.group == "host")
    assert host.duration_ns == tuple(range(90, 110))


def test_names_stand_once_and_are_cut_when_they_are_monstrous() -> None:
    rows = TraceRows()
    for number in range(3):
        rows.gpu("k" * 1_000_000, number * 10, number * 10 + 5)
    found = drawn(rows)
    assert [len(name) for name in found.names] == [1_000]


def test_deep_nesting_is_cut_off_and_said() -> None:
    rows = TraceRows()
    for depth in range(100):
        rows.cpu("f", depth, 1_000 - depth, kind=CpuKind.PYTHON)
    found = drawn(rows)
    assert max(lane.depth for lane in found.lanes) == 63
    assert found.note == "36 slices nested more than 64 deep are left out."


def test_nothing_is_no_time_line() -> None:
    assert timeline(TraceRows().trace()) is None


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2)), max_size=40)


@given(spans, spans, st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_lanes_never_overlap_and_the_limit_holds(
    device: list[tuple[int, int, int]], host: list[tuple[int, int, int]], limit: int
) -> None:
    rows = TraceRows()
    for start, length, stream in device:
        rows.gpu("k", start, start + length, stream=stream)
    for start, length, thread in host:
        rows.cpu("op", start, start + length, thread)
    found = timeline(rows.trace(), max_slices=limit)
    if found is not None:
        check(found)
        assert sum(len(lane.start_ns) for lane in found.lanes) <= limit
