"""The bytes of a trace file, plain or gzip, read forward into buffers of the caller."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError

from agprof.errors import TraceError

GZIP_MAGIC = b"\x1f\x8b"
MAX_UNPACKED_BYTES = 64 * 2**30
MAX_RATIO = 250
"""A trace packs to a tenth or a thirtieth; what unpacks to more than this many times its size was made to do harm."""
_RATIO_COUNTS_FROM = 64 * 2**20
_DAMAGE = (cast(type[Exception], IsalError), zlib.error, OSError, ValueError)


class Source(Protocol):
    """A file's bytes by their offset, which must not go back further than what was read last."""

    packed: bool
    broken: str | None
    """Set at the end of a packed file that has no end: where it breaks off. What came before is as it was packed."""

    def readinto(self, view: memoryview, offset: int) -> int:
        """Fill the view with the bytes from an offset on; fewer than it holds at the end of the file only.

        Raises TraceError where a packed file is damaged or unpacks to too much, and OSError.
        """

    def part_done(self) -> float:
        """How much of the file was read, from 0 to 1."""

    def close(self) -> None:
        """Close the file."""


def open_source(file: Path, max_unpacked_bytes: int | None = None) -> Source:
    """The bytes of a file. Raises TraceError when it can't be opened.

    A packed file may unpack to `max_unpacked_bytes`; None: to 64 GiB, and to 250 times its own size.
    """
    try:
        handle = file.open("rb", buffering=0)
        packed = os.pread(handle.fileno(), 2, 0) == GZIP_MAGIC
    except OSError as error:
        raise TraceError(f"{file}: the trace can't be opened: {error.strerror}") from error
    return _Packed(handle, file, max_unpacked_bytes) if packed else _Plain(handle)


class _Plain:
    packed = False
    broken: str | None = None

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.size = os.fstat(handle.fileno()).st_size
        self._furthest = 0

    def readinto(self, view: memoryview, offset: int) -> int:
        done = 0
        while done < len(view):
            count = os.preadv(self._handle.fileno(), [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        self._furthest = offset + done
        return done

    def part_done(self) -> float:
        return self._furthest / max(1, self.size)

    def close(self) -> None:
        self._handle.close()


class _Packed:
    packed = True
    broken: str | None = None

    def __init__(self, handle: BinaryIO, file: Path, max_unpacked_bytes: int | None) -> None:
        self._handle = handle
        self._file = file
        self._size = max(1, os.fstat(handle.fileno()).st_size)
        self._most = max_unpacked_bytes
        self._reader = igzip._IGzipReader(handle, 2**18)
        self._at = 0
        self._scratch = bytearray(2**18)
        self._rest: Iterator[bytes] | None = None
        self._left = b""

    def readinto(self, view: memoryview, offset: int) -> int:
        assert offset >= self._at, f"a packed file was read up to {self._at} and can't be read again from {offset}"
        with memoryview(self._scratch) as scratch:
            while self._at < offset:
                if self._read(scratch[: offset - self._at]) == 0:
                    return 0
        done = 0
        while done < len(view):
            count = self._read(view[done:])
            if count == 0:
                break
            done += count
        return done

    def _read(self, view: memoryview) -> int:
        try:
            count: int = self._reader.readinto(view) if self._rest is None else self._from_rest(view)
        except EOFError:
            self._rest = _unpacked(self._file, self._at)
            count = self._from_rest(view)
        except _DAMAGE as error:
            raise TraceError(
                f"{self._file}: the gzip stream is damaged near unpacked byte {self._at}: {error}"
            ) from error
        self._at += count
        read = self._handle.tell()
        most = self._most or min(MAX_UNPACKED_BYTES, max(MAX_RATIO * read, _RATIO_COUNTS_FROM))
        if self._at > most:
            raise TraceError(
                f"{self._file}: its first {read:,} bytes unpack to more than {most:,}, as no trace's do; if you "
                "trust it, allow more with --max-size"
            )
        return count

    def _from_rest(self, view: memoryview) -> int:
        """What the reader withholds because the stream has no end."""
        assert self._rest is not None
        if not self._left:
            self._left = next(self._rest, b"")
        if not self._left:
            self.broken = f"the gzip stream breaks off after {self._at} unpacked bytes"
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def part_done(self) -> float:
        return min(1.0, self._handle.tell() / self._size)

    def close(self) -> None:
        self._handle.close()


def _unpacked(file: Path, skip: int) -> Iterator[bytes]:
    """What a gzip file that breaks off holds from an offset on, in pieces."""
    with file.open("rb") as packed:
        unpacker, piece = isal_zlib.decompressobj(31), b""
        while True:
            if not (piece := piece or packed.read(2**16)):
                return
            found = unpacker.decompress(piece, 2**18)
            piece = unpacker.unused_data or unpacker.unconsumed_tail
            if unpacker.eof:
                unpacker = isal_zlib.decompressobj(31)
            wanted, skip = found[skip:], max(0, skip - len(found))
            if wanted:
                yield wanted
