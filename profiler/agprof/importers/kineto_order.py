"""Reads a Kineto file from its first event to its last in order, and finds where it breaks off or is damaged.

For small files, for what is no list of like events, and for all that went wrong on the fast way: every event before
the damage is read, and none after it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from agprof.errors import TraceError
from agprof.importers.kineto_chunk import Chunks
from agprof.importers.kineto_frame import MOST_METADATA_BYTES, Frame, members
from agprof.importers.kineto_source import Source

READ_BYTES = 2**20
MOST_EVENT_BYTES = 64 * 2**20
_BLANKS = re.compile(rb"[ \t\r\n]*")
_LONGEST_LITERAL = 12
_EXTENT = json.JSONDecoder(strict=False, parse_float=len, parse_int=len, parse_constant=len)
"""Finds where a value ends; its numbers don't matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the list of events ends."""

    metadata: dict[str, Any]
    """What stands after it."""
    truncated: str | None = None
    """Where and how the file breaks off or is damaged, when what was read is what came before."""


class Stop(Enum):
    """Why no more whole events were found."""

    END = auto()
    INCOMPLETE = auto()
    DAMAGED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Whole events at the beginning of a text."""

    events_end: int
    """End of the last whole one."""
    stop: Stop
    at: int
    """Place to go on from: after the closing bracket, at the beginning of what is incomplete, at the damage."""
    reason: str = ""


def read_in_order(
    source: Source, frame: Frame, chunks: Chunks, file: Path, tell: Callable[[float], None] | None = None
) -> Ending:
    """Take all events. Raises TraceError where an event can't be held or decoded, OSError."""
    pending, offset, wanted = bytearray(), frame.start + 1, READ_BYTES
    while True:
        ended = not _read(source, pending, offset, wanted)
        if tell is not None:
            tell(source.part_done())
        used = _take_quickly(pending, frame, chunks)
        del pending[:used]
        offset += used
        if used and not ended:
            wanted = READ_BYTES
            continue
        extent = whole_events(pending)
        if extent.events_end and not chunks.take(memoryview(b"[" + pending[: extent.events_end] + b"]")):
            raise TraceError(f"{file}: the events from byte {offset} on can't be decoded")
        if extent.stop is Stop.END:
            return _ending(source, bytes(pending[extent.at :]), offset + extent.at, frame)
        if extent.stop is Stop.DAMAGED or ended:
            return Ending(metadata={}, truncated=_broken_off(source, extent, offset))
        del pending[: extent.at]
        offset += extent.at
        wanted = max(READ_BYTES, len(pending))
        if wanted > MOST_EVENT_BYTES:
            raise TraceError(f"{file}: the event at byte {offset} is longer than {MOST_EVENT_BYTES} bytes")


def whole_events(text: bytes | bytearray) -> Extent:
    """The whole events at the beginning of what follows an opening bracket or a comma in the list."""
    characters = text.decode("latin-1")  # one per byte, so that places are offsets
    events_end = at = 0
    while True:
        at = _after_blanks(text, at)
        if at == len(text):
            return Extent(events_end=events_end, stop=Stop.INCOMPLETE, at=_next_begin(text, events_end))
        if text[at] == ord("]"):
            return Extent(events_end=events_end, stop=Stop.END, at=at + 1)
        try:
            _, end = _EXTENT.raw_decode(characters, at)
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or error.pos >= len(text) - _LONGEST_LITERAL
            stop = Stop.INCOMPLETE if cut else Stop.DAMAGED
            return Extent(events_end=events_end, stop=stop, at=at if cut else error.pos, reason=error.msg)
        except RecursionError:
            return Extent(events_end=events_end, stop=Stop.DAMAGED, at=at, reason="brackets nest too deeply")
        at = _after_blanks(text, end)
        if at < len(text) and text[at] not in b",]":
            return Extent(events_end=events_end, stop=Stop.DAMAGED, at=at, reason="Expecting ',' delimiter")
        events_end = end
        if at < len(text) and text[at] == ord(","):
            at += 1


def _next_begin(text: bytes | bytearray, events_end: int) -> int:
    """Where the next event begins: after the comma that follows the last whole one."""
    after = _after_blanks(text, events_end)
    if events_end == 0:
        return after
    return after + 1 if after < len(text) else events_end


def _after_blanks(text: bytes | bytearray, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None
    return blanks.end()


def _take_quickly(pending: bytearray, frame: Frame, chunks: Chunks) -> int:
    """Take what lies before the last border of two events, if it really is one; returns the bytes used."""
    border = pending.rfind(frame.separator) if frame.separator else -1
    if border < 0:
        return 0
    end = border + frame.comma
    return end + 1 if chunks.take(memoryview(b"[" + pending[:end] + b"]")) else 0


def _read(source: Source, pending: bytearray, offset: int, wanted: int) -> bool:
    """Add the next bytes of the file; False when there are no more."""
    held = len(pending)
    pending.extend(bytes(wanted))
    with memoryview(pending) as view:
        count = source.readinto(view[held:], offset + held)
    del pending[held + count :]
    return count == wanted


def _ending(source: Source, rest: bytes, offset: int, frame: Frame) -> Ending:
    tail = bytearray(rest)
    while len(tail) < MOST_METADATA_BYTES and _read(source, tail, offset, READ_BYTES):
        pass
    if source.broken:
        return Ending(metadata=members(bytes(tail)) or {}, truncated=f"{source.broken}, after the events")
    if frame.bare:
        return Ending(metadata={}, truncated=f"text follows the list, at byte {offset}" if tail.strip() else None)
    metadata = members(bytes(tail))
    if metadata is None:
        return Ending(metadata={}, truncated=f"what follows the events, from byte {offset} on, is cut off or damaged")
    return Ending(metadata=metadata)


def _broken_off(source: Source, extent: Extent, offset: int) -> str:
    if source.broken:
        return f"{source.broken}; the events before that were read"
    place = f"byte {offset + extent.at}"
    if extent.stop is Stop.DAMAGED:
        return f"damaged at {place} ({extent.reason}); the events before it were read"
    return f"breaks off inside the events, after {place}; the events before that were read"
