"""Packets of a Perfetto trace, as bytes. Field numbers are those of perfetto/protos/perfetto/trace/trace_packet.proto
and of the messages below it."""

from enum import IntEnum

from agprof.exporters import protobuf as pb

SEQUENCE = 1
"""All packets are on one sequence: names interned once hold to the end."""
_CLEARED, _NEEDED = 1, 2
_REALTIME, _BOOTTIME = 1, 6
_EXPLICIT_ORDER = 3


class EventType(IntEnum):
    """TrackEvent.Type."""

    BEGIN = 1
    END = 2
    INSTANT = 3
    COUNTER = 4


_NEEDS_NAMES = pb.integer(10, SEQUENCE) + pb.integer(13, _NEEDED)


def first(base_ns: int) -> bytes:
    """Begin of the sequence. Times of the trace are wall time: the default clock and the wall clock are the same."""
    snapshot = b"".join(pb.data(1, pb.integer(1, clock) + pb.integer(2, base_ns)) for clock in (_BOOTTIME, _REALTIME))
    body = pb.integer(8, base_ns) + pb.data(6, snapshot + pb.integer(2, _BOOTTIME)) + pb.integer(10, SEQUENCE)
    return pb.data(1, body + pb.integer(13, _CLEARED))


def _descriptor(body: bytes) -> bytes:
    return pb.data(1, pb.integer(10, SEQUENCE) + pb.data(60, body))


def process(uuid: int, pid: int, name: str) -> bytes:
    description = pb.integer(1, pid) + pb.text(6, name)
    return _descriptor(pb.integer(1, uuid) + pb.data(3, description) + pb.integer(11, _EXPLICIT_ORDER))


def track(uuid: int, parent: int, name: str, order: int) -> bytes:
    return _descriptor(pb.integer(1, uuid) + pb.text(2, name) + pb.integer(5, parent) + pb.integer(12, order))


def counter_track(uuid: int, parent: int, name: str) -> bytes:
    return _descriptor(pb.integer(1, uuid) + pb.text(2, name) + pb.integer(5, parent) + pb.data(8, b""))


def names(field: int, iid: int, name: str) -> bytes:
    """One interned text: field 1 of InternedData are categories, 2 names of events."""
    interned = pb.data(field, pb.integer(1, iid) + pb.text(2, name))
    return pb.data(1, _NEEDS_NAMES + pb.data(12, interned))


def event(kind: EventType, uuid: int, category: int = 0, name: int = 0) -> bytes:
    """Begin of a TrackEvent, to which flows, arguments and a value may be added; interned ids, 0 for none."""
    body = pb.integer(9, kind) + pb.integer(11, uuid)
    return body + (pb.integer(3, category) if category else b"") + (pb.integer(10, name) if name else b"")


_ARGUMENTS = pb.text(10, "args") + pb.varint(9 << 3 | 2)


def arguments(members: str) -> bytes:
    """A TrackEvent's debug annotation `args` from the members of a JSON object."""
    json = b"{%b}" % members.encode()
    body = _ARGUMENTS + pb.varint(len(json)) + json
    return b"\x22" + pb.varint(len(body)) + body


def flow(number: int, *, ends: bool) -> bytes:
    """The event is where an arrow begins, or where it ends."""
    return pb.fixed64(48 if ends else 47, number)


def value(number: float) -> bytes:
    return pb.double(44, number)


_NEEDS_NAMES_AND_EVENT = _NEEDS_NAMES + pb.varint(11 << 3 | 2)
_TIMESTAMP = pb.varint(8 << 3)


def packet(time: bytes, body: bytes) -> bytes:
    """A packet with a TrackEvent; `time` is the varint of its nanoseconds."""
    whole = _TIMESTAMP + time + _NEEDS_NAMES_AND_EVENT + pb.varint(len(body)) + body
    return b"\x0a" + pb.varint(len(whole)) + whole
