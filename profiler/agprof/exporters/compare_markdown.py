"""The summary of a comparison as Markdown, for a pull request."""

from collections.abc import Iterator

from agprof.analysis.compare_gates import change_words
from agprof.analysis.compare_summary import main_candidate
from agprof.analysis.compare_waterfall import signed
from agprof.model.compare_answers import Change, CompareAnswer, KpiRow, Waterfall
from agprof.model.format import format_value

_MOST_KPIS = 10
_MOST_PARTS = 12
_MOST_REASONS = 8
_SPECIAL = "\\`*_{}[]<>#|~@&"
_VERDICTS = {"better": "better", "worse": "**worse**", "no change shown": "no change shown", "not tested": "not tested"}


def markdown_summary(answer: CompareAnswer) -> str:
    """Verdict, gates, figures with changes, the step time's waterfall. Names from outside are escaped."""
    at = main_candidate(answer)
    return "\n".join([*_head(answer), *_gates(answer), *_figures(answer, at), *_waterfalls(answer, at)]) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    >>> escaped("a|b <img>")
    'a\\\\|b \\\\<img\\\\>'
    """
    line = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in line)


def _head(answer: CompareAnswer) -> Iterator[str]:
    yield f"### agprof compare: {answer.comparable}"
    yield ""
    yield escaped(answer.sentence)
    yield ""
    for reason in answer.reasons[:_MOST_REASONS]:
        yield f"- {escaped(reason)}"
    if len(answer.reasons) > _MOST_REASONS:
        yield f"- and {len(answer.reasons) - _MOST_REASONS} more"
    if answer.reasons:
        yield ""


def _gates(answer: CompareAnswer) -> Iterator[str]:
    if not answer.gates:
        return
    yield "| gate | | found |"
    yield "| --- | --- | --- |"
    words = {True: "✓ passed", False: "✗ **failed**", None: "? not measured"}
    for gate in answer.gates:
        yield f"| {escaped(gate.condition)} | {words[gate.passed]} | {escaped(gate.found)} |"
    yield ""


def _figures(answer: CompareAnswer, at: int) -> Iterator[str]:
    names = escaped(answer.sides[answer.baseline].label), escaped(answer.sides[at].label)
    yield f"| | {names[0]} | {names[1]} | change | |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for row in [row for row in answer.kpis if row.values[at].value is not None][:_MOST_KPIS]:
        yield _figure(row, answer.baseline, at)
    yield ""


def _figure(row: KpiRow, baseline: int, at: int) -> str:
    a, b, change = row.values[baseline], row.values[at], row.changes[at]
    cells = [row.label, format_value(a.value, a.unit), format_value(b.value, b.unit), *_change(change)]
    return f"| {' | '.join(escaped(cell) if place else cell for place, cell in enumerate(cells[:4]))} | {cells[4]} |"


def _change(change: Change | None) -> tuple[str, str]:
    if change is None:
        return "–", ""
    return change_words(change.relative), _VERDICTS[change.verdict]


def _waterfalls(answer: CompareAnswer, at: int) -> Iterator[str]:
    for fall in answer.waterfalls:
        if fall.side == at and any(part.change for part in fall.parts):
            yield from _waterfall(fall)


def _waterfall(fall: Waterfall) -> Iterator[str]:
    yield f"<details><summary>{fall.quantity}, part by part</summary>"
    yield ""
    yield "| part | change | evidence |"
    yield "| --- | ---: | --- |"
    parts = sorted((part for part in fall.parts if part.change), key=lambda part: (-abs(part.change), part.key))
    for part in parts[:_MOST_PARTS]:
        yield f"| {escaped(part.label)} | {escaped(signed(part.change, fall.unit))} | {escaped(part.evidence)} |"
    if rest := parts[_MOST_PARTS:]:
        yield f"| {len(rest)} more | {escaped(signed(sum(part.change for part in rest), fall.unit))} | |"
    yield f"| **all** | **{escaped(signed(fall.candidate - fall.baseline, fall.unit))}** | {escaped(fall.note)} |"
    yield ""
    yield "</details>"
    yield ""
