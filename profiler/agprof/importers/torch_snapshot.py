"""Memory snapshots of `torch.cuda.memory._dump_snapshot`: the allocator's history becomes memory events.

A snapshot is a pickle, and a pickle can run any program. So it is read by an unpickler that refuses every class and
function: dictionaries, lists, texts and numbers are all that a snapshot needs.
"""

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from agprof.errors import TraceError
from agprof.store.traces import TraceMeta, TraceWriter, write_meta

MAX_BYTES = 2 * 2**30
_ALLOCATED = {"alloc": 1, "free_requested": -1}
"""torch's own counter of allocated bytes falls when a free is asked for, not when it is done."""
_RESERVED = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
_SILENT = ("free_completed", "free", "snapshot", "oom", "workspace_snapshot")
_LARGEST = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The parts of a snapshot that are used, checked."""

    segments: tuple[Mapping[str, Any], ...]
    traces: tuple[tuple[Mapping[str, Any], ...], ...]
    """Per device, oldest first."""


class _Refusing(pickle.Unpickler):
    """Knows no class and no function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        what = ascii(f"{module}.{name}"[:100])
        raise pickle.UnpicklingError(f"it asks for {what}, and a snapshot holds plain values only: not read")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside of it: not read")


def load(file: Path) -> Snapshot:
    """Read a snapshot. Raises TraceError when it is none, is damaged, too large, or asks for anything to be run."""
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise TraceError(f"{file}: a snapshot of {size:,} bytes is more than the {MAX_BYTES:,} that are read")
        with file.open("rb") as opened:
            value = _unpickle(opened)
    except OSError as error:
        raise TraceError(f"{file}: can't be read: {error.strerror or error}") from error
    except TraceError:
        raise
    except Exception as error:
        # A damaged pickle raises whatever its opcodes stumble over.
        raise TraceError(f"{file}: no readable memory snapshot: {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(value, dict) or not isinstance(value.get("segments"), list):
        raise TraceError(f"{file}: no memory snapshot: it has no list of segments (torch.cuda.memory._dump_snapshot)")
    traces = value.get("device_traces", [])
    return Snapshot(
        segments=tuple(row for row in value["segments"] if isinstance(row, dict)),
        traces=tuple(
            tuple(row for row in device if isinstance(row, dict))
            for device in (traces if isinstance(traces, list) else [])
            if isinstance(device, list)
        ),
    )


def _unpickle(opened: BinaryIO) -> Any:
    return _Refusing(opened).load()


def add_to(run: Path, rank: int, file: Path) -> Counter[str]:
    """Write a snapshot's events into a rank's trace tables, beside what is there. What was left out, by reason.

    Raises TraceError and OSError.
    """
    snapshot = load(file)
    writer = TraceWriter(run, rank, writer=_free_writer(run, rank))
    left_out: Counter[str] = Counter()
    for device, events in enumerate(snapshot.traces):
        rows = list(_events(device, events, snapshot.segments, left_out))
        if rows:
            names = ("time_ns", "address", "bytes", "allocated_bytes", "reserved_bytes")
            columns: dict[str, list[Any]] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            columns |= {"on_device": [True] * len(rows), "device": [device] * len(rows)}
            writer.append("memory_events", columns)
    writer.close()
    return left_out


def import_alone(run: Path, rank: int, file: Path, *, rank_source: str, source: str) -> TraceMeta:
    """A rank of which there is a snapshot and no trace. Raises TraceError and OSError."""
    left_out = add_to(run, rank, file)
    snapshot = load(file)
    times = [time for events in snapshot.traces for event in events if (time := _time_ns(event)) is not None]
    meta = TraceMeta(
        format="torch snapshot",
        source=source,
        rank_source=rank_source,
        events={"memory events": sum(map(len, snapshot.traces))},
        left_out=dict(left_out),
        first_ns=min(times, default=None),
        last_ns=max(times, default=None),
        timestamp_unit="us",
        notes=("a memory snapshot alone: nothing is known of kernels and operators",),
    )
    write_meta(run, rank, meta)
    return meta


def _free_writer(run: Path, rank: int) -> int:
    folder = TraceWriter(run, rank).folder
    numbers = [int(parts[1]) for file in folder.glob("*.parquet") if (parts := file.name.split("."))[1].isdigit()]
    return max(numbers, default=-1) + 1


Row = tuple[int, int | None, int, int, int]


def _events(
    device: int, events: tuple[Mapping[str, Any], ...], segments: tuple[Mapping[str, Any], ...], left_out: Counter[str]
) -> Iterator[Row]:
    """time_ns, address, bytes, allocated and reserved afterwards, for each allocation and free.

    The history begins anywhere (its ring forgets), but the segments say what is held when it ends: counted back from
    there the totals are exact.
    """
    usable = []
    for event in events:
        time_ns, size, action = _time_ns(event), _count(event.get("size")), event.get("action")
        if action in _SILENT:
            continue
        if action not in _ALLOCATED and action not in _RESERVED:
            left_out["unknown action of the allocator"] += 1
        elif time_ns is None:
            left_out["no time"] += 1
        elif size is None:
            left_out["no size"] += 1
        else:
            usable.append((time_ns, _count(event.get("addr")), str(action), size))
    held = [row for row in segments if row.get("device") == device]
    allocated = sum(_allocated_in(row) for row in held)
    allocated -= sum(_ALLOCATED.get(action, 0) * size for _, _, action, size in usable)
    reserved = sum(_count(row.get("total_size")) or 0 for row in held)
    reserved -= sum(_RESERVED.get(action, 0) * size for _, _, action, size in usable)
    for time_ns, address, action, size in usable:
        reserved += _RESERVED.get(action, 0) * size
        if action in _ALLOCATED:
            allocated += _ALLOCATED[action] * size
            yield time_ns, address, _ALLOCATED[action] * size, allocated, reserved


def _allocated_in(segment: Mapping[str, Any]) -> int:
    blocks = segment.get("blocks")
    return sum(
        _count(block.get("size")) or 0
        for block in (blocks if isinstance(blocks, list) else [])
        if isinstance(block, dict) and block.get("state") == "active_allocated"
    )


def _time_ns(event: Mapping[str, Any]) -> int | None:
    time_us = _count(event.get("time_us"))
    return None if time_us is None or time_us >= _LARGEST // 1000 else time_us * 1000


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST else None
