"""Reads streams frame by frame: an exact prefix of what was written, whatever happened to the writer.

No data frames here, so that the sampler and the live display can follow a stream without importing polars.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import msgspec

from agprof.errors import StoreError
from agprof.store.layout import END, FRAME, MAGIC, MAX_FRAME_BYTES, PACKED, PREAMBLE, STREAM_VERSION
from agprof.store.unpacking import Columns, UnpackError, unpack

Rows: TypeAlias = list[list[Any]]
PACKED_SINCE_VERSION = 2


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one table, as they lay in the stream: either by row or by column."""

    table: str
    count: int
    rows: Rows | None
    columns: Columns | None

    def as_rows(self) -> Rows:
        if self.rows is not None:
            return self.rows
        return [list(row) for row in zip(*(self.columns or ()), strict=True)]


class _DamageError(Exception):
    """A frame that is whole by its length and can't be what was written."""


@dataclass(slots=True)
class StreamFollower:
    """Follows a stream that may still grow. `poll` returns what came since the last call.

    `damage` says why reading stopped for good, when it did: a checksum that does not match, an impossible length.
    """

    path: Path
    header: dict[str, Any] | None = None
    ended: str | None = None
    damage: str | None = None
    _offset: int = 0
    _decoder: msgspec.msgpack.Decoder[Any] = field(default_factory=msgspec.msgpack.Decoder)
    _packed: bool = False
    """Whether the stream's version has packed frames."""
    _dictionary: bytes = b""
    """For the next packed frame."""

    @property
    def offset(self) -> int:
        """Bytes read as whole frames so far."""
        return self._offset

    def poll(self) -> Iterator[tuple[str, Rows]]:
        """Yield (table, rows) of everything since the last call, one frame in memory at a time.

        Raises StoreError on a foreign file, a newer stream version, and a file that can't be read.
        """
        for block in self.blocks():
            yield block.table, block.as_rows()

    def blocks(self) -> Iterator[Block]:
        """As `poll`; what was packed comes by column, which is how large readers want it."""
        for blocks in self._frames():
            for block in blocks:
                if block.table == END:
                    self.ended = block.as_rows()[0][0]
                else:
                    yield block

    def read_header(self) -> dict[str, Any] | None:
        """Read no further than the header; None as long as it is not there. Raises StoreError as `poll` does."""
        if self.header is None:
            next(self._frames(), None)
        return self.header

    def _frames(self) -> Iterator[list[Block]]:
        if self.damage is not None:
            return
        try:
            with self.path.open("rb") as file:
                if self._offset == 0 and not self._read_preamble(file):
                    return
                while (frame := self._next_frame(file)) is not None:
                    yield frame
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error.strerror or error}") from error

    def _read_preamble(self, file: BinaryIO) -> bool:
        preamble = file.read(len(PREAMBLE))
        if not preamble.startswith(MAGIC[: len(preamble)]):
            raise StoreError(f"{self.path} is not an agprof stream: it does not begin with its magic bytes")
        if len(preamble) < len(PREAMBLE):
            return False
        if not 1 <= preamble[-1] <= STREAM_VERSION:
            raise StoreError(
                f"{self.path} has stream version {preamble[-1]}; this agprof reads 1 to {STREAM_VERSION}: "
                "use the agprof that wrote it, or a newer one"
            )
        self._packed = preamble[-1] >= PACKED_SINCE_VERSION
        self._offset = len(PREAMBLE)
        return True

    def _next_frame(self, file: BinaryIO) -> list[Block] | None:
        """The blocks of the next whole frame, none for the header; None when there is none (yet) or at damage."""
        try:
            found = self._frame_at(file, self._offset)
        except _DamageError:
            # A writer that cuts off its own torn frame, just between two reads of ours, looks the same: look again.
            try:
                found = self._frame_at(file, self._offset)
            except _DamageError as error:
                self.damage = f"{error} at byte {self._offset}"
                return None
        if found is None:
            return None
        value, end = found
        if self.header is None:
            self.header, blocks = value, []
        elif value[0] == PACKED and len(value) == 3:
            try:
                tables, self._dictionary = unpack(self._decoder, value[1], value[2], self._dictionary)
            except UnpackError as error:
                self.damage = f"a packed frame that can't be unpacked ({error}) at byte {self._offset}"
                return None
            blocks = [Block(table, count, None, columns) for table, count, columns in tables]
        else:
            blocks = [Block(value[0], len(value[1]), value[1], None)]
        self._offset = end
        return blocks

    def _frame_at(self, file: BinaryIO, offset: int) -> tuple[Any, int] | None:
        file.seek(offset)
        head = file.read(FRAME.size)
        if len(head) < FRAME.size:
            return None
        length, checksum = FRAME.unpack(head)
        if length > MAX_FRAME_BYTES:
            raise _DamageError(f"impossible frame length {length}")
        payload = file.read(length)
        if len(payload) < length:
            return None
        if zlib.crc32(payload) != checksum:
            raise _DamageError(f"checksum mismatch in the frame of {length} bytes")
        try:
            value = self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise _DamageError(f"undecodable frame ({type(error).__name__}: {error})") from None
        if self.header is None:
            if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
                raise _DamageError("the first frame is not a header")
        elif not _is_table_frame(value) and not (self._packed and _is_packed_frame(value)):
            raise _DamageError("a frame that is not a table's name with rows")
        return value, offset + FRAME.size + length


def _is_table_frame(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and value[0] != ""
        and isinstance(value[1], list)
        and all(isinstance(row, list) for row in value[1])
        and (value[0] != END or (len(value[1]) == 1 and len(value[1][0]) == 1 and isinstance(value[1][0][0], str)))
    )


def _is_packed_frame(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and value[0] == PACKED
        and isinstance(value[1], bytes)
        and isinstance(value[2], bytes)
    )


def unread_bytes(follower: StreamFollower) -> int:
    """Bytes of the file behind the last whole frame: a torn tail, or what follows damage."""
    try:
        return max(0, follower.path.stat().st_size - follower.offset)
    except OSError:
        return 0
