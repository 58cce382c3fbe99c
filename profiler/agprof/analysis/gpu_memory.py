"""Who held the memory of each GPU at its fullest, and who else was on it.

NVML knows the total of a GPU and, where it may, what each process holds; the rank knows what its allocator reserved.
In a container NVML's process numbers are the host's and can't be told apart: the rank's own word is then all there is.
"""

from collections.abc import Sequence

import polars as pl

from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.figure import Figure
from agprof.model.format import format_value
from agprof.model.system_answers import GpuMapping, GpuMemory, GpuTenant, Owner

NOT_VISIBLE = "NVML pid not visible: it numbers processes as the host does, and this is a container"
_STALE_NS = 30_000_000_000
"""A reading of the GPU's processes further from the moment than this says nothing of it."""
_MAX_TENANTS = 200


def reconcile(view: View, mapping: Sequence[GpuMapping]) -> tuple[GpuMemory, ...]:
    """The account of each GPU at the moment at which NVML saw most of it in use. `mapping` is `map_gpus(view)`."""
    columns = ("node", "gpu", "time_ns", "memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes")
    states = view.tables["gpu_states"].select(columns)
    peaks = (
        states.drop_nulls("memory_used_bytes")
        .sort("node", "gpu", "time_ns")
        .filter(pl.col("memory_used_bytes") == pl.col("memory_used_bytes").max().over("node", "gpu"))
        .unique(["node", "gpu"], keep="first", maintain_order=True)
    )
    return tuple(_account(view, mapping, *row) for row in peaks.iter_rows())


def _account(
    view: View,
    mapping: Sequence[GpuMapping],
    node: int,
    gpu: int,
    time_ns: int,
    used: int,
    reserved: int | None,
    total: int | None,
) -> GpuMemory:
    ranks = [row.rank for row in mapping if (row.node, row.gpu) == (node, gpu)]
    processes = _processes_at(view, node, gpu, time_ns)
    parts = tuple((rank, *_rank_parts(view, processes, rank, time_ns)) for rank in ranks)
    others = _others(processes)
    known = sum(figure.value or 0 for _, *figures in parts for figure in figures) + (others.value or 0)
    held = Figure(
        value=used, unit="bytes", source="measured", n=1, method="nvmlDeviceGetMemoryInfo_v2, used; highest of the run"
    )
    unexplained = Figure(
        value=used - known, unit="bytes", source="measured", n=1, method="used - all parts that are known"
    )
    return GpuMemory(
        node=node,
        gpu=gpu,
        used=held,
        reserved=_told(reserved, "nvmlDeviceGetMemoryInfo_v2, reserved"),
        total=_told(total, "nvmlDeviceGetMemoryInfo_v2, total"),
        ranks=parts,
        others=others,
        unexplained=unexplained,
        sentence=_sentence(gpu, held, total, parts, others, unexplained),
    )


def _told(value: int | None, method: str) -> Figure:
    if value is None:
        return nothing("bytes", "this driver does not tell it", method=method)
    return Figure(value=value, unit="bytes", source="measured", n=1, method=method)


def _processes_at(view: View, node: int, gpu: int, time_ns: int) -> pl.DataFrame | None:
    """The reading of the GPU's processes nearest to the moment; None where there is none near."""
    rows = view.tables["gpu_processes"].filter((pl.col("node") == node) & (pl.col("gpu") == gpu))
    if not rows.height:
        return None
    nearest = rows.select(at=pl.col("time_ns"), off=(pl.col("time_ns") - time_ns).abs()).sort("off", "at").row(0)
    return rows.filter(pl.col("time_ns") == nearest[0]) if nearest[1] <= _STALE_NS else None


def _rank_parts(view: View, processes: pl.DataFrame | None, rank: int, time_ns: int) -> tuple[Figure, Figure]:
    """What the rank's allocator reserved, and what its processes hold beyond that."""
    allocator = _allocator(view, rank, time_ns)
    method = "bytes of the rank's processes by NVML - reserved by its allocator: context, libraries, NCCL"
    if processes is None:
        return allocator, nothing("bytes", "NVML listed no processes near that moment", method=method)
    own = processes.filter((pl.col("rank") == rank) & pl.col("owner").is_in(["rank", "child"]))
    if not own.height:
        hidden = (processes["owner"] == "not visible").any()
        return allocator, nothing("bytes", NOT_VISIBLE if hidden else "NVML does not list the rank", method=method)
    if own["used_bytes"].null_count():
        return allocator, nothing("bytes", "NVML does not say what the process holds", method=method)
    if allocator.value is None:
        return allocator, nothing("bytes", "what its allocator holds is not known", method=method)
    beyond = int(own["used_bytes"].sum()) - allocator.value
    if beyond < 0:
        reason = "NVML saw less than the allocator had reserved: the two were read at different times"
        return allocator, nothing("bytes", reason, method=method)
    return allocator, Figure(value=beyond, unit="bytes", source="measured", n=own.height, method=method)


