"""Findings on the host: memory nearly full, swapping, pressure, the container's limits, network errors."""

import polars as pl

from agprof.analysis.evidence import Evidence, saving
from agprof.analysis.system_samples import inside, on_axis, steady_window, timed
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent

_FULL = 0.95
_MOSTLY_PROCESSES = 0.8
"""Of a cgroup's limit in its processes' resident sets: the rest is page cache, which is given back when asked for."""
_SWAP_IN, _SWAP_OUT = 2**18, 2**20
"""Bytes per second, means over the window."""
_SWAP_GROWTH = 2**28
_STALL, _PRESSURE = 0.01, 0.05
"""Share of the time: all tasks, some task waited for memory."""
_QUOTA = 0.05
_CPU_WAIT = 0.1
_ERRORS, _ERRORS_PER_S, _TRAFFIC = 100, 1 / 60, 1e5


def host_memory_full(evidence: Evidence) -> Finding | None:
    """The memory of a node is nearly full at its fullest, without what the kernel would give back."""
    rows = evidence.view.tables["host_samples"].drop_nulls(["memory_used_bytes", "memory_total_bytes"])
    rows = rows.filter(pl.col("memory_total_bytes") > 0)
    if not rows.height:
        return None
    share = pl.col("memory_used_bytes") / pl.col("memory_total_bytes")
    row = rows.with_columns(share=share).sort("share", "node", "time_ns").row(-1, named=True)
    if row["share"] <= _FULL:
        return None
    return Finding(
        key="host-memory-full",
        title=f"The host's memory is {percent(row['share'])} full",
        evidence=(
            f"{_node(evidence, row['node'])} has {format_value(row['memory_used_bytes'], 'bytes')} of "
            f"{format_value(row['memory_total_bytes'], 'bytes')} in use at its fullest{_of_ranks(evidence, row)}."
        ),
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change="Fewer or lighter DataLoader workers (each may hold a copy of the dataset's Python objects), less "
        "offload to the CPU, checkpoints that are not gathered on one rank.",
        check="the host's memory stays below 95 %.",
    )


def _of_ranks(evidence: Evidence, row: dict[str, object]) -> str:
    """What the ranks' trees held at about that time."""
    near = pl.col("time_ns").is_between(int(str(row["time_ns"])) - 5_000_000_000, int(str(row["time_ns"])))
    rows = evidence.view.tables["process_samples"].filter(near & (pl.col("node") == row["node"]))
    trees = rows.group_by("rank", "role").agg(pl.col("rss_bytes").drop_nulls().last())
    held = {str(role): int(size) for role, size in trees.group_by("role").agg(pl.col("rss_bytes").sum()).iter_rows()}
    if not any(held.values()):
        return ""
    workers = f", their workers {format_value(held['worker'], 'bytes')}" if held.get("worker") else ""
    return f"; the ranks' resident sets are {format_value(held.get('rank', 0), 'bytes')}{workers}"


def _node(evidence: Evidence, node: int) -> str:
    return f"Node {node}" if evidence.view.tables["host_samples"]["node"].n_unique() > 1 else "The host"


def cgroup_memory_full(evidence: Evidence) -> Finding | None:
    """Processes of the job's cgroup were killed for want of memory, or its memory is nearly at its limit.

    A cgroup's memory counts page cache, which is no want: its processes or pressure must say the same.
    """
    view = evidence.view
    rows = view.tables["host_samples"]
    kills = rows.group_by("node").agg(kills=pl.col("cgroup_oom_kills").max() - pl.col("cgroup_oom_kills").min())
    killed = int(kills["kills"].sum() or 0)
    limited = rows.drop_nulls(["cgroup_memory_bytes", "cgroup_memory_limit_bytes"])
    limited = limited.filter(pl.col("cgroup_memory_limit_bytes") > 0)
    share = pl.col("cgroup_memory_bytes") / pl.col("cgroup_memory_limit_bytes")
    top = limited.with_columns(share=share).sort("share", "node", "time_ns").tail(1).to_dicts()
    full = top[0] if top and top[0]["share"] > _FULL and _is_want(evidence, top[0]) else None
    if not killed and full is None:
        return None
    words = []
    if killed:
        words.append(
            f"the kernel killed {killed} process{'' if killed == 1 else 'es'} of the cgroup for want of memory"
        )
    if top:
        words.append(
            f"at its fullest the cgroup holds {format_value(top[0]['cgroup_memory_bytes'], 'bytes')} of "
            f"{format_value(top[0]['cgroup_memory_limit_bytes'], 'bytes')} ({percent(top[0]['share'])})"
        )
    title = "Processes were killed for want of memory" if killed else "The container's memory is nearly full"
    text = "; ".join(words)
    return Finding(
        key="cgroup-memory-full",
        title=title,
        evidence=f"{text[:1].upper()}{text[1:]}{_of_ranks(evidence, top[0]) if top else ''}.",
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change="Raise the container's memory limit (resources.limits.memory, docker run --memory), or hold less: fewer "
        "DataLoader workers, less offload to the CPU.",
        check="the cgroup's memory stays below its limit, and no process is killed.",
    )


