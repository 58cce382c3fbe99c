import struct
import threading
from types import SimpleNamespace

import pytest

from agprof.instruments.device import REANCHOR_MS, DeviceTimer
from agprof.instruments.patching import Patches


class Device:
    """A stream that works off its events when told to. Whoever waits on it fails: there is nothing to wait with."""

    def __init__(self):
        self.now_ms = 0.0
        self.queue = []
        self.made = 0

    def event(self):
        self.made += 1
        return Event(self)

    def work(self, count=None):
        for event in self.queue[:count]:
            event.happened_ms = event.due_ms
        del self.queue[:count]


class Event:
    def __init__(self, device):
        self.device = device
        self.happened_ms = None

    def record(self):
        self.happened_ms = None
        self.due_ms = self.device.now_ms
        self.device.queue.append(self)

    def query(self):
        return self.happened_ms is not None

    def elapsed_time(self, end):
        if self.happened_ms is None or end.happened_ms is None:
            raise RuntimeError("not ready")
        return struct.unpack("f", struct.pack("f", end.happened_ms - self.happened_ms))[0]


class Timed:
    def __init__(self, capturing=lambda: False):
        self.device = Device()
        self.rows = []
        self.timer = DeviceTimer(self.device.event, self.rows.append, 5_000_000_000, capturing)

    def span(self, number, duration_ms=1.0):
        begin = self.timer.begin()
        self.device.now_ms += duration_ms
        if begin is not None:
            self.timer.end(number, begin)


def test_spans_come_when_their_end_has_happened_and_in_order():
    timed = Timed()
    timed.device.now_ms = 2.0
    timed.span(0, 3.0)
    timed.span(1, 1.0)
    timed.timer.resolve()
    assert timed.rows == []
    timed.device.work(4)  # reference, both of span 0, begin of span 1
    timed.timer.resolve()
    assert timed.rows == [(0, 5_002_000_000, 3_000_000)]
    timed.device.work()
    timed.timer.resolve()
    assert timed.rows[1:] == [(1, 5_005_000_000, 1_000_000)]


def test_events_are_used_again():
    timed = Timed()
    for number in range(1000):
        timed.span(number)
        timed.device.work()
        timed.timer.resolve()
    assert len(timed.rows) == 1000
    assert timed.device.made == 3


def test_pending_spans_are_bounded_and_counted(monkeypatch):
    monkeypatch.setattr(DeviceTimer, "MAX_PENDING", 10)
    timed = Timed()
    for number in range(50):
        timed.span(number)
        timed.timer.resolve()
    assert timed.timer.dropped == 40
    assert timed.device.made <= 1 + 2 * 11
    timed.device.work()
    timed.timer.resolve()
    assert [row[0] for row in timed.rows] == list(range(10))


def test_times_stay_exact_over_a_day():
    timed = Timed()
    for number in range(2000):
        timed.device.now_ms = number * 43_200.0  # 24 h
        timed.span(number)
        timed.device.work()
        timed.timer.resolve()
    assert REANCHOR_MS < 2000 * 43_200
    for number, start_ns, duration_ns in timed.rows:
        assert abs(start_ns - 5_000_000_000 - number * 43_200_000_000) < 10_000
        assert duration_ns == 1_000_000


def test_two_threads_that_begin_at_once_share_the_pool():
    timed = Timed()
    timed.span(0)
    timed.device.work()
    timed.timer.resolve()
    errors = []

    def work(first):
        try:
            for number in range(first, first + 500):
                timed.span(number)
                timed.device.work()
                timed.timer.resolve()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in (1, 1001)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timed.device.work()
    timed.timer.resolve()
    assert not [error for error in errors if not isinstance(error, RuntimeError)]


def test_nothing_is_recorded_into_a_graph():
    capturing = []
    timed = Timed(lambda: bool(capturing))
    before = timed.timer.begin()
    capturing.append(True)
    queued = len(timed.device.queue)
    assert timed.timer.begin() is None
    timed.timer.end(0, before)
    assert len(timed.device.queue) == queued


def test_nothing_is_queried_while_a_graph_is_captured():
    class Graph:
        fails = False

        def capture_begin(self, pool=None):
            if self.fails:
                raise RuntimeError("capture")
            return pool

        def capture_end(self):
            return "end"

    original = dict(vars(Graph))
    patches = Patches()
    timed = Timed()
    timed.timer.arm_captures(Graph, patches)
    timed.span(0)
    timed.device.work()
    graph = Graph()
    assert graph.capture_begin(pool=3) == 3
    assert timed.timer.is_capturing()
    timed.timer.resolve()
    assert not timed.rows
    assert graph.capture_end() == "end"
    timed.timer.resolve()
    assert len(timed.rows) == 1
    Graph.fails = True
    with pytest.raises(RuntimeError, match="capture"):
        graph.capture_begin()
    assert not timed.timer.is_capturing()
    del Graph.fails
    patches.undo()
    assert {name: dict(vars(Graph))[name] for name in ("capture_begin", "capture_end")} == {
        name: original[name] for name in ("capture_begin", "capture_end")
    }


def test_phases_have_device_spans_and_ranges_have_none(rig):
    timed = Timed()
    rig.recorder.device = timed.timer
    timed.timer._emit = rig.recorder.writer.rows("device_spans")
    phase = rig.recorder.open("phase", "forward")
    rig.recorder.close(rig.recorder.open("range", "mine"))
    timed.device.now_ms += 2.0
    rig.recorder.close(phase)
    timed.device.work()
    tables = rig.finish()
    (row,) = tables["device_spans"]
    assert row.span == phase.number
    assert row.duration_ns == 2_000_000


def test_dropped_spans_are_a_fact(rig, monkeypatch):
    monkeypatch.setattr(DeviceTimer, "MAX_PENDING", 0)
    rig.recorder.device = Timed().timer
    rig.recorder.close(rig.recorder.open("phase", "forward"))
    assert [(row.key, row.value) for row in rig.finish()["facts"]] == [("device.dropped_spans", "1")]


def test_the_cuda_timer_takes_timing_events_of_torch():
    from agprof.instruments.device import cuda_timer

    device = Device()
    options = []

    def make(**given):
        options.append(given)
        return device.event()

    class Graph:
        def capture_begin(self): ...

        def capture_end(self): ...

    torch = SimpleNamespace(
        cuda=SimpleNamespace(Event=make, is_current_stream_capturing=lambda: False, CUDAGraph=Graph)
    )
    patches = Patches()
    cuda_timer(torch, patches, print, 0).begin()
    patches.undo()
    assert options == [{"enable_timing": True}] * 2
