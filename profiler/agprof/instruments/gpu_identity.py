"""Which GPU the rank computes on, told so that it can be found again among those that NVML lists.

NVML numbers all GPUs of the node and knows nothing of CUDA_VISIBLE_DEVICES; CUDA numbers those that the process may
see, in an order of its own. UUID and PCI address mean the same to both.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from agprof.instruments.recorder import Recorder

LONGEST_LIST = 4096
"""Characters of CUDA_VISIBLE_DEVICES; a cut list would name other GPUs, so a longer one is not recorded at all."""


def record_visible_devices(recorder: Recorder) -> None:
    """The variables by which CUDA chooses and orders devices, as they are now; None: not set.

    Recorded when torch is imported and again at the first forward: CUDA read them somewhere between, and where they
    differ nobody knows which it read.
    """
    for key, variable in (("cuda_visible_devices", "CUDA_VISIBLE_DEVICES"), ("cuda_device_order", "CUDA_DEVICE_ORDER")):
        value = os.environ.get(variable)
        if value is None or len(value) <= LONGEST_LIST:
            recorder.fact(key, value)
    if _has_mps():
        recorder.fact("cuda_mps", True)


def _has_mps() -> bool:
    """Whether CUDA's multi-process service may number the devices: by its variables, or its pipes' default folder."""
    named = any(name.startswith("CUDA_MPS_") for name in os.environ)
    return named or (Path(tempfile.gettempdir()) / "nvidia-mps").is_dir()


def record_gpu(recorder: Recorder, torch: Any, module: Any) -> None:
    """UUID, PCI address and CUDA's numbers of the device that holds `module`. Only once CUDA is initialised."""
    indices = _indices(torch, module)
    index = indices[0]
    properties = torch.cuda.get_device_properties(index)
    recorder.fact("device.name", properties.name)
    recorder.fact("device.index", index)
    if len(indices) > 1:
        recorder.fact("device.indices", indices)
    recorder.fact("device.uuid", str(getattr(properties, "uuid", "")))
    recorder.fact("device.pci_bus_id", _pci_bus_id(properties))
    recorder.fact("device.memory_total_bytes", int(properties.total_memory))
    # Not torch.cuda.device_count(): it may load NVML into the rank.
    count = getattr(torch._C, "_cuda_getDeviceCount", None)
    if count is not None:
        recorder.fact("device.count", int(count()))


def _indices(torch: Any, module: Any) -> list[int]:
    """CUDA's numbers of the devices that hold the module's parameters; where none does, of the current device."""
    found = {parameter.device.index for parameter in module.parameters() if parameter.device.type == "cuda"}
    return sorted(index for index in found if index is not None) or [int(torch.cuda.current_device())]


def _pci_bus_id(properties: Any) -> str | None:
    """`00000000:1B:00.0`, as NVML writes it; None where this torch does not tell it."""
    parts = [getattr(properties, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
    if not all(isinstance(part, int) for part in parts):
        return None
    domain, bus, device = parts
    return f"{domain:08X}:{bus:02X}:{device:02X}.0"
