"""Reads streams frame by frame: an exact prefix of what was written, whatever happened to the writer.

No data frames here, so that the sampler and the live display can follow a stream without importing polars.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from agprof.errors import StoreError
from agprof.store.layout import END, FRAME, MAGIC, MAX_FRAME_BYTES, PREAMBLE, STREAM_VERSION

Rows = list[list[Any]]


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

    @property
    def offset(self) -> int:
        """Bytes read as whole frames so far."""
        return self._offset

    def poll(self) -> Iterator[tuple[str, Rows]]:
        """Yield (table, rows) of every whole frame since the last call, one frame in memory at a time.

        Raises StoreError on a foreign file, a newer stream version, and a file that can't be read.
        """
        for table, rows in self._frames():
            if table == END:
                self.ended = rows[0][0]
            elif table:
                yield table, rows

    def read_header(self) -> dict[str, Any] | None:
        """Read no further than the header; None as long as it is not there. Raises StoreError as `poll` does."""
        if self.header is None:
            next(self._frames(), None)
        return self.header

    def _frames(self) -> Iterator[tuple[str, Rows]]:
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
        self._offset = len(PREAMBLE)
        return True

    def _next_frame(self, file: BinaryIO) -> tuple[str, Rows] | None:
        """The next whole frame; ("", []) for the header; None when there is none (yet) or at damage."""
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
            self.header = value
            value = ["", []]
        self._offset = end
        return value[0], value[1]

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
        elif not _is_table_frame(value):
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


def unread_bytes(follower: StreamFollower) -> int:
    """Bytes of the file behind the last whole frame: a torn tail, or what follows damage."""
    try:
        return max(0, follower.path.stat().st_size - follower.offset)
    except OSError:
        return 0
