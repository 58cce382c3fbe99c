"""Gzip files that share parts: a part is compressed once and written into every file that wants it.

A part is deflated by itself and ends on a byte border (a full flush), so parts put one after the other are one valid
deflate stream, and the file is an ordinary gzip file of one member.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from isal import isal_zlib

_LEVEL = 2
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"


@dataclass(frozen=True, slots=True)
class Part:
    """Data as it is, and deflated."""

    plain: bytes
    deflated: bytes


def part(plain: bytes) -> Part:
    """Compress one part."""
    compressor = isal_zlib.compressobj(level=_LEVEL, wbits=-zlib.MAX_WBITS)
    return Part(plain, compressor.compress(plain) + compressor.flush(isal_zlib.Z_FULL_FLUSH))


class GzipParts:
    """One gzip file, written part by part. Use it as a context: the file is complete after its end."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = path.open("wb")
        self._file.write(_HEADER)
        self._checksum = 0
        self._length = 0

    def write(self, *parts: Part) -> None:
        """Append parts. Raises OSError."""
        for each in parts:
            self._file.write(each.deflated)
            self._checksum = isal_zlib.crc32(each.plain, self._checksum)
            self._length += len(each.plain)

    def text(self, text: str) -> None:
        """Append text of this file alone. Raises OSError."""
        self.write(part(text.encode()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file. One that broke off has no end, so that no reader takes it for a complete one."""
        with self._file:
            if kind is None:
                self._file.write(_LAST_BLOCK + struct.pack("<II", self._checksum, self._length % 2**32))
