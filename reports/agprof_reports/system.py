"""The section on GPU and host: GPUs and who uses them, their curves under the steps, memory, events, the host."""

from collections.abc import Sequence
from statistics import median

from agprof.model.format import percent
from agprof.model.system_answers import COMPUTES_ON_CPU, GpuMapping, GpuMemory, GpuRow, SystemAnswer
from agprof_reports import gpu_table, system_tables
from agprof_reports.charts.gpu_memory import fullest, gpu_memory_bars
from agprof_reports.charts.gpus import gpu_charts
from agprof_reports.charts.pieces import Span
from agprof_reports.charts.system import system_curves, undrawn_curves
from agprof_reports.data import Card, Part, Section
from agprof_reports.tables import StepGroup
from agprof_reports.text import clean, with_unit

KEY, TITLE = "system", "GPU and host"
_HELD = 0.01
"""Share of the time from which on it is said that clocks were held down."""
_ODD = 0.05
"""Share of a GPU's memory in use from which on it is told that it is not explained."""
_SENTENCES = 8
"""Sentences on the memory of single GPUs."""
_GAPS = 4
Lines = tuple[tuple[str, str], ...]


def section(
    found: SystemAnswer, groups: tuple[StepGroup, ...], run: Span, cards: tuple[Card, ...], points: int
) -> Section:
    over = "the steady steps" if groups else "the run"
    parts = [
        _gpus(found, over),
        _curves(found, groups, run, points),
        _memory(found),
        _tenants(found),
        _events(found, groups),
    ]
    there = [part for part in parts if part is not None]
    host = system_curves(found, groups, run, 2 * points)
    lines = tuple(("", sentence) for sentence in undrawn_curves(found))
    interfaces = (system_tables.interfaces(found.interfaces, over),) if found.interfaces else ()
    if there and (host or interfaces):
        sentence = "Processes of the ranks and the host, on the same axis of time."
        there.append(
            Part(
                key="system-host", title="Host", sentence=sentence, lines=lines, charts=host, tables=interfaces
            )
        )  # fmt: skip
        lines, host, interfaces = (), (), ()
    if missed := _missed(found):
        there.append(missed)
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence or "The sampler left no sample.",
        lines=(*_gaps(found), *((("", found.decimation),) if found.decimation else ()), *lines),
        cards=cards,
        charts=host,
        tables=interfaces,
        parts=tuple(there),
    )


def _gpus(found: SystemAnswer, over: str) -> Part | None:
    if not found.gpus and not found.mapping:
        return None
    unknown = [row for row in found.mapping if row.gpu is None and row.reason != COMPUTES_ON_CPU]
    lines: Lines = ()
    if found.mapping and all(row.reason == COMPUTES_ON_CPU for row in found.mapping):
        lines = (("", "The ranks compute on the CPU: no GPU is theirs."),)
    elif unknown:
        ranks = ", ".join(str(row.rank) for row in unknown[:16])
        words = f"rank {ranks} uses" if len(unknown) == 1 else f"ranks {ranks} use"
        lines = (("watch", f"Which GPU {words} is not known, and not guessed."),)
    tables = []
    if found.gpus:
        tables.append(gpu_table.gpus(found.gpus, over))
    if len(found.mapping) > 1:
        tables.append(system_tables.mapping(found.mapping))
    elif unknown or (found.mapping and not lines):
        lines = (_only_rank(found.mapping[0]),)
    return Part(key="system-gpus", title="GPUs", sentence=gpus_sentence(found.gpus), lines=lines, tables=tuple(tables))


def _only_rank(row: GpuMapping) -> tuple[str, str]:
    if row.gpu is None:
        why = clean(row.reason or "no reason was recorded", system_tables.SENTENCE)
        return "watch", f"Which GPU rank {row.rank} uses is not known, and not guessed: {why}."
    return "", f"Rank {row.rank} uses GPU {row.gpu}, known by: {row.by}."


def gpus_sentence(rows: Sequence[GpuRow]) -> str:
    """`8 GPUs, NVIDIA H100 80GB HBM3: a kernel runs 86 % to 93 % of the time, at 620 to 641 W of 700 W; ...`."""
    if not rows:
        return "No GPU left a sample."
    names = list(dict.fromkeys(row.name or "name not known" for row in rows))
    what = f"{len(rows)} GPUs" if len(rows) > 1 else "One GPU"
    words = f"{what}, {clean(' and '.join(names[:3]), 120)}"
    told = []
    if busy := _known(rows, "utilization"):
        told.append(f"a kernel runs {_between([percent(y) for y in (min(busy), max(busy))])} of the time")
    if power := _known(rows, "power"):
        limits = _known(rows, "power_limit")
        limit = f" of {with_unit(median(limits), 'W')}" if limits and min(limits) == max(limits) else ""
        told.append(f"at {_between([with_unit(y, 'W') for y in (min(power), max(power))])}{limit}")
    sentence = f"{words}: {', '.join(told)}" if told else words
    for kind, why in (("throttled_thermal", "heat"), ("throttled_power", "power")):
        worst = max(rows, key=lambda row: getattr(row, kind).value or 0.0)
        share = getattr(worst, kind).value or 0.0
        if share >= _HELD:
            which = "its clocks are" if len(rows) == 1 else f"{_owner(worst, rows)}'s clocks are"
            sentence += f"; {which} held down by {why} {percent(share)} of it"
    return f"{sentence}."


