"""The walk back along the critical path. What it goes by is said in `trace_critical_path`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from agprof.analysis.trace_host import IntArray
from agprof.analysis.trace_path_device import UNKNOWN, Device
from agprof.analysis.trace_path_host import Thread
from agprof.analysis.trace_window import Window

Category = Literal[
    "host", "operator", "launch", "synchronisation", "launch latency", "kernel", "communication", "memcpy", "idle"
]
CATEGORIES: tuple[Category, ...] = (
    "host", "operator", "launch", "synchronisation", "launch latency", "kernel", "communication", "memcpy", "idle",
)  # fmt: skip
"""The first four are what a piece of a thread shows, by its number."""
_SYNC, _LATENCY, _IDLE = (CATEGORIES.index(name) for name in ("synchronisation", "launch latency", "idle"))
UNEXPLAINED_NS = 10_000
"""An activity usually begins within this time of its launch, or of what it waited for."""
_WAITS_LOOKED_AT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Aligned arrays of the path's segments, ascending; and what is uncertain of it."""

    start_ns: IntArray
    end_ns: IntArray
    category: IntArray
    """Index in CATEGORIES."""
    name: IntArray
    on_device: IntArray
    lane: IntArray
    activities: IntArray
    """Of the device, on the path."""
    inferred: int
    without_launch: int
    stopped_ns: int


