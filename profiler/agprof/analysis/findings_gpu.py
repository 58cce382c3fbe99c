"""Findings on GPUs: memory nearly full, other tenants, faults that the driver tells of."""

from collections.abc import Iterable

import polars as pl

from agprof.analysis.evidence import Evidence
from agprof.analysis.system_figures import gpus_of_run, name_gpu
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent
from agprof.model.system_answers import GpuRow
from agprof.model.xids import Concern, xid_of

_FULL = 0.95
_TENANT_BYTES = 256 * 2**20
_NAMED = 4
"""GPUs or processes named one by one."""


def gpu_memory_full(evidence: Evidence) -> Finding | None:
    """A GPU's memory is nearly full at its fullest."""
    among = gpus_of_run(evidence.system)
    full = [
        (gpu.memory_peak.value / gpu.memory_total.value, gpu)
        for gpu in among
        if gpu.memory_peak.value is not None and gpu.memory_total.value
    ]
    share, gpu = max(full, key=lambda item: item[0], default=(0.0, None))
    if gpu is None or share <= _FULL:
        return None
    live = _live_bytes(evidence, gpu)
    more = sum(other > _FULL for other, _ in full) - 1
    total = format_value(gpu.memory_total.value, "bytes")
    words = f"{name_gpu(gpu, among)} holds {format_value(gpu.memory_peak.value, 'bytes')} of {total} at its fullest"
    words += f", as do {more} others" if more > 1 else ", as does one other" if more else ""
    cached = live is not None and live < 0.8 * (gpu.memory_peak.value or 0.0)
    if live is not None:
        words += f"; of it {format_value(live, 'bytes')} were live tensors of its ranks at most"
    return Finding(
        key="gpu-memory-full",
        title=f"The memory of {name_gpu(gpu, among)} is {percent(share)} full",
        evidence=f"{words}.",
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change="Most of it is what the allocator keeps for reuse; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "
        "keeps less. A longer input may still run out."
        if cached
        else "A longer input or another process runs out: a smaller micro-batch, activation checkpointing or a "
        "higher ZeRO stage make room; agprof plan tells what fits.",
        check="the memory's curve stays below 95 % of the total.",
    )


def _live_bytes(evidence: Evidence, gpu: GpuRow) -> float | None:
    """Sum over the GPU's ranks of the most that their allocators had in tensors."""
    rows = evidence.view.tables["memory"].filter(pl.col("rank").is_in(list(gpu.ranks)))
    most = rows.group_by("rank").agg(pl.col("allocated_bytes").max()).drop_nulls()
    return float(most["allocated_bytes"].sum()) if most.height else None


def other_tenants(evidence: Evidence) -> Finding | None:
    """Processes that are not the run's hold memory on its GPUs."""
    used = {(gpu.node, gpu.gpu) for gpu in gpus_of_run(evidence.system)}
    found = [
        tenant
        for tenant in evidence.system.tenants
        if tenant.owner == "other"
        and (tenant.node, tenant.gpu) in used
        and (tenant.peak_bytes.value is None or tenant.peak_bytes.value >= _TENANT_BYTES)
    ]
    if not found:
        return None
    named = [
        f"{(tenant.name or 'a process')[:60]} (pid {tenant.pid}) on GPU {tenant.gpu}"
        + (f" with {format_value(tenant.peak_bytes.value, 'bytes')}" if tenant.peak_bytes.value is not None else "")
        for tenant in found[:_NAMED]
    ]
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    one = len(found) == 1
    known = any(gpu.ranks for gpu in evidence.system.gpus)
    place = "the run's GPUs" if known else "the nodes' GPUs; which of these the run uses is not known"
    return Finding(
        key="gpu-other-tenants",
        title=f"{'Another process is' if one else f'{len(found)} other processes are'} on {place}",
        evidence=f"Seen in the run: {', '.join(named)}{more}.",
        section="system",
        saving_ns_per_step=None,
        confidence="measured" if known else "rule of thumb",
        change="End them, or give the job GPUs of its own: they take memory, and time whenever they compute. No "
        "figure of this run is one of the job alone.",
        check="the table of other processes on the GPUs is empty.",
    )


