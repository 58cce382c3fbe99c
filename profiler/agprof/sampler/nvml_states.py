"""Rows of `gpu_states`: memory, temperatures and the power limit of one GPU or MIG instance."""

from typing import Any

from agprof.sampler.nvml_device import Device
from agprof.sampler.nvml_fields import Field, Fields

MEMORY_TEMPERATURE = 82
NOT_AVAILABLE = 2**64 - 1


class SlowStates:
    """Reads one device's row."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory_temperature = Field(MEMORY_TEMPERATURE)
        self._fields = Fields(device.nvml, device.handle, [self._memory_temperature], device.judge)

    def read(self, now_ns: int) -> tuple[Any, ...]:
        """The columns behind `gpu`. Raises DeviceLostError and LibraryLostError."""
        device, handle, module = self._device, self._device.handle, self._device.nvml.module
        # Version 2 only: in version 1 `used` holds the driver's reserve too, and that is another quantity.
        version = module.nvmlMemory_v2
        memory = device.probe(now_ns, "memory", "nvmlDeviceGetMemoryInfo", handle, version=version)
        told = (None, None, None) if memory is None else (memory.used, memory.reserved, memory.total)
        amounts = tuple(None if amount == NOT_AVAILABLE else amount for amount in told)
        if device.parent is not None:
            # Heat and power are those of the whole GPU.
            return (*amounts, None, None, None)
        return (
            *amounts,
            device.read(now_ns, "temperature", self._temperature),
            self._read_memory_temperature(now_ns),
            device.probe(now_ns, "power_limit", "nvmlDeviceGetEnforcedPowerLimit", handle),
        )

    def _temperature(self) -> int:
        nvml = self._device.nvml
        new, old = "nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"
        return int(nvml.either(new, old, self._device.handle, nvml.module.NVML_TEMPERATURE_GPU))

    def _read_memory_temperature(self, now_ns: int) -> int | None:
        field = self._memory_temperature
        self._fields.read(now_ns)
        if field.value == 0:
            # What GPUs whose memory has no sensor answer, besides "not supported".
            field.fail(now_ns, "unsupported", "0 degrees: the memory has no sensor")
        self._device.say(now_ns, "memory_temperature", [field])
        return field.value
