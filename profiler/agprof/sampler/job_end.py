"""When the job ends: at the end of stdin, on SIGTERM or SIGHUP, or when the parent is gone.

A thread of its own watches for it, so that a reading that never returns can't keep the sampler alive.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

PARENT_CHECK_MS = 1000
GRACE_S = 3.0
"""For the last sample and for closing the stream; then the process ends without them."""
STDIN = 0


class EndOfJob:
    """Waits for the next sample's time or for the end of the job, whichever comes first."""

    def __init__(self) -> None:
        """Install the handlers of the signals; call on the main thread."""
        self.reason = "clean"
        self._parent = os.getppid()
        self._ended = threading.Event()
        self._wake, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The handlers do nothing; the byte that the interpreter writes for each signal wakes the watching thread, also
        # while the main thread hangs.
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _ignore)
        # Whoever started this process may have blocked them for itself, and a blocked signal is inherited.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGHUP))
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch(self, give_up: Callable[[], None]) -> None:
        """Start watching. `give_up` is called when the process is still there 3 s after the job's end."""
        threading.Thread(target=self._watch, args=(give_up,), name="agprof-end", daemon=True).start()

    def wait(self, due_ns: int) -> bool:
        """True when the job has ended; False at `due_ns`."""
        return self._ended.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))

    def _watch(self, give_up: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not self._has_ended(dict(poll.poll(PARENT_CHECK_MS))):
                pass
        finally:
            # Whatever goes wrong here: a sampler that can't see the job's end must not outlive it.
            self._ended.set()
        time.sleep(GRACE_S)
        give_up()

    def _has_ended(self, events: dict[int, int]) -> bool:
        if self._wake in events and self._signalled():
            return True
        if STDIN in events and not self._stdin_open():
            return True
        # A parent that was killed closes the pipe, unless another process inherited its end: look every second.
        if os.getppid() != self._parent:
            self.reason = "parent gone"
            return True
        return False

    def _signalled(self) -> bool:
        """Whether a signal that ends the job came: the pipe holds the number of each, of ignored ones none."""
        try:
            numbers = os.read(self._wake, 4096)
        except BlockingIOError:
            return False
        return signal.SIGTERM in numbers or signal.SIGHUP in numbers

    def _stdin_open(self) -> bool:
        try:
            return os.read(STDIN, 4096) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


def _ignore(_number: int, _frame: Any) -> None:
    pass
