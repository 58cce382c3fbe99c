"""Rows of `gpu_health`: memory errors of one GPU.

ECC errors are the volatile counts, since the driver was loaded: the aggregate ones are of the GPU's whole life, and no
error of this run could be told from one years ago. Rows of memory that were replaced stay so: they count from the
making of the GPU.
"""

from typing import Any

from agprof.sampler.nvml_device import Device


class Health:
    """Reads one GPU's row."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def read(self, now_ns: int) -> tuple[Any, ...]:
        """The columns behind `gpu`. Raises DeviceLostError and LibraryLostError."""
        device, handle, module = self._device, self._device.handle, self._device.nvml.module
        call, volatile = "nvmlDeviceGetTotalEccErrors", module.NVML_VOLATILE_ECC
        corrected, uncorrected = module.NVML_MEMORY_ERROR_TYPE_CORRECTED, module.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        rows = device.probe(now_ns, "remapped_rows", "nvmlDeviceGetRemappedRows", handle)
        replaced = (None, None, None, None) if rows is None else (rows[0], rows[1], bool(rows[2]), bool(rows[3]))
        return (
            device.probe(now_ns, "ecc_corrected", call, handle, corrected, volatile),
            device.probe(now_ns, "ecc_uncorrected", call, handle, uncorrected, volatile),
            *replaced,
        )
