"""What a command under `agprof monitor` used: a run that has no ranks and no steps.

CPU and memory have two witnesses each, and each sees less than all of it: samples miss what lives shorter than a
period, the kernel's own count at the end (getrusage) misses processes that nobody waited for. The higher one is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from agprof.analysis.statistics import nothing
from agprof.analysis.system_samples import on_axis
from agprof.analysis.view import View
from agprof.model.answers import Quality, RunAnswers, Verdict
from agprof.model.figure import Figure, Kpi
from agprof.model.format import format_value, percent
from agprof.model.system_answers import SystemAnswer

NO_STEPS = "A command that was sampled, not instrumented: it has no steps."
_OF_STEPS = frozenset(
    {"step", "phases", "exposed communication", "bandwidth", "memory", "FLOPs", "savings", "device time"}
)
"""Methods that say nothing of a command."""
_SECOND_NS = 10**9
_NOTABLE_WAIT = 0.05
_NOTABLE_CORES = 0.01
_NOTABLE_SHARE = 0.05
_NOTABLE_READ_BYTES = 10 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandUse:
    """What the command and its descendants used. A figure that was not measured says why."""

    duration: Figure
    cpu: Figure
    """Cores, mean over its life."""
    cpu_peak: Figure
    """Cores, highest sample."""
    cores: int | None
    """Cores that it may use."""
    memory_peak: Figure
    memory_limit_bytes: int | None
    processes_peak: int
    read: Figure
    written: Figure
    cpu_wait: Figure
    """Share of the time in which main threads were ready to run and had no CPU, mean over its samples."""
    samples: int
    period_s: float | None


def command_answers(view: View, answers: RunAnswers) -> RunAnswers:
    """The answers with what can be said of a command in place of what can be said of steps and ranks."""
    use = use_of_command(view, answers.identity.duration_ns)
    figures = tuple(kpi for kpi in answers.system.figures if kpi.key not in ("rank_cpu", "worker_cpu"))
    return replace(
        answers,
        system=replace(answers.system, figures=figures),
        verdict=command_verdict(answers.identity.name, use, answers.system),
        kpis=command_kpis(use, answers.system),
        time=replace(answers.time, sentence=NO_STEPS),
        communication=replace(answers.communication, sentence=NO_STEPS),
        compute=replace(answers.compute, sentence=NO_STEPS),
        memory=replace(answers.memory, sentence=NO_STEPS),
        quality=_quality(answers.quality, use),
        methods=(*command_methods(), *(row for row in answers.methods if row[0] not in _OF_STEPS)),
    )


def _quality(quality: Quality, use: CommandUse) -> Quality:
    count = len(quality.problems)
    more = f"; {count} thing{'' if count == 1 else 's'} to know about the data" if count else ""
    samples = f"{use.samples:,} sample{'' if use.samples == 1 else 's'} of the command"
    cost = tuple(kpi for kpi in quality.cost if kpi.key.startswith("sampler_"))
    return replace(quality, sentence=f"{samples}{more}.", cost=cost)


def use_of_command(view: View, duration_ns: int | None) -> CommandUse:
    """The figures of a run that `is_command`."""
    tree = _tree(view)
    usage = _mapping(_mapping(view.run.outcome).get("usage"))
    host = _mapping(view.run.manifest.get("host"))
    cores = host.get("usable_cores")
    limit = _mapping(_mapping(view.run.outcome).get("memory")).get("limit_bytes")
    period = _mapping(_mapping(view.run.manifest.get("workload")).get("monitor")).get("period_s")
    return CommandUse(
        duration=_duration(duration_ns),
        cpu=_cpu(tree, usage.get("cpu_s"), duration_ns),
        cpu_peak=_highest(tree, "cpu_cores", "cores", "highest sample of CPU time over its period"),
        cores=cores if isinstance(cores, int) else None,
        memory_peak=_memory_peak(tree, usage.get("peak_rss_bytes")),
        memory_limit_bytes=limit if isinstance(limit, int) else None,
        processes_peak=int(str(tree["processes"].max())) if tree.height else 0,
        read=_moved(tree, "read_bytes_per_s"),
        written=_moved(tree, "write_bytes_per_s"),
        cpu_wait=_cpu_wait(tree),
        samples=tree.height,
        period_s=float(period) if isinstance(period, int | float) else None,
    )


def command_verdict(name: str, use: CommandUse, system: SystemAnswer) -> Verdict:
    """What the command used, in one sentence."""
    of = f" of {use.cores}" if use.cores else ""
    words = []
    if use.cpu.value is not None:
        words.append(f"{_number(use.cpu.value)}{of} cores on average")
    if use.memory_peak.value is not None:
        words.append(f"{format_value(use.memory_peak.value, 'bytes')} of memory at its fullest")
    used = f"`{name}` used {' and '.join(words)}" if words else f"What `{name}` used was not measured"
    gpus = _of_gpus(system)
    return Verdict(
        bound_by="unknown",
        headline=f"{used}; {gpus}." if gpus else f"{used}.",
        evidence=tuple(_evidence(use)),
        confidence="measured",
        confidence_sentence=_confidence(use),
        next_step=(
            "Where it trains with PyTorch, `agprof run -- COMMAND` shows its steps and what bounds them."
            if words
            else "Sample more often with --period, down to 0.05 s."
        ),
    )


def command_kpis(use: CommandUse, system: SystemAnswer) -> tuple[Kpi, ...]:
    """The row of cards."""
    of_cores = f"of {use.cores}, mean" if use.cores else "mean"
    of_limit = f"of {format_value(use.memory_limit_bytes, 'bytes')}, " if use.memory_limit_bytes else ""
    many = f"{_processes(use.processes_peak)} at most"
    gpus = tuple(kpi for kpi in system.figures if kpi.key.startswith("gpu_"))
    return (
        Kpi(key="duration", label="Duration", figure=use.duration),
        Kpi(key="command_cpu", label="CPU", figure=use.cpu, note=of_cores),
        Kpi(key="command_cpu_peak", label="CPU, highest", figure=use.cpu_peak, note="of a sample"),
        Kpi(key="command_memory", label="Memory peak", figure=use.memory_peak, note=f"{of_limit}{many}"),
        *gpus,
        Kpi(key="command_read", label="Read", figure=use.read, note="from storage"),
        Kpi(key="command_written", label="Written", figure=use.written, note="to storage"),
    )


def command_methods() -> tuple[tuple[str, str], ...]:
    """How the figures of a command are measured."""
    return (
        (
            "command",
            "The process that agprof started and all its descendants. Mean CPU is the CPU time over the duration: what "
            "the kernel counted for the command and those it waited for (getrusage), or the sum over samples, "
            "whichever is higher, because each misses something: samples what lives shorter than a period, the kernel "
            "what nobody waited for.",
        ),
        (
            "memory of the command",
            "The sum of the resident sets of its processes at a sample. Pages that several of them share are counted "
            "in each; the curve PSS shares them out.",
        ),
    )


def _tree(view: View) -> pl.DataFrame:
    """One row per sample: the command and its descendants together. A value that one of the rows lacks is missing."""
    rows = on_axis(view, "process_samples").filter(pl.col("rank").is_null())

    def whole(column: str) -> pl.Expr:
        return pl.when(pl.col(column).null_count() == 0).then(pl.col(column).sum()).alias(column)

    return (
        rows.group_by("node", "at_ns", maintain_order=True)
        .agg(
            pl.col("period_ns").max(),
            pl.col("processes").sum(),
            # Processes that are new since the sample before have no rate yet; the others' is known.
            pl.when(pl.col("cpu_cores").count() > 0).then(pl.col("cpu_cores").sum()).alias("cpu_cores"),
            whole("rss_bytes"),
            pl.when(pl.col("read_bytes_per_s").count() > 0).then(pl.col("read_bytes_per_s").sum()).alias(
                "read_bytes_per_s"
            ),
            pl.when(pl.col("write_bytes_per_s").count() > 0).then(pl.col("write_bytes_per_s").sum()).alias(
                "write_bytes_per_s"
            ),
            pl.col("cpu_wait_ratio").mean(),
        )
        .sort("node", "at_ns")
    )  # fmt: skip


def _duration(duration_ns: int | None) -> Figure:
    method = "from the command's start to its end, wall clock"
    if duration_ns is None:
        return nothing("ns", "its end was not recorded", method=method)
    return Figure(value=duration_ns, unit="ns", source="measured", n=1, method=method)


def _cpu(tree: pl.DataFrame, counted_s: object, duration_ns: int | None) -> Figure:
    rows = tree.drop_nulls("cpu_cores").filter(pl.col("period_ns") > 0)
    sampled_ns = int(rows["period_ns"].sum())
    sampled = float((rows["cpu_cores"] * rows["period_ns"]).sum()) / sampled_ns if sampled_ns else None
    if isinstance(counted_s, int | float) and duration_ns:
        counted = counted_s * _SECOND_NS / duration_ns
        # The samples' time may be shorter than the command's: they count for that time only.
        if sampled is None or counted >= sampled * sampled_ns / duration_ns:
            method = "CPU time of the command and of those it waited for (getrusage) over the duration"
            return Figure(value=counted, unit="cores", source="measured", n=1, method=method)
    method = "sampler: CPU time of the process tree over the time between first and last sample"
    if sampled is None:
        return nothing("cores", "it ended before the second sample", method=method)
    return Figure(value=sampled, unit="cores", source="measured", n=rows.height, method=method)


def _memory_peak(tree: pl.DataFrame, largest: object) -> Figure:
    method = "highest sum over the process tree at a sample (shared pages count in each)"
    figure = _highest(tree, "rss_bytes", "bytes", method)
    if isinstance(largest, int) and largest > (figure.value or 0):
        method = "highest resident set of its largest process (getrusage), which is more than any sample saw"
        return Figure(value=largest, unit="bytes", source="measured", n=1, method=method)
    return figure


def _highest(tree: pl.DataFrame, column: str, unit: str, method: str) -> Figure:
    values = tree[column].drop_nulls()
    highest = values.max()
    if not isinstance(highest, int | float):
        return nothing(unit, "it ended before it was sampled", method=f"sampler: {method}")
    return Figure(value=highest, unit=unit, source="measured", n=values.len(), method=f"sampler: {method}")


def _moved(tree: pl.DataFrame, column: str) -> Figure:
    method = f"sampler: column {column} times its period, summed over samples and the process tree"
    rows = tree.drop_nulls(column).filter(pl.col("period_ns") > 0)
    if not rows.height:
        return nothing("bytes", "it ended before the second sample, or its counters can't be read", method=method)
    moved = float((rows[column] * rows["period_ns"]).sum()) / _SECOND_NS
    return Figure(value=moved, unit="bytes", source="measured", n=rows.height, method=method)


def _cpu_wait(tree: pl.DataFrame) -> Figure:
    values = tree["cpu_wait_ratio"].drop_nulls()
    method = "sampler: run delay of main threads (schedstat) over the period; mean over samples"
    mean = values.mean()
    if not isinstance(mean, int | float):
        return nothing("ratio", "it ended before the second sample, or the kernel does not say", method=method)
    return Figure(value=float(mean), unit="ratio", source="measured", n=values.len(), method=method)


def _processes(count: int) -> str:
    return f"{count:,} process{'' if count == 1 else 'es'}"


def _number(cores: float) -> str:
    """Cores as a bare number: the unit stands behind `of 8`."""
    return format_value(cores, "1") if cores >= 0.01 or cores == 0 else "less than 0.01"


def _of_gpus(system: SystemAnswer) -> str:
    known = [gpu for gpu in system.gpus if gpu.utilization.value is not None]
    if not known:
        return ""
    shares = [gpu.utilization.value or 0.0 for gpu in known]
    low, high = percent(min(shares)), percent(max(shares))
    share = low if low == high else f"{low} to {high}"
    if len(known) == 1:
        return f"GPU {known[0].gpu} ran a kernel {share} of the time"
    return f"the {len(known)} GPUs ran a kernel {share} of the time"


def _evidence(use: CommandUse) -> list[str]:
    told = []
    if use.cpu_peak.value is not None and use.cpu_peak.value >= _NOTABLE_CORES:
        told.append(
            f"At most {_number(use.cpu_peak.value)} cores in a sample, {_processes(use.processes_peak)} at once."
        )
    wait = use.cpu_wait.value
    if wait is not None and wait >= _NOTABLE_WAIT:
        told.append(f"Its main threads were ready to run and had no CPU for {percent(wait)} of the time.")
    share = (use.memory_peak.value or 0.0) / use.memory_limit_bytes if use.memory_limit_bytes else 0.0
    if use.memory_limit_bytes and share >= _NOTABLE_SHARE:
        limit = format_value(use.memory_limit_bytes, "bytes")
        told.append(f"Its memory peak is {percent(share)} of the {limit} it may use.")
    moved = [
        f"{verb} {format_value(figure.value, 'bytes')}"
        for verb, figure in (("read", use.read), ("wrote", use.written))
        if figure.value is not None and figure.value >= _NOTABLE_READ_BYTES
    ]
    if moved:
        told.append(f"It {' and '.join(moved)} of storage.")
    return told


def _confidence(use: CommandUse) -> str:
    if not use.samples:
        return "It ended before it was sampled: only what the kernel counted of it is known."
    every = f", one every {use.period_s:g} s" if use.period_s else ""
    few = "; so few samples may have missed its peaks" if use.samples < 5 else ""
    return f"Measured over {use.samples:,} sample{'' if use.samples == 1 else 's'}{every}{few}."


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
