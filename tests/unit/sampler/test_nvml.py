"""GPU rows from a stand-in for NVML; a call that it does not know raises."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler import nvml as nvml_module
from agprof.sampler.nvml import Gpus, NoNvmlError, load_nvml
from agprof.sampler.states import SECOND_NS, States

COLUMNS = [column.name for column in BY_NAME["gpu_samples"].columns]
CODES = {
    "NVML_ERROR_UNINITIALIZED": 1, "NVML_ERROR_INVALID_ARGUMENT": 2, "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NO_PERMISSION": 4, "NVML_ERROR_DRIVER_NOT_LOADED": 9, "NVML_ERROR_TIMEOUT": 10,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13, "NVML_ERROR_GPU_IS_LOST": 15, "NVML_ERROR_LIB_RM_VERSION_MISMATCH": 18,
    "NVML_ERROR_UNKNOWN": 999,
}  # fmt: skip


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeNvml:
    """Answers the calls that the sampler is known to make; `faults` maps (call, gpu or None) to an error's name."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlMemory_v2 = 0x02000028  # noqa: N815

    def __init__(self, gpus: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.gpus, self.capability = gpus, capability
        self.faults: dict[tuple[str, int | None], str] = {}
        self.calls: list[str] = []
        self.instant, self.energy = True, 5_000
        for name, value in CODES.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml"):
            raise AssertionError(f"unexpected call {name}")
        raise AttributeError(name)

    def _check(self, call: str, gpu: int | None = None) -> None:
        self.calls.append(call)
        for key in ((call, gpu), (call, None), ("*", gpu), ("*", None)):
            if key in self.faults:
                raise NVMLError(CODES[self.faults[key]])

    def _value(self, call: str, value: Any) -> Callable[..., Any]:
        def answer(handle: int, *_: Any, **__: Any) -> Any:
            self._check(call, handle)
            return value

        return answer

    def nvmlInit(self) -> None:
        self._check("nvmlInit")

    def nvmlShutdown(self) -> None:
        self.calls.append("nvmlShutdown")

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"610.57"

    def nvmlDeviceGetCount(self) -> int:
        self._check("nvmlDeviceGetCount")
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check("nvmlDeviceGetHandleByIndex", index)
        return index

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[tuple[int, int]]) -> list[Any]:
        self._check("nvmlDeviceGetFieldValues", handle)
        assert fields == [(186, 0), (83, 0)]
        code = 0 if self.instant else 3
        return [
            SimpleNamespace(nvmlReturn=code, valueType=1, value=SimpleNamespace(uiVal=333_000, ullVal=0)),
            SimpleNamespace(nvmlReturn=0, valueType=3, value=SimpleNamespace(uiVal=0, ullVal=self.energy)),
        ]

    def __getattribute__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetUUID": b"GPU-1",
            "nvmlDeviceGetName": "NVIDIA H100",
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"0000:01:00.0"),
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30, used=7 * 2**30, reserved=1),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=0),
            "nvmlDeviceGetPowerUsage": 222_000,
            "nvmlDeviceGetTotalEnergyConsumption": 6_000,
            "nvmlDeviceGetClockInfo": 1_980,
            "nvmlDeviceGetTemperatureV": 61,
            "nvmlDeviceGetTemperature": 60,
            "nvmlDeviceGetCurrentClocksEventReasons": 4,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 8,
        }
        if name in answers:
            return self._value(name, answers[name])
        if name == "nvmlDeviceGetCudaComputeCapability":
            return self._value(name, self.capability)
        return super().__getattribute__(name)


class Rig:
    def __init__(self, nvml: FakeNvml | None, reason: str = "") -> None:
        self.nvml = nvml
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.gpus = Gpus(append, States(append), nvml, reason)
        self.now = 1000 * SECOND_NS

    def sample(self, seconds: int = 1) -> list[dict[str, Any]]:
        self.now += seconds * SECOND_NS
        begin = len(self.rows)
        self.gpus.sample(self.now)
        return [dict(zip(COLUMNS, row, strict=True)) for name, row in self.rows[begin:] if name == "gpu_samples"]

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]

    def table(self, name: str) -> list[tuple[Any, ...]]:
        return [row for table, row in self.rows if table == name]


