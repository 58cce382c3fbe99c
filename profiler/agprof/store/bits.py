"""Integers in as few bits as they need, in planes: all first bytes, all second bytes ..., then what is left of each.

    plane of whole bytes    one byte per number
    plane of 4 bits         two numbers per byte, the first in the low half
    plane of 2 bits         four numbers per byte, the first lowest

Planes are taken apart and put together by slices and translations of bytes, which is fast in plain Python.
"""

import sys
from array import array
from collections.abc import Sequence

_CODES = ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
_HOLDERS = tuple(next(each for each in _CODES if bits <= 8 * each[0]) for bits in range(65))
"""(bytes, type code) of the array that holds numbers of so many bits."""
_LOW_4 = bytes(value & 15 for value in range(256))
_HIGH_4 = bytes(value >> 4 for value in range(256))
_RAISE_4 = bytes(value << 4 & 255 for value in range(256))
_PAIRS = tuple(bytes(value >> shift & 3 for value in range(256)) for shift in (0, 2, 4, 6))


def even_bits(highest: int) -> int:
    """Bits per number, an even number of them, for numbers up to `highest`."""
    return (highest.bit_length() + 1) // 2 * 2


def size(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits take."""
    whole, rest = divmod(bits, 8)
    return count * whole + (-(-count // 2) if rest & 4 else 0) + (-(-count // 4) if rest & 2 else 0)


def put(numbers: Sequence[int], bits: int) -> bytes:
    """The planes of numbers below 2 ** bits; `bits` is even, 2 to 64."""
    if bits == 8:
        return bytes(numbers)
    width, code = _HOLDERS[bits]
    values = array(code, numbers)
    if sys.byteorder == "big":
        values.byteswap()
    raw = values.tobytes()
    whole, rest = divmod(bits, 8)
    planes = [raw[at::width] for at in range(whole)]
    if rest:
        top = raw[whole::width]
        if rest & 4:
            planes.append(_halves(top if rest == 4 else top.translate(_LOW_4)))
        if rest & 2:
            planes.append(_quarters(top if rest == 2 else top.translate(_HIGH_4)))
    return b"".join(planes)


def get(data: bytes, count: int, bits: int) -> "Sequence[int]":
    """The numbers back; `data` has exactly `size(count, bits)` bytes."""
    if bits == 8:
        return data
    width, code = _HOLDERS[bits]
    whole, rest = divmod(bits, 8)
    raw = bytearray(count * width)
    for at in range(whole):
        raw[at::width] = data[at * count : (at + 1) * count]
    if rest:
        left = data[whole * count :]
        half = -(-count // 2) if rest & 4 else 0
        if rest == 4:
            top = _from_halves(left, count)
        elif rest == 2:
            top = _from_quarters(left, count)
        else:
            low, high = _from_halves(left[:half], count), _from_quarters(left[half:], count).translate(_RAISE_4)
            # Of bits that do not overlap the sum is the union, and that of all bytes at once.
            top = (int.from_bytes(low, "little") + int.from_bytes(high, "little")).to_bytes(count, "little")
        raw[whole::width] = top
    values = array(code)
    values.frombytes(bytes(raw))
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _halves(plane: bytes) -> bytes:
    if len(plane) % 2:
        plane += b"\0"
    return bytes([low | high << 4 for low, high in zip(plane[::2], plane[1::2], strict=True)])


def _quarters(plane: bytes) -> bytes:
    plane += bytes(-len(plane) % 4)
    parts = (plane[0::4], plane[1::4], plane[2::4], plane[3::4])
    return bytes([a | b << 2 | c << 4 | d << 6 for a, b, c, d in zip(*parts, strict=True)])


def _from_halves(data: bytes, count: int) -> bytes:
    plane = bytearray(2 * len(data))
    plane[::2], plane[1::2] = data.translate(_LOW_4), data.translate(_HIGH_4)
    return bytes(plane[:count])


def _from_quarters(data: bytes, count: int) -> bytes:
    plane = bytearray(4 * len(data))
    for at, table in enumerate(_PAIRS):
        plane[at::4] = data.translate(table)
    return bytes(plane[:count])