def walk(window: Window, device: Device, threads: list[Thread], kinds: IntArray) -> Path:
    """The critical path of a window; `kinds` is the category of every activity of the device."""
    walker = _Walk(window, device, threads, kinds)
    walker.run()
    return walker.path()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the walk stands: everything after `time_ns` is told, and this activity or thread is what ended there."""

    on_device: bool
    number: int
    time_ns: int


class _Walk:
    def __init__(self, window: Window, device: Device, threads: list[Thread], kinds: IntArray) -> None:
        self._window = window
        self._device = device
        self._threads = threads
        self._kinds = kinds
        self._by_thread = {UNKNOWN if each.thread is None else each.thread: n for n, each in enumerate(threads)}
        # From here on back only activities before this one are gone to: so no walk turns in a circle.
        self._next_activity = device.start_ns.size
        self._told: list[IntArray] = []
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._activities: list[int] = []
        self._inferred = self._without_launch = self._stopped_ns = 0

    def run(self) -> None:
        place = self._last()
        while place is not None and place.time_ns > self._window.start_ns:
            place = self._before_activity(place) if place.on_device else self._before_host(place)

    def path(self) -> Path:
        self._put_rows()
        rows = np.concatenate(self._told[::-1]) if self._told else np.zeros((0, 6), dtype=np.int64)
        rows = rows[rows[:, 1] > rows[:, 0]]
        start, end, category, name, on_device, lane = rows.T
        return Path(
            start_ns=start,
            end_ns=end,
            category=category,
            name=name,
            on_device=on_device,
            lane=lane,
            activities=np.array(self._activities, dtype=np.int64),
            inferred=self._inferred,
            without_launch=self._without_launch,
            stopped_ns=self._stopped_ns,
        )

    def _tell(self, since: int, until: int, category: int, name: int, *, on_device: bool, lane: int | None) -> None:
        since = max(since, self._window.start_ns)
        if until > since:
            self._rows.append((since, until, category, name, int(on_device), UNKNOWN if lane is None else lane))

    def _put_rows(self) -> None:
        if self._rows:
            self._told.append(np.array(self._rows[::-1], dtype=np.int64))
            self._rows = []

    def _last(self) -> _Place | None:
        """What ended last: an activity that ends with the window, else one that still runs at its end, else the last
        that ended on device or host."""
        end_ns, ends = self._window.end_ns, self._device.end_ns
        exact = np.flatnonzero(ends == end_ns)
        activity = int(exact[-1] if exact.size else np.argmax(ends)) if ends.size else -1
        device_ns = int(ends[activity]) if ends.size else UNKNOWN
        host, host_ns = self._last_thread()
        if activity >= 0 and (device_ns >= host_ns or host < 0):
            if device_ns < end_ns:
                self._after_last_activity(device_ns, host)
            return _Place(True, activity, min(device_ns, end_ns))
        if host < 0:
            self._tell(self._window.start_ns, end_ns, _IDLE, UNKNOWN, on_device=False, lane=None)
            return None
        return _Place(False, host, end_ns)

    def _after_last_activity(self, since: int, host: int) -> None:
        if host >= 0:
            self._tell_host(host, since, self._window.end_ns)
        else:
            self._tell(since, self._window.end_ns, _IDLE, UNKNOWN, on_device=True, lane=None)

    def _last_thread(self) -> tuple[int, int]:
        """The thread whose recorded work ended last, of those with operators if there are any, and when."""
        able = [number for number, each in enumerate(self._threads) if each.has_ops]
        able = able or list(range(len(self._threads)))
        for shows_work in (True, False):
            ends = [(self._end_of(number, shows_work), -number) for number in able]
            best, number = max(ends, default=(UNKNOWN, 1))
            if best != UNKNOWN:
                return -number, best
        return -1, UNKNOWN

    def _end_of(self, number: int, shows_work: bool) -> int:
        thread = self._threads[number]
        seen = np.flatnonzero(thread.shows > 0 if shows_work else thread.pieces.event >= 0)
        return int(thread.pieces.end_ns[seen[-1]]) if seen.size else UNKNOWN

    def _before_activity(self, place: _Place) -> _Place | None:
        """Tell an activity, and go to what it waited for."""
        device, number = self._device, place.number
        self._next_activity = number
        self._activities.append(number)
        name, stream = int(device.name[number]), device.stream[device.lane[number]]
        begin = min(int(device.start_ns[number]), place.time_ns)
        self._tell(begin, place.time_ns, int(self._kinds[number]), name, on_device=True, lane=stream)
        if begin <= self._window.start_ns:
            return None
        gate = self._gate(number, begin)
        launch_ns = int(device.launch_end_ns[number])
        gate_ns = min(int(device.end_ns[gate]), begin) if gate >= 0 else UNKNOWN
        launched_ns = UNKNOWN if launch_ns == UNKNOWN else min(launch_ns, begin)
        if launch_ns == UNKNOWN:
            self._without_launch += 1
        if max(gate_ns, launched_ns) < begin - UNEXPLAINED_NS:
            other = int(device.before[number])
            if other >= 0 and device.end_ns[other] > max(gate_ns, launched_ns):
                gate, gate_ns = other, min(int(device.end_ns[other]), begin)
                self._inferred += 1
        if gate >= 0 and gate_ns >= launched_ns:
            self._tell(gate_ns, begin, _IDLE, name, on_device=True, lane=stream)
            return _Place(True, gate, gate_ns)
        if launched_ns == UNKNOWN:
            self._stopped_ns = begin - self._window.start_ns
            self._tell(self._window.start_ns, begin, _IDLE, name, on_device=True, lane=stream)
            return None
        self._tell(launched_ns, begin, _LATENCY, name, on_device=True, lane=stream)
        host = self._by_thread.get(int(device.launch_thread[number]))
        if launched_ns <= self._window.start_ns:
            return None
        if host is None:  # cannot be: the call overlaps the window, so its thread is there
            raise AssertionError(f"no thread {device.launch_thread[number]} in the window")
        return _Place(False, host, launched_ns)

    def _gate(self, number: int, begin: int) -> int:
        """The activity before it in its stream, or one that its stream waited for, whichever ended last; -1 if none."""
        device = self._device
        gates = [int(device.before_in_lane[number])]
        waits = device.waits.get(int(device.lane[number]))
        launch_ns = int(device.launch_start_ns[number])
        if waits is not None and launch_ns != UNKNOWN:
            last = int(np.searchsorted(waits.call_ns, launch_ns, side="right"))
            for place in range(max(0, last - _WAITS_LOOKED_AT), last):
                gates.append(device.lane_launched[waits.lane[place]].last(int(waits.record_ns[place])))
        can = [each for each in gates if 0 <= each < number and device.end_ns[each] <= begin + 1_000]
        return max(can, key=lambda each: (int(device.end_ns[each]), each), default=-1)

    def _before_host(self, place: _Place) -> _Place | None:
        """Tell a thread back to where it waited for the device, or for another thread."""
        thread = self._threads[place.number]
        wait = self._wait_before(thread, place.time_ns)
        waited_ns = UNKNOWN if wait < 0 else min(int(thread.waits.end_ns[wait]), place.time_ns)
        other_ns, other = thread.hand_overs.before(place.time_ns)
        back = max(waited_ns, other_ns, self._window.start_ns)
        self._tell_host(place.number, back, place.time_ns)
        if back == waited_ns:
            activity = int(thread.waits.activity[wait])
            ended = min(int(self._device.end_ns[activity]), back)
            name = int(thread.waits.name[wait])
            self._tell(ended, back, _SYNC, name, on_device=False, lane=thread.thread)
            return _Place(True, activity, ended)
        return _Place(False, other, back) if back == other_ns else None

    def _wait_before(self, thread: Thread, time_ns: int) -> int:
        """The last call before a time in which the thread waited for an activity that had ended by then; -1 if none."""
        wait = int(np.searchsorted(thread.waits.start_ns, time_ns, side="left")) - 1
        while wait >= 0:
            activity = int(thread.waits.activity[wait])
            if activity < self._next_activity and self._device.end_ns[activity] <= time_ns + 1_000:
                return wait
            wait -= 1
        return -1

    def _tell_host(self, number: int, since: int, until: int) -> None:
        if until <= since:
            return
        thread = self._threads[number]
        first = int(np.searchsorted(thread.pieces.end_ns, since, side="right"))
        last = int(np.searchsorted(thread.pieces.start_ns, until, side="left"))
        told = np.empty((last - first, 6), dtype=np.int64)
        told[:, 0] = np.maximum(thread.pieces.start_ns[first:last], since)
        told[:, 1] = np.minimum(thread.pieces.end_ns[first:last], until)
        told[:, 2] = thread.shows[first:last]
        told[:, 3] = thread.name[first:last]
        told[:, 4] = 0
        told[:, 5] = UNKNOWN if thread.thread is None else thread.thread
        self._put_rows()
        self._told.append(told)
