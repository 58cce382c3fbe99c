"""Asynchronous collectives on their way: rows that wait for their end.

A row is written once its operation is complete and the caller is done with the Work object (waited for it, or let it
go), so that it can hold the time stood in wait(). Neither works nor tensors are kept alive.
"""

import functools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from agprof.instruments.recorder import Recorder

CALLBACKS_END_S = 0.5
CALLBACKS_GIVEN_UP_S = 0.02
MAX_OPEN = 4096
"""Rows kept open; the oldest is written as it is when a job keeps more works without ever waiting for them."""


def push(recorder: Recorder, name: str) -> Any:
    """Open an NVTX range; give what this returns to `pop`. None, at no cost, when no tool listens."""
    nvtx = recorder.nvtx
    if nvtx is None:
        return None
    try:
        nvtx.push("communication", name)
    except Exception as error:
        recorder.nvtx = None  # a domain that missed a push would pop somebody else's range
        recorder.fault("nvtx", "push", error)
        return None
    return nvtx


def pop(recorder: Recorder, nvtx: Any) -> None:
    if nvtx is None:
        return
    try:
        nvtx.pop()
    except Exception as error:
        recorder.nvtx = None
        recorder.fault("nvtx", "pop", error)


class Pending:
    """One asynchronous operation. `before` and `after` are the row's columns on both sides of end_ns and wait_ns."""

    __slots__ = ("after", "before", "end_ns", "ends_in_wait", "op", "running", "used", "wait_ns", "written")

    def __init__(self, op: str, before: tuple[Any, ...], after: tuple[Any, ...], works: int, used: int) -> None:
        """`works`: Work objects; `used`: those of them that the caller has neither waited for nor let go."""
        self.op = op
        self.before = before
        self.after = after
        self.running = works
        self.used = used
        self.end_ns: int | None = None
        self.ends_in_wait = False
        self.wait_ns = 0
        self.written = False


class Works:
    """Follows Work objects from issue to completion."""

    def __init__(self, recorder: Recorder, failed: Callable[[str, Exception], None]) -> None:
        self._recorder = recorder
        self._failed = failed
        self._clock = recorder.clock
        self._rows = recorder.writer.rows("collectives")
        self._wait_rows = recorder.writer.rows("waits")
        self._lock = threading.RLock()
        """Reentrant: a weak reference's callback may run inside any allocation of the same thread."""
        self._open: dict[int, Pending] = {}
        self._by_work: dict[int, tuple[Any, Pending]] = {}
        self._waited_for: set[int] = set()
        self._called_back = False
        """Whether gloo's threads were ever asked to call back."""

    def follow(self, works: list[Any], pending: Pending, completes_on_host: bool) -> None:
        """Watch `works`; `pending` was made for exactly these."""
        with self._lock:
            self._open[id(pending)] = pending
            surplus = next(iter(self._open.values())) if len(self._open) > MAX_OPEN else None
        if surplus is not None:
            self._write(surplus)
        for work in works:
            if pending.used:
                key = id(work)
                self._by_work[key] = (weakref.ref(work, functools.partial(self._let_go, key, pending)), pending)
            if completes_on_host:
                self._watch(work, pending)

    def _watch(self, work: Any, pending: Pending) -> None:
        try:
            future = work.get_future() if hasattr(work, "get_future") else work
        except RuntimeError:
            pending.ends_in_wait = True  # gloo's reduce_scatter has no future
            return
        self._called_back = True
        future.add_done_callback(functools.partial(self._complete, pending))

    def _complete(self, pending: Pending, _future: Any) -> None:
        now = self._clock()
        with self._lock:  # the works of a batch complete on threads of their own
            pending.running -= 1
            if pending.running <= 0:
                pending.end_ns = now
        self._settle(pending)

    def _let_go(self, key: int, pending: Pending, _reference: Any) -> None:
        self._by_work.pop(key, None)
        if key in self._waited_for:
            self._waited_for.discard(key)
        else:
            self._done_with(pending)

    def _done_with(self, pending: Pending) -> None:
        with self._lock:
            pending.used -= 1
        self._settle(pending)

    def _settle(self, pending: Pending) -> None:
        # Never complete and let go: written at the end, with an unknown end.
        if pending.end_ns is not None and pending.used <= 0:
            self._write(pending)

    def _write(self, pending: Pending) -> None:
        with self._lock:
            self._open.pop(id(pending), None)
            if pending.written:
                return
            pending.written = True
        self._rows((*pending.before, pending.end_ns, pending.wait_ns, *pending.after))

    def around_wait(self, guarded: Callable[[], int]) -> Callable[[Any], Any]:
        """Makes the replacement of Work.wait. `guarded()` is non-zero inside a wrapped call of this thread."""
        recorder = self._recorder
        find = self._by_work.get

        def make(original: Any) -> Any:
            @functools.wraps(original)
            def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
                known = find(id(work))
                if known is None or guarded() or not recorder.enabled:
                    return original(work, *args, **kwargs)
                pending = known[1]
                nvtx = push(recorder, f"wait {pending.op}") if recorder.nvtx is not None else None
                start = self._clock()
                done = False
                try:
                    result = original(work, *args, **kwargs)
                    done = True
                    return result
                finally:
                    end = self._clock()
                    pop(recorder, nvtx)
                    try:
                        self._waited(id(work), pending, start, end, done)
                    except Exception as error:
                        self._failed("wait", error)

            return wait

        return make

    def _waited(self, key: int, pending: Pending, start: int, end: int, done: bool) -> None:
        pending.wait_ns += end - start
        self._wait_rows((self._recorder.step, pending.op, start, end, threading.get_ident()))
        if done and key not in self._waited_for:
            self._waited_for.add(key)
            if pending.ends_in_wait:
                pending.end_ns = end
            self._done_with(pending)

    def finish(self) -> None:
        """Write what is still open, with what is known of it."""
        self._let_callbacks_end()
        for pending in list(self._open.values()):
            self._write(pending)
        self._by_work.clear()
        self._waited_for.clear()

    def _let_callbacks_end(self) -> None:
        """Give gloo's threads time to leave Python before the interpreter goes.

        They call back, and give the callback up, after the waiting thread has gone on. One that asks for the
        interpreter while it is being finalised takes the process down: "terminate called without an active exception".
        """
        if not self._called_back:
            return
        deadline = time.monotonic() + CALLBACKS_END_S
        while time.monotonic() < deadline and any(self._is_awaited(pending) for pending in list(self._open.values())):
            time.sleep(0.001)
        time.sleep(CALLBACKS_GIVEN_UP_S)

    @staticmethod
    def _is_awaited(pending: Pending) -> bool:
        return pending.running > 0 and pending.end_ns is None and not pending.ends_in_wait
