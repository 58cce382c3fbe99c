"""One value of one GPU by the driver's C function itself, for what is asked five times a second.

The binding's own function looks the C function up, makes the memory for the answer and checks the code at each call;
here the first two are done once. Where the binding is not what it was (no C function behind a name) its own is called.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from agprof.sampler.nvml_device import Device

SUCCESS = 0


class Direct:
    """`name` is the value's in `sampler_state`, `slow` the same reading by the binding's own function."""

    __slots__ = ("_arguments", "_call", "_device", "_function", "_name", "_of", "_other", "_out", "_read")

    def __init__(
        self,
        device: Device,
        name: str,
        call: str,
        arguments: tuple[Any, ...],
        out: Any,
        of: Callable[[Any], Any],
        slow: Callable[[], Any],
        other: Callable[[], Any] | None = None,
    ) -> None:
        """The C function takes the handle, `arguments` and the address of `out`; `of` makes the value of `out`.

        `other` is read when the C function fails.
        """
        self._device = device
        self._name = name
        self._call = call
        self._out = out
        self._other = other
        self._of = of
        self._function = _c_function(device, call)
        self._arguments = (device.handle, *arguments, ctypes.byref(out))
        self._read = slow if self._function is None else self._read_directly

    def read(self, now_ns: int) -> Any:
        """The value, or None with the reason in `sampler_state`. Raises DeviceLostError and LibraryLostError."""
        return self._device.read(now_ns, self._name, self._read)

    def _read_directly(self) -> Any:
        nvml = self._device.nvml
        code = nvml.run(self._call, self._function, *self._arguments)
        if code != SUCCESS and self._other is not None:
            return self._other()
        if code != SUCCESS:
            raise nvml.failure(self._call, code)
        return self._of(self._out)


def _c_function(device: Device, call: str) -> Any:
    try:
        function = device.nvml.pointer(call)
    except Exception:
        return None
    return function if isinstance(function, ctypes._CFuncPtr) else None  # type: ignore[attr-defined]


def utilization(device: Device) -> Direct:
    """(share of time with a kernel, share of time with memory traffic)."""
    call, nvml = "nvmlDeviceGetUtilizationRates", device.nvml

    def ratios(use: Any) -> tuple[float, float]:
        return use.gpu / 100, use.memory / 100

    out = (ctypes.c_uint * 2)()
    return Direct(
        device,
        "utilization",
        call,
        (),
        out,
        lambda both: (both[0] / 100, both[1] / 100),
        lambda: ratios(nvml(call, device.handle)),
    )


def clock(device: Device, name: str, kind: int) -> Direct:
    """MHz of the SMs or of the memory. `kind`: NVML_CLOCK_..."""
    call, nvml, out = "nvmlDeviceGetClockInfo", device.nvml, ctypes.c_uint()
    arguments = (ctypes.c_uint(kind),)
    return Direct(device, name, call, arguments, out, _value_of, lambda: nvml(call, device.handle, kind))


def event_reasons(device: Device) -> Direct:
    """Why the clocks are what they are, as bits; by the older name where the driver has no other."""
    new, old = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
    nvml, out = device.nvml, ctypes.c_ulonglong()

    def either() -> int:
        return int(nvml.either(new, old, device.handle))

    call = new if _c_function(device, new) is not None else old
    return Direct(device, "clock_event_reasons", call, (), out, _value_of, either, other=either)


def _value_of(out: Any) -> int:
    return int(out.value)
