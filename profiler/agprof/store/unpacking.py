"""Unpacks what `packing` packed, within limits: a hostile frame is an error, and never much memory."""

import sys
import zlib
from array import array
from typing import Any, TypeAlias

import msgspec

from agprof.store import bits as planes
from agprof.store.packing import (
    CHOICE,
    CONST,
    CYCLE,
    DELTAS,
    DICTIONARY_BYTES,
    FLOAT32,
    FLOAT64,
    INTS,
    MAX_TEXT_BYTES,
    MAX_UNPACKED_BYTES,
    NULLS,
    PLAIN,
    SCALED,
    STEPS,
    most_cells,
)

Columns: TypeAlias = list[list[Any]]
_PLAIN_TYPES = frozenset((int, float, str, bool, type(None)))
_MAX_DEPTH = 8
_LIMIT = 2**66
"""Of integers, so that a hostile shift makes no giant: the sums of what `pack` makes are below."""


class UnpackError(Exception):
    """The data is not what `pack` makes."""


def unpack(
    decoder: "msgspec.msgpack.Decoder[Any]", shape: bytes, bits: bytes, dictionary: bytes
) -> tuple[list[tuple[str, int, Columns]], bytes]:
    """(table, number of rows, columns) of each table, and the dictionary for the frame after. Raises UnpackError."""
    reader = _Reader(bits)
    try:
        data = _decompress(shape, dictionary)
        tables = reader.tables(decoder.decode(data), most_cells(len(shape) + len(bits)))
    except (
        msgspec.MsgspecError, zlib.error, ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError,
        AttributeError, ZeroDivisionError, StopIteration,
    ) as error:  # fmt: skip
        raise UnpackError(f"{type(error).__name__}: {error}") from None
    if not reader.at_end:
        raise UnpackError("it has more bits than values")
    return tables, data[-DICTIONARY_BYTES:]


def _decompress(compressed: bytes, dictionary: bytes) -> bytes:
    stream = zlib.decompressobj(zdict=dictionary)
    data = stream.decompress(compressed, MAX_UNPACKED_BYTES)
    if not stream.eof or stream.unused_data:
        raise UnpackError(f"it does not end within {MAX_UNPACKED_BYTES} bytes, or where it should")
    return data


