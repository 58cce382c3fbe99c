"""Device time of spans from CUDA events that are recorded, pooled and asked by `query()`, never waited for."""

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from agprof.instruments.patching import Patches

REANCHOR_MS = 60_000.0
"""Times are float32 milliseconds since the reference event: after an hour they would be 0.25 ms coarse."""


class Event(Protocol):
    """The part of torch.cuda.Event that is used."""

    def record(self) -> Any: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end_event: Any) -> float: ...


class DeviceTimer:
    """Times spans on the device's current stream.

    `begin` and `end` enqueue one event each; `resolve`, called on the flusher thread, turns pairs whose end has
    happened into rows and gives their events back to the pool. While a CUDA graph is captured nothing is recorded
    (it would become part of the graph) and nothing is queried (it would break the capture).
    """

    MAX_PENDING = 10_000

    def __init__(
        self,
        make_event: Callable[[], Event],
        emit: Callable[[tuple[int, int, int]], None],
        host_ns: int,
        capturing: Callable[[], bool] = lambda: False,
    ) -> None:
        """`emit` takes (span, start_ns, duration_ns). `host_ns` is the host's time when this is called: the reference
        event is recorded now, and device times are shifted so that it stands at `host_ns`."""
        self._make_event = make_event
        self._emit = emit
        self._capturing = capturing
        self._pool: deque[Event] = deque()
        self._pending: deque[tuple[int, Event, Event]] = deque()
        self._host_ns = host_ns
        self._reference = self._record()
        self._captures = 0
        self._querying = threading.Lock()
        self.dropped = 0
        """Spans without a device time because too many were pending."""

    def begin(self) -> Event | None:
        return None if self._capturing() else self._record()

    def end(self, span: int, begin: Event) -> None:
        if self._capturing():
            return
        event = self._record()
        if len(self._pending) >= self.MAX_PENDING:
            self.dropped += 1
            self._pool.extend((begin, event))
            return
        self._pending.append((span, begin, event))

    def resolve(self) -> None:
        """Emit every span whose end event has happened, in order."""
        with self._querying:
            while not self._captures and self._pending and self._pending[0][2].query():
                span, begin, end = self._pending.popleft()
                since_ms = self._reference.elapsed_time(begin)
                start_ns = self._host_ns + round(since_ms * 1e6)
                self._emit((span, start_ns, round(begin.elapsed_time(end) * 1e6)))
                if since_ms > REANCHOR_MS:
                    self._reference, begin = begin, self._reference
                    self._host_ns = start_ns
                self._pool.extend((begin, end))

    def arm_captures(self, graph: Any, patches: Patches) -> None:
        """`graph` is torch.cuda.CUDAGraph: no event is queried, on any thread, while one is captured."""

        def around_begin(original: Any) -> Any:
            @functools.wraps(original)
            def capture_begin(*args: Any, **kwargs: Any) -> Any:
                with self._querying:  # the flusher holds it for microseconds
                    self._captures += 1
                try:
                    return original(*args, **kwargs)
                except BaseException:
                    self._captures -= 1
                    raise

            return capture_begin

        def around_end(original: Any) -> Any:
            @functools.wraps(original)
            def capture_end(*args: Any, **kwargs: Any) -> Any:
                try:
                    return original(*args, **kwargs)
                finally:
                    self._captures = max(0, self._captures - 1)

            return capture_end

        patches.replace(graph, "capture_begin", around_begin)
        patches.replace(graph, "capture_end", around_end)

    def is_capturing(self) -> bool:
        """Whether a graph is being captured: losses must not be queried either."""
        return self._captures > 0

    def _record(self) -> Event:
        try:
            event = self._pool.pop()
        except IndexError:
            event = self._make_event()
        event.record()
        return event


def cuda_timer(torch: Any, patches: Patches, emit: Callable[[tuple[int, int, int]], None], host_ns: int) -> DeviceTimer:
    """A timer on torch.cuda events of the current device. CUDA must be initialised."""
    timer = DeviceTimer(
        lambda: torch.cuda.Event(enable_timing=True), emit, host_ns, torch.cuda.is_current_stream_capturing
    )
    timer.arm_captures(torch.cuda.CUDAGraph, patches)
    return timer