def gap(row: dict[str, Any]) -> bool:
    return all(row[name] is None for name in COLUMNS[2:])


def test_a_gpu_is_described_once_and_sampled_each_time() -> None:
    rig = Rig(FakeNvml())
    (row,) = rig.sample()
    rig.sample()
    assert rig.table("gpus") == [(0, "GPU-1", "0000:01:00.0", "NVIDIA H100", 80 * 2**30, 700_000, "610.57")]
    assert [row[name] for name in COLUMNS[1:]] == [
        0, 0.75, 0.0, 7 * 2**30, 333_000, "instant", 5_000, 1_980, 1_980, 61, 4,
    ]  # fmt: skip
    assert rig.states() == []


@pytest.mark.parametrize(
    ("capability", "kind"),
    [((7, 5), "instant"), ((8, 0), "instant"), ((8, 6), "average_1s"), ((9, 0), "average_1s"), ((10, 0), "average_1s")],
)
def test_power_without_the_instant_field_means_what_the_architecture_says(
    capability: tuple[int, int], kind: str
) -> None:
    nvml = FakeNvml(capability=capability)
    nvml.instant = False
    (row,) = Rig(nvml).sample()
    assert (row["power_mw"], row["power_kind"], row["energy_mj"]) == (222_000, kind, 5_000)


def test_power_of_an_unknown_architecture_has_no_kind() -> None:
    nvml = FakeNvml()
    nvml.instant = False
    nvml.faults["nvmlDeviceGetCudaComputeCapability", 0] = "NVML_ERROR_NOT_SUPPORTED"
    (row,) = Rig(nvml).sample()
    assert (row["power_mw"], row["power_kind"]) == (222_000, None)


FIELDS = {
    "nvmlDeviceGetUtilizationRates": ["utilization_ratio", "memory_busy_ratio"],
    "nvmlDeviceGetMemoryInfo": ["memory_used_bytes"],
    "nvmlDeviceGetClockInfo": ["sm_clock_mhz", "memory_clock_mhz"],
}


@pytest.mark.parametrize("call", FIELDS)
@pytest.mark.parametrize("error", ["NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_NO_PERMISSION"])
def test_a_field_that_is_not_supported_is_none_and_never_asked_again(call: str, error: str) -> None:
    nvml = FakeNvml()
    nvml.faults[call, 0] = error
    rig = Rig(nvml)
    rig.sample()
    count = nvml.calls.count(call)
    (row,) = rig.sample(100)
    assert [name for name in COLUMNS if row[name] is None] == FIELDS[call]
    assert nvml.calls.count(call) == count
    assert [state for _, state in rig.states()] == ["unsupported"] * len(rig.table("sampler_state"))


def test_a_field_that_fails_for_a_while_is_tried_again_with_a_back_off() -> None:
    nvml = FakeNvml()
    nvml.faults["nvmlDeviceGetUtilizationRates", 0] = "NVML_ERROR_TIMEOUT"
    rig = Rig(nvml)
    rows = [rig.sample()[0] for _ in range(8)]
    assert all(row["utilization_ratio"] is None and row["power_mw"] for row in rows)
    assert nvml.calls.count("nvmlDeviceGetUtilizationRates") == 4  # after 0, 1, 3 and 7 s
    nvml.faults.clear()
    assert rig.sample(60)[0]["utilization_ratio"] == 0.75
    assert rig.states() == [("gpu.0.utilization", "retry"), ("gpu.0.utilization", "ok")]


def test_old_drivers_are_asked_by_the_old_names() -> None:
    nvml = FakeNvml()
    for call in ("TemperatureV", "CurrentClocksEventReasons", "FieldValues"):
        nvml.faults[f"nvmlDeviceGet{call}", None] = "NVML_ERROR_FUNCTION_NOT_FOUND"
    (row,) = Rig(nvml).sample()
    assert (row["temperature_c"], row["clock_event_reasons"]) == (60, 8)
    assert (row["power_mw"], row["power_kind"], row["energy_mj"]) == (222_000, "average_1s", 6_000)


