"""Answers of a run -> its page as plain data. Every section opens with its sentence; what is empty says so in it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

from agprof.model.answers import Finding, RunAnswers
from agprof.model.figure import Kpi
from agprof.model.format import format_value
from agprof_reports import (
    clocks,
    communication,
    compute,
    energy,
    memory,
    monitor,
    oom,
    rlhf,
    stragglers,
    system,
    tables,
    trace,
)
from agprof_reports.charts.pieces import DIRECT_LABELS, LEGEND, PHASES, Span, run_span
from agprof_reports.charts.ranks import own_work
from agprof_reports.charts.time import phase_bars, steps_over_run
from agprof_reports.charts.timeline import timeline
from agprof_reports.charts.trace_time import PARTS, parts_of
from agprof_reports.data import Bar, Card, FindingCard, Most, Page, Section
from agprof_reports.figures import SOURCES, card, shown
from agprof_reports.moments import moments
from agprof_reports.tables import StepGroup
from agprof_reports.text import scale, with_unit

TITLES = {
    "time": "Time",
    communication.KEY: communication.TITLE,
    "compute": "Compute",
    "memory": "Memory",
    system.KEY: system.TITLE,
    "ranks": "Ranks and stragglers",
    "configuration": "Configuration",
    "quality": "Method and data quality",
}
_EVEN = 0.01
"""Ranks whose own work differs by less are told to be even."""
_STATUS_MARKS = {"finished": "good", "failed": "bad", "killed": "bad", "imported": ""}
_BOUND_WORDS = {
    "data": "data wait",
    "communication": "exposed communication",
    "other": "host",
    "straggler": "a straggler",
    "launch": "the host's launches",
    "kernel wait": "waits on the device",
    "unknown": "not known",
}
_BOUND_COLOURS = {
    "copies": "memcpy",
    "launch": "idle-launch",
    "kernel wait": "idle-kernel-wait",
    "synchronisation": "idle-synchronisation",
}
"""Where the colour has another name than what bounds the run."""


def build(answers: RunAnswers, *, most: Most | None = None) -> Page:
    most = most or Most()
    identity, verdict, quality = answers.identity, answers.verdict, answers.quality
    groups = tables.group_steps(answers.time.steps)
    run = run_span(answers.time, (*answers.memory.curves, *answers.system.curves))
    out_of_memory = oom.section(answers.memory, groups, run)
    bar, unit, bar_title, legend = _device_bar(answers) or _step_bar(answers)
    page = Page(
        title=identity.name,
        subtitle=identity.description,
        run_id=identity.run_id,
        status=identity.status_sentence,
        status_mark=_STATUS_MARKS.get(identity.status, "watch"),
        facts=_facts(answers),
        bound_by=_BOUND_COLOURS.get(verdict.bound_by, verdict.bound_by),
        bound_word=_BOUND_WORDS.get(verdict.bound_by, verdict.bound_by),
        headline=verdict.headline,
        evidence=verdict.evidence,
        confidence=verdict.confidence,
        confidence_sentence=verdict.confidence_sentence,
        next_step=verdict.next_step,
        step_bar=bar,
        step_bar_unit=unit,
        step_bar_title=bar_title,
        step_bar_legend=legend,
        per="a step" if answers.time.steady_steps or answers.trace is None else "a window",
        quality_sentence=quality.sentence,
        quality_mark="watch" if quality.problems else "good",
        findings=_findings(answers),
        findings_sentence=_findings_sentence(answers),
        kpis=_kpis(answers.kpis, answers),
        kpis_sentence=_kpis_sentence(answers),
        sections=(
            _time(answers, groups, run, most.steps),
            *((rlhf.section(answers.rlhf),) if answers.rlhf is not None else ()),
            communication.section(answers),
            compute.section(answers.compute, most.modules),
            *((trace.section(answers.trace, most.slices),) if answers.trace is not None else ()),
            memory.section(answers.memory, answers.time, groups, run),
            system.section(answers.system, groups, run, _kpis(answers.system.figures, answers), most.points),
            *((energy.section(answers.energy),) if answers.energy is not None else ()),
            _ranks(answers, groups),
            *((clocks.section(answers.clocks),) if answers.clocks is not None else ()),
            _configuration(answers),
            _quality(answers),
        ),
        agprof_version=answers.agprof_version,
        urgent=(out_of_memory,) if out_of_memory is not None else (),
        moments=moments(answers.time),
    )
    return monitor.without_steps(page, answers) if monitor.is_monitored(answers) else page


def _kpis(kpis: Sequence[Kpi], answers: RunAnswers) -> tuple[Card, ...]:
    """A run that was imported has no cards where nothing was measured: a sentence says so once for all."""
    if answers.identity.status == "imported" and all(kpi.figure.value is None for kpi in kpis):
        return ()
    return tuple(card(kpi) for kpi in kpis)


def _kpis_sentence(answers: RunAnswers) -> str:
    if _kpis(answers.kpis, answers) or not answers.kpis:
        return ""
    reason = answers.time.step_time.reason or "no step was seen"
    return f"No figure of a step: {reason}." + (" The device trace has figures of its own." if answers.trace else "")


def _facts(answers: RunAnswers) -> tuple[tuple[str, str], ...]:
    identity = answers.identity
    ranks = None if identity.world_size is None else _many(identity.world_size, "rank")
    if ranks and identity.nodes:
        ranks += f" on {_many(identity.nodes, 'node')}"
    facts = (
        ("started", _utc(identity.started_realtime_ns)),
        ("took", None if identity.duration_ns is None else _duration(identity.duration_ns)),
        ("size", ranks),
        ("framework", identity.framework),
        ("device", identity.device),
        ("type", identity.dtype),
        ("run", identity.run_id),
    )
    return tuple((key, value) for key, value in facts if value)


def _utc(realtime_ns: int | None) -> str | None:
    if realtime_ns is None or not 0 <= realtime_ns < 32_503_680_000_000_000_000:
        return None
    return datetime.fromtimestamp(realtime_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(ns: int) -> str:
    seconds = ns // 1_000_000_000
    if seconds < 120:
        return with_unit(float(ns), "ns")
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


_VerdictBar = tuple[Bar | None, str, str, tuple[tuple[str, str], ...]]
"""Bar, its unit, its title, the legend of its colours."""


def _step_bar(answers: RunAnswers) -> _VerdictBar:
    """The mean step over all ranks as one bar."""
    ranks = answers.time.ranks
    if not ranks:
        return None, "", "", ()
    means = {name: sum(rank.parts_ns.get(name, 0.0) for rank in ranks) / len(ranks) for name in PHASES}
    divisor, unit = scale([sum(means.values())], "ns")
    bar = Bar(label="", parts=tuple((name, value / divisor) for name, value in means.items()))
    return bar, unit, "The mean steady step over all ranks, divided into its phases", LEGEND


def _device_bar(answers: RunAnswers) -> _VerdictBar | None:
    """The mean step of the devices, or the mean window where no step is marked: an imported run is judged by it."""
    windows = answers.trace.steps or answers.trace.windows if answers.trace is not None else ()
    if answers.identity.status != "imported" or not windows:
        return None
    means = {name: sum(parts_of(row).get(name, 0) for row in windows) / len(windows) for name in PARTS}
    divisor, unit = scale([sum(means.values())], "ns")
    there = [name for name, value in means.items() if value]
    bar = Bar(label="", parts=tuple((name, means[name] / divisor) for name in there))
    what = f"The mean {'window' if windows[0].step is None else 'step'} of the devices, divided into what they do"
    return bar, unit, what, tuple((name, PARTS[name]) for name in there)


def _findings(answers: RunAnswers) -> tuple[FindingCard, ...]:
    step_ns = answers.time.step_time.value

    def saving(finding: Finding) -> float:
        figure = finding.saving_ns_per_step
        return -1.0 if figure is None or figure.value is None else figure.value

    titles = {
        **TITLES,
        **({trace.KEY: trace.TITLE} if answers.trace is not None else {}),
        **({energy.KEY: energy.TITLE} if answers.energy is not None else {}),
        **({oom.KEY: oom.TITLE} if answers.memory.oom is not None else {}),
    }
    found = []
    for finding in sorted(answers.findings, key=saving, reverse=True):
        share = saving(finding) / step_ns if step_ns else 0.0
        found.append(
            FindingCard(
                key=finding.key,
                title=finding.title,
                evidence=finding.evidence,
                section=finding.section if finding.section in titles else "",
                section_title=titles.get(finding.section, ""),
                saving=shown(finding.saving_ns_per_step) if finding.saving_ns_per_step is not None else None,
                saving_share=f"{format_value(share, 'ratio')} of a step" if share > 0 else "",
                confidence=finding.confidence,
                change=finding.change,
                check=finding.check,
            )
        )
    return tuple(found)


def _findings_sentence(answers: RunAnswers) -> str:
    count = len(answers.findings)
    if count:
        return "One finding." if count == 1 else f"{count} findings, ordered by estimated saving."
    if not answers.time.steady_steps:
        return "No finding: without a steady step there is nothing to judge."
    return "Nothing was found that is worth changing."


def _time(answers: RunAnswers, groups: tuple[StepGroup, ...], run: Span, most_rows: int) -> Section:
    time = answers.time
    lines = []
    if time.warmup_steps:
        lines.append(
            (
                "",
                f"{_many(time.warmup_steps, 'warm-up step')} drawn, shaded and left out of statistics "
                f"({time.warmup_rule}).",
            )
        )
    if time.profiled_steps:
        numbers = ", ".join(str(step) for step in time.profiled_steps[:12])
        lines.append(("", f"Profiled, hence slower and left out: step {numbers}."))
    drawn = []
    if time.ranks:
        drawn.append(phase_bars(time))
    if groups:
        drawn.append(steps_over_run(time, groups, run, most_rows))
    if time.timeline:
        drawn.append(timeline(time))
    return Section(
        key="time",
        title=TITLES["time"],
        sentence=time.sentence if groups else time.sentence or "No step was seen, so there is no time to divide.",
        charts=tuple(drawn),
        tables=(tables.ranges(time.ranges),) if time.ranges else (),
        lines=tuple(lines),
    )


def _ranks(answers: RunAnswers, groups: tuple[StepGroup, ...]) -> Section:
    part = stragglers.part(answers)
    return Section(
        key="ranks",
        title=TITLES["ranks"],
        sentence=_ranks_sentence(answers, has_stragglers=part is not None),
        charts=(own_work(groups),) if groups and len(answers.ranks) > 1 and part is None else (),
        tables=(tables.ranks(answers.ranks),) if answers.ranks else (),
        parts=(part,) if part is not None else (),
    )


def _ranks_sentence(answers: RunAnswers, *, has_stragglers: bool) -> str:
    rows = answers.ranks
    if not rows:
        return "No rank left a stream."
    if all(row.ended == "imported" for row in rows):
        return f"{_many(len(rows), 'rank')}, known from {'its trace' if len(rows) == 1 else 'their traces'} alone."
    clean_ends = sum(row.ended == "clean" for row in rows)
    ended = (
        f"{ {1: 'The only rank', 2: 'Both ranks'}.get(len(rows), f'All {len(rows):,} ranks') } ended cleanly"
        if clean_ends == len(rows)
        else f"{clean_ends:,} of {_many(len(rows), 'rank')} ended cleanly"
    )
    if has_stragglers and answers.stragglers is not None:
        return f"{ended}. {answers.stragglers.sentence}"
    work = {
        rank.rank: rank.step_ns - rank.parts_ns.get("communication", 0.0) for rank in answers.time.ranks if rank.steps
    }
    if len(work) < 2:
        return f"{ended}."
    slowest = sorted(work, key=lambda rank: -work[rank])
    middle = median(work.values())
    if middle <= 0:
        return f"{ended}."
    if work[slowest[0]] / middle < 1 + _EVEN:
        return f"{ended}; their own work is the same within {format_value(_EVEN, 'ratio')}: no rank waits for another."
    excess = format_value(work[slowest[0]] / middle - 1, "ratio")
    sentence = (
        f"{ended}; rank {slowest[0]} has the most work of its own, {with_unit(work[slowest[0]], 'ns')} a step, "
        f"{excess} above the median rank"
    )
    if len(work) > DIRECT_LABELS:
        others = ", ".join(f"{rank} ({with_unit(work[rank], 'ns')})" for rank in slowest[1:5])
        sentence += f"; then ranks {others}"
    return f"{sentence}."


def _configuration(answers: RunAnswers) -> Section:
    entries = answers.configuration
    return Section(
        key="configuration",
        title=TITLES["configuration"],
        sentence=f"Command, settings, environment and versions as the run recorded them: {len(entries):,} entries."
        if entries
        else "The run recorded no settings.",
        tables=(tables.pairs("table-configuration", "Configuration", entries, ("key", "value"), code=True),)
        if entries
        else (),
    )


def _quality(answers: RunAnswers) -> Section:
    found = answers.quality
    methods = (*answers.methods, *((f"mark “{source}”", meaning) for source, meaning in SOURCES.items()))
    lines = [("watch", problem) for problem in found.problems] or [("good", "No gap, no lost row, no fault of ours.")]
    return Section(
        key="quality",
        title=TITLES["quality"],
        sentence=found.sentence,
        cards=_kpis(found.cost, answers),
        lines=(*lines, *(("", note) for note in found.notes)),
        tables=(tables.pairs("table-methods", "How it is measured", methods, ("term", "method"), code=False),),
    )
