"""As much of protobuf's wire format as a Perfetto trace needs: varints, 64-bit values and nested messages.

Its own few lines rather than the `perfetto` package, because that needs protobuf >= 6.31 in the environment in which
people train, where other packages hold protobuf back.
"""

import struct

import numpy as np
import numpy.typing as npt

_LONGEST = 10
"""Bytes of a 64-bit varint."""


def varint(value: int) -> bytes:
    """An unsigned integer in groups of seven bits, lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    return _SMALL[value] if value < len(_SMALL) else _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


_SMALL = tuple(_varint(value) for value in range(4096))
"""Lengths of messages, mostly."""


def varints(values: npt.NDArray[np.int64]) -> list[bytes]:
    """`varint` of each of many integers that are not negative."""
    shifts = np.arange(0, 7 * _LONGEST, 7, dtype=np.uint64)
    groups = (values.astype(np.uint64)[:, None] >> np.minimum(shifts, np.uint64(63))) & np.uint64(0x7F)
    groups[:, shifts > 63] = 0
    lengths = np.maximum(1, _LONGEST - (groups[:, ::-1] != 0).argmax(axis=1))
    lengths[~(groups != 0).any(axis=1)] = 1
    more = np.arange(_LONGEST) < (lengths - 1)[:, None]
    data = (groups.astype(np.uint8) | (more * np.uint8(0x80))).tobytes()
    return [data[at : at + length] for at, length in zip(range(0, len(data), _LONGEST), lengths.tolist(), strict=True)]


def integer(field: int, value: int) -> bytes:
    """A field of type uint64, uint32, bool or enum."""
    return varint(field << 3) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<Q", value)


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", value)


def data(field: int, value: bytes) -> bytes:
    """A field of type bytes, or a message."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    return data(field, value.encode())
