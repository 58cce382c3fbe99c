"""Where the events of a Kineto file begin, what lies around them, and what stands between two of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agprof.errors import TraceError
from agprof.importers.kineto_lax import DECODER
from agprof.importers.kineto_source import open_source

BOM = b"\xef\xbb\xbf"
FIRST_LOOK_BYTES = 2**16
MOST_METADATA_BYTES = 64 * 2**20
TAIL_BYTES = 4 * 2**20
_EVENTS = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN = re.compile(rb'\}(\s*),(\s*)\{(\s*)"[^"\\]{1,40}"')
_EVENTS_END = re.compile(rb"[}\[]\s*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The place of the events in a file."""

    start: int
    """Offset of the list's opening bracket."""
    separator: bytes | None
    """What stands between the first two events, from the closing brace of the one to the first key of the other."""
    comma: int
    """Offset of the comma in the separator."""
    bare: bool
    """The file is the list itself, with nothing around it."""
    metadata: Mapping[str, Any]
    """What stands before the events."""
    first_us: float | None
    """Time of the first event, to tell microseconds since the epoch from those since a base."""


def read_frame(file: Path, max_unpacked_bytes: int | None = None) -> Frame:
    """Look at the beginning of a file. Raises TraceError when it holds no list of events."""
    source = open_source(file, max_unpacked_bytes)
    try:
        head, ended = b"", False
        wanted = FIRST_LOOK_BYTES
        while not ended:
            buffer = bytearray(wanted - len(head))
            count = source.readinto(memoryview(buffer), len(head))
            ended = count < len(buffer)
            head += bytes(buffer[:count])
            frame = _frame(head, file)
            if frame is not None and (frame.separator or ended or len(head) > 16 * FIRST_LOOK_BYTES):
                return frame
            if wanted > MOST_METADATA_BYTES:
                raise TraceError(f"{file}: no list of traceEvents in its first {wanted} bytes; is it a Kineto trace?")
            wanted *= 4
    finally:
        source.close()
    if source.broken:
        raise TraceError(f"{file}: {source.broken}, before any event")
    raise TraceError(f"{file}: it ends, and no list of traceEvents has begun; is it a Kineto trace, and whole?")


def tail_metadata(file: Path) -> dict[str, Any]:
    """What stands after the events of a plain file, as far as it lies in its last 4 MiB; {} where nothing does."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        handle.seek(max(0, size - TAIL_BYTES))
        return after_events(handle.read(TAIL_BYTES))


def packed_tail_metadata(file: Path, max_unpacked_bytes: int | None = None) -> dict[str, Any]:
    """The same of a packed file, for which all of it is unpacked. Raises TraceError when it is damaged."""
    source = open_source(file, max_unpacked_bytes)
    try:
        older, newer, offset = b"", bytearray(TAIL_BYTES), 0
        while True:
            count = source.readinto(memoryview(newer), offset)
            offset += count
            if count < TAIL_BYTES:
                return {} if source.broken else after_events(older + bytes(newer[:count]))
            older = bytes(newer)
    finally:
        source.close()


def after_events(tail: bytes) -> dict[str, Any]:
    """The metadata at the end of a file. The first closing bracket after which nothing but members of the outermost
    object come, up to the very end, is the one that ends the events."""
    for match in _EVENTS_END.finditer(tail):
        rest = tail[match.end() :].lstrip()
        if rest[:1] in (b",", b"}"):
            found = members(rest)
            if found is not None:
                return found
    return {}


def members(rest: bytes) -> dict[str, Any] | None:
    """The members of an object whose beginning was taken away: `, "a": 1}`; None when it isn't that."""
    rest = rest.lstrip()
    text = (rest[1:] if rest[:1] == b"," else rest).decode("utf-8", "replace")
    try:
        found = DECODER.decode("{" + text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _frame(head: bytes, file: Path) -> Frame | None:
    begin = len(BOM) if head.startswith(BOM) else 0
    opening = head[begin:].lstrip()[:1]
    if opening not in (b"", b"{", b"["):
        raise TraceError(f"{file}: no JSON object or list begins it; is it a Kineto trace?")
    if opening == b"[":
        return _with_separator(head, head.index(b"[", begin), {}, bare=True)
    for match in _EVENTS.finditer(head, begin):
        try:
            metadata = DECODER.decode(head[begin : match.end()].decode("utf-8", "replace") + "]}")
        except (ValueError, RecursionError):
            continue  # the words stand inside a value
        metadata.pop("traceEvents")
        return _with_separator(head, match.end() - 1, metadata, bare=False)
    return None


def _with_separator(head: bytes, start: int, metadata: dict[str, Any], *, bare: bool) -> Frame:
    separator, comma, first_us = None, 0, None
    text = head.decode("latin-1")  # one character per byte, so that places are offsets
    try:
        first, end = DECODER.raw_decode(text, len(text) - len(text[start + 1 :].lstrip()))
    except (ValueError, RecursionError):
        first, end = None, 0
    if isinstance(first, dict):
        match = _BETWEEN.match(head, end - 1)
        if match is not None:
            separator, comma = match.group(0), 1 + len(match.group(1))
        time = first.get("ts")
        first_us = None if time is None or isinstance(time, str | list | dict | bool) else float(time)
    return Frame(start=start, separator=separator, comma=comma, bare=bare, metadata=metadata, first_us=first_us)