def _is_want(evidence: Evidence, row: dict[str, object]) -> bool:
    view, node = evidence.view, row["node"]
    processes = view.tables["process_samples"].filter(pl.col("node") == node)
    resident = processes.group_by("rank", "role").agg(pl.col("rss_bytes").max())["rss_bytes"].sum()
    if resident >= _MOSTLY_PROCESSES * int(str(row["cgroup_memory_limit_bytes"])):
        return True
    stall = view.tables["host_samples"].filter(pl.col("node") == node)["memory_pressure_ratio"].mean()
    return isinstance(stall, float) and stall >= _STALL


def swapping(evidence: Evidence) -> Finding | None:
    """Memory is read back from swap, or, where that is not measured, swap grows."""
    rows = _steady(evidence)
    means = rows.group_by("node").agg(
        pl.col("swap_in_bytes_per_s").mean(),
        pl.col("swap_out_bytes_per_s").mean(),
        share=(pl.col("swap_in_bytes_per_s") > 0).mean(),
        growth=pl.col("swap_used_bytes").sort_by("at_ns").last() - pl.col("swap_used_bytes").sort_by("at_ns").first(),
        used=pl.col("swap_used_bytes").max(),
    )
    if not means.height:
        return None
    row = means.sort(pl.col("swap_in_bytes_per_s").fill_null(-1), pl.col("growth").fill_null(0)).row(-1, named=True)
    in_, out = row["swap_in_bytes_per_s"], row["swap_out_bytes_per_s"]
    if in_ is None and out is None:
        if (row["growth"] or 0) < _SWAP_GROWTH:
            return None
        words = f"swap in use grows by {format_value(row['growth'], 'bytes')} over the steady steps"
    elif (in_ or 0) < _SWAP_IN and (out or 0) < _SWAP_OUT:
        return None
    else:
        words = (
            f"{format_value(in_ or 0, 'bytes/s')} are read back from swap and {format_value(out or 0, 'bytes/s')} "
            f"written to it, in {percent(row['share'] or 0)} of the samples"
        )
    return Finding(
        key="swapping",
        title="The host swaps",
        evidence=f"{_node(evidence, row['node'])}: {words}; up to {format_value(row['used'], 'bytes')} lie in swap.",
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change="Hold less in the host's memory (DataLoader workers, offload to the CPU), or give it more; pin_memory "
        "and offload suffer first.",
        check="nothing is read back from swap in the steady steps.",
    )


def memory_pressure(evidence: Evidence) -> Finding | None:
    """Tasks wait for memory: the kernel's pressure stall information."""
    rows = _steady(evidence).group_by("node").agg(
        pl.col("memory_pressure_ratio").mean(),
        pl.col("memory_stall_ratio").mean(),
        n=pl.col("memory_pressure_ratio").count(),
    )  # fmt: skip
    rows = rows.drop_nulls("memory_pressure_ratio").sort("memory_pressure_ratio", "node")
    if not rows.height:
        return None
    row = rows.row(-1, named=True)
    some, all_ = row["memory_pressure_ratio"], row["memory_stall_ratio"] or 0.0
    if some < _PRESSURE and all_ < _STALL:
        return None
    stalled = f", all of them {percent(all_)}" if all_ else ""
    return Finding(
        key="memory-pressure",
        title=f"Tasks wait for memory {percent(some)} of the time",
        evidence=f"{_node(evidence, row['node'])}: some task waited {percent(some)} of the time{stalled} "
        f"(pressure stall information, mean of {row['n']} samples).",
        section="system",
        saving_ns_per_step=saving(
            evidence.mean_ns * all_,
            evidence.time.step_time.n,
            "at most: share of the time in which all tasks waited for memory x step",
        )
        if all_ and evidence.mean_ns
        else None,
        confidence="modelled",
        change="Hold less in the host's memory, or give it more: the kernel takes pages away that are needed again "
        "at once.",
        check="memory pressure is 0 in the steady steps.",
    )


