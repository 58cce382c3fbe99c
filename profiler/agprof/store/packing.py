"""Packs rows of many tables into one small frame: column by column, in as few bits as they need.

For a node's stream, which for days holds numbers that change little from row to row. Read back by `unpacking`. Light:
standard library and msgspec only.

    payload = ["packed", zlib(shape), bits]
    shape   = MessagePack([[table, rows, [column, ...]], ...])

    column                          values
    [CONST, value]                  all the same
    [INTS, width, shift, lowest]    integers: lowest + (the next `width` bits of each, shifted)
    [SCALED, scale, column]         floats that are integers / scale
    [FLOAT32, column]               floats, by the bits of their single precision as integers; rounded
    [FLOAT64]                       floats: the next 64 bits of each
    [DELTAS, lag, column, column]   the first `lag` integers; then differences to the value `lag` rows before
    [STEPS, lag, column]            each value `lag` times in a row: what the rows of one sample have in common
    [CYCLE, lag, column]            `lag` values over and over: the number of the GPU, the name of the interface
    [NULLS, bits, column]           None where the bit is 0 (lowest first); the others are packed as a column
    [CHOICE, n, column, column]     n different values; each row's index in them
    [PLAIN, values]                 as they are

The bits of all columns follow one another in `bits`, in the planes of `bits.py`. They are noise, which zlib would only
make longer. The shape changes little from frame to frame: zlib's dictionary is the last 32 KiB of the shape of the
packed frame before. A rounded float keeps 20 bits behind its first: its relative error is below 6e-7.
"""

import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_, sub
from typing import Any

import msgspec

from agprof.store import bits as planes

CONST, INTS, SCALED, FLOAT32, FLOAT64, DELTAS, STEPS, CYCLE, NULLS, CHOICE, PLAIN = range(11)
SCALES = (1, 100)
LEVEL = 1
MAX_UNPACKED_BYTES = 2**20
"""Of a frame's shape."""
DICTIONARY_BYTES = 2**15
MAX_TEXT_BYTES = 2**20
"""Of one column of a frame, each value counted as often as it comes."""
CELLS_PER_BYTE = 16
SPARE_CELLS = 1024
"""A frame of n bytes has at most 16 n + 1024 values: what has more is a bomb, and is not written either."""

_ROUND = 4
_KEEP = 0xFFFFFFF8
_LEAST_FLOAT32, _MOST_FLOAT32 = 1e-37, 1e38
_NONE = type(None)
_MORE_THAN_A_NUMBER_BITS = 32

Row = Sequence[Any]


class UnpackableError(Exception):
    """These rows are better written as they are."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The parts of a packed frame."""

    shape: bytes
    """Compressed."""
    bits: bytes
    dictionary: bytes
    """For the frame after this one."""


def pack(encoder: msgspec.msgpack.Encoder, tables: Sequence[tuple[str, Sequence[Row]]], dictionary: bytes) -> Packed:
    """Pack the rows of each table. Raises UnpackableError, and whatever the encoder raises."""
    cells, shape = 0, []
    bits: list[bytes] = []
    for name, rows in tables:
        columns = _columns(rows)
        cells += len(rows) * len(columns)
        lag = _lag(columns[0])
        shape.append((name, len(rows), [_column(values, lag, bits) for values in columns]))
    data = encoder.encode(shape)
    stream = zlib.compressobj(LEVEL, zdict=dictionary)
    packed = Packed(stream.compress(data) + stream.flush(), b"".join(bits), data[-DICTIONARY_BYTES:])
    if len(data) > MAX_UNPACKED_BYTES or cells > most_cells(len(packed.shape) + len(packed.bits)):
        raise UnpackableError
    return packed


def most_cells(size: int) -> int:
    """Values that a frame whose parts have this many bytes may hold."""
    return CELLS_PER_BYTE * size + SPARE_CELLS


