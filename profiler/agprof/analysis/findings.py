"""Opportunities and faults, ordered by estimated saving. A finder returns nothing when its evidence is missing."""

from collections.abc import Callable, Iterable

from agprof.analysis import findings_clocks as clocks
from agprof.analysis import findings_comm as comm
from agprof.analysis import findings_deepspeed as deepspeed
from agprof.analysis import findings_gpu as gpu
from agprof.analysis import findings_host as host
from agprof.analysis import findings_kinds as kinds
from agprof.analysis import findings_oom as oom
from agprof.analysis import findings_repeats as repeats
from agprof.analysis import findings_resources as resources
from agprof.analysis import findings_time as time
from agprof.analysis.evidence import Evidence
from agprof.analysis.findings_memory import frozen_in_fp32
from agprof.analysis.findings_output import much_output
from agprof.analysis.findings_readbacks import readbacks
from agprof.analysis.findings_stragglers import straggler, uneven_work
from agprof.model.answers import Finding

Finder = Callable[[Evidence], Finding | None]

FINDERS: tuple[Finder, ...] = (
    oom.out_of_memory,
    resources.rank_ended,
    comm.small_messages,
    deepspeed.tiny_buckets,
    comm.exposed_communication,
    comm.below_ceiling,
    straggler,
    uneven_work,
    time.data_wait,
    time.other_large,
    kinds.bimodal_steps,
    kinds.unstable_steps,
    time.long_warmup,
    resources.optimizer_offload,
    resources.oversubscribed_threads,
    resources.memory_growth,
    clocks.power_capped,
    clocks.thermally_throttled,
    clocks.hardware_brake,
    clocks.slow_clock,
    gpu.gpu_memory_full,
    gpu.other_tenants,
    gpu.memory_errors,
    gpu.xid_events,
    host.host_memory_full,
    host.cgroup_memory_full,
    host.swapping,
    host.memory_pressure,
    host.cpu_quota,
    host.cpu_wait,
    host.network_errors,
    frozen_in_fp32,
    repeats.repeated_inputs,
    repeats.repeated_at_once,
    repeats.copied_items,
    readbacks,
    much_output,
    deepspeed.inert_checkpointing,
    deepspeed.overridden_rate,
)
_FIRST = ("out-of-memory", "rank-ended")


def find_all(evidence: Evidence) -> tuple[Finding, ...]:
    """What was found: a rank that died first, then by saving, then what is not about time."""
    return in_order(finding for finder in FINDERS if (finding := finder(evidence)) is not None)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """As they are shown."""
    return tuple(sorted(findings, key=_order))


def _order(finding: Finding) -> tuple[bool, bool, float]:
    figure = finding.saving_ns_per_step
    value = figure.value if figure is not None else None
    return finding.key not in _FIRST, value is None, -(value or 0.0)