def test_one_lost_gpu_is_a_gap_and_the_others_go_on() -> None:
    nvml = FakeNvml(gpus=3)
    rig = Rig(nvml)
    rig.sample()
    nvml.faults["*", 1] = "NVML_ERROR_GPU_IS_LOST"
    for _ in range(3):
        assert [gap(row) for row in rig.sample()] == [False, True, False]
    assert "nvmlShutdown" not in nvml.calls
    nvml.faults.clear()
    assert [gap(row) for row in rig.sample(60)] == [False, False, False]
    assert rig.states() == [("gpu.1", "retry"), ("gpu.1", "ok")]
    assert len(rig.table("gpus")) == 3


def test_a_gpu_that_is_lost_from_the_start_does_not_hide_the_others() -> None:
    nvml = FakeNvml(gpus=2)
    nvml.faults["nvmlDeviceGetHandleByIndex", 0] = "NVML_ERROR_GPU_IS_LOST"
    rig = Rig(nvml)
    assert [gap(row) for row in rig.sample()] == [True, False]


@pytest.mark.parametrize(
    "error", ["NVML_ERROR_UNKNOWN", "NVML_ERROR_UNINITIALIZED", "NVML_ERROR_LIB_RM_VERSION_MISMATCH"]
)
def test_nvml_that_goes_away_leaves_gaps_and_comes_back(error: str) -> None:
    nvml = FakeNvml(gpus=2)
    rig = Rig(nvml)
    rig.sample()
    nvml.faults["*", None] = error
    for _ in range(10):
        assert [gap(row) for row in rig.sample()] == [True, True]
    assert nvml.calls.count("nvmlInit") <= 6
    nvml.faults.clear()
    assert [gap(row) for row in rig.sample(120)] == [False, False]
    assert ("gpu", "retry") in rig.states()
    assert rig.states().count(("gpu", "ok")) == 1
    rig.gpus.close()
    assert nvml.calls[-1] == "nvmlShutdown"


def test_an_init_that_fails_is_tried_again() -> None:
    nvml = FakeNvml()
    nvml.faults["nvmlInit", None] = "NVML_ERROR_DRIVER_NOT_LOADED"
    rig = Rig(nvml)
    assert rig.sample() == []
    nvml.faults.clear()
    assert len(rig.sample(2)) == 1
    assert rig.states() == [("gpu", "retry"), ("gpu", "ok")]


def test_no_nvml_is_said_once_and_gives_no_rows() -> None:
    rig = Rig(None, "no library")
    for _ in range(3):
        assert rig.sample() == []
    assert [row[1:4] for row in rig.table("sampler_state")] == [("gpu", "unsupported", "no library")]


def test_an_unexpected_call_would_fail_these_tests() -> None:
    with pytest.raises(AssertionError, match="unexpected call nvmlDeviceGetPcieThroughput"):
        getattr(FakeNvml(), "nvmlDeviceGetPcieThroughput")  # noqa: B009


def test_a_missing_library_and_a_foreign_module_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_module, "LIBRARY", "libno-such-thing.so.1")
    with pytest.raises(NoNvmlError, match="does not load"):
        load_nvml()
    monkeypatch.setattr(nvml_module.ctypes, "CDLL", lambda name: None)
    foreign = ModuleType("pynvml")
    foreign.__file__ = "/somewhere/pynvml/__init__.py"
    monkeypatch.setitem(sys.modules, "pynvml", foreign)
    with pytest.raises(NoNvmlError, match=r"/somewhere/pynvml/__init__\.py is not that of nvidia-ml-py"):
        load_nvml()


def test_the_official_binding_has_all_that_the_stand_in_has() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert hasattr(pynvml, "_nvmlGetFunctionPointer")
    nvml = FakeNvml()
    Rig(nvml).sample()
    for name in {
        *nvml.calls,
        "nvmlShutdown",
        "nvmlMemory_v2",
        "NVML_CLOCK_SM",
        "NVML_CLOCK_MEM",
        "NVML_TEMPERATURE_GPU",
    }:
        assert hasattr(pynvml, name)
    for name, value in CODES.items():
        assert getattr(pynvml, name) == value
    for name in nvml_module._UNSUPPORTED | nvml_module._LIBRARY_LOST | nvml_module._DEVICE_LOST:
        assert hasattr(pynvml, name)
    assert (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION) == (186, 83)
    assert [name for name, _ in pynvml.c_nvmlValue_t._fields_] == list(nvml_module._VALUE_MEMBERS)
