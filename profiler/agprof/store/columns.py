"""Gathers rows of one table of one stream into data frames with the table's columns and types."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from agprof.model.tables import Column, Table, Type
from agprof.store.frames import Block, Rows
from agprof.store.unpacking import Columns

DTYPES: dict[Type, type[pl.DataType]] = {"int": pl.Int64, "float": pl.Float64, "str": pl.String, "bool": pl.Boolean}
_ROWS_PER_PART = 65_536
"""Rows kept as Python values at a time; a data frame needs a tenth of their memory."""


@dataclass(slots=True)
class Collector:
    """Rows of one table of one stream on their way into data frames."""

    table: Table
    number: int
    frames: list[pl.DataFrame]
    rows: Rows = field(default_factory=list)
    columns: Columns = field(default_factory=list)
    """What came by column; only one of the two holds anything."""
    foreign_rows: int = 0
    foreign_values: dict[str, int] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Take the block's rows."""
        if block.columns is None:
            if self.columns:
                self.convert()
            self.rows.extend(block.as_rows())
            if len(self.rows) >= _ROWS_PER_PART:
                self.convert()
        elif not self._required <= len(block.columns) <= len(self.table.columns):
            self.foreign_rows += block.count
        else:
            self._add_columns(block.count, block.columns)

    def _add_columns(self, count: int, columns: Columns) -> None:
        if self.rows:
            self.convert()
        if not self.columns:
            self.columns = [[] for _ in self.table.columns]
        for kept, values in zip(self.columns, columns, strict=False):
            kept.extend(values)
        for kept in self.columns[len(columns) :]:
            kept.extend([None] * count)
        if len(self.columns[0]) >= _ROWS_PER_PART:
            self.convert()

    def convert(self) -> None:
        """Make a data frame of what was taken since the last one."""
        if self.columns:
            columns, self.columns = self.columns, []
            self._convert(columns)
        if self.rows:
            rows, self.rows = self._of_table_shape(self.rows), []
            if rows:
                self._convert([list(values) for values in zip(*rows, strict=True)])

    def _convert(self, columns: Columns) -> None:
        series = [self._series(column, values) for column, values in zip(self.table.columns, columns, strict=True)]
        number = pl.repeat(self.number, len(columns[0]), dtype=pl.Int64, eager=True).alias(self.table.scope)
        self.frames.append(pl.DataFrame([number, *series]))

    @property
    def _required(self) -> int:
        """Columns that a row must have; those of an older agprof lack optional ones at the end."""
        return max((at for at, column in enumerate(self.table.columns, 1) if not column.optional), default=0)

    def _of_table_shape(self, rows: Rows) -> Rows:
        width = len(self.table.columns)
        good = [row for row in rows if len(row) == width]
        if len(good) < len(rows):
            fitting = (row for row in rows if self._required <= len(row) <= width)
            good = [[*row, *([None] * (width - len(row)))] for row in fitting]
            self.foreign_rows += len(rows) - len(good)
        return good

    def _series(self, column: Column, values: list[Any]) -> pl.Series:
        dtype = DTYPES[column.type]
        try:
            return pl.Series(column.name, values, dtype=dtype, strict=True)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            # polars' own lenient mode would cut 2.5 to 2 and read "1" as 1: a value of another type is no value.
            kept = [_of_type(value, column.type) for value in values]
            foreign = sum(before is not None and after is None for before, after in zip(values, kept, strict=True))
            if foreign:
                self.foreign_values[column.name] = self.foreign_values.get(column.name, 0) + foreign
            return pl.Series(column.name, kept, dtype=dtype, strict=True)

    def problems(self, label: str) -> list[str]:
        found = []
        if self.foreign_rows:
            found.append(f"{label}: {self.foreign_rows} rows of table {self.table.name} have a foreign shape; left out")
        found += [
            f"{label}: {count} values of {self.table.name}.{name} are of a foreign type; read as missing"
            for name, count in self.foreign_values.items()
        ]
        return found


def _of_type(value: Any, type_: Type) -> int | float | str | bool | None:
    """The value when it is one of the column's type without loss, else None."""
    if type_ == "str":
        return value if isinstance(value, str) else None
    if type_ == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if type_ == "float":
        return float(value)
    if isinstance(value, float) and not value.is_integer():
        return None
    number = int(value)
    return number if -(2**63) <= number < 2**63 else None
