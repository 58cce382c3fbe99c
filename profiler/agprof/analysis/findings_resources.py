"""Findings on resources and faults: ranks that ended, offload, threads, memory that grows."""

from typing import Any

import polars as pl

from agprof.analysis.evidence import Evidence, saving
from agprof.analysis.identity import cause_of_end
from agprof.analysis.memory import memory_kind, step_end_values
from agprof.analysis.ranks import failures_of
from agprof.analysis.statistics import growth
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent

_ADAM_BYTES = 12
"""Mixed-precision Adam keeps 12 bytes per trainable parameter (FP32 weight and two moments), ZeRO paper."""


def rank_ended(evidence: Evidence) -> Finding | None:
    """A rank ended the job."""
    cause = cause_of_end(evidence.view)
    if cause is None:
        return None
    rank, failure = next(iter(failures_of(evidence.view).items()))
    lines = failure.get("last_lines")
    last = str(lines[-1])[:300] if isinstance(lines, list | tuple) and lines else ""
    return Finding(
        key="rank-ended",
        title=cause[:1].upper() + cause[1:],
        evidence=f"The job's outcome says so.{f' Its last line: {last}' if last else ''}",
        section="ranks",
        saving_ns_per_step=None,
        confidence="measured",
        change=f"Read ranks/rank-{rank:05d}.stderr.log of the run folder; after SIGKILL ask dmesg for the OOM killer.",
        check="every rank ends clean in the table of ranks.",
    )


def optimizer_offload(evidence: Evidence) -> Finding | None:
    """The optimizer runs on the CPU beside a GPU, and takes a good part of the step."""
    view = evidence.view
    if view.fact("deepspeed.offload_optimizer") is not True or view.fact("device.type") != "cuda":
        return None
    share, time_ns = evidence.share("optimizer"), evidence.parts["optimizer"]
    if share < 0.1:
        return None
    return Finding(
        key="optimizer-offload",
        title=f"The optimizer runs on the CPU and takes {percent(share)} of the step",
        evidence=f"{format_value(time_ns, 'ns')} a step pass in the offloaded optimizer.{_room(evidence)}",
        section="time",
        saving_ns_per_step=saving(
            0.9 * time_ns, evidence.time.step_time.n, "rule of thumb: on the GPU the update takes a tenth of the time"
        ),
        confidence="rule of thumb",
        change='Set zero_optimization.offload_optimizer.device: "none" in the DeepSpeed JSON when the states fit.',
        check="the phase `optimizer` shrinks and the GPU's peak memory stays below its size.",
    )


def _room(evidence: Evidence) -> str:
    view = evidence.view
    trainable, total = view.fact("model.trainable_params"), view.fact("device.memory_total_bytes")
    ranks = view.fact("dist.world_size", 1)
    reserved: Any = view.tables["memory"]["reserved_bytes"].max()
    if not all(isinstance(v, int) for v in (trainable, total, ranks, reserved)) or not ranks:
        return ""
    states = _ADAM_BYTES * int(trainable) / ranks
    free = total - reserved
    fits = "they fit" if states < free else "they do not fit"
    words = (
        f" Its states are about {format_value(states, 'bytes')} a rank, {format_value(free, 'bytes')} are free: {fits}."
    )
    return words if free > 0 else ""


def oversubscribed_threads(evidence: Evidence) -> Finding | None:
    """The ranks of a node run more OpenMP threads than it has cores."""
    view = evidence.view
    worst: tuple[int, int, int, int] | None = None
    for node in sorted(set(view.node_of.values())):
        facts = [view.facts.get(rank, {}) for rank in view.ranks if view.node_of.get(rank) == node]
        threads = sum(value for f in facts if isinstance(value := f.get("omp_num_threads"), int))
        cores = _cores(facts)
        if cores and threads > cores and (worst is None or threads / cores > worst[1] / worst[2]):
            worst = node, threads, cores, len(facts)
    if worst is None:
        return None
    node, threads, cores, ranks = worst
    return Finding(
        key="oversubscribed-threads",
        title=f"{threads} OpenMP threads share {cores} cores",
        evidence=f"The {ranks} rank(s) of node {node} together start {threads} OpenMP threads on {cores} usable cores.",
        section="system",
        saving_ns_per_step=None,
        confidence="rule of thumb",
        change=f'Set launch.env.OMP_NUM_THREADS: "{max(1, cores // max(1, ranks))}" in the workload file.',
        check="step time falls or stays with fewer threads; the host's CPU shows less contention.",
    )


def _cores(facts: list[Any]) -> int:
    """Cores that the ranks of a node may use, taken together."""
    usable: set[int] = set()
    for known in facts:
        affinity = known.get("cpu.affinity")
        if isinstance(affinity, list):
            usable |= {core for core in affinity if isinstance(core, int)}
    return len(usable)


def memory_growth(evidence: Evidence) -> Finding | None:
    """Memory at the end of steady steps rises significantly: a leak."""
    view, kind = evidence.view, memory_kind(evidence.view)
    column = "allocated_bytes" if kind == "device" else "rss_bytes"
    table = view.tables["memory"].sort("rank", "time_ns")
    worst: tuple[float, int, int, int] | None = None
    for (rank,), rows in table.group_by("rank", maintain_order=True):
        values = step_end_values(view, rows.filter(pl.col("at") == "step.end"), column)
        slope = growth(values)
        total = (slope or 0) * len(values)
        if slope and total > max(0.01 * values[0], 8 * 2**20) and (worst is None or slope > worst[0]):
            worst = slope, int(str(rank)), len(values), values[0]
    if worst is None:
        return None
    slope, number, n, first = worst
    return Finding(
        key="memory-growth",
        title=f"Memory grows by {format_value(slope, 'bytes')} a step on rank {number}",
        evidence=(
            f"Over {n} steady steps it rises from {format_value(first, 'bytes')} by "
            f"{format_value(slope * n, 'bytes')} (Mann-Kendall, 99 %; Theil-Sen slope)."
        ),
        section="memory",
        saving_ns_per_step=None,
        confidence="measured",
        change="Look for what the loop keeps: losses appended without .item(), outputs in lists, unbounded caches.",
        check="the curve at the ends of steps is flat.",
    )
