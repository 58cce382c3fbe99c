"""The slow and forgiving way to events: any JSON that Python reads, one dictionary at a time, times as exact decimals.

For what the typed decoder refuses: numbers written as text, `stream: "0x0"`, NaN, fields of odd types, brackets without
an end. What can't be used is counted by reason, never guessed.
"""

from collections import Counter as Count
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from agprof.importers import kineto_events as kinds
from agprof.importers.kineto_events import Args, Complete, Event, Label, MemoryArgs

MAX_INT = 2**63 - 1
_PH: Mapping[str, type[Event]] = {
    "M": kinds.Described,
    "s": kinds.ArrowStart,
    "f": kinds.ArrowEnd,
    "t": kinds.ArrowEnd,
}


def event(value: Any, left_out: Count[str]) -> Event | None:
    """The event of a decoded JSON value; None, and counted, when it is none. Times are Decimal or int microseconds."""
    if not isinstance(value, dict):
        left_out["not an event"] += 1
        return None
    phase = value.get("ph")
    args = value.get("args") if isinstance(value.get("args"), dict) else {}
    cat, name = _text(value.get("cat")), _text(value.get("name"))
    pid, tid, ts = _label(value.get("pid")), _label(value.get("tid")), value.get("ts")
    if phase == "X":
        return Complete(cat, name, pid, tid, ts, value.get("dur"), _args(args))
    if phase in ("i", "I", "n"):
        return kinds.Instant(cat, name, ts, _memory_args(args))
    if phase == "C":
        return kinds.Counter(cat, name, ts, args)
    if phase == "B":
        return kinds.Begin(cat, name, pid, tid, ts, _args(args))
    if phase == "E":
        return kinds.End(pid, tid, ts)
    if isinstance(phase, str) and phase in _PH:
        return _PH[phase]()
    left_out["no phase" if phase is None else "unknown phase"] += 1
    return None


def exact_ns(microseconds: Any) -> int | None:
    """Nanoseconds of a time in microseconds, exact; a fraction of a nanosecond is rounded half to even.

    None for what is no finite number or lies outside of 64 bits.
    """
    if isinstance(microseconds, str | int | Decimal) and not isinstance(microseconds, bool):
        try:
            scaled = Decimal(microseconds) * 1000 if not isinstance(microseconds, int) else Decimal(microseconds * 1000)
            if not scaled.is_finite() or scaled.adjusted() > 19:
                return None
            found = int(scaled.to_integral_value(ROUND_HALF_EVEN))
        except (InvalidOperation, ValueError):
            return None
        return found if abs(found) <= MAX_INT else None
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
        group=_label(get("Process Group Name")),
        group_description=_text(get("Process Group Description")) or None,
        comm_sequence=_int(get("Seq")),
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
    return value if isinstance(value, str) else "" if value is None else str(value)


def _label(value: Any) -> Label:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return _int(value)
    return value if isinstance(value, str) else None


def _int(value: Any) -> int | None:
    """A whole number of 64 bits, also where it is written as text or with an empty fraction; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = int(value, 0)
        except ValueError:
            return None
    if (
        isinstance(value, Decimal)
        and value.is_finite()
        and value.adjusted() < 20
        and value == value.to_integral_value()
    ):
        value = int(value)
    return value if isinstance(value, int) and -MAX_INT <= value <= MAX_INT else None
