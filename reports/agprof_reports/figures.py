"""Figures of the answers as cards and table cells: number, unit, interval, source and what stands behind them."""

from agprof.model.figure import Figure, Kpi, Source
from agprof.model.format import DASH, format_interval
from agprof_reports.data import Card, Cell, Shown
from agprof_reports.text import amount, digits, rounded

SOURCES: dict[Source, str] = {
    "measured": "read from a clock or a counter of this run",
    "counted": "counted exactly from the program or its data",
    "modelled": "computed by a formula from what was measured or counted",
    "declared": "taken from the settings, as somebody wrote it",
}


def shown(figure: Figure) -> Shown:
    number, unit = amount(figure.value, figure.unit)
    reason = "" if figure.value is not None else figure.reason or "not measured"
    return Shown(
        number=number,
        unit=unit,
        interval=interval(figure),
        source=figure.source,
        tip=tip(figure),
        reason=reason,
    )


def interval(figure: Figure) -> str:
    """`[371, 379], n = 46`, in the unit in which the value itself is printed; empty without an interval."""
    text = format_interval(figure)
    return f"{text}, n = {figure.n:,}" if text else ""


def tip(figure: Figure) -> str:
    if figure.value is None:
        return f"not measured: {figure.reason or 'no reason was recorded'}"
    parts = [f"{figure.source}: {figure.method}" if figure.method else figure.source]
    if text := format_interval(figure):
        parts.append(f"interval {text} {amount(figure.value, figure.unit)[1]}".rstrip())
    if figure.n:
        parts.append(f"n = {figure.n:,}")
    return "; ".join(parts)


def card(kpi: Kpi) -> Card:
    return Card(key=kpi.key, label=kpi.label, shown=shown(kpi.figure), note=kpi.note)


def cards(*items: tuple[str, str, Figure, str]) -> tuple[Card, ...]:
    """Cards of a section; none when nothing at all was measured, since the sentence says why."""
    if all(figure.value is None for _, _, figure, _ in items):
        return ()
    return tuple(Card(key=key, label=label, shown=shown(figure), note=note) for key, label, figure, note in items)


def cell(figure: Figure, divisor: float) -> Cell:
    """A figure in a column whose unit is already chosen."""
    if figure.value is None:
        return Cell(DASH, tip(figure))
    text = digits(figure.value) if figure.unit == "1" else rounded(figure.value / divisor)
    return Cell(text, tip(figure))
