"""Pieces of the list of events by number, cut at the same places by whoever asks: from the first border of two events
at or after `number * CHUNK_BYTES` to the first border at or after the next multiple. One buffer, used again."""

from dataclasses import dataclass

from agprof.importers.kineto_frame import Frame
from agprof.importers.kineto_source import Source

CHUNK_BYTES = 2**20
_BEYOND_BYTES = 2**16
MOST_BYTES = 64 * 2**20
_OPEN, _CLOSE = ord("["), ord("]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece as it lies in the buffer until the next one is asked for."""

    events: memoryview | None
    """A JSON list; None where no event begins in this piece."""
    rest: bytes | None
    """After the last border of the file: the last event and what follows it. None for all pieces but the last."""


class TooLongError(Exception):
    """No border of two events within 64 MiB."""


class Window:
    """A part of the file in memory."""

    def __init__(self, source: Source, frame: Frame) -> None:
        """The frame must have a separator."""
        assert frame.separator is not None
        self._source = source
        self._start = frame.start
        self._separator, self._comma = frame.separator, frame.comma
        self._buffer = bytearray(CHUNK_BYTES + 2 * _BEYOND_BYTES)
        self._at = frame.start
        self._filled = 0
        self._changed: list[int] = []

    def piece(self, number: int) -> Piece | None:
        """The piece of a number, which must not be smaller than the last one's; None after the end of the file.

        Raises TooLongError, TraceError, OSError.
        """
        for place in self._changed:
            self._buffer[place] = ord(",")
        self._changed = []
        begin, length = self._start + number * CHUNK_BYTES, CHUNK_BYTES + _BEYOND_BYTES
        ended = self._hold(begin, length)
        if self._filled == 0:
            return None
        first = self._first(number)
        if first is None:
            return Piece(events=None, rest=None)
        while (last := self._buffer.find(self._separator, CHUNK_BYTES, self._filled)) < 0 and not ended:
            length *= 2
            if length > MOST_BYTES:
                raise TooLongError
            ended = self._hold(begin, length)
        if last >= 0:
            return Piece(events=self._list(first, last + self._comma), rest=None)
        border = self._buffer.rfind(self._separator, first, self._filled)
        if border < 0:
            return Piece(events=None, rest=bytes(self._buffer[first + 1 : self._filled]))
        rest = bytes(self._buffer[border + self._comma + 1 : self._filled])
        return Piece(events=self._list(first, border + self._comma), rest=rest)

    def _first(self, number: int) -> int | None:
        """Place of the list's opening bracket, or of the comma that becomes one; None where no border begins here."""
        if number == 0:
            return 0
        found = self._buffer.find(self._separator, 0, min(CHUNK_BYTES - 1 + len(self._separator), self._filled))
        return None if found < 0 else found + self._comma

    def _list(self, opening: int, closing: int) -> memoryview:
        for place, bracket in ((opening, _OPEN), (closing, _CLOSE)):
            if self._buffer[place] != bracket:
                self._buffer[place] = bracket
                self._changed.append(place)
        return memoryview(self._buffer)[opening : closing + 1]

    def _hold(self, begin: int, length: int) -> bool:
        """Have the bytes from `begin` on in the buffer, from its first place on; True when the file ends in them."""
        keep = self._at + self._filled - begin
        if keep <= 0:
            self._filled = 0
        elif begin > self._at:
            self._buffer[:keep] = self._buffer[begin - self._at : begin - self._at + keep]
            self._filled = keep
        self._at = begin
        if length > len(self._buffer):
            self._buffer = self._buffer[: self._filled] + bytearray(length - self._filled)
        if self._filled < length:
            with memoryview(self._buffer) as view:
                self._filled += self._source.readinto(view[self._filled : length], begin + self._filled)
        return self._filled < length