class _Reader:
    def __init__(self, bits: bytes) -> None:
        self._bits = bits
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._bits)

    def tables(self, value: Any, cells_left: int) -> list[tuple[str, int, Columns]]:
        found = []
        for name, rows, columns in value:
            if type(name) is not str or not name or type(rows) is not int or rows < 1 or not columns:
                raise UnpackError("a table without name, rows or columns")
            cells_left -= rows * len(columns)
            if cells_left < 0:
                raise UnpackError("more values than its size allows")
            found.append((name, rows, [self._column(column, rows, 0) for column in columns]))
        return found

    def _column(self, column: Any, rows: int, depth: int) -> list[Any]:
        kind = column[0]
        if depth > _MAX_DEPTH:
            raise UnpackError("columns in columns in columns")
        if kind == CONST:
            return [_one(column[1], rows)] * rows
        if kind == INTS:
            return self._ints(column[1], column[2], column[3], rows)
        if kind == SCALED:
            scale = column[1]
            return [value / scale for value in self._integers(column[2], rows, depth)]
        if kind == FLOAT32:
            return _singles(self._integers(column[1], rows, depth))
        if kind == DELTAS:
            return self._sums(column[1], column[2], column[3], rows, depth)
        if kind == STEPS:
            values = self._column(column[2], _part(rows, column[1]), depth + 1)
            lag = column[1]
            return _checked([value for value in values for _ in range(lag)], rows)
        if kind == CYCLE:
            return _checked(self._column(column[2], column[1], depth + 1) * _part(rows, column[1]), rows)
        if kind == NULLS:
            return self._with_nulls(column[1], column[2], rows, depth)
        if kind == CHOICE:
            return self._choice(column[1], column[2], column[3], rows, depth)
        if kind == FLOAT64:
            double = array("d")
            double.frombytes(self._take(8 * rows))
            if sys.byteorder == "big":
                double.byteswap()
            return double.tolist()
        if kind == PLAIN:
            return _checked(column[1], rows)
        raise UnpackError(f"unknown kind of column {kind!r:.40}")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._bits):
            raise UnpackError("fewer bits than values")
        data = self._bits[self._at : end]
        self._at = end
        return data

    def _ints(self, width: Any, shift: Any, lowest: Any, rows: int) -> list[int]:
        if width not in _WIDTHS or shift not in _SHIFTS or type(lowest) is not int:
            raise UnpackError("integers of an impossible width")
        numbers = planes.get(self._take(planes.size(rows, width)), rows, width)
        if shift:
            return [(number << shift) + lowest for number in numbers]
        return [number + lowest for number in numbers] if lowest else list(numbers)

    def _integers(self, column: Any, rows: int, depth: int) -> list[int]:
        values = self._column(column, rows, depth + 1)
        if column[0] != INTS and not set(map(type, values)) <= {int}:
            raise UnpackError("integers that are none")
        return values

    def _choice(self, count: Any, values: Any, indexes: Any, rows: int, depth: int) -> list[Any]:
        if type(count) is not int or not 0 < count <= rows:
            raise UnpackError("more values than rows")
        chosen = self._column(values, count, depth + 1)
        numbers = self._integers(indexes, rows, depth)
        if min(numbers) < 0:
            raise UnpackError("an index below 0")
        return _checked([chosen[number] for number in numbers], rows)

    def _sums(self, lag: Any, first: Any, deltas: Any, rows: int, depth: int) -> list[int]:
        if type(lag) is not int or not 0 < lag < rows:
            raise UnpackError("a distance that is not within the rows")
        values = self._integers(first, lag, depth)
        append = values.append
        for at, delta in enumerate(self._integers(deltas, rows - lag, depth)):
            append(values[at] + delta)
        if not -_LIMIT < min(values) <= max(values) < _LIMIT:
            raise UnpackError("integers above 64 bits")
        return values

    def _with_nulls(self, marks: Any, column: Any, rows: int, depth: int) -> list[Any]:
        if type(marks) is not bytes or len(marks) != (rows + 7) // 8:
            raise UnpackError("marks of missing values that do not fit")
        number = int.from_bytes(marks, "little")
        if number >> rows or not number:
            raise UnpackError("marks of missing values that do not fit")
        there = iter(self._column(column, number.bit_count(), depth + 1))
        # One digit per row, the last row first.
        return [next(there) if mark == "1" else None for mark in reversed(f"{number:0{rows}b}")]


_WIDTHS = frozenset(range(2, 65, 2))
_SHIFTS = frozenset(range(64))


def _part(rows: int, lag: Any) -> int:
    if type(lag) is not int or lag < 1 or rows % lag:
        raise UnpackError("a distance that does not divide the rows")
    return rows // lag


def _singles(numbers: list[int]) -> list[float]:
    single = array("f")
    single.frombytes(array("I", numbers).tobytes())
    return single.tolist()


def _one(value: Any, rows: int) -> Any:
    if type(value) not in _PLAIN_TYPES or (type(value) is str and len(value) * rows > MAX_TEXT_BYTES):
        raise UnpackError("a value that can't be repeated")
    return value


def _checked(values: Any, rows: int) -> list[Any]:
    if type(values) is not list or len(values) != rows:
        raise UnpackError("values of another number")
    types = set(map(type, values))
    if not types <= _PLAIN_TYPES:
        raise UnpackError("values of another kind")
    if str in types and sum(len(value) for value in values if type(value) is str) > MAX_TEXT_BYTES:
        raise UnpackError("more text than a column may hold")
    return values
