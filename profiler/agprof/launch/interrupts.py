"""Signals that ask agprof to end its job: caught and kept, for whoever ends it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Signals:
    received: list[int] = field(default_factory=list)


@contextmanager
def catching_signals() -> Iterator[Signals]:
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, _frame: FrameType | None) -> None:
        signals.received.append(number)

    before = {number: signal.getsignal(number) for number in _CAUGHT}
    for number, handler in before.items():
        # nohup asks for SIGHUP to be ignored, and it stays so.
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
