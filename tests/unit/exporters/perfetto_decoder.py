"""A decoder of Perfetto traces that shares nothing with the encoder: wire format, interned names, tracks, slices."""

import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[int, list[Any]]


def decode(data: bytes) -> Message:
    """Fields by number: integers of varints and of 64-bit values, bytes of the rest."""
    found: Message = defaultdict(list)
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 1:
            value, at = struct.unpack_from("<Q", data, at)[0], at + 8
        else:
            assert kind == 2, f"wire type {kind}"
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
            assert len(value) == length, "a message ends before its end"
        found[key >> 3].append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


@dataclass
class Slice:
    track: str
    process: str
    category: str
    name: str
    start_ns: int
    end_ns: int | None = None
    args: str | None = None
    depth: int = 0
    flows_out: list[int] = field(default_factory=list)
    flows_in: list[int] = field(default_factory=list)


@dataclass
class Decoded:
    slices: list[Slice] = field(default_factory=list)
    instants: list[Slice] = field(default_factory=list)
    counters: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    snapshot: Message = field(default_factory=dict)


def read_trace(path: Path) -> Decoded:
    """Everything of a trace, in the order of time as Perfetto sorts it. Fails where ends and begins do not match."""
    found = Decoded()
    names: dict[tuple[int, int], str] = {}
    tracks: dict[int, tuple[str, str, bool]] = {}
    events: list[tuple[int, Message]] = []
    for raw in decode(path.read_bytes())[1]:
        packet = decode(raw)
        for interned in packet[12]:
            for kind, entries in decode(interned).items():
                for entry in entries:
                    values = decode(entry)
                    names[kind, values[1][0]] = values[2][0].decode()
        for descriptor in packet[60]:
            _describe(decode(descriptor), tracks)
        for event in packet[11]:
            values = decode(event)
            # Names are looked up when the packet is read: an interned name must stand before its first use.
            values[-1] = [names[1, iid] for iid in values[3]]
            values[-2] = [names[2, iid] for iid in values[10]]
            events.append((packet[8][0], values))
        if packet[6]:
            found.snapshot = decode(packet[6][0])
    stacks: dict[int, list[Slice]] = defaultdict(list)
    for time, event in sorted(events, key=lambda pair: pair[0]):
        _apply(found, stacks, tracks, time, event)
    assert not any(stacks.values()), "a slice has no end"
    return found


def _describe(descriptor: Message, tracks: dict[int, tuple[str, str, bool]]) -> None:
    uuid = descriptor[1][0]
    assert uuid not in tracks, "a track is described twice"
    if descriptor[3]:
        tracks[uuid] = ("", decode(descriptor[3][0])[6][0].decode(), False)
    else:
        tracks[uuid] = (descriptor[2][0].decode(), tracks[descriptor[5][0]][1], bool(descriptor[8]))


def _apply(found: Decoded, stacks: dict[int, list[Slice]], tracks: Any, time: int, event: Message) -> None:
    uuid, kind = event[11][0], event[9][0]
    track, process, counts = tracks[uuid]
    assert counts == (kind == 4)
    if kind == 4:
        found.counters[process, track].append((time, struct.unpack("<d", struct.pack("<Q", event[44][0]))[0]))
    elif kind == 2:
        stacks[uuid].pop().end_ns = time
    else:
        args = [decode(annotation)[9][0].decode() for annotation in event[4]]
        made = Slice(
            track, process, event[-1][0], event[-2][0], time, args=args[0] if args else None, depth=len(stacks[uuid]),
            flows_out=event[47], flows_in=event[48],
        )  # fmt: skip
        if kind == 3:
            found.instants.append(made)
        else:
            stacks[uuid].append(made)
            found.slices.append(made)
