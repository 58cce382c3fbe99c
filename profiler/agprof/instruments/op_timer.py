"""Device time of operations, from pairs of CUDA events around them that are asked for when the step is over."""

from collections.abc import Callable
from typing import Any

from agprof.instruments.device import Event

MAX_PAIRS = 200_000
"""Two events each. A step with more operations has no device times."""

Pair = tuple[Event, Event]


class OpTimer:
    """Records an event before and after each operation on the device's current stream. Never waits for the device.

    A pair's time is that of the operation's kernels and, where the device had nothing else to do, of launching them:
    some microseconds too much for small ones. None while a CUDA graph is captured: events would become part of it.
    """

    def __init__(self, make_event: Callable[[], Event], capturing: Callable[[], bool]) -> None:
        self._make_event = make_event
        self._capturing = capturing
        self._pairs = 0

    def begin(self) -> Event | None:
        if self._pairs >= MAX_PAIRS or self._capturing():
            return None
        return self._record()

    def end(self, begin: Event | None) -> Pair | None:
        if begin is None or self._capturing():
            return None
        self._pairs += 1
        return begin, self._record()

    def _record(self) -> Event:
        event = self._make_event()
        event.record()
        return event


def is_done(pair: Pair) -> bool:
    """Whether the device has passed both events."""
    return pair[0].query() and pair[1].query()


def duration_ns(pair: Pair) -> int:
    """Of a pair that is done."""
    return round(pair[0].elapsed_time(pair[1]) * 1e6)


def cuda_op_timer(torch: Any) -> OpTimer:
    """On torch.cuda events of the current device. CUDA must be initialised."""
    return OpTimer(lambda: torch.cuda.Event(enable_timing=True), torch.cuda.is_current_stream_capturing)