def _columns(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    try:
        columns = list(zip(*rows, strict=True))
    except (ValueError, TypeError):
        raise UnpackableError from None
    if not columns:
        raise UnpackableError
    return columns


def _lag(times: Sequence[Any]) -> int:
    """Rows of the first sample: one per GPU, core ... Values of the same one are that far apart."""
    first = times[0]
    return next((at for at, time in enumerate(times) if time != first), len(times))


def _column(values: Sequence[Any], lag: int, bits: list[bytes]) -> list[Any]:
    count = len(values)
    first = values[0]
    types = set(map(type, values))
    if len(types) == 1 and values.count(first) == count and types != {float}:
        return _const(first, count)
    if 1 < lag < count and count % lag == 0:
        if values[::lag] == values[lag - 1 :: lag] and list(values) == [v for v in values[::lag] for _ in range(lag)]:
            return [STEPS, lag, _column(values[::lag], 0, bits)]
        if values[lag:] == values[:-lag]:
            return [CYCLE, lag, _column(values[:lag], 0, bits)]
    if _NONE in types:
        there = [value for value in values if value is not None]
        marks = sum(1 << at for at, value in enumerate(values) if value is not None)
        # What comes between the values of the same one is not known any more: no differences.
        return [NULLS, marks.to_bytes((count + 7) // 8, "little"), _column(there, 0, bits)]
    if types == {int}:
        return _ints_column(values, lag, bits)
    if types <= {float, int}:
        return _floats_column(values, bits)
    if types <= {str, bool}:
        return _choice(values, bits)
    return [PLAIN, list(values)]


def _const(value: Any, count: int) -> list[Any]:
    if type(value) is str and len(value) * count * 4 > MAX_TEXT_BYTES:
        raise UnpackableError
    return [CONST, value]


def _ints_column(values: Sequence[int], lag: int, bits: list[bytes]) -> list[Any]:
    lowest, highest = min(values), max(values)
    if lowest < -(2**63) or highest >= 2**63:
        raise UnpackableError
    span = highest - lowest
    if 255 < span < 2**62 and 0 < lag < len(values):
        deltas = list(map(sub, values[lag:], values))
        if max(deltas) - min(deltas) < span >> 2:
            return [DELTAS, lag, _ints(values[:lag], bits), _ints(deltas, bits)]
    return _ints(values, bits)


def _ints(values: Sequence[int], bits: list[bytes]) -> list[Any]:
    lowest, highest = min(values), max(values)
    if lowest > 0 and lowest != highest:
        # To begin at zero costs bits in each number; to say where else costs some bytes once.
        saved_bits = (planes.even_bits(highest) - planes.even_bits(highest - lowest)) * len(values)
        lowest = lowest if saved_bits > _MORE_THAN_A_NUMBER_BITS else 0
    offsets = [value - lowest for value in values] if lowest else values
    used = reduce(or_, offsets)
    if used == 0:
        return [CONST, lowest]
    shift = (used & -used).bit_length() - 1
    if shift:
        offsets = [value >> shift for value in offsets]
    width = planes.even_bits(used >> shift)
    bits.append(planes.put(offsets, width))
    return [INTS, width, shift, lowest]


def _floats_column(values: Sequence[float], bits: list[bytes]) -> list[Any]:
    if len(values) > 3 and len(distinct := dict.fromkeys(values)) * 2 <= len(values):
        numbers = {value: at for at, value in enumerate(distinct)}
        return [
            CHOICE,
            len(distinct),
            _floats_column(list(distinct), bits),
            _ints([numbers[value] for value in values], bits),
        ]
    for scale in SCALES:
        scaled = _scaled(values, scale)
        if scaled is not None:
            return [SCALED, scale, _ints(scaled, bits)]
    if all([value == 0 or _LEAST_FLOAT32 < abs(value) < _MOST_FLOAT32 for value in values]):  # noqa: C419
        single = array("I", array("f", values).tobytes())
        return [FLOAT32, _ints([(each + _ROUND) & _KEEP for each in single], bits)]
    double = array("d", values)
    if sys.byteorder == "big":
        double.byteswap()
    bits.append(double.tobytes())
    return [FLOAT64]


def _scaled(values: Sequence[float], scale: int) -> list[int] | None:
    """The values times scale, where that is exact."""
    found = []
    for value in values:
        if not -(2.0**31) < value < 2.0**31:
            return None
        whole = round(value * scale)
        if whole / scale != value:
            return None
        found.append(whole)
    return found


def _choice(values: Sequence[Any], bits: list[bytes]) -> list[Any]:
    if sum(len(value) for value in values if type(value) is str) * 4 > MAX_TEXT_BYTES:
        raise UnpackableError
    numbers: dict[tuple[type, Any], int] = {}
    indexes = [numbers.setdefault((type(value), value), len(numbers)) for value in values]
    if len(numbers) * 2 > len(values):
        return [PLAIN, list(values)]
    return [CHOICE, len(numbers), [PLAIN, [value for _, value in numbers]], _ints(indexes, bits)]
