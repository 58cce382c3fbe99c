"""The thread that makes all calls of NVML, and the watchdog that the host's thread keeps over it.

A driver that hangs takes this thread with it and nothing else: the host goes on being sampled, a row of sampler_state
says which call has not returned, the GPUs' rows have a gap, and the end of the process does not wait.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from agprof.sampler.loop import Clock, Lane
from agprof.sampler.nvml_errors import NoNvmlError
from agprof.sampler.states import SECOND_NS, States, describe

HANG_NS = 5 * SECOND_NS
LOOK_PERIOD_NS = SECOND_NS
END_TIMEOUT_S = 1.5
"""How long the end waits for a sample in progress and for NVML to shut down."""
FIELD = "gpu"


class GpuWork(Protocol):
    """What the thread does, once built."""

    lane: Lane

    def call(self) -> tuple[str, int] | None:
        """The call of NVML that the thread is in, and since when; None between calls."""

    def close(self) -> None:
        """Shut NVML down, on the thread itself."""


class GpuThread:
    """Runs a lane of GPU tiers. `build` runs on the thread too: loading NVML may hang as any of its calls."""

    def __init__(self, build: Callable[[], GpuWork], states: States, clock: Clock) -> None:
        self._build = build
        self._states = states
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agprof-gpu", daemon=True)
        self._work: GpuWork | None = None
        self._begun_ns = 0
        self._building = False
        self._hung: str | None = None
        self.look_ns = 0
        """When `look` has something to do next."""

    def start(self) -> None:
        self._begun_ns = self._clock.monotonic_ns()
        self._building = True
        self.look_ns = self._begun_ns + LOOK_PERIOD_NS
        self._thread.start()

    def look(self) -> None:
        """Say when a call has not returned for 5 s, and when it has. Called by the host's thread."""
        now_ns = self._clock.monotonic_ns()
        if now_ns < self.look_ns:
            return
        self.look_ns = now_ns + LOOK_PERIOD_NS
        doing = self._in_progress()
        if doing is not None and now_ns - doing[1] >= HANG_NS:
            if self._hung is None:
                self._hung = f"{doing[0]} has not returned for {HANG_NS // SECOND_NS} s"
                self._states.set(now_ns, FIELD, "retry", self._hung, always=True)
        elif self._hung is not None:
            # Unless the thread itself has found out more about NVML meanwhile.
            if self._states.reason(FIELD) == self._hung:
                self._states.set(now_ns, FIELD, "ok")
            self._hung = None

    def costs_ns(self) -> dict[str, int]:
        """CPU time of each tier so far."""
        return {} if self._work is None else self._work.lane.costs_ns()

    def end(self) -> bool:
        """Have the thread end after its sample in progress. False when it hangs: then nobody may wait for it."""
        self._stop.set()
        self._thread.join(END_TIMEOUT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work = self._build()
        except NoNvmlError as error:
            self._states.set(self._clock.monotonic_ns(), FIELD, "unsupported", str(error))
            return
        except Exception as error:
            self._states.set(self._clock.monotonic_ns(), FIELD, "unsupported", describe(error))
            return
        finally:
            self._building = False
        try:
            self._sample(self._work)
        except Exception as error:
            reason = f"the thread that samples the GPUs ended: {describe(error)}"
            self._states.set(self._clock.monotonic_ns(), FIELD, "unsupported", reason)

    def _sample(self, work: GpuWork) -> None:
        lane = work.lane
        while True:
            lane.run_due()
            if self._stop.wait(max(0.0, (lane.due_ns - self._clock.monotonic_ns()) / SECOND_NS)):
                break
        lane.finish()
        work.close()

    def _in_progress(self) -> tuple[str, int] | None:
        """What the thread does, and since when; None while it waits."""
        work = self._work
        if work is None:
            return ("loading NVML", self._begun_ns) if self._building else None
        call, sampling = work.call(), work.lane.sampling
        if call is not None:
            return f"call {call[0]}", call[1]
        return None if sampling is None else (f"reading {sampling[0]}", sampling[1])
