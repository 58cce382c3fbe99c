"""What device traces show that could be changed."""

from collections.abc import Callable

from agprof.analysis.evidence import saving
from agprof.analysis.trace_shares import Shares, shares_of, short_name, waiting
from agprof.model.answers import Finding
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent
from agprof.model.trace_answers import TraceAnswer

Finder = Callable[[TraceAnswer, Shares], Finding | None]


def trace_findings(trace: TraceAnswer) -> tuple[Finding, ...]:
    """What the traces show that could be changed; () without a device."""
    shares = shares_of(trace)
    if shares is None:
        return ()
    return tuple(finding for finder in FINDERS if (finding := finder(trace, shares)) is not None)


def _saving(shares: Shares, ns: float, method: str) -> Figure:
    whole = "" if shares.unit == "step" else "; per window: the trace marks no step"
    return saving(shares.each(ns), shares.units, f"{method}{whole}")


def _host_bound(trace: TraceAnswer, shares: Shares) -> Finding | None:
    """The device waits for launches."""
    if shares.share("launch") < 0.1:
        return None
    activities = sum(row.activities for row in trace.launches)
    running = sum(row.sum_ns for row in trace.kernels)
    mean = format_value(running / activities if activities else None, "ns")
    return Finding(
        key="trace-host-bound",
        title=f"{percent(shares.share('launch'))} of the device's time waits for the host to launch",
        evidence=(
            f"The device idles {shares.text('launch')} because the next activity was not launched yet. "
            f"{activities:,} activities run {mean} each in the mean: the host can't launch that small ones fast "
            "enough, or does something else between them."
        ),
        section="trace",
        saving_ns_per_step=_saving(
            shares,
            shares.parts_ns["launch"],
            "at most: all idle time until launches return but data and synchronisation",
        ),
        confidence="modelled",
        change=(
            "Launch fewer, larger kernels: torch.compile (mode='reduce-overhead' uses CUDA graphs), fused optimizers "
            "(fused=True), larger micro-batches with fewer gradient_accumulation_steps."
        ),
        check="idle by cause `launch` falls, and the launch queue grows.",
    )


def _exposed_communication(trace: TraceAnswer, shares: Shares) -> Finding | None:
    if shares.share("communication") < 0.05:
        return None
    # Per step: compute of one can't hide the communication of another.
    possible = sum(
        min(row.exposed_communication_ns, row.compute_ns - row.overlapped_communication_ns)
        for row in trace.steps or trace.windows
    )
    top = trace.collectives[0] if trace.collectives else None
    most = f" Most of it: {top.op.replace('_', '-')} ({top.library}), {top.count:,} calls." if top is not None else ""
    return Finding(
        key="trace-exposed-communication",
        title=f"{percent(shares.share('communication'))} of the device's time is communication that nothing hides",
        evidence=(
            f"Kernels communicate {shares.text('communication')} with no compute beside them.{most}{waiting(trace)}"
        ),
        section="trace",
        saving_ns_per_step=_saving(shares, possible, "at most: as far as compute that hides nothing yet could hide it"),
        confidence="modelled",
        change=(
            "Let it run beside compute: zero_optimization.overlap_comm: true in the DeepSpeed JSON, "
            "gradient_as_bucket_view and a smaller bucket_cap_mb of DDP, forward_prefetch of FSDP."
        ),
        check="exposed communication falls while communication stays.",
    )


