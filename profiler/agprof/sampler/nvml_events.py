"""What the driver reports by itself, each once: XIDs, memory errors, a GPU that needs to be reset.

A thread of its own waits for them with a short timeout, on its own reference of NVML, so that a call that hangs on the
sampling thread loses no event, and none of these calls holds up a sample.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from agprof.sampler.nvml_calls import Nvml
from agprof.sampler.nvml_errors import UNSUPPORTED, DeviceLostError
from agprof.sampler.states import SECOND_NS, Append, Backoff, States

FIELD = "gpu.events"
WAIT_MS = 400
"""The end of the sampler waits for the wait in progress."""
EARLY_S = 0.2
"""Waits that return without an event sooner than this are paused by it: drivers may return early at any rate."""
CLOSE_TIMEOUT_S = 2.0
TIMEOUT = "NVML_ERROR_TIMEOUT"

XID = 0x8
KINDS = {
    0x2: "ecc_double_bit", XID: "xid", 0x200: "ecc_single_bit_storm", 0x400: "dram_retirement",
    0x800: "dram_retirement", 0x1000: "other", 0x2000: "other", 0x4000: "unavailable", 0x8000: "recovery",
}  # fmt: skip
"""nvmlEventType... -> kind. `other`: poison errors, not fatal and fatal."""
UNKNOWN_XID = 999


class _NoEventsError(Exception):
    pass


class GpuEvents:
    """Appends rows of `gpu_events` from its thread. `nvml` is the module, its stand-in, or None.

    `losses` counts how often the sampling thread has lost NVML. This thread lets go of it too then: the library forgets
    a driver that was replaced only when nobody in the process holds it any more.
    """

    def __init__(
        self,
        append: Append,
        states: States,
        nvml: Any,
        *,
        losses: Callable[[], int] = lambda: 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._append = append
        self._states = states
        self._nvml = None if nvml is None else Nvml(nvml, clock)
        self._clock = clock
        self._losses = losses
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._refusal = "no GPU reports events"

    def start(self) -> None:
        """Begin to wait in a daemon thread; nothing where there is no NVML."""
        if self._nvml is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(self._nvml,), name="agprof-xid", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; one that is stuck in the driver for more than 2 s is left behind."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self, nvml: Nvml) -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                self._watch(nvml, backoff)
            except _NoEventsError as error:
                self._states.set(self._clock(), FIELD, "unsupported", str(error))
                return
            except Exception as error:
                now_ns = self._clock()
                if nvml.codes.of(error) in UNSUPPORTED:
                    self._states.set(now_ns, FIELD, "unsupported", nvml.explain(error))
                    return
                self._states.set(now_ns, FIELD, "retry", nvml.explain(error))
                backoff.failed(now_ns)
                self._stop.wait((backoff.due_ns - now_ns) / SECOND_NS)

    def _watch(self, nvml: Nvml, backoff: Backoff) -> None:
        """Initialise, register and wait until told to stop or to let go. Raises whatever ends that."""
        losses = self._losses()
        self._refusal = "no GPU reports events"
        nvml("nvmlInit")
        events = None
        try:
            events = nvml("nvmlEventSetCreate")
            gpus, refused = self._register(nvml, events, range(nvml("nvmlDeviceGetCount")))
            if not gpus:
                raise (DeviceLostError if refused else _NoEventsError)(self._refusal)
            self._states.set(self._clock(), FIELD, "ok")
            again = Backoff()
            again.failed(self._clock())
            while not self._stop.is_set() and self._losses() == losses:
                if refused and again.due(self._clock()):
                    more, refused = self._register(nvml, events, refused)
                    gpus |= more
                    again.failed(self._clock())
                if self._wait(nvml, events, gpus):
                    backoff.succeeded()
        finally:
            if events is not None:
                _quietly(nvml, "nvmlEventSetFree", events)
            _quietly(nvml, "nvmlShutdown")

    def _register(self, nvml: Nvml, events: Any, indices: Iterable[int]) -> tuple[dict[Any, int], list[int]]:
        """Ask for all kinds that each GPU has.

        Returns handle -> index of those that have any, and the indices of those to be asked again: lost ones.
        """
        gpus, refused = {}, []
        for index in indices:
            try:
                handle = nvml("nvmlDeviceGetHandleByIndex", index)
                types = nvml("nvmlDeviceGetSupportedEventTypes", handle) & sum(KINDS)
                if types:
                    nvml("nvmlDeviceRegisterEvents", handle, types, events)
                    gpus[_identity(handle)] = index
            except Exception as error:
                self._refusal = nvml.explain(error)
                try:
                    verdict = nvml.judge(error)
                except DeviceLostError:
                    verdict = "retry"
                if verdict == "retry":
                    refused.append(index)
                self._states.set(self._clock(), f"gpu.{index}.events", verdict, self._refusal)
                continue
            state = ("ok", "") if types else ("unsupported", "this GPU reports no events")
            self._states.set(self._clock(), f"gpu.{index}.events", *state)  # type: ignore[arg-type]
        return gpus, refused

    def _wait(self, nvml: Nvml, events: Any, gpus: dict[Any, int]) -> bool:
        """Wait for one event for a moment. False when none came."""
        begin_ns = self._clock()
        try:
            data = nvml("nvmlEventSetWait_v2", events, WAIT_MS)
        except Exception as error:
            if nvml.codes.of(error) != TIMEOUT:
                raise
            if self._clock() - begin_ns < EARLY_S * SECOND_NS:
                self._stop.wait(EARLY_S)
            return False
        self._append("gpu_events", event_row(self._clock(), gpus.get(_identity(data.device)), data))
        return True


def event_row(now_ns: int, gpu: int | None, data: Any) -> tuple[Any, ...]:
    """The row of one event. NVML gives the number of an XID, 999 for one that it does not know, 0 for other events."""
    kind, code = KINDS.get(data.eventType, "other"), int(data.eventData)
    if code == (UNKNOWN_XID if kind == "xid" else 0):
        return (now_ns, gpu, kind, None)
    return (now_ns, gpu, kind, code)


def _identity(handle: Any) -> Any:
    """A device's handle is a pointer, wrapped anew by each call of the binding."""
    try:
        return ctypes.cast(handle, ctypes.c_void_p).value
    except (TypeError, ctypes.ArgumentError):
        return handle


def _quietly(nvml: Nvml, name: str, *arguments: Any) -> None:
    try:
        nvml(name, *arguments)
    except Exception:  # nothing is left to end then
        pass