def _known(rows: Sequence[GpuRow], field: str) -> list[float]:
    return [value for row in rows if (value := getattr(row, field).value) is not None]


def _between(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _owner(row: GpuRow, rows: Sequence[GpuRow]) -> str:
    return f"GPU {row.gpu}" if len({row.node for row in rows}) == 1 else f"node {row.node} GPU {row.gpu}"


def _curves(found: SystemAnswer, groups: tuple[StepGroup, ...], run: Span, points: int) -> Part | None:
    charts = gpu_charts(found, groups, run, points)
    if not charts:
        return None
    under = "under the steps: zoom one chart and all follow; the head of a hover names the step and phase"
    told = under if groups else "on one axis of time"
    return Part(
        key="system-curves",
        title="GPUs over the run",
        sentence=f"Every quantity that was read, {told}.",
        charts=charts,
    )


def _memory(found: SystemAnswer) -> Part | None:
    drawn = fullest(found.memory)
    if not drawn:
        return None
    ordered = sorted(drawn, key=_share, reverse=True)
    top, others = ordered[0], [account for account in ordered[1:] if _is_odd(account)]
    return Part(
        key="system-memory",
        title="GPU memory",
        sentence=top.sentence,
        lines=tuple(("", account.sentence) for account in others[:_SENTENCES] if account.sentence),
        charts=(gpu_memory_bars(found.memory),),
    )


def _share(account: GpuMemory) -> float:
    return (account.used.value or 0.0) / (account.total.value or float("inf"))


def _is_odd(account: GpuMemory) -> bool:
    """Others are on it, or its parts do not explain it: worth a sentence of its own."""
    used = account.used.value or 0.0
    return bool(account.others.value) or abs(account.unexplained.value or 0.0) > _ODD * used


def _tenants(found: SystemAnswer) -> Part | None:
    if not found.tenants:
        return None
    gpus = {(row.node, row.gpu) for row in found.tenants}
    count = len(found.tenants)
    processes = "One process that belongs" if count == 1 else f"{count:,} processes that belong"
    where = "one GPU" if len(gpus) == 1 else f"{len(gpus):,} GPUs"
    return Part(
        key="system-tenants",
        title="Other processes on the GPUs",
        sentence=f"{processes} to no rank held memory on {where}.",
        tables=(system_tables.tenants(found.tenants),),
    )


def _events(found: SystemAnswer, groups: tuple[StepGroup, ...]) -> Part | None:
    if not found.events:
        return None
    xids = sum(event.kind == "xid" for event in found.events)
    count = len(found.events)
    told = "one event" if count == 1 else f"{count:,} events{f', {xids:,} of them XIDs' if xids else ''}"
    return Part(
        key="system-events",
        title="Events of the driver",
        sentence=f"The driver reported {told}; each stands over the curves of its GPU.",
        tables=(system_tables.events(found.events, groups),),
    )


def _gaps(found: SystemAnswer) -> Lines:
    lines = [
        (
            "watch",
            f"Node {gap.node} was not sampled from {gap.start_ns / 1e9:,.1f} s to {gap.end_ns / 1e9:,.1f} s: "
            f"{clean(gap.reason, system_tables.SENTENCE)}.",
        )
        for gap in found.gaps[:_GAPS]
    ]
    if len(found.gaps) > _GAPS:
        lines.append(("watch", f"{len(found.gaps) - _GAPS:,} more gaps: see What was not measured."))
    return tuple(lines)


def _missed(found: SystemAnswer) -> Part | None:
    tables = []
    if len(found.gaps) > _GAPS:
        tables.append(system_tables.gaps(found.gaps))
    if found.not_measured:
        tables.append(system_tables.not_measured(found.not_measured))
    if not tables:
        return None
    fields = len({(row.node, row.field) for row in found.not_measured})
    told = f"{'One field' if fields == 1 else f'{fields:,} fields'} could not be read for some time or at all"
    return Part(
        key="system-not-measured",
        title="What was not measured",
        sentence=f"{told if fields else 'The sampler stood still'}; nothing stands in for it.",
        tables=tuple(tables),
    )
