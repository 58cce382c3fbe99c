"""Rows of `gpus`: what each GPU is, and the MIG instances that it is split into."""

import re
from pathlib import Path
from typing import Any

from agprof.sampler.nvml_calls import Nvml, text
from agprof.sampler.nvml_device import Nature
from agprof.sampler.nvml_errors import UNKNOWN, UNSUPPORTED
from agprof.sampler.nvml_states import NOT_AVAILABLE

ARCHITECTURES = {
    2: "kepler", 3: "maxwell", 4: "pascal", 5: "volta", 6: "turing", 7: "ampere", 8: "ada", 9: "hopper",
    10: "blackwell", 13: "rubin",
}  # fmt: skip
"""Names of NVML_DEVICE_ARCH_..."""
MIG_STRIDE = 1000
_BUS_ID = re.compile(r"(?:[0-9a-f]{4})?([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f])", re.ASCII)


def mig_index(gpu: int, slot: int) -> int:
    """Number of a MIG instance: far from those of whole GPUs, and the same as long as the GPU is split the same way.

    >>> mig_index(0, 0), mig_index(2, 5)
    (1000, 3005)
    """
    return MIG_STRIDE * (gpu + 1) + slot


def nature(nvml: Nvml, handle: Any) -> Nature:
    """What decides how this GPU is read. Raises DeviceLostError and LibraryLostError."""
    capability = nvml.optional("nvmlDeviceGetCudaComputeCapability", handle)
    generation = nvml.optional("nvmlDeviceGetMaxPcieLinkGeneration", handle)
    lanes = nvml.optional("nvmlDeviceGetMaxPcieLinkWidth", handle)
    return Nature(
        architecture=nvml.optional("nvmlDeviceGetArchitecture", handle),
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
        pcie=(generation, lanes) if generation and lanes else None,
    )


def mig_mode(nvml: Nvml, handle: Any) -> bool | None:
    """Whether the GPU is split into MIG instances now; None for one that can't be."""
    modes = nvml.optional("nvmlDeviceGetMigMode", handle)
    return None if modes is None else modes[0] == nvml.module.NVML_DEVICE_MIG_ENABLE


def describe_gpu(
    nvml: Nvml, index: int, handle: Any, nature: Nature, mig: bool | None, driver: str | None, sysfs: Path
) -> tuple[Any, ...]:
    """The row of a whole GPU. Raises DeviceLostError and LibraryLostError."""
    module = nvml.module
    pci = nvml.optional("nvmlDeviceGetPciInfo", handle)
    bus_id = None if pci is None else text(pci.busId)
    return (
        index,
        text(nvml.optional("nvmlDeviceGetUUID", handle)),
        bus_id,
        text(nvml.optional("nvmlDeviceGetName", handle)),
        _memory_total(nvml, handle),
        nvml.optional("nvmlDeviceGetEnforcedPowerLimit", handle),
        driver,
        None if nature.architecture is None else ARCHITECTURES.get(nature.architecture),
        _capability(nature),
        None,
        mig,
        nvml.optional("nvmlDeviceGetPowerManagementDefaultLimit", handle),
        nvml.optional("nvmlDeviceGetMaxClockInfo", handle, module.NVML_CLOCK_SM),
        nvml.optional("nvmlDeviceGetMaxClockInfo", handle, module.NVML_CLOCK_MEM),
        _links_up(nvml, handle),
        None if nature.pcie is None else f"gen {nature.pcie[0]} x{nature.pcie[1]}",
        numa_node(bus_id, sysfs),
    )


def describe_mig(
    nvml: Nvml, index: int, handle: Any, parent: int, nature: Nature, driver: str | None
) -> tuple[Any, ...]:
    """The row of a MIG instance: what is the whole GPU's is left to the GPU's row."""
    return (
        index,
        text(nvml.optional("nvmlDeviceGetUUID", handle)),
        None,
        text(nvml.optional("nvmlDeviceGetName", handle)),
        _memory_total(nvml, handle),
        None,
        driver,
        None if nature.architecture is None else ARCHITECTURES.get(nature.architecture),
        _capability(nature),
        parent,
        None,
        *(None,) * 6,
    )


def numa_node(bus_id: str | None, sysfs: Path) -> int | None:
    """The host's NUMA node of a PCI device. (NVML's own call is about GPUs that are nodes themselves.)"""
    match = None if bus_id is None else _BUS_ID.fullmatch(bus_id.lower())
    if match is None:
        return None
    try:
        node = int((sysfs / "bus/pci/devices" / match[1] / "numa_node").read_text("ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _memory_total(nvml: Nvml, handle: Any) -> int | None:
    memory = nvml.optional("nvmlDeviceGetMemoryInfo", handle, version=nvml.module.nvmlMemory_v2)
    return None if memory is None or memory.total == NOT_AVAILABLE else memory.total


def _capability(nature: Nature) -> str | None:
    return None if nature.capability is None else f"{nature.capability[0]}.{nature.capability[1]}"


def _links_up(nvml: Nvml, handle: Any) -> int | None:
    """Links that are up; None for a GPU without any, and where some could not be asked.

    A number that the GPU has no link for is an invalid argument or not supported, and so are all above it: one that
    fails below one that answers would make the count wrong.
    """
    answers: list[bool | None] = []
    for link in range(nvml.module.NVML_NVLINK_MAX_LINKS):
        try:
            answers.append(bool(nvml("nvmlDeviceGetNvLinkState", handle, link)))
        except Exception as error:
            code = nvml.codes.of(error)
            if code not in UNSUPPORTED:
                if code != UNKNOWN:
                    nvml.judge(error)
                nvml.doubt = nvml.explain(error)
                return None
            answers.append(None)
    links = [answer for answer in answers if answer is not None]
    return sum(links) if links and None not in answers[: len(links)] else None
