"""Rows of `gpu_activity`: what the units of one GPU or MIG instance did, by NVML's GPM counters (Hopper and later).

A metric is the mean between two samples of all counters, at least 100 ms apart. The two buffers of a device are used in
turn and freed at the end.
"""

import math
from typing import Any

from agprof.sampler.nvml_device import Device
from agprof.sampler.states import State

SHORTEST_NS = 100_000_000
SUCCESS = 0
PERCENT_METRICS = (2, 3, 5, 10, 11, 12, 13)
"""SM, occupancy, tensor, DRAM, fp64, fp32, fp16: percent, in the order of the columns."""
RATE_METRICS = (20, 21)
"""PCIe sent and received: MiB/s."""
NAMES = dict(
    zip(
        (*PERCENT_METRICS, *RATE_METRICS),
        ("sm", "occupancy", "tensor", "dram", "fp64", "fp32", "fp16", "pcie_sent", "pcie_received"),
        strict=True,
    )
)
"""As fields of `sampler_state`: gpu.0.activity.tensor."""
MIB = 1024**2
MOST_PERCENT = 105
"""A mean may come out a little over 100; more than this is no measurement."""
FIELD = "activity"


class Activity:
    """Reads one device's row."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: list[Any] = []
        self._last_ns: int | None = None
        self._supported: bool | None = None
        self._request: Any = None
        self._entries: list[Any] = []

    def read(self, now_ns: int) -> tuple[Any, ...] | None:
        """The whole row, or None where there is none. Raises DeviceLostError and LibraryLostError."""
        if self._last_ns is not None and now_ns - self._last_ns < SHORTEST_NS:
            return None
        if self._supported is None:
            self._supported = self._ask_support(now_ns)
        if not self._supported:
            return None
        device = self._device
        if not device.read(now_ns, FIELD, self._sample):
            self._last_ns = None
            return None
        last_ns, self._last_ns = self._last_ns, now_ns
        if last_ns is None:
            return None
        answers = device.read(now_ns, f"{FIELD}.metrics", self._metrics)
        if answers is None:
            return None
        values = {metric: value for metric, (code, value) in answers.items() if code == SUCCESS}
        ratios = [ratio(values.get(metric)) for metric in PERCENT_METRICS]
        # A MIG instance has no link of its own.
        rates = [None if device.parent is not None else rate(values.get(metric)) for metric in RATE_METRICS]
        self._say(now_ns, answers, dict(zip(NAMES, (*ratios, *rates), strict=True)))
        return (now_ns, now_ns - last_ns, device.index, *ratios, *rates)

    def close(self) -> None:
        """Give the buffers back."""
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            try:
                self._device.nvml("nvmlGpmSampleFree", buffer)
            except Exception:  # the library is gone, and its memory with it
                return

    def _ask_support(self, now_ns: int) -> bool | None:
        device = self._device
        handle = device.handle if device.parent is None else device.parent
        try:
            support = device.nvml("nvmlGpmQueryDeviceSupport", handle)
        except Exception as error:
            reason = device.nvml.explain(error)
            verdict = device.judge(error)
            device.states.set(now_ns, f"gpu.{device.index}.{FIELD}", verdict, reason)
            return False if verdict == "unsupported" else None
        if support.isSupportedDevice:
            return True
        reason = "this GPU has no GPM counters (Hopper and later have)"
        device.states.set(now_ns, f"gpu.{device.index}.{FIELD}", "unsupported", reason)
        return False

    def _sample(self) -> bool:
        """Fill the older buffer; the buffers are in the order of their age then."""
        device = self._device
        while len(self._buffers) < 2:
            self._buffers.append(device.nvml("nvmlGpmSampleAlloc"))
        if device.parent is None:
            device.nvml("nvmlGpmSampleGet", device.handle, self._buffers[0])
        else:
            device.nvml("nvmlGpmMigSampleGet", device.parent, device.instance, self._buffers[0])
        self._buffers.reverse()
        return True

    def _say(self, now_ns: int, answers: dict[int, tuple[int, float]], shown: dict[int, float | None]) -> None:
        """The state of each metric. Raises DeviceLostError and LibraryLostError."""
        device = self._device
        for metric, name in NAMES.items():
            if metric in RATE_METRICS and device.parent is not None:
                continue
            code, value = answers[metric]
            state: State = "ok"
            reason = ""
            if code != SUCCESS:
                state, meaning = device.nvml.judge_value(code)
                reason = f"GPM metric {metric}: {meaning}"
            elif shown[metric] is None:
                state, reason = "retry", f"the driver gives {value:g}, which is no measurement"
            device.states.set(now_ns, f"gpu.{device.index}.{FIELD}.{name}", state, reason)

    def _metrics(self) -> dict[int, tuple[int, float]]:
        """Return code and value of each metric."""
        nvml = self._device.nvml
        if self._request is None:
            self._request = nvml.module.c_nvmlGpmMetricsGet_t()
            self._request.version = nvml.module.NVML_GPM_METRICS_GET_VERSION
            self._request.numMetrics = len(NAMES)
            # These stay views of the request's memory.
            self._entries = [self._request.metrics[index] for index in range(len(NAMES))]
        for entry, metric in zip(self._entries, NAMES, strict=True):
            # A metric that the driver passes over has failed; it is not the one before.
            entry.metricId, entry.nvmlReturn = metric, nvml.module.NVML_ERROR_UNKNOWN
        self._request.sample1, self._request.sample2 = self._buffers
        nvml("nvmlGpmMetricsGet", self._request)
        return {entry.metricId: (int(entry.nvmlReturn), entry.value) for entry in self._entries}


def ratio(percent: float | None) -> float | None:
    """A share of 1 from percent; None for what is none."""
    if percent is None or not 0 <= percent <= MOST_PERCENT:
        return None
    return min(percent / 100, 1.0)


def rate(mib_per_s: float | None) -> float | None:
    """Bytes per second from MiB/s; None for what is none."""
    return mib_per_s * MIB if mib_per_s is not None and 0 <= mib_per_s < math.inf else None
