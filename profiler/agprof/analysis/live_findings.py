"""What stands out in a running job right now: a few sentences for `agprof top`, the gravest first.

Thresholds are those of an eye that looks in, not of the report, whose findings weigh the whole run.
"""

from collections.abc import Iterator, Sequence

from agprof.analysis.live import LiveRank
from agprof.analysis.live_node import LiveGpu, LiveNode
from agprof.model.format import format_value, percent

STALLED_STEPS = 5.0
STALLED_AT_LEAST_NS = 5_000_000_000
"""A rank that ends no step for so many of its mean steps, and so long."""
SILENT_NS = 5_000_000_000
DATA_SHARE = 0.2
COMMUNICATION_SHARE = 0.4
NEARLY_FULL = 0.95
THROTTLED_SHARE = 0.1
PRESSURE = 0.1
RECENT_NS = 60_000_000_000

Said = tuple[int, str]
"""(gravity, the greater the worse; sentence)"""


def live_findings(ranks: Sequence[LiveRank], nodes: Sequence[LiveNode], now_ns: int | None) -> tuple[str, ...]:
    """Sentences, the gravest first. `now_ns` is CLOCK_MONOTONIC of the ranks' node; None where it is another's."""
    said = [*_ranks(ranks, now_ns)]
    for node in nodes:
        said += [*_host(node), *_gpus(node), *_sampler(node, now_ns)]
    return tuple(text for _, text in sorted(said, key=lambda item: -item[0]))


def _ranks(ranks: Sequence[LiveRank], now_ns: int | None) -> Iterator[Said]:
    if now_ns is not None:
        stalled = [rank for rank in ranks if (late := rank.late_ns(now_ns)) is not None and late > _patience_ns(rank)]
        if stalled:
            names = ", ".join(str(rank.rank) for rank in stalled[:8])
            late_ns = max(rank.late_ns(now_ns) or 0 for rank in stalled)
            yield 90, f"no step ended for {format_value(late_ns, 'ns')} on rank {names}: it may hang"
    data = max(((rank.shares().get("data", 0.0), rank.rank) for rank in ranks), default=(0.0, 0))
    if data[0] > DATA_SHARE:
        yield 50, f"rank {data[1]} waits {percent(data[0])} of its steps for data: more workers or prefetch"
    exposed = max(((rank.shares().get("communication", 0.0), rank.rank) for rank in ranks), default=(0.0, 0))
    if exposed[0] > COMMUNICATION_SHARE and len(ranks) > 1:
        yield 45, f"rank {exposed[1]} waits {percent(exposed[0])} of its steps in collectives"


def _patience_ns(rank: LiveRank) -> float:
    rate = rank.steps_per_s()
    return max(STALLED_AT_LEAST_NS, STALLED_STEPS * 1e9 / rate) if rate else float("inf")


def _host(node: LiveNode) -> Iterator[Said]:
    used, total = node.host.number("memory_used_bytes"), node.host.number("memory_total_bytes")
    where = f" of {node.host_name}" if node.host_name else ""
    if used is not None and total and used / total > NEARLY_FULL:
        yield 80, f"the memory{where} is {percent(used / total)} full"
    charged, limit = node.host.number("cgroup_memory_bytes"), node.host.number("cgroup_memory_limit_bytes")
    if charged is not None and limit and charged / limit > NEARLY_FULL:
        yield 85, f"the job's cgroup holds {percent(charged / limit)} of its memory limit: the kernel kills at 100 %"
    swapped = (node.host.number("swap_in_bytes_per_s") or 0.0) + (node.host.number("swap_out_bytes_per_s") or 0.0)
    if swapped > 0:
        yield 75, f"the host{where} swaps {format_value(swapped, 'bytes/s')}"
    stall = node.host.number("memory_stall_ratio")
    if stall is not None and stall > PRESSURE:
        yield 70, f"all tasks wait for memory {percent(stall)} of the time"
    throttled = node.host.number("cgroup_throttled_ratio")
    if throttled is not None and throttled > PRESSURE:
        yield 60, f"the CPU quota is used up {percent(throttled)} of the time"


def _gpus(node: LiveNode) -> Iterator[Said]:
    for gpu in node.gpus.values():
        name = f"GPU {gpu.gpu}" + (f" of {node.host_name}" if node.host_name else "")
        used, total = gpu.latest.number("memory_used_bytes"), gpu.latest.number("memory_total_bytes")
        if used is not None and total and used / total > NEARLY_FULL:
            yield 65, f"{name}: memory {percent(used / total)} full"
        yield from _throttled(gpu, name)
    for (number, _), (seen_ns, program) in node.tenants.items():
        if node.newest_ns - seen_ns < RECENT_NS:
            yield 55, f"GPU {number}: {program} of another job is on it"
    for time_ns, number_or_none, kind, code in node.events:
        if node.newest_ns - time_ns < RECENT_NS:
            where = "a GPU" if number_or_none is None else f"GPU {number_or_none}"
            yield 95, f"{where}: {kind.replace('_', ' ')}{'' if code is None else f' {code}'} reported by the driver"


def _throttled(gpu: LiveGpu, name: str) -> Iterator[Said]:
    for kind, gravity, share in zip(("power", "heat"), (30, 58), gpu.throttled_shares() or (), strict=False):
        if share > THROTTLED_SHARE:
            yield gravity, f"{name}: clocks held down for {kind} {percent(min(1.0, share))} of the time"


def _sampler(node: LiveNode, now_ns: int | None) -> Iterator[Said]:
    if now_ns is not None and node.newest_ns and now_ns - node.newest_ns > SILENT_NS:
        yield 40, f"no sample of the host for {format_value(now_ns - node.newest_ns, 'ns')}"
    for name, (state, reason) in node.states.items():
        if name == "gpu" and state == "retry":
            yield 68, f"GPUs can't be read: {reason[:100]}"
