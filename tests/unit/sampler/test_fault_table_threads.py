"""Fault table, F8: a call that hangs is named and left behind; each event of the driver is written once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from agprof.sampler.gpu_thread import HANG_NS, GpuThread
from agprof.sampler.loop import Clock, Lane, tier
from agprof.sampler.nvml_events import GpuEvents
from busy_gpu import busy
from nvml_rig import Rig, RigMaker
from nvml_scenario import SECOND_NS

# --- events


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def calls_of(log: Path, call: str) -> int:
    return sum(line.split()[1] == call for line in log.read_text().splitlines()) if log.exists() else 0


def test_each_event_is_written_once(rig: RigMaker, tmp_path: Path) -> None:
    scenario = busy(gpus=2)
    scenario.event(1, 1, "xid", 79)
    scenario.event(1, 0, "xid", 31)
    scenario.event(2, 0, "ecc_double", 0)
    log = tmp_path / "log"
    with rig(scenario, log=log) as found:
        events = GpuEvents(found.append, found.states, found.nvml, clock=lambda: found.now_ns)
        events.start()
        wait_for(lambda: calls_of(log, "nvmlDeviceRegisterEvents") == 2)
        found.set_time(1)
        wait_for(lambda: len(found.rows("gpu_events")) == 2)
        found.set_time(2)
        wait_for(lambda: len(found.rows("gpu_events")) == 3)
        waits = calls_of(log, "nvmlEventSetWait_v2")
        wait_for(lambda: calls_of(log, "nvmlEventSetWait_v2") > waits)  # it was asked again, and there was no other
        events.close()
        assert [(row["gpu"], row["kind"], row["code"]) for row in found.rows("gpu_events")] == [
            (1, "xid", 79), (0, "xid", 31), (0, "ecc_double_bit", None),
        ]  # fmt: skip


def test_a_gpu_without_events_does_not_take_those_of_the_others(rig: RigMaker, tmp_path: Path) -> None:
    scenario = busy(gpus=2)
    scenario.fail("nvmlDeviceRegisterEvents", "NVML_ERROR_NOT_SUPPORTED", gpu=0)
    scenario.event(1, 0, "xid", 31)
    scenario.event(1, 1, "xid", 79)
    log = tmp_path / "log"
    with rig(scenario, log=log) as found:
        events = GpuEvents(found.append, found.states, found.nvml, clock=lambda: found.now_ns)
        events.start()
        wait_for(lambda: calls_of(log, "nvmlDeviceRegisterEvents") == 2)
        found.set_time(1)
        wait_for(lambda: bool(found.rows("gpu_events")))
        events.close()
        assert [(row["gpu"], row["code"]) for row in found.rows("gpu_events")] == [(1, 79)]
        assert found.said("gpu.0.events")[0][0] == "unsupported"


def test_events_come_again_after_the_library_was_lost(rig: RigMaker, tmp_path: Path) -> None:
    scenario = busy()
    scenario.gone(1, until_s=2)
    scenario.event(5, 0, "xid", 48)
    log = tmp_path / "log"
    with rig(scenario, log=log) as found:
        events = GpuEvents(found.append, found.states, found.nvml, clock=lambda: found.now_ns)
        events.start()
        wait_for(lambda: calls_of(log, "nvmlDeviceRegisterEvents") == 1)
        found.set_time(1)
        wait_for(lambda: bool(found.said("gpu.events")))
        found.set_time(2)
        wait_for(lambda: calls_of(log, "nvmlDeviceRegisterEvents") == 2)
        found.set_time(5)
        wait_for(lambda: bool(found.rows("gpu_events")))
        events.close()
        assert [(row["gpu"], row["code"]) for row in found.rows("gpu_events")] == [(0, 48)]
        assert [state for state, _ in found.said("gpu.events")] == ["retry", "ok"]


def test_where_there_are_no_events_the_reason_is_written(rig: RigMaker) -> None:
    scenario = busy()
    scenario.fail("nvmlEventSetCreate", "NVML_ERROR_NOT_SUPPORTED")
    with rig(scenario) as found:
        events = GpuEvents(found.append, found.states, found.nvml, clock=lambda: found.now_ns)
        events.start()
        wait_for(lambda: bool(found.said("gpu.events")))
        events.close()
        assert found.said("gpu.events")[0][1]
        assert not found.rows("gpu_events")


# --- a call that hangs


class _Work:
    """What the GPU thread does, on the rig and the test's clock."""

    def __init__(self, found: Rig, clock: Clock) -> None:
        self._gpus = found.gpus
        parts = {"gpu.sampling": found.gpus.fast}
        self.lane = Lane(
            name="gpu",
            tiers=(tier("fast", 0.2, parts, Random(1)),),
            append=found.append,
            states=found.states,
            flush=lambda: None,
            clock=clock,
        )

    def call(self) -> tuple[str, int] | None:
        return self._gpus.call

    def close(self) -> None:
        self._gpus.close()


@pytest.mark.parametrize("call", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetFieldValues", "nvmlInitWithFlags"])
def test_a_call_that_hangs_is_named_after_5_s_and_forgotten_when_it_returns(rig: RigMaker, call: str) -> None:
    scenario = busy()
    scenario.hang(call, 60, times=1)
    with rig(scenario) as found:
        clock = Clock(monotonic_ns=lambda: found.now_ns)
        thread = GpuThread(lambda: _Work(found, clock), found.states, clock)
        thread.start()
        name = "nvmlInit" if call == "nvmlInitWithFlags" else call
        wait_for(lambda: (found.gpus.call or ("", 0))[0] == name)
        found.set_time(HANG_NS / SECOND_NS - 0.1)
        thread.look()
        assert not found.said("gpu")
        found.set_time(6)
        thread.look()
        assert found.said("gpu") == [("retry", f"call {name} has not returned for 5 s")]
        assert not thread.end()  # it waits for 1.5 s and leaves the thread behind
        found.set_time(70)
        wait_for(lambda: bool(found.rows("gpu_samples")))
        found.set_time(72)
        thread.look()
        assert [state for state, _ in found.said("gpu")] == ["retry", "ok"]
        assert found.rows("gpu_samples")[0]["power_mw"] == 612_345
        wait_for(lambda: not any(other.name == "agprof-gpu" for other in threading.enumerate()))
