"""Columns and how they are filled: one unit per numeric column, chosen by its largest value and named in its head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from agprof.model.figure import Figure, Source
from agprof.model.format import DASH
from agprof_reports.data import Cell, Column, Table
from agprof_reports.figures import cell, tip
from agprof_reports.text import digits, rounded, scale, with_unit

T = TypeVar("T")
Value = str | int | float | Figure | Cell | None
_MIXABLE = ("ns", "bytes", "bytes/s", "FLOP", "FLOP/s")
_TOO_SMALL = 0.001
"""Share of a column's unit below which a value is not worth printing in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field(Generic[T]):
    """A column before its unit is chosen: `unit` None is text, otherwise a base unit."""

    label: str
    get: Callable[[T], Value]
    unit: str | None = None
    source: Source | None = None
    tip: str = ""
    code: bool = False
    fold: bool = False
    """Long texts are shown shortened, whole on demand: names of kernels."""
    base_unit: str = ""
    """Unit of the values of cells that print units of their own; with `unit` empty."""


def table(
    key: str, caption: str, items: Sequence[T], fields: Sequence[Field[T]], note: str = "", *, filter_by: str = ""
) -> Table:
    """Fill the columns; `filter_by` is the label of the column whose values the reader may choose among."""
    columns, filled = [], []
    for field in fields:
        values = [field.get(item) for item in items]
        if field.unit is None:
            columns.append(Column(label=field.label, numeric=False, tip=field.tip, code=field.code, fold=field.fold))
            filled.append(
                [value if isinstance(value, Cell) else "" if value is None else str(value) for value in values]
            )
            continue
        numbers = [_number(value) for value in values]
        divisor, unit = scale(numbers, field.unit)
        if field.unit in _MIXABLE and any(y is not None and 0 < abs(y) < divisor * _TOO_SMALL for y in numbers):
            columns.append(Column(label=field.label, unit="", base_unit=field.unit, source=field.source, tip=field.tip))
            filled.append([_mixed(value, number, field.unit) for value, number in zip(values, numbers, strict=True)])
            continue
        columns.append(
            Column(label=field.label, unit=unit, base_unit=field.base_unit, source=field.source, tip=field.tip)
        )
        filled.append([_cell(value, divisor, exact=field.unit == "1") for value in values])
    rows = tuple(zip(*filled, strict=True)) if items else ()
    chosen = next((i for i, field in enumerate(fields) if filter_by and field.label == filter_by), None)
    return Table(key=key, caption=caption, columns=tuple(columns), rows=rows, note=note, filter_column=chosen)


def _number(value: Value) -> float | None:
    if isinstance(value, Figure):
        return value.value
    return float(value) if isinstance(value, int | float) else None


def _mixed(value: Value, number: float | None, unit: str) -> Cell:
    """A cell with a unit of its own, for columns whose values are too far apart for one."""
    return Cell(with_unit(number, unit), tip(value) if isinstance(value, Figure) else "", value=number)


def _cell(value: Value, divisor: float, *, exact: bool) -> str | Cell:
    if isinstance(value, Figure):
        return cell(value, divisor)
    if isinstance(value, str | Cell):
        return value
    if value is None:
        return DASH
    return digits(value / divisor) if exact else rounded(value / divisor)


def evenly(items: Sequence[T], limit: int) -> tuple[Sequence[T], str]:
    """Keep at most `limit` items at even distances, and say so."""
    if len(items) <= limit:
        return items, ""
    kept = [items[index * len(items) // limit] for index in range(limit)]
    return kept, f"{limit:,} of {len(items):,} rows, at even distances; report.json has all."