def cpu_quota(evidence: Evidence) -> Finding | None:
    """The container's CPU quota is used up."""
    rows = _steady(evidence).group_by("node").agg(
        pl.col("cgroup_throttled_ratio").mean(),
        pl.col("cgroup_cpu_limit_cores").drop_nulls().last(),
        n=pl.col("cgroup_throttled_ratio").count(),
    )  # fmt: skip
    rows = rows.drop_nulls("cgroup_throttled_ratio").sort("cgroup_throttled_ratio", "node")
    if not rows.height or rows["cgroup_throttled_ratio"][-1] < _QUOTA:
        return None
    row = rows.row(-1, named=True)
    limit = row["cgroup_cpu_limit_cores"]
    quota = f"quota of {format_value(limit, 'cores')}" if limit is not None else "quota"
    return Finding(
        key="cpu-quota",
        title=f"The container's CPU {quota} is used up {percent(row['cgroup_throttled_ratio'])} of the time",
        evidence=f"{_node(evidence, row['node'])}: tasks that were ready to run stood still "
        f"{percent(row['cgroup_throttled_ratio'])} of the time (cgroup cpu.stat, mean of {row['n']} samples).",
        section="system",
        saving_ns_per_step=None,
        confidence="measured",
        change="Raise the container's CPU limit (resources.limits.cpu, docker run --cpus), or start fewer threads and "
        "DataLoader workers: libraries see all cores of the machine and start as many.",
        check="the curve `CPU quota used up` stays at 0.",
    )


def cpu_wait(evidence: Evidence) -> Finding | None:
    """A rank's main thread is ready to run and gets no CPU."""
    view = evidence.view
    rows = inside(timed(view, "process_samples"), steady_window(view)).filter(pl.col("role") == "rank")
    means = rows.drop_nulls("rank").group_by("rank").agg(
        pl.col("cpu_wait_ratio").mean(), n=pl.col("cpu_wait_ratio").count()
    )  # fmt: skip
    means = means.drop_nulls("cpu_wait_ratio").sort("cpu_wait_ratio", "rank")
    if not means.height or means["cpu_wait_ratio"][-1] < _CPU_WAIT:
        return None
    rank, share, n = means.row(-1)
    return Finding(
        key="cpu-wait",
        title=f"Rank {rank} waits for a CPU {percent(share)} of the time",
        evidence=f"Its main thread was ready to run and had no CPU for {percent(share)} of the steady steps "
        f"(/proc/PID/schedstat, mean of {n} samples).",
        section="system",
        saving_ns_per_step=saving(
            evidence.mean_ns * share,
            evidence.time.step_time.n,
            "at most: that share of the step; where ranks use GPUs a part of it may hide behind their work",
        )
        if evidence.mean_ns
        else None,
        confidence="modelled",
        change="Start fewer threads and workers than the node has cores (OMP_NUM_THREADS, num_workers), and keep other "
        "programs off it.",
        check="the curve `CPU wait` of each rank is near 0.",
    )


def network_errors(evidence: Evidence) -> Finding | None:
    """An interface that carries the job's traffic loses packets."""
    rows = on_axis(evidence.view, "network_samples", "interface").filter(
        pl.col("kind").is_in(["ethernet", "infiniband"])
    )
    found = rows.group_by("node", "interface", "kind").agg(
        pl.col("errors").sum(),
        seconds=(pl.col("at_ns").max() - pl.col("at_ns").min()) / 1e9,
        traffic=pl.sum_horizontal("sent_bytes_per_s", "received_bytes_per_s").mean(),
    )
    found = found.filter(
        (pl.col("errors") >= _ERRORS)
        & (pl.col("errors") >= _ERRORS_PER_S * pl.col("seconds"))
        & (pl.col("traffic") >= _TRAFFIC)
    ).sort("errors", "node", "interface")
    if not found.height:
        return None
    row = found.row(-1, named=True)
    name = str(row["interface"])[:60]
    more = f"; {found.height - 1} more interfaces lose packets too" if found.height > 1 else ""
    return Finding(
        key="network-errors",
        title=f"Interface {name} lost {row['errors']:,} packets",
        evidence=f"{_node(evidence, row['node'])}: {row['errors']:,} packets of `{name}` were dropped or in error "
        f"within {format_value(row['seconds'] * 1e9, 'ns')}, at {format_value(row['traffic'], 'bytes/s')} both "
        f"ways{more}.",
        section="system",
        saving_ns_per_step=None,
        confidence="rule of thumb",
        change="Look at ethtool -S (or perfquery for InfiniBand): errors of the link mean cable, optics or port; "
        "drops mean too small rings or no flow control.",
        check="the errors of the interface stay at 0.",
    )


def _steady(evidence: Evidence) -> pl.DataFrame:
    view = evidence.view
    return inside(timed(view, "host_samples"), steady_window(view))