def _allocator(view: View, rank: int, time_ns: int) -> Figure:
    """Reserved at the last border of a phase before the moment. A rank and its node have one clock."""
    method = "torch's allocator, reserved, at the last border of a phase before that moment"
    rows = view.tables["memory"].filter((pl.col("rank") == rank) & pl.col("reserved_bytes").is_not_null())
    if not rows.height:
        return nothing("bytes", "the rank's allocator was not read", method=method)
    before = rows.filter(pl.col("time_ns") <= time_ns).sort("time_ns")
    if not before.height:
        return nothing("bytes", "the GPU was fullest before the rank's allocator was first read", method=method)
    return Figure(value=before["reserved_bytes"][-1], unit="bytes", source="measured", n=1, method=method)


def _others(processes: pl.DataFrame | None) -> Figure:
    method = "bytes of processes of no rank, by NVML"
    if processes is None:
        return nothing("bytes", "NVML listed no processes near that moment", method=method)
    if (processes["owner"] == "not visible").any():
        return nothing("bytes", NOT_VISIBLE, method=method)
    others = processes.filter(pl.col("owner") == "other")
    if others["used_bytes"].null_count():
        return nothing("bytes", "NVML does not say what they hold", method=method)
    return Figure(
        value=int(others["used_bytes"].sum()), unit="bytes", source="measured", n=others.height, method=method
    )


def _sentence(
    gpu: int,
    used: Figure,
    total: int | None,
    parts: Sequence[tuple[int, Figure, Figure]],
    others: Figure,
    unexplained: Figure,
) -> str:
    def bytes_of(figure: Figure) -> str:
        return format_value(figure.value, "bytes")

    of = f" of {format_value(total, 'bytes')}" if total else ""
    words = [
        f"rank {rank}'s allocator {bytes_of(allocator)}"
        + (f" and {bytes_of(beyond)} beyond it" if beyond.value is not None else "")
        for rank, allocator, beyond in parts
        if allocator.value is not None
    ]
    if others.value:
        words.append(f"other processes {bytes_of(others)}")
    if (unexplained.value or 0) >= 0:
        words.append(f"unexplained {bytes_of(unexplained)}")
        return f"GPU {gpu} held at most {bytes_of(used)}{of}: {', '.join(words)}."
    return (
        f"GPU {gpu} held at most {bytes_of(used)}{of} when NVML looked; its ranks tell of more: {', '.join(words)}. "
        "The two were read at different times."
    )


def tenants(view: View) -> tuple[GpuTenant, ...]:
    """Processes on the GPUs that do not belong to the run, or can't be told to (`not visible`); largest first."""
    rows = (
        view.tables["gpu_processes"]
        .filter(pl.col("owner").is_in(["other", "not visible"]))
        .group_by("node", "gpu", "pid", "owner")
        .agg(
            pl.col("name").drop_nulls().last(),
            peak=pl.col("used_bytes").max(),
            start=pl.col("time_ns").min(),
            end=pl.col("time_ns").max(),
            n=pl.len(),
        )
        .sort("peak", "node", "gpu", "pid", descending=[True, False, False, False], nulls_last=True)
        .head(_MAX_TENANTS)
    )
    return tuple(_tenant(view, *row) for row in rows.iter_rows())


def _tenant(
    view: View, node: int, gpu: int, pid: int, owner: Owner, name: str | None, peak: int | None, *times: int
) -> GpuTenant:
    start, end, n = times
    method = "bytes of the process by NVML, highest seen"
    figure = (
        nothing("bytes", "NVML does not say what it holds", method=method)
        if peak is None
        else Figure(value=peak, unit="bytes", source="measured", n=n, method=method)
    )
    return GpuTenant(
        node=node,
        gpu=gpu,
        pid=pid,
        owner=owner,
        name=name,
        peak_bytes=figure,
        start_ns=view.since_origin(start, node=node),
        end_ns=view.since_origin(end, node=node),
    )
