"""The ten lines at the end of `agprof run`: plain text from the answers."""

import textwrap

from agprof.model.answers import Finding, RunAnswers
from agprof.model.format import format_figure, format_value, percent
from agprof.model.tables import PHASES

_LETTERS = {"data": "d", "forward": "f", "backward": "b", "communication": "c", "optimizer": "o", "other": "."}
_FINDINGS = 3
_UTILISATIONS = {"mfu_full": "MFU", "hfu": "HFU"}
"""Definitions that the terminal gives; the report gives all, with their conventions."""


def terminal_lines(answers: RunAnswers, width: int = 80) -> list[str]:
    """What a run says in a terminal.

    Name, steps, median step, verdict, memory that ran out, MFU and HFU, the device's time, energy, up to three findings
    with savings, a bar of the phases.

    No line is wider than `width` (at least 40), and none holds a control character.
    """
    width = max(40, width)
    identity, time = answers.identity, answers.time
    if identity.kind == "command":
        return _of_command(answers, width)
    where = ", ".join(part for part in (identity.framework, identity.device, identity.dtype) if part)
    lines = [
        _cut(f"{identity.name}: {identity.status_sentence}", width),
        _cut(f"{_ranks(answers)}{f', {where}' if where else ''}", width),
        _cut(f"median step {format_figure(time.step_time)}{_left_out(answers)}", width),
        *_wrap(answers.verdict.headline, width, 2),
        *(_cut(line, width) for line in _out_of_memory(answers)),
        *(_cut(line, width) for line in _utilisation(answers)),
        *(_cut(line, width) for line in _device(answers)),
        *(_cut(line, width) for line in _energy(answers)),
        *(
            _finding(finding, width, "a step" if time.steady_steps else "a window")
            for finding in answers.findings[:_FINDINGS]
        ),
    ]
    if not answers.findings:
        lines.append(_cut("nothing found to change", width))
    return [*lines, *_bar(answers, width)]


def _of_command(answers: RunAnswers, width: int) -> list[str]:
    """How it ended, what it used, what else there is to know."""
    found = answers.findings[:_FINDINGS]
    return [
        _cut(f"{answers.identity.name}: {answers.identity.status_sentence}", width),
        *_wrap(answers.verdict.headline.replace("`", ""), width, 2),
        *(line for sentence in answers.verdict.evidence for line in _wrap(sentence, width, 2)),
        *_wrap(answers.system.sentence, width, 3),
        *(_finding(finding, width, "a step") for finding in found),
    ]


def _clean(text: str) -> str:
    """Without control characters, line breaks and marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str, width: int) -> str:
    text = _clean(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrap(text: str, width: int, most: int) -> list[str]:
    return textwrap.wrap(_clean(text), width, max_lines=most, placeholder=" …")


def _ranks(answers: RunAnswers) -> str:
    quality = answers.quality
    present, expected = quality.ranks_present, quality.ranks_expected
    plural = "" if (expected or present) == 1 else "s"
    if expected is not None and expected != present:
        return f"{present} of {expected} rank{plural}"
    return f"{present} rank{plural}"


def _device(answers: RunAnswers) -> list[str]:
    """Where the devices' time goes, over all ranks, when a trace tells: `device: compute 36 %, ..., idle 42 %`.

    Of the marked steps, where there are any, as verdict and cards.
    """
    windows = answers.trace.steps or answers.trace.windows if answers.trace is not None else ()
    whole = sum(row.window_ns for row in windows)
    if not whole:
        return []
    sums = {
        "compute": sum(row.compute_ns for row in windows),
        "exposed communication": sum(row.exposed_communication_ns for row in windows),
        "copies": sum(row.exposed_memcpy_ns + row.exposed_memset_ns for row in windows),
        "idle": sum(row.idle_ns for row in windows),
    }
    return [f"device: {', '.join(f'{name} {percent(ns / whole)}' for name, ns in sums.items() if ns)}"]


def _energy(answers: RunAnswers) -> list[str]:
    """`energy: 40.0 kJ over the run, 400 J a step, 0.0977 J a token (1 GPU)`; nothing where it is not known."""
    energy = answers.energy
    if energy is None or energy.run.value is None:
        return []
    words = [f"{format_value(energy.run.value, 'J')} over the run"]
    for figure, what in ((energy.per_step, "step"), (energy.per_token, "token")):
        if figure.value is not None:
            words.append(f"{format_value(figure.value, 'J')} a {what}")
    return [f"energy: {', '.join(words)} ({energy.scope.partition(' (')[0]})"]


def _out_of_memory(answers: RunAnswers) -> list[str]:
    """The report's own sentence, when memory ran out."""
    oom = answers.memory.oom
    return [oom.sentence.replace("`", "")] if oom is not None else []


