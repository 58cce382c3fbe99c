"""How long the sampler's threads were ready to run while no CPU was free."""

import os
import threading
from pathlib import Path

_CALLS_PER_LOOK = 16


class RunDelay:
    """Sums the run delays of this process's threads, from descriptors that stay open.

    Of all threads, not of the one that reads: one that waits for the interpreter's lock waits for a thread that may
    itself be waiting for a CPU. May be called by several threads.
    """

    def __init__(self, tasks: Path = Path("/proc/self/task")) -> None:
        self._tasks = str(tasks)
        self._files: dict[str, int] = {}
        self._ended_ns = 0
        """Of threads that are no more, so that the sum never goes back."""
        self._last: dict[str, int] = {}
        self._calls = 0
        # Nobody may read from, or close, a descriptor that another thread has just closed.
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """The sum in ns; 0 where the kernel does not say."""
        with self._lock:
            return self._sum()

    def _sum(self) -> int:
        if self._calls % _CALLS_PER_LOOK == 0:
            self._look()
        self._calls += 1
        for thread, descriptor in list(self._files.items()):
            try:
                # CPU time, run delay, time slices.
                self._last[thread] = int(os.pread(descriptor, 100, 0).split()[1])
            except (OSError, ValueError, IndexError):
                self._forget(thread)
        return self._ended_ns + sum(self._last.values())

    def _look(self) -> None:
        try:
            threads = os.listdir(self._tasks)  # noqa: PTH208
        except OSError:
            return
        for thread in threads:
            if thread not in self._files:
                try:
                    self._files[thread] = os.open(f"{self._tasks}/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue

    def _forget(self, thread: str) -> None:
        descriptor = self._files.pop(thread, None)
        if descriptor is not None:
            os.close(descriptor)
            self._ended_ns += self._last.pop(thread, 0)
