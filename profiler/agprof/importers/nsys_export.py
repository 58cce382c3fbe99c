"""Reads the SQLite export of an Nsight Systems report: tables by name or its versions, columns by presence.

The layout changes from release to release (docs.nvidia.com: "the format may likely change"): tables get suffixes
(`NVTX_EVENTS_V2`), columns come and go, tables without rows are not written. So nothing here pins a schema version.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import polars as pl

from agprof.errors import TraceError

ROWS_PER_CHUNK = 100_000
MAGIC = b"SQLite format 3\x00"
_STRINGS_PER_QUERY = 500
_PAGE_COUNT = slice(28, 32)

Kind = Literal["int", "float", "text"]


class Export:
    """An open export. Everything that SQLite complains about becomes a TraceError with one sentence."""

    def __init__(self, file: Path, *, check: bool = True) -> None:
        """Open it read-only and check that it is whole; `check=False` for a file that was. Raises TraceError."""
        self.file = file
        _check_size(file)
        try:
            self._connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            self._columns_connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        # Texts may be anything, and sqlite3 itself fails on what is no UTF-8. Columns are decoded as wholes.
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        self._columns_connection.text_factory = bytes
        self._strings: dict[int, str] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        try:
            # What a foreign file defines (views, functions in its schema) must not run.
            self.query("PRAGMA trusted_schema = OFF")
            self.query("PRAGMA cell_size_check = ON")
            self._columns_connection.execute("PRAGMA trusted_schema = OFF")
            found = self.query("PRAGMA quick_check(1)") if check else [("ok",)]
            if found != [("ok",)]:
                raise TraceError(f"{file}: the SQLite file is damaged: {str(found[:1])[:200]}; {_AGAIN}")
            self._tables = {
                name
                for name, sql in self.query("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
                if isinstance(name, str) and isinstance(sql, str) and re.match(r"CREATE\s+TABLE\b", sql, re.IGNORECASE)
            }
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        self._columns_connection.close()

    @property
    def tables(self) -> frozenset[str]:
        """Names as they stand in the file."""
        return frozenset(self._tables)

    def table(self, base: str) -> str | None:
        """The table of that name, or of that name with a version behind it (`_V2`): the newest that has a row."""
        versions = []
        for name in self._tables:
            match = re.fullmatch(rf"{re.escape(base)}(?:_V(\d{{1,6}}))?", name, re.IGNORECASE)
            if match:
                versions.append((int(match[1] or 1), name))
        names = [name for _, name in sorted(versions, reverse=True)]
        return next((name for name in names if self.query(f"SELECT 1 FROM {quoted(name)} LIMIT 1")), None)

    def columns(self, table: str) -> tuple[str, ...]:
        if table not in self._columns:
            self._columns[table] = tuple(str(row[1]) for row in self.query(f"PRAGMA table_info({quoted(table)})"))
        return self._columns[table]

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a small answer. Raises TraceError."""
        try:
            with closing(self._connection.execute(sql, parameters)) as cursor:
                return cursor.fetchall()
        except (sqlite3.Error, OverflowError) as error:
            raise self._damaged(error) from error

    def expression(self, table: str, column: str) -> str:
        """The column, or NULL where the table has none of that name."""
        return quoted(column) if column in self.columns(table) else "NULL"

    def chunks(self, base: str, columns: Mapping[str, Kind], where: str = "") -> Iterator[pl.DataFrame]:
        """Rows of a table with these columns, some at a time, in the file's order; none where it has no such table.

        A column that the table lacks is null, and so is a value of another type than asked for.
        """
        table = self.table(base)
        if table is None:
            return
        wanted = ", ".join(self.expression(table, column) for column in columns)
        condition = f" WHERE {where}" if where else ""
        try:
            with closing(
                self._columns_connection.execute(f"SELECT {wanted} FROM {quoted(table)}{condition}")
            ) as cursor:
                while rows := cursor.fetchmany(ROWS_PER_CHUNK):
                    values = zip(columns.items(), zip(*rows, strict=True), strict=True)
                    yield pl.DataFrame([_series(name, kind, column) for (name, kind), column in values])
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def count(self, base: str) -> int:
        """Rows of a table, at most: what progress is measured by."""
        table = self.table(base)
        if table is None:
            return 0
        found = self.query(f"SELECT max(rowid) FROM {quoted(table)}")[0][0]
        return found if isinstance(found, int) and found > 0 else 0

    def strings(self, ids: Iterable[int | None]) -> dict[int, str]:
        """Texts of table StringIds by their ids; those asked for before are remembered."""
        missing = sorted({number for number in ids if number is not None and number not in self._strings})
        if missing and "StringIds" in self._tables:
            for begin in range(0, len(missing), _STRINGS_PER_QUERY):
                some = missing[begin : begin + _STRINGS_PER_QUERY]
                marks = ",".join("?" * len(some))
                for number, text in self.query(f"SELECT id, value FROM StringIds WHERE id IN ({marks})", some):
                    self._strings[number] = text if isinstance(text, str) else str(text)
        return self._strings

    def texts(self, ids: pl.Series) -> pl.Series:
        """The texts behind a column of ids; null where there is none."""
        known = self.strings(ids.unique().to_list())
        found = [number for number in ids.unique().to_list() if number in known]
        return ids.replace_strict(found, [known[n] for n in found], default=None, return_dtype=pl.String)

    def _damaged(self, error: Exception) -> TraceError:
        return TraceError(f"{self.file}: can't be read as SQLite: {str(error)[:200]}; {_AGAIN}")


_AGAIN = "export it again: nsys export --type sqlite REPORT.nsys-rep"


def quoted(name: str) -> str:
    """A name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def _series(name: str, kind: Kind, values: tuple[Any, ...]) -> pl.Series:
    if kind == "int":
        # SQLite columns have no types of their own: what is no integer is no value.
        try:
            return pl.Series(name, values, dtype=pl.Int64, strict=True)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            return pl.Series(name, [v if type(v) is int else None for v in values], dtype=pl.Int64)
    if kind == "text":
        raw = [value if isinstance(value, bytes) else None for value in values]
        try:
            return pl.Series(name, raw, dtype=pl.Binary).cast(pl.String)
        except pl.exceptions.PolarsError:
            return pl.Series(name, [v if v is None else v.decode("utf-8", "replace") for v in raw], dtype=pl.String)
    return pl.Series(name, [float(v) if isinstance(v, int | float) else None for v in values], dtype=pl.Float64)


def _check_size(file: Path) -> None:
    """Raise TraceError for a file that is no SQLite, or shorter than its own header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            head = opened.read(100)
    except OSError as error:
        raise TraceError(f"{file}: can't be read: {error.strerror or error}") from error
    if not head.startswith(MAGIC) or len(head) < 100:
        raise TraceError(f"{file}: is no SQLite file; {_AGAIN}")
    page = int.from_bytes(head[16:18], "big")
    page = 65536 if page == 1 else page
    promised = page * int.from_bytes(head[_PAGE_COUNT], "big")
    # The number of pages counts only when the two change counters agree (sqlite.org/fileformat2.html, 1.3.8).
    if head[24:28] == head[92:96] and promised > size:
        raise TraceError(f"{file}: is cut short: {size:,} of {promised:,} bytes are here; {_AGAIN}")
