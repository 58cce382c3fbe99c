"""CUDA_VISIBLE_DEVICES as the CUDA driver reads it: which of a node's GPUs a process sees, and in which order.

Rules from the CUDA programming guide (appendix on environment variables) and from torch.cuda's own reader, which does
the same on top of NVML: an entry that names no GPU ends the list; one that comes twice makes the list empty; UUIDs may
be cut short as long as one GPU alone begins so. What neither says is not guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_INDEX = re.compile(r"[+-]?[0-9]{1,9}")
_PCI = re.compile(r"(?:([0-9a-fA-F]{4}|[0-9a-fA-F]{8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-9a-fA-F]))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpu:
    """One row of the table `gpus`."""

    gpu: int
    uuid: str | None
    pci: tuple[int, int, int] | None
    """Domain, bus, device."""
    name: str | None
    memory_total_bytes: int | None
    mig_parent: int | None
    """Set: a MIG instance of that GPU."""
    mig_enabled: bool

    @property
    def is_whole(self) -> bool:
        """A GPU that a process can have for itself: neither a MIG instance nor split into such."""
        return self.mig_parent is None and not self.mig_enabled


class UnclearError(Exception):
    """What a process sees can't be told for certain; the message says why."""


def pci_address(text: str | None) -> tuple[int, int, int] | None:
    """Domain, bus, device of a PCI bus id, with four or eight digits of domain, or none; None: it is no such id.

    >>> pci_address("0000:1b:00.0") == pci_address("00000000:1B:00.0") == (0, 27, 0)
    True
    """
    match = _PCI.fullmatch(text.strip()) if text else None
    if match is None:
        return None
    domain, bus, device, _ = match.groups()
    return int(domain or "0", 16), int(bus, 16), int(device, 16)


def bare_uuid(text: str | None) -> str | None:
    """Lower-case hexadecimal digits of a UUID, without the prefix that NVML puts in front; None: it is no UUID.

    >>> bare_uuid("GPU-8932F937-d72c-4106-c12f-20bd9faed9f6") == bare_uuid("8932f937-d72c-4106-c12f-20bd9faed9f6")
    True
    """
    text = (text or "").strip().lower()
    bare = text.removeprefix("gpu-").removeprefix("mig-").replace("-", "")
    return bare if re.fullmatch(r"[0-9a-f]{32}", bare) and bare.strip("0") else None


def visible(gpus: Sequence[NodeGpu], devices: str | None, order: str | None) -> list[NodeGpu]:
    """What a process with these two variables sees, in CUDA's order; `devices` None: not set.

    Raises UnclearError.
    """
    if devices is not None and not devices.strip():
        return []
    if devices is None:
        return _in_cuda_order(gpus, order)
    entries = [entry.strip() for entry in devices.split(",")]
    if entries[0].lower().startswith(("gpu-", "mig-")):
        return _by_name(gpus, entries)
    return _by_index(gpus, entries, order)


def _by_name(gpus: Sequence[NodeGpu], entries: Sequence[str]) -> list[NodeGpu]:
    """Entries that are UUIDs, or their beginnings, of one kind only: GPU- or MIG-."""
    kind = entries[0][:4].lower()
    found: list[NodeGpu] = []
    for entry in entries:
        if _INDEX.fullmatch(entry) or (entry[:4].lower() in ("gpu-", "mig-") and entry[:4].lower() != kind):
            raise UnclearError("CUDA_VISIBLE_DEVICES mixes indices, GPUs and MIG instances")
        gpu = _begins_with(gpus, entry, is_mig=kind == "mig-")
        if gpu is None:
            break
        if gpu in found:
            return []
        found.append(gpu)
    return found


def _begins_with(gpus: Sequence[NodeGpu], entry: str, *, is_mig: bool) -> NodeGpu | None:
    """The one GPU or MIG instance whose UUID begins so; None: there is none, or more than one."""
    kind = [gpu for gpu in gpus if (gpu.mig_parent is not None) == is_mig]
    if is_mig and not kind:
        raise UnclearError("CUDA_VISIBLE_DEVICES names a MIG instance, and NVML listed none")
    if any(gpu.uuid is None for gpu in kind):
        raise UnclearError("CUDA_VISIBLE_DEVICES names UUIDs, and NVML did not tell those of all GPUs")
    matches = [gpu for gpu in kind if (gpu.uuid or "").lower().startswith(entry.lower())]
    if len(matches) != 1:
        return None
    if matches[0].mig_enabled:
        raise UnclearError("CUDA_VISIBLE_DEVICES names a GPU that is split into MIG instances")
    return matches[0]


def _by_index(gpus: Sequence[NodeGpu], entries: Sequence[str], order: str | None) -> list[NodeGpu]:
    ordered = _in_cuda_order(gpus, order)
    found: list[NodeGpu] = []
    for entry in entries:
        if not _INDEX.fullmatch(entry):
            raise UnclearError(f"CUDA_VISIBLE_DEVICES has the entry {entry[:40]!r}, whose meaning is not documented")
        index = int(entry)
        if not 0 <= index < len(ordered):
            break
        if ordered[index] in found:
            return []
        found.append(ordered[index])
    return found


def _in_cuda_order(gpus: Sequence[NodeGpu], order: str | None) -> list[NodeGpu]:
    """All GPUs as CUDA numbers them. FASTEST_FIRST, its default, can be told for like GPUs only."""
    if any(not gpu.is_whole for gpu in gpus):
        raise UnclearError("the node has MIG instances, which CUDA does not number as NVML does")
    if len(gpus) <= 1:
        return list(gpus)
    if any(gpu.pci is None for gpu in gpus):
        raise UnclearError("NVML did not tell the PCI addresses by which CUDA orders GPUs")
    order = (order or "FASTEST_FIRST").strip().upper()
    if order not in ("FASTEST_FIRST", "PCI_BUS_ID"):
        raise UnclearError(f"CUDA_DEVICE_ORDER is {order[:40]!r}, whose meaning is not documented")
    models = {(gpu.name, gpu.memory_total_bytes) for gpu in gpus}
    alike = len(models) == 1 and None not in next(iter(models))
    if order == "FASTEST_FIRST" and not alike:
        raise UnclearError("CUDA numbers unlike GPUs by its own idea of speed unless CUDA_DEVICE_ORDER is PCI_BUS_ID")
    return sorted(gpus, key=lambda gpu: gpu.pci or (0, 0, 0))
