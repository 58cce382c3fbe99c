"""Rows of `gpu_samples`: power, energy, clocks, utilization and traffic of one GPU."""

from typing import Any

from agprof.sampler.nvml_device import Device, Nature
from agprof.sampler.nvml_direct import clock, event_reasons, utilization
from agprof.sampler.nvml_fields import Field, Fields
from agprof.sampler.nvml_traffic import links_of, throttling

POWER_AVERAGE, POWER_INSTANT, ENERGY = 185, 186, 83
AVERAGE_PERIOD_NS = 900_000_000
"""The averaged power is of 1 s, and reading it costs milliseconds on some drivers, a thousand times the instant's."""
GA100 = (8, 0)


class Samples:
    """Reads one GPU's row."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._power = Field(POWER_INSTANT)
        self._average = Field(POWER_AVERAGE, period_ns=AVERAGE_PERIOD_NS)
        self._energy = Field(ENERGY)
        module = device.nvml.module
        self._use = utilization(device)
        self._sm_clock = clock(device, "sm_clock", module.NVML_CLOCK_SM)
        self._memory_clock = clock(device, "memory_clock", module.NVML_CLOCK_MEM)
        self._reasons = event_reasons(device)
        self._links = links_of(device.nature)
        self._throttled = throttling()
        fields = [self._power, self._average, self._energy, *(link.field for link in self._links)]
        for throttled in self._throttled:
            fields += throttled.fields
        self._fields = Fields(device.nvml, device.handle, fields, device.judge)

    def read(self, now_ns: int) -> tuple[Any, ...]:
        """The columns behind `gpu`. Raises DeviceLostError and LibraryLostError."""
        device = self._device
        busy, memory_busy = self._use.read(now_ns) or (None, None)
        self._fields.read(now_ns)
        # A tick's time is that of all GPUs, but the last of eight is read a little later, and not always by as much.
        read_ns = device.nvml.now_ns()
        power_mw, power_kind = self._read_power(now_ns)
        device.say(now_ns, "power_average", [self._average])
        return (
            busy,
            memory_busy,
            None,
            power_mw,
            power_kind,
            self._read_energy(now_ns),
            self._sm_clock.read(now_ns),
            self._memory_clock.read(now_ns),
            None,
            self._reasons.read(now_ns),
            self._average.value,
            *[link.rate(read_ns, device, self._fields) for link in self._links],
            *[throttled.change_ns(read_ns, device) for throttled in self._throttled],
        )

    def _read_power(self, now_ns: int) -> tuple[int | None, str | None]:
        if self._power.value is not None:
            return self._power.value, "instant"
        device = self._device
        power_mw = device.probe(now_ns, "power", "nvmlDeviceGetPowerUsage", device.handle)
        return power_mw, None if power_mw is None else kind_of_power_usage(device.nature)

    def _read_energy(self, now_ns: int) -> int | None:
        if self._energy.value is not None:
            return self._energy.value
        device = self._device
        value: int | None = device.probe(now_ns, "energy", "nvmlDeviceGetTotalEnergyConsumption", device.handle)
        return value


def kind_of_power_usage(nature: Nature) -> str | None:
    """What nvmlDeviceGetPowerUsage means: an instant up to GA100, an average over 1 s on what came after."""
    if nature.capability is None:
        return None
    return "instant" if nature.capability <= GA100 else "average_1s"
