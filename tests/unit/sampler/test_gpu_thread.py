"""The thread of the GPUs: what hangs there is said, and holds up nobody."""

import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from agprof.sampler import gpu_thread
from agprof.sampler.gpu_thread import GpuThread
from agprof.sampler.loop import Clock, Lane, tier
from agprof.sampler.nvml import NoNvmlError
from agprof.sampler.states import SECOND_NS, States


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


class Rig:
    """A GPU thread with one part that does as the test says; the time is a number."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND_NS
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        self.release = threading.Event()
        self.entered = threading.Event()
        self.blocks = False
        self.fails: Exception | None = None
        self.nvml_call: tuple[str, int] | None = None
        self.samples = 0
        self.closed: list[int] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.states = States(append)
        clock = Clock(monotonic_ns=lambda: self.now)
        self.lane = Lane(
            name="gpu",
            tiers=(tier("fast", 0.05, {"gpu.sampling": self}, Random(1)),),
            append=append,
            states=self.states,
            flush=lambda: None,
            clock=clock,
        )
        self.build: Callable[[], Any] = lambda: self
        self.thread = GpuThread(self._build_now, self.states, clock)

    def _build_now(self) -> Any:
        return self.build()

    def sample(self, now_ns: int) -> int:
        self.samples += 1
        if self.fails is not None:
            raise self.fails
        if self.blocks:
            self.nvml_call = ("nvmlDeviceGetPowerUsage", now_ns)
            self.entered.set()
            self.release.wait(10)
            self.nvml_call = None
        return 0

    def call(self) -> tuple[str, int] | None:
        return self.nvml_call

    def close(self) -> None:
        self.closed.append(threading.get_ident())

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * SECOND_NS)
        self.thread.look()

    def gpu_states(self) -> list[tuple[str, str]]:
        return [(row[2], row[3]) for table, row in self.rows if table == "sampler_state" and row[1] == "gpu"]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.release.set()
    rig.thread.end()


def test_a_call_that_does_not_return_is_said_once_and_so_is_its_return(rig: Rig) -> None:
    rig.blocks = True
    rig.thread.start()
    assert rig.entered.wait(5)
    rig.pass_seconds(4)
    assert rig.gpu_states() == []
    for _ in range(3):
        rig.pass_seconds(1)
    assert rig.gpu_states() == [("retry", "call nvmlDeviceGetPowerUsage has not returned for 5 s")]
    rig.blocks = False
    rig.release.set()
    wait_for(lambda: rig.lane.sampling is None)
    rig.pass_seconds(1)
    assert rig.gpu_states()[1:] == [("ok", "")]
    count = rig.samples
    wait_for(lambda: rig.samples > count)


def test_what_the_call_found_out_when_it_returned_is_not_called_ok(rig: Rig) -> None:
    rig.blocks = True
    rig.thread.start()
    assert rig.entered.wait(5)
    rig.pass_seconds(6)
    rig.states.set(rig.now, "gpu", "retry", "NVML was lost")
    rig.blocks = False
    rig.release.set()
    wait_for(lambda: rig.lane.sampling is None)
    rig.pass_seconds(1)
    assert [state for state, _ in rig.gpu_states()] == ["retry"]


def test_a_library_that_hangs_as_it_loads_is_said_too(rig: Rig) -> None:
    def load() -> Any:
        rig.states.set(rig.now, "gpu", "retry", "NVML is being loaded")
        rig.entered.set()
        rig.release.wait(10)
        return rig

    rig.build = load
    rig.thread.start()
    assert rig.entered.wait(5)
    for _ in range(3):
        rig.pass_seconds(5)
    assert rig.gpu_states()[1:] == [("retry", "loading NVML has not returned for 5 s")]


def test_the_end_waits_for_a_sample_in_progress_and_closes_on_the_thread_itself(rig: Rig) -> None:
    rig.thread.start()
    wait_for(lambda: rig.samples > 0)
    assert rig.thread.end()
    assert len(rig.closed) == 1
    assert rig.closed[0] != threading.get_ident()


def test_the_end_does_not_wait_for_a_thread_that_hangs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_thread, "END_TIMEOUT_S", 0.05)
    rig.blocks = True
    rig.thread.start()
    assert rig.entered.wait(5)
    begin = time.monotonic()
    assert not rig.thread.end()
    assert time.monotonic() - begin < 2
    assert rig.closed == []


def test_without_nvml_the_thread_ends_with_the_reason(rig: Rig) -> None:
    def load() -> Any:
        raise NoNvmlError("libnvidia-ml.so.1 does not load")

    rig.build = load
    rig.thread.start()
    wait_for(lambda: bool(rig.rows))
    assert rig.gpu_states() == [("unsupported", "libnvidia-ml.so.1 does not load")]
    assert rig.thread.end()
    rig.pass_seconds(60)
    assert len(rig.rows) == 1


def test_whatever_fails_is_a_row_and_the_next_sample_is_taken(rig: Rig) -> None:
    rig.fails = RuntimeError("broken")
    rig.thread.start()
    wait_for(lambda: rig.samples > 0)
    rig.pass_seconds(1)
    count = rig.samples
    wait_for(lambda: rig.samples > count)
    rows = [row[1:4] for table, row in rig.rows]
    assert rows == [("gpu.sampling", "retry", "RuntimeError: broken")]
