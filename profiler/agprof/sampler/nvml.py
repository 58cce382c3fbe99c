"""The node's GPUs, through NVML. A field that can't be read is None with a reason, and never 0.

Where NVML goes away in mid-run (a container's cgroup was reloaded, the driver was replaced, a GPU fell off the bus)
rows of gaps are written and NVML is initialised again with a back-off.
"""

import ctypes
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from agprof.sampler.states import Append, Backoff, Probe, States, Verdict, describe

LIBRARY = "libnvidia-ml.so.1"
POWER_INSTANT_FIELD = 186
ENERGY_FIELD = 83
GA100_COMPUTE_CAPABILITY = (8, 0)
ULL_NOT_AVAILABLE = 2**64 - 1
UINT_NOT_AVAILABLE = 2**32 - 1

_UNSUPPORTED = {"NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_FUNCTION_NOT_FOUND", "NVML_ERROR_NO_PERMISSION",
                "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_ARGUMENT_VERSION_MISMATCH"}  # fmt: skip
_LIBRARY_LOST = {"NVML_ERROR_UNINITIALIZED", "NVML_ERROR_DRIVER_NOT_LOADED", "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
                 "NVML_ERROR_LIBRARY_NOT_FOUND"}  # fmt: skip
_DEVICE_LOST = {"NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNKNOWN"}
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

T = TypeVar("T")
Pids = Callable[[], Mapping[int, tuple[int | None, str]]]
"""pid -> (rank, "rank" | "child") of all processes that are known to belong to a rank: `RankTrees.pids`."""


class NoNvmlError(Exception):
    """NVML can't be used on this node; the message says why."""


class _LibraryLostError(Exception):
    pass


class _DeviceLostError(Exception):
    pass


def load_nvml() -> Any:
    """The module of nvidia-ml-py. Raises NoNvmlError where there is no NVML or the module is a foreign one."""
    try:
        # Before the import: the binding is a large module, and most nodes without a GPU have no library.
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoNvmlError(f"{LIBRARY} does not load: {error}") from None
    try:
        module = importlib.import_module("pynvml")
    except Exception as error:
        raise NoNvmlError(f"module pynvml can't be imported: {describe(error)}") from None
    if not hasattr(module, "_nvmlGetFunctionPointer"):
        # Packages called pynvml up to version 11 put a module of the same name in front of the official one.
        raise NoNvmlError(
            f"module pynvml at {getattr(module, '__file__', '?')} is not that of nvidia-ml-py: "
            "uninstall the package pynvml and install nvidia-ml-py again"
        )
    return module


class _Nothing:
    def sample(self, now_ns: int) -> int:
        return 0