def _exposed_copies(trace: TraceAnswer, shares: Shares) -> Finding | None:
    if shares.share("copies") < 0.02:
        return None
    top = [row for row in trace.kernels if row.kind in ("memcpy", "memset")][:3]
    said = ", ".join(f"`{short_name(row)}` {row.count:,} times, {format_value(row.sum_ns, 'ns')}" for row in top)
    pageable = any("ageable" in row.name for row in top)
    advice = "pin_memory=True in the DataLoader and non_blocking=True in .to(device)" if pageable else (
        "copy on a stream of its own, ahead of its use (non_blocking=True), and keep on the device what comes again"
    )  # fmt: skip
    return Finding(
        key="trace-exposed-copies",
        title=f"{percent(shares.share('copies'))} of the device's time is copies that nothing hides",
        evidence=f"The device only copies or sets memory {shares.text('copies')}: {said}.",
        section="trace",
        saving_ns_per_step=_saving(shares, shares.parts_ns["copies"], "at most: all of it hidden behind compute"),
        confidence="modelled",
        change=f"Hide them: {advice}.",
        check="exposed memcpy falls below 1 % of the device's time.",
    )


def _synchronisation(trace: TraceAnswer, shares: Shares) -> Finding | None:
    if shares.share("synchronisation") < 0.02:
        return None
    return Finding(
        key="trace-synchronisation",
        title=f"{percent(shares.share('synchronisation'))} of the device's time idles in synchronising calls",
        evidence=(
            f"The device idles {shares.text('synchronisation')} while the thread that launches what comes next stands "
            "in a synchronising call. After each of them the device runs dry until something is launched again."
        ),
        section="trace",
        saving_ns_per_step=_saving(shares, shares.parts_ns["synchronisation"], "idle time inside such calls"),
        confidence="measured",
        change=(
            "Take what reads from the device out of the step: .item(), .cpu(), print(loss), torch.cuda.synchronize(); "
            "log every n-th step only."
        ),
        check="idle by cause `synchronisation` falls.",
    )


def _data(trace: TraceAnswer, shares: Shares) -> Finding | None:
    if shares.share("data") < 0.02:
        return None
    return Finding(
        key="trace-data-wait",
        title=f"{percent(shares.share('data'))} of the device's time idles while the host waits for data",
        evidence=f"The device idles {shares.text('data')} while the launching thread stands in its data loader.",
        section="trace",
        saving_ns_per_step=_saving(shares, shares.parts_ns["data"], "all of it: loading can hide behind compute"),
        confidence="measured",
        change="Raise num_workers of the DataLoader, with persistent_workers=True and pin_memory=True.",
        check="idle by cause `data` falls below 1 %.",
    )


def _late_rank(trace: TraceAnswer, shares: Shares) -> Finding | None:
    named = [row for row in trace.stragglers if row.is_straggler]
    others = [row for row in trace.stragglers if not row.is_straggler]
    if not named or not others:
        return None
    ranks = ", ".join(str(row.rank) for row in named)
    late = sum(row.lateness_ns * row.last_share * row.collectives for row in named)
    per_unit = max(1.0, shares.units / max(1, len(trace.windows)))
    return Finding(
        key="trace-straggler",
        title=f"Rank {ranks} comes last to collectives more often than by chance",
        evidence=trace.stragglers_sentence,
        section="trace",
        saving_ns_per_step=saving(
            late / per_unit, max(row.collectives for row in named), "what it came after the rank before it, summed"
        ),
        confidence="modelled",
        change="Look at that rank's input, clocks, host and network; compare its kernels with those of another rank.",
        check="no rank comes last more often than by chance.",
    )


def _unclassified(trace: TraceAnswer, shares: Shares) -> Finding | None:
    rows = trace.unclassified
    if sum(row.share for row in rows) < 0.005:
        return None
    top = ", ".join(f"`{short_name(row)}` ({percent(row.share)})" for row in rows[:3])
    return Finding(
        key="trace-unclassified",
        title=f"{len(rows):,} kernels count as compute and look like communication",
        evidence=f"By their names: {top}.",
        section="trace",
        saving_ns_per_step=None,
        confidence="rule of thumb",
        change="If they communicate, name their library: kernels.communication in the workload file.",
        check="they stand in the table of collectives.",
    )


FINDERS: tuple[Finder, ...] = (
    _host_bound,
    _exposed_communication,
    _exposed_copies,
    _synchronisation,
    _data,
    _late_rank,
    _unclassified,
)