def _utilisation(answers: RunAnswers) -> list[str]:
    """`MFU 27 %, HFU 36 % of data sheet; 34 %, 45 % of achievable`; nothing where no ceiling of the device is known."""
    rows = [(name, row) for key, name in _UTILISATIONS.items() for row in answers.compute.utilisation if row.key == key]
    told: list[str] = []
    for what in ("data sheet", "achievable"):
        figures = [(name, row.of_datasheet if what == "data sheet" else row.of_achievable) for name, row in rows]
        known = [(name, figure.value) for name, figure in figures if figure.value is not None]
        words = ", ".join(f"{name} {percent(value)}" if not told else percent(value) for name, value in known)
        if words:
            told.append(f"{words} of {what}")
    return [f"{'; '.join(told)}; full attention"] if told else []


def _left_out(answers: RunAnswers) -> str:
    """What does not count in the median: ` (left out: 2 warm-up, 1 profiled)`."""
    counts = {"warm-up": answers.time.warmup_steps, "profiled": len(answers.time.profiled_steps)}
    parts = [f"{count} {kind}" for kind, count in counts.items() if count]
    return f" (left out: {', '.join(parts)})" if parts else ""


def _finding(finding: Finding, width: int, per: str) -> str:
    """The title, cut to leave room for the saving."""
    figure = finding.saving_ns_per_step
    saves = f" (up to {format_value(figure.value, 'ns')} {per})" if figure and figure.value else ""
    return _cut(f"- {finding.title}", width - len(saves)) + saves


def _bar(answers: RunAnswers, width: int) -> list[str]:
    """The step's phases as letters, mean over ranks; below it their names, the smallest left out where room ends."""
    ranks = answers.time.ranks
    total = sum(row.step_ns for row in ranks)
    if not total:
        return ["no phases to show"]
    shares = {phase: sum(row.parts_ns[phase] for row in ranks) / total for phase in PHASES}
    columns = _columns(shares, width - 2)
    bar = "".join(_LETTERS[phase] * columns[phase] for phase in PHASES)
    shown = [phase for phase in PHASES if shares[phase] > 0]
    while len(_legend(shown, shares)) > width:
        shown.remove(min(shown, key=lambda phase: shares[phase]))
    return [f"[{bar}]", _legend(shown, shares)]


def _legend(phases: list[str], shares: dict[str, float]) -> str:
    """The bar's letters are the names' first ones; other is a dot."""
    names = {phase: ". other" if phase == "other" else phase for phase in phases}
    return "  ".join(f"{name} {percent(shares[phase])}" for phase, name in names.items())


def _columns(shares: dict[str, float], width: int) -> dict[str, int]:
    """Whole columns per phase that add up to `width`: largest remainders get what rounding down leaves."""
    exact = {phase: share * width for phase, share in shares.items()}
    columns = {phase: int(value) for phase, value in exact.items()}
    left = width - sum(columns.values())
    for phase in sorted(exact, key=lambda name: columns[name] - exact[name])[:left]:
        columns[phase] += 1
    return columns
