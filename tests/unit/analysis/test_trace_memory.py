"""Memory curves from allocator events."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.trace_memory import MAX_POINTS, memory, thinned
from trace_rows import TraceRows


def test_the_allocators_own_total_is_the_curve() -> None:
    rows = TraceRows()
    rows.cpu("op", 1_000, 2_000)
    totals = [(1_100, 512, 10_512, 20_000), (1_200, 1_024, 11_536, 30_000), (1_300, -512, 11_024, 30_000)]
    for time_ns, size, total, reserved in totals:
        rows.add("memory_events", time_ns=time_ns, on_device=True, device=1, bytes=size, allocated_bytes=total,
                 reserved_bytes=reserved)  # fmt: skip
    (curve,) = memory(rows.trace(rank=3))
    assert (curve.rank, curve.device) == (3, "cuda 1")
    assert (curve.peak_bytes, curve.peak_at_ns) == (11_536, 200)
    assert curve.x_ns == (100, 200, 300)
    assert curve.allocated_bytes == (10_512, 11_536, 11_024)
    assert curve.reserved_bytes == (20_000, 30_000, 30_000)


def test_without_totals_what_is_freed_of_before_lifts_the_curve() -> None:
    rows = TraceRows()
    for time_ns, size in ((10, 100), (20, -400), (30, 50)):
        rows.add("memory_events", time_ns=time_ns, on_device=False, bytes=size)
    (curve,) = memory(rows.trace(), origin=0)
    assert (curve.device, curve.allocated_bytes) == ("host", (400, 0, 50))
    assert curve.reserved_bytes == (None, None, None)
    assert (curve.peak_bytes, curve.peak_at_ns) == (400, 10)


def test_every_device_has_its_curve_and_devices_come_first() -> None:
    rows = TraceRows()
    for on_device, device in ((False, None), (True, 1), (True, 0)):
        rows.add("memory_events", time_ns=1, on_device=on_device, device=device, bytes=1, allocated_bytes=1)
    assert [curve.device for curve in memory(rows.trace(), origin=0)] == ["cuda 0", "cuda 1", "host"]


def test_a_trace_without_memory_events_has_no_curve() -> None:
    assert memory(TraceRows().trace()) == ()


def test_a_long_curve_keeps_its_peak() -> None:
    rows = TraceRows()
    for number in range(5 * MAX_POINTS):
        total = 10**9 if number == 7_777 else number % 100
        rows.add("memory_events", time_ns=number, on_device=True, device=0, bytes=1, allocated_bytes=total)
    (curve,) = memory(rows.trace(), origin=0)
    assert len(curve.x_ns) <= MAX_POINTS
    assert (curve.peak_bytes, curve.peak_at_ns) == (10**9, 7_777)
    assert curve.allocated_bytes[curve.x_ns.index(7_777)] == 10**9


@given(st.lists(st.integers(0, 100), min_size=1, max_size=300), st.integers(4, 50))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[int], limit: int) -> None:
    keep = thinned(np.array(values), limit).tolist()
    assert keep == sorted(set(keep))
    assert len(keep) <= max(limit, len(values) if len(values) <= limit else 0)
    assert {keep[0], keep[-1]} == {0, len(values) - 1}
    kept = [values[index] for index in keep]
    assert (min(kept), max(kept)) == (min(values), max(values))
