"""What host and GPUs say about ranks that wait for their input: who is busy meanwhile, and what to change then."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from agprof.analysis.evidence import Evidence
from agprof.analysis.system_figures import gpus_of_run
from agprof.analysis.system_samples import inside, steady_window, timed
from agprof.model.format import format_value, percent

_BUSY_LOADER, _IDLE_LOADER = 0.8, 0.5
"""CPU of one DataLoader worker, in cores."""
_BUSY_HOST = 0.9
_DISK_WAIT = 0.05
_MOST_WORKERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How the input was loaded, over the steady steps."""

    loaders: int | None
    """DataLoader workers of a rank, most; None where the sampler could not tell them apart."""
    children: int | None
    """Child processes of a rank, most."""
    loader_cores: float | None
    """CPU of one of them, mean."""
    host_cpu: float | None
    disk_wait: float | None
    """Share of the time in which the CPUs, or a task, waited for a disk."""
    gpu_busy: tuple[float, float] | None
    """Share of the time with a kernel: lowest and highest GPU."""
    cores_per_rank: int | None
    on_gpu: bool


def look(evidence: Evidence) -> Loading:
    """Gather it."""
    view = evidence.view
    window = steady_window(view)
    workers = inside(timed(view, "process_samples"), window).filter(pl.col("role") == "worker")
    host = inside(timed(view, "host_samples"), window)
    loaders = _int(workers["loaders"].max())
    cores = workers.filter(pl.col("loaders") > 0).select((pl.col("loader_cpu_cores") / pl.col("loaders")).mean()).item()
    busy = [gpu.utilization.value for gpu in gpus_of_run(evidence.system) if gpu.utilization.value is not None]
    waits = [_float(host[name].mean()) for name in ("iowait_ratio", "io_pressure_ratio")]
    return Loading(
        loaders=loaders,
        children=_int(workers["processes"].max()),
        loader_cores=_float(cores),
        host_cpu=_float(host["cpu_ratio"].mean()),
        disk_wait=max((wait for wait in waits if wait is not None), default=None),
        gpu_busy=(min(busy), max(busy)) if busy else None,
        cores_per_rank=_cores_per_rank(evidence),
        on_gpu=view.fact("device.type") == "cuda",
    )


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _cores_per_rank(evidence: Evidence) -> int | None:
    """Usable cores of a node over its ranks."""
    view = evidence.view
    host = view.run.manifest.get("host")
    cores = host.get("usable_cores") if isinstance(host, Mapping) else None
    affinity = view.fact("cpu.affinity")
    if not isinstance(cores, int):
        cores = len(affinity) if isinstance(affinity, list) else None
    nodes = max(1, len(set(view.node_of.values())))
    return max(1, cores * nodes // max(1, len(view.ranks))) if cores else None


def in_words(loading: Loading) -> str:
    """What else was measured, to go on from `stand 20 ms a step in the data loader`; empty when nothing was."""
    words = []
    if loading.loaders:
        uses = (
            f" that use {format_value(loading.loader_cores, 'cores')} each" if loading.loader_cores is not None else ""
        )
        words.append(f"a rank has {loading.loaders} DataLoader worker{'s' if loading.loaders > 1 else ''}{uses}")
    elif loading.children == 0 or (loading.children and loading.loaders == 0):
        words.append("no DataLoader worker was seen beside them")
    elif loading.children:
        words.append(f"up to {loading.children} child processes a rank were seen")
    if loading.host_cpu is not None:
        words.append(f"the host's CPU is {percent(loading.host_cpu)} busy")
    if loading.disk_wait is not None and loading.disk_wait >= _DISK_WAIT:
        words.append(f"{percent(loading.disk_wait)} of the time a disk is waited for")
    if loading.gpu_busy is not None:
        low, high = (percent(value) for value in loading.gpu_busy)
        words.append(f"the GPUs run a kernel {low if low == high else f'{low} to {high}'} of the time")
    return "".join(f"; {word}" for word in words)


def change(loading: Loading) -> str:
    """What to change, by who is busy."""
    pin = ", pin_memory=True" if loading.on_gpu else ""
    keep = f"persistent_workers=True{pin}"
    cores = loading.cores_per_rank
    if loading.loaders == 0:
        most = min(_MOST_WORKERS, cores - 1) if cores and cores > 1 else None
        how_many = f"num_workers={most}" if most else "num_workers=2 or more"
        return f"The ranks load their input themselves: give the DataLoader {how_many} with {keep}."
    if loading.loaders and loading.loader_cores is not None:
        if loading.loader_cores >= _BUSY_LOADER:
            return _of_busy_loaders(loading, keep)
        if loading.disk_wait is not None and loading.disk_wait >= _DISK_WAIT:
            return (
                "The workers wait for storage: put the data on a local disk or in memory, in few large files "
                f"(shards), and raise prefetch_factor, with {keep}."
            )
        if loading.loader_cores < _IDLE_LOADER:
            return (
                f"The {loading.loaders} workers are mostly idle: what is slow is handing over. Raise "
                f"prefetch_factor, set {keep}, and collate into few tensors."
            )
    return f"Raise num_workers of the DataLoader, with {keep}." if loading.on_gpu else _PLAIN


_PLAIN = "Raise num_workers of the DataLoader, with persistent_workers=True and pin_memory=True on a GPU."


def _of_busy_loaders(loading: Loading, keep: str) -> str:
    cores, loaders = loading.cores_per_rank, loading.loaders or 0
    if (loading.host_cpu is not None and loading.host_cpu >= _BUSY_HOST) or (cores is not None and loaders >= cores):
        return (
            f"The {loaders} workers are busy and no core is free: make loading cheaper (decode and tokenise ahead of "
            "time, augment on the GPU, smaller images), or use a machine with more cores per GPU."
        )
    room = f" up to {min(_MOST_WORKERS, cores - 1)}" if cores is not None and cores - 1 > loaders else ""
    return f"The workers are busy and cores are free: raise num_workers above {loaders}{room}, with {keep}."
