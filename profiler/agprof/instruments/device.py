"""Device time of spans from CUDA events that are recorded, pooled and asked by `query()`, never waited for."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


class Event(Protocol):
    """The part of torch.cuda.Event that is used."""

    def record(self) -> Any: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end_event: Any) -> float: ...


class DeviceTimer:
    """Times spans on the device's current stream.

    `begin` and `end` enqueue one event each; `resolve`, called on the flusher thread, turns pairs whose end has
    happened into rows and gives their events back to the pool.
    """

    MAX_PENDING = 10_000

    def __init__(
        self, make_event: Callable[[], Event], emit: Callable[[tuple[int, int, int]], None], host_ns: int
    ) -> None:
        """`emit` takes (span, start_ns, duration_ns). `host_ns` is the host's time when this is called: the reference
        event is recorded now, and device times are shifted so that it stands at `host_ns`."""
        self._make_event = make_event
        self._emit = emit
        self._pool: deque[Event] = deque()
        self._pending: deque[tuple[int, Event, Event]] = deque()
        self._host_ns = host_ns
        self._reference = make_event()
        self._reference.record()
        self.dropped = 0

    def begin(self) -> Event:
        event = self._pool.pop() if self._pool else self._make_event()
        event.record()
        return event

    def end(self, span: int, begin: Event) -> None:
        event = self._pool.pop() if self._pool else self._make_event()
        event.record()
        if len(self._pending) >= self.MAX_PENDING:
            self.dropped += 1
            self._pool.extend((begin, event))
            return
        self._pending.append((span, begin, event))

    def resolve(self) -> None:
        """Emit every span whose end event has happened, in order."""
        while self._pending and self._pending[0][2].query():
            span, begin, end = self._pending.popleft()
            start_ns = self._host_ns + round(self._reference.elapsed_time(begin) * 1e6)
            self._emit((span, start_ns, round(begin.elapsed_time(end) * 1e6)))
            self._pool.extend((begin, end))


def cuda_timer(torch: Any, emit: Callable[[tuple[int, int, int]], None], host_ns: int) -> DeviceTimer:
    """A timer on torch.cuda events of the current device."""
    return DeviceTimer(lambda: torch.cuda.Event(enable_timing=True), emit, host_ns)
