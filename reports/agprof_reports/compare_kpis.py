"""The figures of all sides: values, change against the baseline, its interval, p and verdict in words."""

import math

from agprof.model.compare_answers import Change, CompareAnswer, KpiRow
from agprof.model.figure import Figure
from agprof.model.format import DASH, percent
from agprof_reports.charts.waterfall import signed
from agprof_reports.columns import Field, table
from agprof_reports.compare_data import Interval, KpiCell, KpiLine
from agprof_reports.data import Cell, Table
from agprof_reports.figures import shown
from agprof_reports.text import rounded

MARKS = {"better": "good", "worse": "bad"}
_LEAST_REACH, _MOST_REACH = 0.05, 1.0
"""Of the axis of changes, as ratios: what ends beyond is cut."""


def reach(answer: CompareAnswer) -> float:
    """The change at the end of the axis, one for all rows."""
    ends = [
        abs(end)
        for row in answer.kpis
        for change in row.changes
        if change is not None
        for end in (change.relative.value, change.relative.low, change.relative.high)
        if end is not None and math.isfinite(end)
    ]
    return min(max([_LEAST_REACH, *ends]), _MOST_REACH)


def lines(answer: CompareAnswer) -> tuple[KpiLine, ...]:
    limit = reach(answer)
    return tuple(
        KpiLine(
            key=row.key,
            label=row.label,
            direction="" if row.direction == "neither" else row.direction,
            cells=tuple(
                _cell(figure, change, limit, is_baseline=side == answer.baseline)
                for side, (figure, change) in enumerate(zip(row.values, row.changes, strict=True))
            ),
        )
        for row in answer.kpis
    )


def _cell(figure: Figure, change: Change | None, limit: float, *, is_baseline: bool) -> KpiCell:
    relative = change.relative if change is not None else None
    absolute = change.absolute if change is not None else None
    return KpiCell(
        shown=shown(figure),
        is_baseline=is_baseline,
        mark=MARKS.get(change.verdict, "") if change is not None else "",
        verdict="" if change is None else change.verdict,
        change="" if relative is None or relative.value is None else signed_percent(relative.value),
        change_interval="" if relative is None else _ends(relative),
        absolute="" if absolute is None or absolute.value is None else signed(absolute.value, absolute.unit),
        p="" if change is None or change.p_value is None else p_words(change.p_value),
        test="" if change is None or change.test == "none" else change.test,
        interval=None if relative is None else _interval(relative, limit),
    )


def signed_percent(ratio: float) -> str:
    """`+117 %`, with signs that are as wide as digits.

    >>> signed_percent(-0.031).replace(chr(160), " ")
    '−3.1 %'
    """
    sign = "+" if ratio > 0 else "\u2212" if ratio < 0 else ""
    return sign + percent(abs(ratio)).replace(" ", "\u00a0")


def p_words(p: float) -> str:
    """`p = 0.0312`, `p < 0.001`."""
    least = 0.001
    words = f"p < {least}" if p < least else f"p = {rounded(p)}"
    return words.replace(" ", "\u00a0")


def _ends(relative: Figure) -> str:
    if relative.low is None or relative.high is None:
        return ""
    return f"[{signed_percent(relative.low)}, {signed_percent(relative.high)}]"


def _interval(relative: Figure, limit: float) -> Interval | None:
    if relative.value is None or not math.isfinite(relative.value):
        return None

    def place(value: float) -> float:
        return min(max(value / limit, -1.0), 1.0)

    low = relative.low if relative.low is not None and math.isfinite(relative.low) else None
    high = relative.high if relative.high is not None and math.isfinite(relative.high) else None
    return Interval(
        at=place(relative.value),
        low=None if low is None else place(low),
        high=None if high is None else place(high),
        cut_low=min(relative.value, relative.value if low is None else low) < -limit,
        cut_high=max(relative.value, relative.value if high is None else high) > limit,
    )


def changes_table(answer: CompareAnswer, key: str) -> Table:
    """The same, one row per figure and candidate, to sort and copy."""
    rows: list[tuple[KpiRow, int, Change]] = [
        (row, side, change) for row in answer.kpis for side, change in enumerate(row.changes) if change is not None
    ]

    def plain(figure: Figure) -> Cell:
        made = shown(figure)
        return Cell(f"{made.number} {made.unit}".strip(), made.tip, value=figure.value)

    return table(
        key,
        "Changes against the baseline",
        rows,
        [
            Field(label="figure", get=lambda r: r[0].label),
            Field(label="side", get=lambda r: answer.sides[r[1]].label),
            Field(label="baseline", get=lambda r: plain(r[0].values[answer.baseline]), unit=""),
            Field(label="value", get=lambda r: plain(r[0].values[r[1]]), unit=""),
            Field(label="change", get=lambda r: _signed_cell(r[2].absolute), unit=""),
            Field(label="relative", get=lambda r: _percent_cell(r[2].relative.value), unit=""),
            Field(label="low", get=lambda r: _percent_cell(r[2].relative.low), unit=""),
            Field(label="high", get=lambda r: _percent_cell(r[2].relative.high), unit=""),
            Field(label="p", get=lambda r: DASH if r[2].p_value is None else rounded(r[2].p_value), unit=""),
            Field(label="n", get=lambda r: r[0].values[r[1]].n or None, unit="1", source="counted"),
            Field(label="verdict", get=lambda r: Cell(r[2].verdict, mark=MARKS.get(r[2].verdict, ""))),
            Field(label="test", get=lambda r: r[2].test),
        ],
        filter_by="side" if len(answer.sides) > 2 else "",
    )


def _signed_cell(figure: Figure) -> Cell:
    text = DASH if figure.value is None else signed(figure.value, figure.unit)
    return Cell(text, shown(figure).tip, value=figure.value)


def _percent_cell(ratio: float | None) -> Cell:
    return Cell(DASH if ratio is None else signed_percent(ratio), value=ratio)
