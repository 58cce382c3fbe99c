"""What `agprof compare` says in a terminal: at most 25 lines of plain text from the answer."""

import textwrap

from agprof.analysis.compare_gates import change_words
from agprof.analysis.compare_waterfall import signed
from agprof.model.compare_answers import Change, CompareAnswer, KpiRow, Waterfall
from agprof.model.figure import Figure
from agprof.model.format import format_value

MOST_LINES = 24
"""The path of the page is the 25th."""
_MARKS = {"better": "better", "worse": "WORSE", "no change shown": "=", "not tested": ""}
_MOST_PARTS = 7
_BAR = 18


def summary_lines(answer: CompareAnswer, width: int = 80) -> list[str]:
    """Verdict, reservations, figures, the step time's waterfall, gates. No control characters."""
    width = max(60, width)
    gates = _gates(answer)[:6]
    head = [*_wrap(answer.sentence, width, 4), *_verdict(answer, width)]
    fall = _waterfall(answer)
    left = MOST_LINES - len(head) - len(gates) - len(fall)
    figures = _figures(answer)[: max(0, left)]
    return [_cut(line, width) for line in (*head, *figures, *fall, *gates)][:MOST_LINES]


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str, width: int) -> str:
    text = _clean(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrap(text: str, width: int, most: int) -> list[str]:
    return textwrap.wrap(_clean(text), width, max_lines=most, placeholder=" …")


def _verdict(answer: CompareAnswer, width: int) -> list[str]:
    lines = [f"{answer.comparable}{':' if answer.reasons else ''}"]
    for reason in answer.reasons[:2]:
        lines += [f"  {line}" for line in _wrap(reason, width - 2, 1)]
    if len(answer.reasons) > 2:
        lines.append(f"  and {len(answer.reasons) - 2} more")
    return lines


def main_candidate(answer: CompareAnswer) -> int:
    """The candidate that is spoken of: farthest from the baseline in step time, else the first."""
    row = next((row for row in answer.kpis if row.key == "step_time"), None)
    others = [at for at in range(len(answer.sides)) if at != answer.baseline]
    if row is None:
        return others[0]

    def far(at: int) -> float:
        change = row.changes[at]
        return abs(change.absolute.value or 0.0) if change is not None else -1.0

    return max(others, key=far)


def _figures(answer: CompareAnswer) -> list[str]:
    at = main_candidate(answer)
    rows = [row for row in answer.kpis if row.values[at].value is not None]
    rows.sort(key=lambda row: row.direction == "neither")
    return [f"  {_figure(row, answer.baseline, at)}" for row in rows]


def _figure(row: KpiRow, baseline: int, at: int) -> str:
    a, b, change = row.values[baseline], row.values[at], row.changes[at]
    values = f"{_value(a):>12} {_value(b):>12}"
    return f"{row.key:<22}{values}  {_change(change)}".rstrip()


def _value(figure: Figure) -> str:
    """`30.4/s` of `30.4 samples/s`: the row's name says of what."""
    return format_value(figure.value, figure.unit).replace(" samples/s", "/s").replace(" tokens/s", "/s")


def _change(change: Change | None) -> str:
    if change is None or change.relative.value is None:
        return ""
    return f"{change_words(change.relative)} {_MARKS[change.verdict]}".rstrip()


def _waterfall(answer: CompareAnswer) -> list[str]:
    """The parts of the step time's difference as bars, largest last ones summed."""
    at = main_candidate(answer)
    fall = next((fall for fall in answer.waterfalls if fall.quantity == "step time" and fall.side == at), None)
    if fall is None:
        return []
    names = answer.sides[answer.baseline].label, answer.sides[at].label
    head = f"mean step, {names[0][:24]} {format_value(fall.baseline, 'ns')} -> {names[1][:24]} "
    return [f"{head}{format_value(fall.candidate, 'ns')}", *_bars(fall)]


def _bars(fall: Waterfall) -> list[str]:
    parts = sorted((part for part in fall.parts if part.change), key=lambda part: (-abs(part.change), part.key))
    shown = [(part.key, part.change) for part in parts[:_MOST_PARTS]]
    if rest := parts[_MOST_PARTS:]:
        shown.append((f"{len(rest)} more", sum(part.change for part in rest)))
    most = max((abs(change) for _, change in shown), default=0.0) or 1.0
    bars = [("+" if change > 0 else "-") * round(_BAR * abs(change) / most) for _, change in shown]
    return [
        f"  {name:<26}{signed(change, fall.unit):>11}  {bar}" for (name, change), bar in zip(shown, bars, strict=True)
    ]


def _gates(answer: CompareAnswer) -> list[str]:
    words = {True: "ok  ", False: "FAIL", None: "?   "}
    return [f"gate {words[gate.passed]} {gate.condition}: {gate.found}" for gate in answer.gates]
