"""The slow and forgiving way to events: any JSON that Python reads, one value at a time, times as exact decimals.

For what the typed decoder refuses: numbers written as text, NaN, fields of odd types, control characters in names.
What can't be used is counted by reason, never guessed.
"""

import json
from collections import Counter as Count
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from agprof.importers import kineto_events as kinds
from agprof.importers.kineto_events import NOTHING, Args, ExactEvent, Label, MemoryArgs
from agprof.importers.kineto_time import MAX_INT

_LONGEST_INT = 40
_PLAIN: Mapping[str, ExactEvent] = {
    "M": kinds.Described(),
    "s": kinds.ArrowStart(),
    "t": kinds.ArrowEnd(),
    "f": kinds.ArrowEnd(),
}


def _integer(text: str) -> int | None:
    """Python refuses to read integers of thousands of digits; no field of ours has forty."""
    return int(text) if len(text) <= _LONGEST_INT else None


DECODER = json.JSONDecoder(strict=False, parse_float=Decimal, parse_int=_integer, parse_constant=lambda _: None)


def event(value: Any, left_out: Count[str]) -> ExactEvent | None:
    """The event of a decoded JSON value; None, and counted, when it is none."""
    if not isinstance(value, dict):
        left_out["not an event"] += 1
        return None
    phase = value.get("ph")
    args = value["args"] if isinstance(value.get("args"), dict) else {}
    cat, name, ts = _text(value.get("cat")), _text(value.get("name")), value.get("ts")
    pid, tid = _label(value.get("pid")), _label(value.get("tid"))
    if phase == "X":
        return kinds.ExactComplete(cat=cat, name=name, pid=pid, tid=tid, ts=ts, dur=value.get("dur"), args=_args(args))
    if phase in ("i", "I"):
        return kinds.ExactInstant(cat=cat, name=name, ts=ts, args=_memory_args(args))
    if phase == "C":
        return kinds.ExactCounter(cat=cat, name=name, ts=ts, args=args)
    if phase == "B":
        return kinds.ExactBegin(cat=cat, name=name, pid=pid, tid=tid, ts=ts, args=_args(args))
    if phase == "E":
        return kinds.ExactEnd(pid=pid, tid=tid, ts=ts)
    if isinstance(phase, str) and phase in _PLAIN:
        return _PLAIN[phase]
    left_out["no phase" if phase is None else "unknown phase"] += 1
    return None


def _args(args: Mapping[str, Any]) -> Args:
    get = args.get
    return Args(
        external_id=_int(get("External id")),
        old_external_id=_int(get("external id")),
        sequence=_int(get("Sequence number")),
        forward_thread=_int(get("Fwd thread id")),
        device=_int(get("device")),
        stream=_label(get("stream")),
        correlation=_int(get("correlation")),
        bytes=_int(get("bytes")),
        graph_node=_int(get("graph node id")),
        collective=_text(get("Collective name")) or None,
        elements_in=_int(get("In msg nelems")),
        elements_out=_int(get("Out msg nelems")),
        group_size=_int(get("Group size")),
        dtype=_text(get("dtype")) or None,
        group=_text(get("Process Group Name")) or None,
        group_description=_text(get("Process Group Description")) or None,
        comm_sequence=_int(get("Seq")),
        waited_stream=_int(get("wait_on_stream")),
        record_correlation=_int(get("wait_on_cuda_event_record_corr_id")),
        thread=_int(get("agprof thread")),
    )


def _memory_args(args: Mapping[str, Any]) -> MemoryArgs:
    get = args.get
    return MemoryArgs(
        reserved_bytes=_int(get("Total Reserved")),
        allocated_bytes=_int(get("Total Allocated")),
        bytes=_int(get("Bytes")),
        address=_int(get("Addr")),
        device=_int(get("Device Id")),
        device_type=_int(get("Device Type")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int | Decimal) else ""


def _label(value: Any) -> Label:
    return value if isinstance(value, str) else _int(value)


def _int(value: Any) -> int:
    """A whole number of 64 bits, also where it is written as text or with an empty fraction; else NOTHING."""
    if isinstance(value, str) and len(value) <= _LONGEST_INT:
        try:
            value = int(value, 0)
        except ValueError:
            return NOTHING
    if isinstance(value, Decimal) and value.is_finite() and value.adjusted() < 20 and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return NOTHING
    return value if -MAX_INT <= value <= MAX_INT else NOTHING
