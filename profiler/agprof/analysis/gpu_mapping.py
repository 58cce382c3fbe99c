"""Which GPU of its node a rank uses: by what the rank told of its device. Never guessed.

Best evidence first: the UUID that CUDA gave the rank, its PCI address, CUDA_VISIBLE_DEVICES with the device's number,
and that the node has one GPU only. Where UUID and address disagree, or the best there is names no GPU of the node, the
GPU is not known.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from agprof.analysis.gpu_visible import NodeGpu, UnclearError, bare_uuid, pci_address, visible
from agprof.analysis.view import View
from agprof.model.system_answers import COMPUTES_ON_CPU, GpuMapping, MappedBy

_KEYS = (
    "device.type", "device.index", "device.indices", "device.uuid", "device.pci_bus_id", "device.count",
    "cuda_visible_devices", "cuda_device_order", "cuda_mps",
)  # fmt: skip
_CONTESTED: tuple[MappedBy, ...] = ("CUDA_VISIBLE_DEVICES", "only GPU")
"""Evidence that several ranks may have alike although their GPUs differ: numbers begin at 0 in each container."""


def map_gpus(view: View) -> tuple[GpuMapping, ...]:
    """One row per rank, in order."""
    told = _told(view)
    gpus = node_gpus(view)
    renumbered = _renumbered(view)
    rows = [_map(view, rank, told.get(rank, {}), gpus, renumbered) for rank in view.ranks]
    return tuple(_uncontested(row, rows) for row in rows)


def node_gpus(view: View) -> dict[int, list[NodeGpu]]:
    """Node -> what NVML listed on it, MIG instances among them."""
    found: dict[int, list[NodeGpu]] = {}
    rows = view.tables["gpus"].unique(["node", "gpu"], keep="last", maintain_order=True).sort("node", "gpu")
    for row in rows.iter_rows(named=True):
        found.setdefault(row["node"], []).append(
            NodeGpu(
                gpu=row["gpu"],
                uuid=row["uuid"],
                pci=pci_address(row["pci_bus_id"]),
                name=row["name"],
                memory_total_bytes=row["memory_total_bytes"],
                mig_parent=row["mig_parent"],
                mig_enabled=bool(row["mig_enabled"]),
            )
        )
    return found


def _renumbered(view: View) -> dict[int, str]:
    """Node -> why its GPUs' numbers say nothing: one of them stood for two GPUs.

    NVML numbers what it finds when it is initialised. Where a GPU falls off the bus and NVML is initialised again, by
    this sampler or one that was started after it, those behind the lost one move up.
    """
    numbers = view.tables["gpus"].drop_nulls("uuid").group_by("node", "gpu", maintain_order=True)
    several = numbers.agg(pl.col("uuid").unique(maintain_order=True)).filter(pl.col("uuid").list.len() > 1)
    return {
        node: f"the GPUs of node {node} were numbered anew in mid-run: GPU {gpu} was {uuids[0]}, then {uuids[-1]}"
        for node, gpu, uuids in several.sort("node", "gpu", descending=True).iter_rows()
    }


def physical(gpus: Sequence[NodeGpu], gpu: int) -> int:
    """The whole GPU that a MIG instance is part of; a whole GPU is its own."""
    return next((row.mig_parent for row in gpus if row.gpu == gpu and row.mig_parent is not None), gpu)


def _told(view: View) -> dict[int, dict[str, list[Any]]]:
    """Rank -> key -> the different values that it told, in order: several where it was restarted or changed them."""
    told: dict[int, dict[str, list[Any]]] = {}
    facts = view.tables["facts"].filter(pl.col("key").is_in(_KEYS)).sort("rank", "time_ns", maintain_order=True)
    for rank, key, text in facts.select("rank", "key", "value").iter_rows():
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        values = told.setdefault(rank, {}).setdefault(key, [])
        if value not in values:
            values.append(value)
    return told


def _map(
    view: View,
    rank: int,
    told: Mapping[str, list[Any]],
    gpus: Mapping[int, list[NodeGpu]],
    renumbered: Mapping[int, str],
) -> GpuMapping:
    node = view.node_of.get(rank, 0)
    here = gpus.get(node, [])
    try:
        gpu, by = _find(told, here, node, renumbered.get(node))
    except UnclearError as error:
        return GpuMapping(rank=rank, node=node, gpu=None, by=None, reason=str(error))
    return GpuMapping(rank=rank, node=node, gpu=gpu, by=by)


def _find(
    told: Mapping[str, list[Any]], gpus: Sequence[NodeGpu], node: int, renumbered: str | None
) -> tuple[int, MappedBy]:
    """NVML index and evidence. Raises UnclearError."""
    types = told.get("device.type", [])
    if not types:
        raise UnclearError("the rank told nothing of its device: it made no forward pass that was seen")
    if types == ["cpu"]:
        raise UnclearError(COMPUTES_ON_CPU)
    if not gpus:
        raise UnclearError(f"NVML listed no GPU on node {node}")
    if renumbered is not None:
        raise UnclearError(renumbered)
    if several := _last(told, "device.indices"):
        raise UnclearError(f"the rank uses {len(several) if isinstance(several, list) else 'several'} GPUs")
    for key in ("device.type", "device.uuid", "device.pci_bus_id", "device.index"):
        if len(told.get(key, [])) > 1:
            raise UnclearError(f"the rank told several values of {key}: it was restarted on another GPU")
    by_uuid = _by_uuid(_last(told, "device.uuid"), gpus, node)
    by_pci = _by_pci(_last(told, "device.pci_bus_id"), gpus, node) if by_uuid is None or by_uuid.is_whole else None
    if by_uuid is not None and by_pci is not None and by_uuid.pci is not None and by_uuid != by_pci:
        raise UnclearError("UUID and PCI address that the rank told are of different GPUs")
    if by_uuid is not None:
        return by_uuid.gpu, "uuid"
    if by_pci is not None:
        return by_pci.gpu, "pci bus id"
    return _by_number(told, gpus)


def _last(told: Mapping[str, list[Any]], key: str) -> Any:
    return told[key][-1] if told.get(key) else None


def _by_uuid(told: Any, gpus: Sequence[NodeGpu], node: int) -> NodeGpu | None:
    """The GPU or MIG instance of that UUID; None where the rank told none, or NVML not all."""
    uuid = bare_uuid(told) if isinstance(told, str) else None
    if uuid is None:
        return None
    matches = [gpu for gpu in gpus if bare_uuid(gpu.uuid) == uuid]
    if len(matches) == 1:
        if matches[0].mig_enabled:
            raise UnclearError(f"GPU {matches[0].gpu} is split into MIG instances, and which the rank uses is not told")
        return matches[0]
    if matches:
        raise UnclearError("NVML listed several GPUs of the UUID that the rank told")
    if all(bare_uuid(gpu.uuid) for gpu in gpus):
        raise UnclearError(f"the UUID that the rank told is none of those that NVML listed on node {node}")
    return None


def _by_pci(told: Any, gpus: Sequence[NodeGpu], node: int) -> NodeGpu | None:
    address = pci_address(told) if isinstance(told, str) else None
    if address is None:
        return None
    boards = [gpu for gpu in gpus if gpu.mig_parent is None]
    matches = [gpu for gpu in boards if gpu.pci == address]
    if len(matches) == 1:
        if matches[0].mig_enabled:
            raise UnclearError(f"GPU {matches[0].gpu} is split into MIG instances, and which the rank uses is not told")
        return matches[0]
    if matches:
        raise UnclearError("NVML listed several GPUs at the PCI address that the rank told")
    if all(gpu.pci is not None for gpu in boards):
        raise UnclearError(f"the PCI address that the rank told is none of those that NVML listed on node {node}")
    return None


def _by_number(told: Mapping[str, list[Any]], gpus: Sequence[NodeGpu]) -> tuple[int, MappedBy]:
    """By CUDA_VISIBLE_DEVICES and CUDA's number of the device. Raises UnclearError."""
    count, index = _last(told, "device.count"), _last(told, "device.index")
    if len(gpus) == 1 and gpus[0].is_whole and count in (1, None) and _is_unset(told):
        return gpus[0].gpu, "only GPU"
    if not isinstance(index, int) or isinstance(index, bool):
        raise UnclearError("the rank told neither UUID nor PCI address nor number of its device")
    if told.get("cuda_mps"):
        raise UnclearError("CUDA's multi-process service numbers the GPUs that its clients see anew")
    devices, order = told.get("cuda_visible_devices", []), told.get("cuda_device_order", [])
    if not devices or not order:
        raise UnclearError("the rank told neither UUID nor PCI address, and not its CUDA_VISIBLE_DEVICES")
    if len(devices) > 1 or len(order) > 1:
        raise UnclearError("CUDA_VISIBLE_DEVICES or CUDA_DEVICE_ORDER changed while the rank ran")
    if not all(isinstance(value, str | None) for value in (*devices, *order)):
        raise UnclearError("CUDA_VISIBLE_DEVICES is no text")
    seen = visible(gpus, devices[0], order[0])
    if isinstance(count, int) and count != len(seen):
        raise UnclearError(
            f"the rank sees {count} GPU(s), and by CUDA_VISIBLE_DEVICES and NVML's list there would be {len(seen)}"
        )
    if not 0 <= index < len(seen):
        raise UnclearError(f"CUDA_VISIBLE_DEVICES leaves {len(seen)} GPU(s), and the rank uses number {index}")
    return seen[index].gpu, "CUDA_VISIBLE_DEVICES"


def _is_unset(told: Mapping[str, list[Any]]) -> bool:
    return told.get("cuda_visible_devices", [None]) == [None]


def _uncontested(row: GpuMapping, rows: Sequence[GpuMapping]) -> GpuMapping:
    """The row, or unknown where another rank would use the same GPU and the evidence is a number."""
    if row.by not in _CONTESTED:
        return row
    others = [other.rank for other in rows if (other.node, other.gpu) == (row.node, row.gpu) and other.rank != row.rank]
    if not others:
        return row
    reason = (
        f"by its number it would be the GPU of rank {others[0]} too, and without UUID or PCI address it can't be told "
        "whether they share it"
    )
    return GpuMapping(rank=row.rank, node=row.node, gpu=None, by=None, reason=reason)
