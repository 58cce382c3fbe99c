"""Events of the driver, from a stand-in whose queue is a list."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from agprof.sampler.nvml_events import KINDS, GpuEvents, event_row
from agprof.sampler.states import States
from nvml_stand_in import NVMLError

DEADLINE_S = 4.0


class Driver:
    """NVML's calls about events. `script` holds what the waits return: (handle, type, data), or an error's name."""

    NVMLError = NVMLError

    def __init__(self, gpus: int = 2, supported: int = 0xFFFF) -> None:
        self.gpus, self.supported = gpus, supported
        self.script: list[Any] = []
        self.registered: list[tuple[int, int]] = []
        self.refused: dict[int, str] = {}
        self.open_sets, self.inits, self.shut_downs, self.waits = 0, 0, 0, 0
        self.block: threading.Event | None = None

    def __dir__(self) -> list[str]:
        return [name for name in dir(pynvml) if name.startswith("NVML_")]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_"):
            return getattr(pynvml, name)
        raise AssertionError(f"unexpected call {name}")

    def nvmlInit(self) -> None:
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self.inits -= 1
        self.shut_downs += 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return 7000 + index

    def nvmlDeviceGetSupportedEventTypes(self, handle: int) -> int:
        if handle in self.refused:
            raise NVMLError(getattr(pynvml, self.refused[handle]))
        return self.supported

    def nvmlEventSetCreate(self) -> str:
        self.open_sets += 1
        return "set"

    def nvmlEventSetFree(self, events: str) -> None:
        self.open_sets -= 1

    def nvmlDeviceRegisterEvents(self, handle: int, types: int, events: str) -> None:
        self.registered.append((handle, types))

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> Any:
        assert timeout_ms <= 1000
        self.waits += 1
        if self.block is not None:
            self.block.wait()
        answer = self.script.pop(0) if self.script else "NVML_ERROR_TIMEOUT"
        if isinstance(answer, str):
            raise NVMLError(getattr(pynvml, answer))
        handle, kind, data = answer
        return SimpleNamespace(device=handle, eventType=kind, eventData=data)


class Watch:
    def __init__(self, driver: Driver | None) -> None:
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.losses = 0
        self.events = GpuEvents(append, States(append), driver, losses=lambda: self.losses)

    def until(self, condition: Callable[[], bool]) -> None:
        self.events.start()
        self.wait(condition)
        self.events.close()

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, self.rows
            time.sleep(0.005)

    def table(self, name: str) -> list[tuple[Any, ...]]:
        return [row[1:] for table, row in self.rows if table == name]


def test_each_event_is_written_once_with_its_gpu() -> None:
    driver = Driver()
    driver.script = [(7001, 0x8, 79), "NVML_ERROR_TIMEOUT", (7000, 0x2, 0), (7000, 0x8000, 0), (9, 0x8, 31)]
    watch = Watch(driver)
    watch.until(lambda: driver.waits >= 7)
    assert watch.table("gpu_events") == [
        (1, "xid", 79),
        (0, "ecc_double_bit", None),
        (0, "recovery", None),
        (None, "xid", 31),
    ]
    assert watch.table("sampler_state") == []
    assert (driver.inits, driver.open_sets) == (0, 0)


def test_only_kinds_that_the_gpu_has_are_registered() -> None:
    driver = Driver(supported=0x8 | 0x4 | 0x10)
    Watch(driver).until(lambda: driver.waits > 0)
    assert driver.registered == [(7000, 0x8), (7001, 0x8)]


def test_gpus_without_events_end_the_watch_with_a_reason() -> None:
    driver = Driver(supported=0)
    watch = Watch(driver)
    watch.until(lambda: any(row[1] == "unsupported" and row[0] == "gpu.events" for row in watch.table("sampler_state")))
    assert driver.waits == 0
    assert (driver.inits, driver.open_sets) == (0, 0)


def test_one_gpu_without_events_does_not_hide_the_others() -> None:
    driver = Driver()
    driver.refused[7000] = "NVML_ERROR_NOT_SUPPORTED"
    driver.script = [(7001, 0x8, 48)]
    watch = Watch(driver)
    watch.until(lambda: bool(watch.table("gpu_events")))
    assert watch.table("gpu_events") == [(1, "xid", 48)]
    assert [row[:2] for row in watch.table("sampler_state")] == [("gpu.0.events", "unsupported")]


@pytest.mark.parametrize("error", ["NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_UNKNOWN", "NVML_ERROR_UNINITIALIZED"])
def test_an_error_is_survived_and_nothing_is_told_twice(error: str) -> None:
    driver = Driver()
    driver.script = [(7000, 0x8, 13), error, (7000, 0x8, 79)]
    watch = Watch(driver)
    watch.until(lambda: len(watch.table("gpu_events")) == 2)
    assert watch.table("gpu_events") == [(0, "xid", 13), (0, "xid", 79)]
    assert [row[:2] for row in watch.table("sampler_state")] == [("gpu.events", "retry"), ("gpu.events", "ok")]
    assert (driver.inits, driver.open_sets) == (0, 0)


def test_a_driver_without_the_call_ends_the_watch_with_a_reason() -> None:
    driver = Driver()
    driver.script = ["NVML_ERROR_FUNCTION_NOT_FOUND"]
    watch = Watch(driver)
    watch.until(lambda: ("gpu.events", "unsupported") in [row[:2] for row in watch.table("sampler_state")])
    assert driver.waits == 1
    assert (driver.inits, driver.open_sets) == (0, 0)


def test_nvml_is_let_go_when_the_sampling_thread_has_lost_it() -> None:
    driver = Driver()
    watch = Watch(driver)
    watch.events.start()
    watch.wait(lambda: driver.waits > 0)
    watch.losses += 1
    watch.wait(lambda: driver.shut_downs > 0)
    driver.script = [(7000, 0x8, 79)]
    watch.until(lambda: bool(watch.table("gpu_events")))
    assert (driver.inits, driver.open_sets) == (0, 0)
    assert watch.table("sampler_state") == []


def test_gpus_that_are_all_lost_are_asked_again_later() -> None:
    driver = Driver(gpus=1)
    driver.refused[7000] = "NVML_ERROR_GPU_IS_LOST"
    watch = Watch(driver)
    watch.until(lambda: ("gpu.events", "retry") in [row[:2] for row in watch.table("sampler_state")])
    assert driver.waits == 0


def test_one_gpu_that_was_lost_at_the_start_is_asked_again() -> None:
    driver = Driver()
    driver.refused[7001] = "NVML_ERROR_GPU_IS_LOST"
    watch = Watch(driver)
    watch.events.start()
    watch.wait(lambda: driver.waits > 0 and any(row[0] == "gpu.1.events" for row in watch.table("sampler_state")))
    driver.refused.clear()
    watch.wait(lambda: [handle for handle, _ in driver.registered] == [7000, 7001])
    driver.script.append((7001, 0x8, 79))
    watch.wait(lambda: watch.table("gpu_events") == [(1, "xid", 79)])
    watch.events.close()
    states = [row[1] for row in watch.table("sampler_state") if row[0] == "gpu.1.events"]
    assert states == ["retry", "ok"]


def test_waits_that_return_at_once_do_not_spin() -> None:
    driver = Driver()
    watch = Watch(driver)
    watch.events.start()
    time.sleep(0.5)
    watch.events.close()
    assert driver.waits <= 4


def test_a_thread_that_is_stuck_in_the_driver_is_left_behind() -> None:
    driver = Driver()
    driver.block = threading.Event()
    watch = Watch(driver)
    watch.events.start()
    begin = time.monotonic()
    watch.events.close()
    assert time.monotonic() - begin < 3
    driver.block.set()


def test_without_nvml_there_is_no_thread() -> None:
    watch = Watch(None)
    before = threading.active_count()
    watch.events.start()
    assert threading.active_count() == before
    watch.events.close()


@pytest.mark.parametrize(("kind", "data", "code"), [(0x8, 79, 79), (0x8, 999, None), (0x400, 0, None), (0x1000, 3, 3)])
def test_an_xid_that_the_driver_does_not_know_has_no_number(kind: int, data: int, code: int | None) -> None:
    assert event_row(5, 0, SimpleNamespace(eventType=kind, eventData=data)) == (5, 0, KINDS[kind], code)


def test_the_numbers_of_the_kinds_are_nvmls() -> None:
    names = {
        "DoubleBitEccError": "ecc_double_bit", "XidCriticalError": "xid",
        "SingleBitEccErrorStorm": "ecc_single_bit_storm", "DramRetirementEvent": "dram_retirement",
        "DramRetirementFailure": "dram_retirement", "NonFatalPoisonError": "other", "FatalPoisonError": "other",
        "GpuUnavailableError": "unavailable", "GpuRecoveryAction": "recovery",
    }  # fmt: skip
    assert {getattr(pynvml, f"nvmlEventType{name}"): kind for name, kind in names.items()} == KINDS
