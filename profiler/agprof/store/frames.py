"""Reads streams frame by frame: an exact prefix of what was written, whatever happened to the writer.

No data frames here, so that the sampler and the live display can follow a stream without importing polars.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agprof.errors import StoreError
from agprof.store.layout import END, FRAME, MAGIC, MAX_FRAME_BYTES, PREAMBLE, STREAM_VERSION

Rows = list[list[Any]]


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
        """Yield (table, rows) of every whole frame since the last call. Raises StoreError on a foreign file."""
        if self.damage is not None:
            return
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = memoryview(file.read())
        except FileNotFoundError:
            return
        position = 0
        if self._offset == 0:
            if len(data) < len(PREAMBLE):
                if not PREAMBLE.startswith(bytes(data)):
                    raise StoreError(f"{self.path} is not an agprof stream: it does not begin with its magic bytes")
                return
            _check_preamble(self.path, bytes(data[: len(PREAMBLE)]))
            position = len(PREAMBLE)
            self._offset = position
        base = self._offset - position
        for payload, end in self._frames(data, position):
            self._offset = base + end
            if self.header is None:
                self.header = payload
            elif payload[0] == END:
                self.ended = payload[1][0][0]
            else:
                yield payload[0], payload[1]

    def _frames(self, data: memoryview, position: int) -> Iterator[tuple[Any, int]]:
        while position + FRAME.size <= len(data):
            length, checksum = FRAME.unpack_from(data, position)
            if length > MAX_FRAME_BYTES:
                self.damage = f"impossible frame length {length} at byte {position}"
                return
            end = position + FRAME.size + length
            if end > len(data):
                return
            payload = data[position + FRAME.size : end]
            if zlib.crc32(payload) != checksum:
                self.damage = f"checksum mismatch in the frame of {length} bytes at byte {position}"
                return
            try:
                value = self._decoder.decode(payload)
            except msgspec.DecodeError as error:
                self.damage = f"undecodable frame at byte {position}: {error}"
                return
            expected = dict if self.header is None else list
            if not isinstance(value, expected):
                self.damage = f"frame at byte {position} is not a {expected.__name__}"
                return
            position = end
            yield value, end


def _check_preamble(path: Path, preamble: bytes) -> None:
    if not preamble.startswith(MAGIC):
        raise StoreError(f"{path} is not an agprof stream: it does not begin with its magic bytes")
    if preamble[-1] > STREAM_VERSION:
        raise StoreError(
            f"{path} has stream version {preamble[-1]}; this agprof reads up to {STREAM_VERSION}: use a newer agprof"
        )


def unread_bytes(follower: StreamFollower) -> int:
    """Bytes of the file behind the last whole frame: a torn tail, or what follows damage."""
    try:
        return follower.path.stat().st_size - follower.offset
    except FileNotFoundError:
        return 0
