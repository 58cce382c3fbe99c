"""A stand-in for the module pynvml that answers what the sampler is known to ask; any other call raises.

`faults` maps (call, handle or None) to the name of an error; `values` maps (field number, scope) to (type of the value,
number) or to the name of an error. Handles are indices of GPUs, or "GPU.SLOT" of MIG instances.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml

from agprof.model.tables import BY_NAME
from agprof.sampler.nvml import Gpus
from agprof.sampler.states import SECOND_NS, States

UINT, ULONGLONG = 1, 3
ALL_LINKS = 2**32 - 1
GIB = 2**30
VALUES: dict[tuple[int, int], Any] = {
    (186, 0): (UINT, 333_000),
    (185, 0): (UINT, 320_000),
    (83, 0): (ULONGLONG, 5_000),
    (197, 0): (UINT, 0),
    (198, 0): (UINT, 0),
    (138, ALL_LINKS): (ULONGLONG, 0),
    (139, ALL_LINKS): (ULONGLONG, 0),
    **{(number, 0): (ULONGLONG, 0) for number in (74, 77, 271, 75, 269, 270, 76, 79)},
    (82, 0): (UINT, 70),
}
NOT_SUPPORTED = "NVML_ERROR_NOT_SUPPORTED"
ACTIVITY = {2: 80.0, 3: 40.0, 5: 60.0, 10: 50.0, 11: 0.0, 12: 10.0, 13: 5.0, 20: 1.0, 21: 2.0}


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class StandIn:
    """One H100-like node unless told otherwise."""

    NVMLError = NVMLError
    c_nvmlFieldValue_t = pynvml.c_nvmlFieldValue_t  # noqa: N815
    c_nvmlGpmMetricsGet_t = pynvml.c_nvmlGpmMetricsGet_t  # noqa: N815

    def __init__(self, gpus: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.gpus, self.capability = gpus, capability
        self.architecture = {7: 6, 8: 7, 9: 9, 10: 10}[capability[0]]
        self.faults: dict[tuple[str, Any], str] = {}
        self.values = dict(VALUES)
        self.calls: list[str] = []
        self.batches: list[list[tuple[int, int]]] = []
        self.links, self.mig = 18, 0
        self.instances: dict[int, str] = {}
        """Slot -> name, or name of an error."""
        self.symbols = {"nvmlDeviceGetConfComputeMemSizeInfo", "nvmlDeviceGetRunningProcessDetailList"}
        self.processes: dict[tuple[str, Any], list[tuple[int, int | None]]] = {}
        self.activity = dict(ACTIVITY)
        self.activity_codes: dict[int, int] = {}
        self.gpm, self.buffers = True, 0
        self.gpm_samples: list[tuple[Any, int]] = []

    def __dir__(self) -> list[str]:
        return [name for name in dir(pynvml) if name.startswith("NVML_")]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_") or name == "nvmlMemory_v2":
            return getattr(pynvml, name)
        answers = self._answers()
        if name in answers:
            return self._call(name, answers[name])
        raise AssertionError(f"unexpected call {name}") if name.startswith("nvml") else AttributeError(name)

    def _answers(self) -> dict[str, Callable[..., Any]]:
        plain: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": b"610.57",
            "nvmlDeviceGetCount": self.gpus,
            "nvmlDeviceGetUUID": b"GPU-1",
            "nvmlDeviceGetName": "NVIDIA H100",
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:01:00.0"),
            "nvmlDeviceGetCudaComputeCapability": self.capability,
            "nvmlDeviceGetArchitecture": self.architecture,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetMigMode": [self.mig, self.mig],
            "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetGpuInstanceId": 3,
            "nvmlDeviceGetEnforcedPowerLimit": 650_000,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=0),
            "nvmlDeviceGetPowerUsage": 222_000,
            "nvmlDeviceGetTotalEnergyConsumption": 6_000,
            "nvmlDeviceGetTemperatureV": 61,
            "nvmlDeviceGetTemperature": 60,
            "nvmlDeviceGetCurrentClocksEventReasons": 4,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 8,
            "nvmlDeviceGetRemappedRows": (1, 2, 1, 0),
            "nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=int(self.gpm)),
        }
        answers: dict[str, Callable[..., Any]] = {
            name: (lambda *_, value=value, **__: value) for name, value in plain.items()
        }
        return answers | {
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetMaxClockInfo": lambda _, clock: {1: 1_980, 2: 2_619}[clock],
            "nvmlDeviceGetClockInfo": lambda _, clock: {1: 1_755, 2: 2_600}[clock],
            "nvmlDeviceGetNvLinkState": self._link,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._instance,
            "nvmlDeviceGetTotalEccErrors": lambda _, kind, counter: {(0, 0): 5, (1, 0): 1}[kind, counter],
            "nvmlGpmSampleAlloc": self._allocate,
            "nvmlGpmSampleFree": self._free,
            "nvmlGpmSampleGet": lambda handle, buffer: self.gpm_samples.append((handle, buffer)),
            "nvmlGpmMigSampleGet": lambda handle, slot, buffer: self.gpm_samples.append(((handle, slot), buffer)),
            "nvmlGpmMetricsGet": self._metrics,
            **{
                f"nvmlDeviceGet{kind}RunningProcesses_v{version}": (
                    lambda handle, key=f"{kind}_v{version}": self._running(key, handle)
                )
                for kind in ("Compute", "Graphics")
                for version in (2, 3)
            },
        }

    def _call(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.check(name, arguments[0] if arguments and isinstance(arguments[0], int | str) else None)
            return answer(*arguments, **options)

        return call

    def check(self, call: str, handle: Any = None) -> None:
        """Note the call, and raise where a fault says so."""
        self.calls.append(call)
        if call == "nvmlShutdown":
            return
        for key in ((call, handle), (call, None), ("*", handle), ("*", None)):
            if key in self.faults:
                raise NVMLError(getattr(pynvml, self.faults[key]))

    def _nvmlGetFunctionPointer(self, name: str) -> Any:
        if name == "nvmlDeviceGetFieldValues":
            return self._fields
        if name in self.symbols:
            return object()
        raise NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    def _fields(self, handle: Any, count: ctypes.c_int32, reference: Any) -> int:
        try:
            self.check("nvmlDeviceGetFieldValues", handle)
        except NVMLError as error:
            return error.value
        array = reference._obj
        assert len(array) == count.value
        self.batches.append([(entry.fieldId, entry.scopeId) for entry in array])
        for entry in array:
            answer = self.values.get((entry.fieldId, entry.scopeId), NOT_SUPPORTED)
            if answer is None:
                continue
            if isinstance(answer, str):
                entry.nvmlReturn = getattr(pynvml, answer)
            else:
                entry.nvmlReturn, entry.valueType = 0, answer[0]
                # The bytes that the value does not have hold rubbish.
                entry.value.ullVal = 2**64 - 2
                members = [name for name, _ in pynvml.c_nvmlValue_t._fields_]
                if answer[0] < len(members):
                    setattr(entry.value, members[answer[0]], answer[1])
        return 0

    def _memory(self, handle: Any, version: int) -> Any:
        assert version == pynvml.nvmlMemory_v2
        size = 10 if isinstance(handle, str) else 80
        return SimpleNamespace(total=size * GIB, used=7 * GIB, reserved=GIB)

    def _link(self, _: Any, link: int) -> int:
        if link >= self.links:
            raise NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return int(link != 0)

    def _instance(self, handle: Any, slot: int) -> str:
        answer = self.instances.get(slot, "NVML_ERROR_NOT_FOUND")
        if answer.startswith("NVML_"):
            raise NVMLError(getattr(pynvml, answer))
        return f"{handle}.{slot}"

    def _running(self, key: str, handle: Any) -> list[Any]:
        found = self.processes.get((key, handle), [])
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in found]

    def _allocate(self) -> Any:
        self.buffers += 1
        return ctypes.cast(ctypes.c_void_p(0x1000 * self.buffers), pynvml.c_nvmlGpmSample_t)

    def _free(self, _: Any) -> None:
        self.buffers -= 1

    def _metrics(self, request: Any) -> None:
        assert request.version == pynvml.NVML_GPM_METRICS_GET_VERSION
        newer = self.gpm_samples[-1][1]
        assert address(request.sample2) == address(newer) != address(request.sample1)
        for entry in list(request.metrics)[: request.numMetrics]:
            if entry.metricId in self.activity:
                entry.nvmlReturn = self.activity_codes.get(entry.metricId, 0)
                entry.value = self.activity[entry.metricId]


def address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


class Rig:
    """The sampler's GPUs on a stand-in, with a clock of its own."""

    def __init__(self, nvml: StandIn | None, reason: str = "", **options: Any) -> None:
        self.nvml = nvml
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.states_of_fields = States(append)
        self.gpus = Gpus(append, self.states_of_fields, nvml, reason, clock=lambda: self.now, **options)
        self.now = 1000 * SECOND_NS

    def sample(self, tier: str = "fast", seconds: float = 1) -> dict[str, list[dict[str, Any]]]:
        """Let time pass, sample one tier, and return the new rows by table."""
        self.now += int(seconds * SECOND_NS)
        begin = len(self.rows)
        getattr(self.gpus, tier).sample(self.now)
        return named(self.rows[begin:])

    def fast(self, seconds: float = 1) -> list[dict[str, Any]]:
        return self.sample("fast", seconds).get("gpu_samples", [])

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]

    def reason(self, field: str) -> str:
        """Of the newest row about a field."""
        return next(row[3] for table, row in reversed(self.rows) if table == "sampler_state" and row[1] == field)

    def table(self, name: str) -> list[dict[str, Any]]:
        return named(self.rows).get(name, [])


def named(rows: list[tuple[str, tuple[Any, ...]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by table, as mappings; a row that has not the table's columns fails."""
    found: dict[str, list[dict[str, Any]]] = {}
    for table, row in rows:
        names = [column.name for column in BY_NAME[table].columns]
        found.setdefault(table, []).append(dict(zip(names, row, strict=True)))
    return found


def gap(row: dict[str, Any]) -> bool:
    return all(row[name] is None for name in list(row)[2:])


def none_of(row: dict[str, Any]) -> set[str]:
    """Names of the columns that were not measured."""
    return {name for name, value in row.items() if value is None}