class Gpus:
    """Appends rows of `gpus` when NVML is (re)initialised and one row of `gpu_samples` per GPU and call.

    `nvml` is the module, its stand-in, or None with `reason`.
    """

    def __init__(
        self,
        append: Append,
        states: States,
        nvml: Any,
        reason: str = "",
        *,
        pids: Pids = dict,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._append = append
        self._states = states
        self._nvml = nvml
        self._reason = reason
        self.call: tuple[str, int] | None = None
        """The NVML call that the GPU thread is in, and when it began (time.monotonic_ns); None between calls."""
        self.fast = self
        self.medium = _Nothing()
        self.slow = _Nothing()
        self._gpus: list[_Gpu] = []
        self._known: dict[int, tuple[Any, ...]] = {}
        self._running = False
        self._backoff = Backoff()

    def sample(self, now_ns: int) -> int:
        """Append rows. Returns 0: no part of the time spent is on a budget of its own."""
        if self._nvml is None:
            self._states.set(now_ns, "gpu", "unsupported", self._reason)
            return 0
        if not self._running and self._backoff.due(now_ns):
            self._initialise(now_ns)
        if not self._running:
            self._append_gaps(now_ns, self._gpus)
            return 0
        lost: list[str] = []
        for position, gpu in enumerate(self._gpus):
            try:
                self._append("gpu_samples", (now_ns, gpu.index, *gpu.read(now_ns)))
            except _DeviceLostError as error:
                lost.append(str(error))
                self._append_gaps(now_ns, [gpu])
            except _LibraryLostError as error:
                self._append_gaps(now_ns, self._gpus[position:])
                self._lose(now_ns, str(error))
                return 0
        if lost and len(lost) == len(self._gpus):
            # All at once is not the devices' fault.
            self._lose(now_ns, lost[0])
        return 0

    def close(self) -> None:
        """Shut NVML down where it runs."""
        if self._running:
            self._running = False
            self._shutdown()

    def _initialise(self, now_ns: int) -> None:
        nvml = self._nvml
        begun = False
        try:
            nvml.nvmlInit()
            begun = True
            driver = _text(_try(nvml, nvml.nvmlSystemGetDriverVersion))
            gpus = [
                _Gpu(nvml, self._states, index, lambda row: self._identify((*row, driver)))
                for index in range(nvml.nvmlDeviceGetCount())
            ]
        except Exception as error:
            if begun:
                self._shutdown()
            self._backoff.failed(now_ns)
            self._states.set(now_ns, "gpu", "retry", f"NVML can't be initialised: {describe(error)}")
            return
        self._gpus = gpus
        self._running = True
        self._states.set(now_ns, "gpu", "ok")

    def _identify(self, row: tuple[Any, ...]) -> None:
        if self._known.get(row[0]) != row:
            self._known[row[0]] = row
            self._append("gpus", row)

    def _lose(self, now_ns: int, reason: str) -> None:
        self._running = False
        self._shutdown()
        self._backoff.failed(now_ns)
        self._states.set(now_ns, "gpu", "retry", f"NVML was lost: {reason}")

    def _shutdown(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except Exception:  # it may be gone already, and there is nothing left to shut down then
            pass

    def _append_gaps(self, now_ns: int, gpus: "list[_Gpu]") -> None:
        for gpu in gpus:
            self._append("gpu_samples", (now_ns, gpu.index, *(None,) * 10))


class _Gpu:
    """One device: its handle, and a probe per field."""

    def __init__(self, nvml: Any, states: States, index: int, identify: Callable[[tuple[Any, ...]], None]) -> None:
        self.index = index
        self._identify = identify
        self._nvml = nvml
        self._states = states
        self._probes: dict[str, Probe] = {}
        self._device = Backoff()
        self._handle: Any = None
        self._usage_kind: str | None = None

    def _open(self) -> None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(self.index)
            self._usage_kind = self._kind_of_power_usage(handle)
            self._identify(self._identity(handle))
        except Exception as error:
            self._judge(error)
            raise _DeviceLostError(f"no handle: {describe(error)}") from None
        self._handle = handle

    def _identity(self, handle: Any) -> tuple[Any, ...]:
        """The columns of `gpus` but the last."""
        nvml = self._nvml
        pci = _try(nvml, lambda: nvml.nvmlDeviceGetPciInfo(handle))
        return (
            self.index,
            _text(_try(nvml, lambda: nvml.nvmlDeviceGetUUID(handle))),
            None if pci is None else _text(pci.busId),
            _text(_try(nvml, lambda: nvml.nvmlDeviceGetName(handle))),
            _try(nvml, lambda: self._memory(handle, "total")),
            _try(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle)),
        )

    def read(self, now_ns: int) -> tuple[Any, ...]:
        """The columns of `gpu_samples` behind `gpu`. Raises _DeviceLostError or _LibraryLostError."""
        if not self._device.due(now_ns):
            raise _DeviceLostError("waiting before the next try")
        try:
            if self._handle is None:
                self._open()
            values = self._read(now_ns)
        except _DeviceLostError as error:
            self._handle = None
            self._device.failed(now_ns)
            self._states.set(now_ns, f"gpu.{self.index}", "retry", str(error))
            raise
        self._device.succeeded()
        self._states.set(now_ns, f"gpu.{self.index}", "ok")
        return values

    def _read(self, now_ns: int) -> tuple[Any, ...]:
        nvml, handle = self._nvml, self._handle
        use = self._probe(now_ns, "utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._probe(now_ns, "memory", lambda: self._memory(handle, "used"))
        # One call for both; each value has a return code of its own.
        fields = self._probe(now_ns, "fields", self._fields) or {}
        power_mw = fields.get(POWER_INSTANT_FIELD)
        power_kind: str | None = "instant"
        if power_mw is None:
            power_mw = self._probe(now_ns, "power", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
            power_kind = self._usage_kind
        energy = fields.get(ENERGY_FIELD)
        if energy is None:
            energy = self._probe(now_ns, "energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return (
            None if use is None else use.gpu / 100,
            None if use is None else use.memory / 100,
            memory,
            power_mw,
            None if power_mw is None else power_kind,
            energy,
            self._probe(now_ns, "sm_clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            self._probe(now_ns, "memory_clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            self._probe(now_ns, "temperature", self._temperature),
            self._probe(now_ns, "clock_event_reasons", self._reasons),
        )

    def _probe(self, now_ns: int, name: str, function: Callable[[], T]) -> T | None:
        probe = self._probes.get(name)
        if probe is None:
            probe = self._probes[name] = Probe(self._states, f"gpu.{self.index}.{name}", self._judge)
        return probe.read(now_ns, function)

    def _judge(self, error: Exception) -> Verdict:
        code = _code(self._nvml, error)
        if code in _LIBRARY_LOST:
            raise _LibraryLostError(describe(error)) from None
        if code in _DEVICE_LOST:
            raise _DeviceLostError(describe(error)) from None
        return "unsupported" if code in _UNSUPPORTED else "retry"

    def _fields(self) -> dict[int, int]:
        wanted = (POWER_INSTANT_FIELD, ENERGY_FIELD)
        values = self._nvml.nvmlDeviceGetFieldValues(self._handle, [(field, 0) for field in wanted])
        found = {}
        for field, value in zip(wanted, values, strict=True):
            if value.nvmlReturn == 0 and 0 <= value.valueType < len(_VALUE_MEMBERS):
                number = int(getattr(value.value, _VALUE_MEMBERS[value.valueType]))
                if number not in (UINT_NOT_AVAILABLE, ULL_NOT_AVAILABLE):
                    found[field] = number
        return found

    def _memory(self, handle: Any, name: str) -> int | None:
        # Version 2 only: in version 1 `used` holds the driver's reserve too, and that is another quantity.
        info = self._nvml.nvmlDeviceGetMemoryInfo(handle, version=self._nvml.nvmlMemory_v2)
        value = int(getattr(info, name))
        return None if value == ULL_NOT_AVAILABLE else value

    def _temperature(self) -> int:
        nvml = self._nvml
        return int(
            self._first(
                lambda: nvml.nvmlDeviceGetTemperatureV(self._handle, nvml.NVML_TEMPERATURE_GPU),
                lambda: nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU),
            )
        )

    def _reasons(self) -> int:
        nvml = self._nvml
        return int(
            self._first(
                lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle),
                lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle),
            )
        )

    def _first(self, new: Callable[[], Any], old: Callable[[], Any]) -> Any:
        """The call of today's drivers, or the older one where the driver or the binding lacks it."""
        try:
            return new()
        except Exception as error:
            if not isinstance(error, AttributeError) and _code(self._nvml, error) not in _UNSUPPORTED:
                raise
            return old()

    def _kind_of_power_usage(self, handle: Any) -> str | None:
        """What nvmlDeviceGetPowerUsage means: an instant up to GA100, an average over 1 s on what came after."""
        capability = _try(self._nvml, lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(handle))
        if capability is None:
            return None
        return "instant" if tuple(capability) <= GA100_COMPUTE_CAPABILITY else "average_1s"


def _code(nvml: Any, error: Exception) -> str | None:
    """Name of the NVML return code behind an exception of the binding."""
    if not isinstance(error, nvml.NVMLError):
        return "NVML_ERROR_FUNCTION_NOT_FOUND" if isinstance(error, AttributeError) else None
    value = getattr(error, "value", None)
    names = _UNSUPPORTED | _LIBRARY_LOST | _DEVICE_LOST
    return next((name for name in names if getattr(nvml, name, None) == value), None)


def _try(nvml: Any, function: Callable[[], T]) -> T | None:
    """The value, or None where this device or driver has no such value. A lost device or library raises."""
    try:
        return function()
    except Exception as error:
        if _code(nvml, error) in _LIBRARY_LOST | _DEVICE_LOST:
            raise
        return None


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