def memory_errors(evidence: Evidence) -> Finding | None:
    """Uncorrected memory errors in the run, or rows that wait for or failed their replacement."""
    gpus = evidence.system.gpus
    bad = [gpu for gpu in gpus if gpu.ecc_uncorrected.value]
    wrong = [f"{name_gpu(gpu, gpus)}: {gpu.ecc_uncorrected.value:.0f} uncorrected ECC errors" for gpu in bad]
    health = evidence.view.tables["gpu_health"].group_by("node", "gpu").agg(
        pl.col("remap_pending").any(), pl.col("remap_failed").any()
    )  # fmt: skip
    state = {(node, gpu): (pending, failed) for node, gpu, pending, failed in health.sort("node", "gpu").iter_rows()}
    for gpu in gpus:
        pending, failed = state.get((gpu.node, gpu.gpu), (False, False))
        if failed or pending:
            bad.append(gpu)
        if failed:
            wrong.append(f"{name_gpu(gpu, gpus)}: a row of memory could not be replaced")
        elif pending:
            wrong.append(f"{name_gpu(gpu, gpus)}: a row of memory waits for its replacement")
    if not wrong:
        return None
    failed_one = any(failed for _, failed in state.values())
    unused = _no_rank_uses(evidence, {(gpu.node, gpu.gpu) for gpu in bad})
    distrust = "" if unused else " Do not trust results of steps in which an uncorrected error came."
    return Finding(
        key="gpu-memory-errors",
        title="The memory of a GPU has errors" if len(wrong) == 1 else f"GPU memory has errors ({len(wrong)} faults)",
        evidence=f"{'; '.join(wrong[: 2 * _NAMED])}{' ...' if len(wrong) > 2 * _NAMED else ''}.{unused}",
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change="Have the GPU replaced: it has no spare row left for the bad one."
        if failed_one
        else "Reset the GPU before it is used again (nvidia-smi --gpu-reset, or a reboot): bad rows are replaced "
        f"then.{distrust}",
        check="nvidia-smi -q -d ECC,ROW_REMAPPER shows neither new uncorrected errors nor a pending or failed row.",
    )


def _no_rank_uses(evidence: Evidence, keys: set[tuple[int, int]]) -> str:
    """A sentence where it is known that no rank uses any of these GPUs (node, index), nor an instance of them."""
    used = {(gpu.node, gpu.gpu) for gpu in gpus_of_run(evidence.system)}
    # Of a MIG instance the index is 1000 * (its GPU's + 1) + its slot.
    used |= {(node, gpu // 1000 - 1) for node, gpu in used if gpu >= 1000}
    if not keys or keys & used:
        return ""
    return f" No rank of this run uses {'it' if len(keys) == 1 else 'them'}."


_SERIOUS: dict[Concern, int] = {"gpu": 0, "job": 1, "note": 2}
_ENDS_ONLY = {45}
"""What every program that is killed leaves."""


def xid_events(evidence: Evidence) -> Finding | None:
    """The driver reported XIDs."""
    events = evidence.view.tables["gpu_events"].filter(pl.col("kind") == "xid")
    counts: dict[int | None, int] = dict(events.group_by("code").len().sort("code").iter_rows())
    if not set(counts) - _ENDS_ONLY:
        return None
    codes = sorted(counts, key=lambda code: (_SERIOUS[xid_of(code).concern], code or 0))
    worst = xid_of(codes[0])
    told = [_told(code, counts[code], _where(events, code)) for code in codes[:_NAMED]]
    more = f" And {len(codes) - _NAMED} other numbers." if len(codes) > _NAMED else ""
    unused = "" if events["gpu"].null_count() else _no_rank_uses(evidence, set(events.select("node", "gpu").rows()))
    return Finding(
        key="gpu-xid",
        title=f"The GPU driver reported {_numbers(codes)}",
        evidence=" ".join(told) + more + unused,
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change=worst.action,
        check="the table of the driver's events is empty; so is dmesg | grep Xid.",
    )


def _told(code: int | None, count: int, where: str) -> str:
    times = "" if count == 1 else f" {count:,} times"
    return f"XID {code if code is not None else '?'}{times}{where}: {xid_of(code).meaning}"


def _where(events: pl.DataFrame, code: int | None) -> str:
    rows = events.filter(pl.col("code").eq_missing(code)).drop_nulls("gpu").select("node", "gpu").unique()
    gpus = rows.sort("node", "gpu").rows()
    several = events["node"].n_unique() > 1
    names = [f"GPU {gpu} of node {node}" if several else f"GPU {gpu}" for node, gpu in gpus[:_NAMED]]
    return f" on {', '.join(names)}{' ...' if len(gpus) > _NAMED else ''}" if names else ""


def _numbers(codes: Iterable[int | None]) -> str:
    known = [str(code) for code in codes if code is not None]
    if not known:
        return "an XID"
    return f"XID {known[0]}" if len(known) == 1 else f"XIDs {', '.join(known[:_NAMED])}"
