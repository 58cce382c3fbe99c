"""The one object that instruments report to: it knows the step in progress and appends rows to the rank's stream.

Hot paths append tuples and do nothing else. Whatever fails here is noted as a fault and never reaches the training.
"""

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from agprof.instruments.device import DeviceTimer
from agprof.instruments.nvtx_ranges import NvtxRanges
from agprof.instruments.patching import Patches
from agprof.model.settings import InstrumentSettings
from agprof.store.writer import StreamWriter

P = ParamSpec("P")
R = TypeVar("R")

MAX_FAULTS = 3
"""An instrument that failed this often is switched off."""
MAX_WAITING_ROWS = 20_000
"""Rows that wait for a loss from the device; a device that hangs must not fill the memory."""


class Span:
    """An open span of one thread."""

    __slots__ = ("begin_event", "category", "micro_step", "name", "number", "start_ns", "step")

    def __init__(self, number: int, category: str, name: str, start_ns: int, step: int, micro_step: int) -> None:
        self.number = number
        self.category = category
        self.name = name
        self.start_ns = start_ns
        self.step = step
        self.micro_step = micro_step
        self.begin_event: Any = None


class _Thread(threading.local):
    """Open spans of the calling thread, innermost last."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.ident = threading.get_ident()


class Loss:
    """A loss that may still be on its way from the device."""

    __slots__ = ("ready", "value")

    def __init__(self, value: float | None = None, ready: Callable[[], float | None] | None = None) -> None:
        """Either a value, or `ready`: returns the value once it is known and None until then."""
        self.value = value
        self.ready = ready

    def resolved(self) -> bool:
        if self.ready is not None:
            try:
                self.value = self.ready()
            except Exception:
                # A device in error: the training meets the same error and says so; here the value is unknown.
                self.ready = None
                return True
            if self.value is None:
                return False
            self.ready = None
        return True


class Recorder:
    """State of one rank's measurement. Owned by the bootstrap and passed to every instrument."""

    def __init__(
        self,
        writer: StreamWriter,
        settings: InstrumentSettings,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.writer = writer
        self.settings = settings
        self.clock = clock
        self.patches = Patches()
        self.enabled = True
        """False after disarming and in forked children: every wrapper then only calls the original."""
        self.step = 0
        self.micro_step = 0
        self.profiled = False
        """Set by an expensive instrument: the step in progress is left out of statistics."""
        self.on_phase_end: list[Callable[[str, int], None]] = []
        """Called with (phase, time_ns) when an outermost phase ends."""
        self.on_step_border: list[Callable[[int], None]] = []
        """Called with the number of the step that just ended, before the next begins."""
        self.on_step_end: list[Callable[[int], None]] = []
        """Called with the number of the step that just ended."""
        self.on_failure: list[Callable[[BaseException, bool, int], None]] = []
        """Called with (error, nobody caught it, innermost open span or -1) when an exception leaves a phase, before the
        phase is closed, and when it ends the process. One error is seen by every phase that it leaves."""
        self.on_finish: list[tuple[str, Callable[[], None]]] = []
        """(instrument, function) called once at the end, before patches are undone."""
        self.on_fork: list[Callable[[], None]] = []
        """Called in a forked child, which is to carry nothing of ours."""
        self.end_reason: str | None = None
        """Set when the rank ends by an uncaught exception."""
        self.device: DeviceTimer | None = None
        self.nvtx: NvtxRanges | None = None
        self._thread = _Thread()
        self._main_spans = self._thread.spans
        self._numbers = itertools.count()
        self._span_rows = writer.rows("spans")
        self._step_start_ns: int | None = None
        self._micro_start_ns = 0
        self._step_token: Any = None
        self._losses: list[Loss] = []
        # Each: samples, tokens, tokens that are no padding.
        self._counts: list[int | None] = [None, None, None]
        self._micro_counts: list[int | None] = [None, None, None]
        self._guessed: list[int | None] = [None, None, None]
        self._counts_given = [False, False, False]
        self._padding_unknown = False
        """Tokens of the step in progress came without being told from padding."""
        self._forwards_since_batch: set[bool] = set()
        self._waiting: deque[tuple[str, tuple[Any, ...], int, list[Loss]]] = deque(maxlen=MAX_WAITING_ROWS)
        self._resolving = threading.Lock()
        self._faults: dict[str, int] = {}
        self._off: set[str] = set()
        writer.before_flush(self.resolve)

    # -- spans ---------------------------------------------------------------------------------------------------

    def open(self, category: str, name: str) -> Span:
        """Open a span on the calling thread. Give the result to `close`."""
        thread = self._thread
        now = self.clock()
        if self._step_start_ns is None and category == "phase":
            self._begin_step(now)
        span = Span(next(self._numbers), category, name, now, self.step, self.micro_step)
        thread.spans.append(span)
        if self.nvtx is not None:
            try:
                self.nvtx.push(category, name)
            except Exception as error:
                self._lose_nvtx("push", error)
        if category == "phase" and self.device is not None:
            try:
                span.begin_event = self.device.begin()
            except Exception as error:
                self._lose_device("begin", error)
        return span

    def close(self, span: Span) -> int:
        """Close `span` and whatever is still open inside it on this thread; returns the time of the end."""
        now = self.clock()
        thread = self._thread
        spans = thread.spans
        if span not in spans:
            return now  # closed already by an outer close, or opened on another thread
        while True:
            inner = spans.pop()
            if self.nvtx is not None or inner.begin_event is not None:
                self._leave(inner)
            self._span_rows(
                (
                    inner.number,
                    inner.step,
                    inner.micro_step,
                    inner.category,
                    inner.name,
                    inner.start_ns,
                    now,
                    thread.ident,
                    len(spans),
                )
            )
            if inner is span:
                break
        if span.category == "phase" and not (spans and any(outer.category == "phase" for outer in spans)):
            for callback in self.on_phase_end:
                callback(span.name, now)
        return now

    def discard(self, span: Span) -> None:
        """Forget `span` and whatever is open inside it: its end was not seen."""
        spans = self._thread.spans
        while span in spans:
            self._leave(spans.pop())

    def _leave(self, span: Span) -> None:
        if self.nvtx is not None:
            try:
                self.nvtx.pop()
            except Exception as error:
                self._lose_nvtx("pop", error)
        if span.begin_event is not None and self.device is not None:
            try:
                self.device.end(span.number, span.begin_event)
            except Exception as error:
                self._lose_device("end", error)

    def _lose_nvtx(self, where: str, error: Exception) -> None:
        # Once and for all: a domain that missed a push would pop somebody else's range.
        self.nvtx = None
        self.fault("nvtx", where, error)

    def _lose_device(self, where: str, error: Exception) -> None:
        self.device = None
        self.fault("device", where, error)

    def failing(self, error: BaseException | None, *, uncaught: bool = False) -> None:
        """An exception leaves the phase that is open, or the process."""
        if error is not None and self.on_failure and self.enabled:
            spans = self._thread.spans
            for callback in self.on_failure:
                callback(error, uncaught, spans[-1].number if spans else -1)

    def phase(self) -> str:
        """Innermost phase of the calling thread, `other` outside of any.

        A thread without spans of its own is asked for on behalf of the main one: on a GPU, autograd issues collectives
        from the device's thread while the main thread stands in backward.
        """
        for span in reversed(self._thread.spans or self._main_spans):
            if span.category == "phase":
                return span.name
        return "other"

    def open_ranges(self) -> list[str]:
        """Names of the ranges that are open on the calling thread, outermost first."""
        return [span.name for span in self._thread.spans if span.category == "range"]

    # -- steps ---------------------------------------------------------------------------------------------------

    def end_micro_step(self, loss: Loss | None = None) -> None:
        """The outermost backward pass ended."""
        now = self.clock()
        if self._step_start_ns is None:
            self._begin_step(now)
        losses = [loss] if loss is not None else []
        samples, tokens, unpadded = (
            given if is_given else guessed
            for is_given, given, guessed in zip(self._counts_given, self._micro_counts, self._guessed, strict=True)
        )
        if self._counts_given[1] and not self._counts_given[2]:
            unpadded = None  # the training counts tokens its own way; what a batch says of padding is of other ones
        if tokens is not None and unpadded is None:
            self._padding_unknown = True
        row = (self.step, self.micro_step, self._micro_start_ns, now, None, samples, tokens, unpadded)
        self._emit("micro_steps", row, 4, losses)
        self._losses.extend(losses)
        for index, value in enumerate((samples, tokens, unpadded)):
            if value is not None:
                self._counts[index] = (self._counts[index] or 0) + value
        self._micro_counts = [None, None, None]
        self._guessed = [None, None, None]
        self._micro_start_ns = now
        self.micro_step += 1

    def end_step(self) -> None:
        """An optimizer update ended. Counts given after the last backward belong to this step still."""
        now = self.clock()
        ended = self.step
        # First of all, or the ranges' border would stand later than that of the rows.
        self._end_step_range()
        for callback in self.on_step_border:
            callback(ended)
        self._start_step_range(ended + 1)
        start_ns = now if self._step_start_ns is None else self._step_start_ns
        for index, value in enumerate(self._micro_counts):
            if value is not None:
                self._counts[index] = (self._counts[index] or 0) + value
        if self._micro_counts[1] is not None and self._micro_counts[2] is None:
            self._padding_unknown = True
        samples, tokens, unpadded = self._counts
        if self._padding_unknown:
            unpadded = None
        row = (self.step, start_ns, now, self.micro_step, None, samples, tokens, self.profiled, unpadded)
        self._emit("steps", row, 4, self._losses)
        self.step += 1
        self.micro_step = 0
        self.profiled = False
        self._losses = []
        self._counts = [None, None, None]
        self._micro_counts = [None, None, None]
        self._padding_unknown = False
        self._step_start_ns = now
        self._micro_start_ns = now
        for callback in self.on_step_end:
            callback(ended)

    def _begin_step(self, now: int) -> None:
        self._step_start_ns = now
        self._micro_start_ns = now
        self._start_step_range(self.step)

    def _start_step_range(self, step: int) -> None:
        if self.nvtx is not None:
            try:
                self._step_token = self.nvtx.start_step(step)
            except Exception as error:
                self._lose_nvtx("start", error)

    def _end_step_range(self) -> None:
        token, self._step_token = self._step_token, None
        if self.nvtx is not None and token is not None:
            try:
                self.nvtx.end(token)
            except Exception as error:
                self._lose_nvtx("end", error)

    def finish(self) -> None:
        """Balance the NVTX ranges of the calling thread; the step in progress has no end and gives no row."""
        for span in reversed(self._thread.spans):
            self._leave(span)
        self._thread.spans.clear()
        self._end_step_range()

    def note_forward(self, with_grad: bool) -> None:
        """A root module was called: tells batches of an evaluation from those that are trained on."""
        self._forwards_since_batch.add(with_grad)

    def guess_counts(self, samples: int | None, tokens: int | None, unpadded_tokens: int | None = None) -> None:
        """Counts read off a batch; used until the training gives its own through `agprof.step`."""
        if self._forwards_since_batch == {False}:
            # The batch before went through forwards without gradients only: no backward will account for it.
            self._guessed = [None, None, None]
        self._forwards_since_batch.clear()
        if samples is not None:
            self._guessed[0] = (self._guessed[0] or 0) + samples
        if tokens is not None:
            # Of several batches all must tell their padding.
            so_far, unpadded = self._guessed[1], self._guessed[2]
            known = unpadded_tokens is not None and (so_far is None or unpadded is not None)
            self._guessed[2] = (unpadded or 0) + (unpadded_tokens or 0) if known else None
            self._guessed[1] = (so_far or 0) + tokens

    def _emit(self, table: str, row: tuple[Any, ...], loss_column: int, losses: list[Loss]) -> None:
        self._waiting.append((table, row, loss_column, losses))

    def resolve(self) -> None:
        """Write the rows whose losses have arrived. Runs on the flusher thread before each flush."""
        if not self._resolving.acquire(blocking=False):
            return  # another thread is at it
        try:
            device = self.device
            if device is not None:
                try:
                    device.resolve()
                except Exception as error:
                    self._lose_device("resolve", error)
                if device.is_capturing():
                    return  # asking for a loss would break the capture too
            self._write_waiting(all_of_them=False)
        finally:
            self._resolving.release()

    def resolve_all(self) -> None:
        """At the end: write every waiting row, with what is known of its loss."""
        self.resolve()
        # The flusher may be at it; if it hangs there, the rows are lost and not the process.
        if not self._resolving.acquire(timeout=1):
            return
        try:
            self._write_waiting(all_of_them=True)
        finally:
            self._resolving.release()

    def _write_waiting(self, all_of_them: bool) -> None:
        waiting = self._waiting
        while waiting:
            table, row, column, losses = waiting[0]
            resolved = [loss.resolved() for loss in losses]
            if not all(resolved) and not all_of_them:
                break
            waiting.popleft()
            self.writer.append(table, (*row[:column], _mean(losses), *row[column + 1 :]))

    # -- what the public calls of instruments.api reach ------------------------------------------------------------

    # Nothing that the training passes in here may raise.

    def open_range(self, name: str) -> None:
        try:
            self.open("range", str(name))
        except Exception as error:
            self.fault("api", "range", error)

    def close_range(self) -> None:
        for span in reversed(self._thread.spans):
            if span.category == "range":
                self.close(span)
                return

    def add_counts(self, tokens: int | None, samples: int | None, unpadded_tokens: int | None = None) -> None:
        try:
            for index, value in enumerate((samples, tokens, unpadded_tokens)):
                if value is None:
                    continue
                count = int(value)
                if not self._counts_given[index]:
                    # The first one: what the step has so far was guessed.
                    self._counts_given[index] = True
                    self._counts[index] = None
                self._micro_counts[index] = (self._micro_counts[index] or 0) + count
        except Exception as error:
            self.fault("api", "step", error)

    def user_mark(self, name: str) -> None:
        try:
            self.writer.append("marks", (self.clock(), self.step, "user", str(name)))
        except Exception as error:
            self.fault("api", "mark", error)

    # -- facts, marks, faults --------------------------------------------------------------------------------------

    def fact(self, key: str, value: Any) -> None:
        """Record something learned once. What JSON can't hold is kept as its text."""
        self.writer.append("facts", (self.clock(), key, json.dumps(value, default=str)))

    def mark(self, name: str) -> None:
        self.writer.append("marks", (self.clock(), self.step, "agprof", name))

    def fault(self, instrument: str, where: str, error: BaseException) -> None:
        """Record a failure of an instrument; the third switches it off and is the last that is written."""
        count = self._faults.get(instrument, 0) + 1
        self._faults[instrument] = count
        if count > MAX_FAULTS:
            return
        try:
            text = f"{type(error).__name__}: {error}"[:2000]
        except Exception:
            text = type(error).__name__
        self.writer.append("faults", (self.clock(), instrument, where, text, count))
        if count >= MAX_FAULTS:
            self._off.add(instrument)

    def guard(self, instrument: str, function: Callable[P, R], *, ends: bool = False) -> Callable[P, R | None]:
        """`function`, but a failure becomes a fault and None, and a switched-off instrument does nothing.

        With `ends` it ends what was begun, and runs also when the instrument was switched off in between.
        """
        where = getattr(function, "__name__", str(function))
        off = self._off

        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
            if not self.enabled or (instrument in off and not ends):
                return None
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self.fault(instrument, where, error)
                return None

        return guarded

    def is_on(self, instrument: str) -> bool:
        """Whether the instrument still runs: not switched off after failures."""
        return self.enabled and instrument not in self._off


def _mean(losses: list[Loss]) -> float | None:
    values = [loss.value for loss in losses if loss.value is not None]
    return sum(values) / len(values) if values else None
