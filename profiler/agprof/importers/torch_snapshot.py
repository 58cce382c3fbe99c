"""Memory snapshots of `torch.cuda.memory._dump_snapshot`: the allocator's history becomes memory events.

A snapshot is a pickle, and a pickle can run any program. So it is read by a machine that has no opcodes for that
(`plain_pickle`): dictionaries, lists, texts and numbers are all that a snapshot needs.
"""

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agprof.errors import TraceError
from agprof.importers.plain_pickle import PickleRefusedError, load_plain
from agprof.model.allocator_history import LARGEST, peak_of, time_of, totals, usable
from agprof.store.traces import TraceMeta, TraceWriter, write_meta

MAX_BYTES = 2 * 2**30
MEMORY_PER_BYTE = 48
"""Memory that a snapshot may take per byte of its file; a real one takes 5 to 15."""
FREE_MEMORY_BYTES = 64 * 2**20
MAX_MEMORY_BYTES = 12 * 2**30
MIN_EVENT_BYTES = 8
"""Bytes of the file per event; a real event takes over 50. Less: the same events are listed again and again."""
MAX_DEVICES = 256
TOP_BLOCKS = 40
MAX_STACK = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The parts of a snapshot that are used, checked."""

    segments: tuple[Mapping[str, Any], ...]
    traces: tuple[tuple[Mapping[str, Any], ...], ...]
    """Per device, oldest first."""

    def segments_of(self, device: int) -> list[Mapping[str, Any]]:
        return [row for row in self.segments if row.get("device", 0) == device]


def load(file: Path) -> Snapshot:
    """Read a snapshot. Raises TraceError when it is none, is damaged, too large, or asks for anything to be run."""
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise TraceError(f"{file}: a snapshot of {size:,} bytes is more than the {MAX_BYTES:,} that are read")
        value = _unpickle(file, size)
    except OSError as error:
        raise TraceError(f"{file}: can't be read: {error.strerror or error}") from error
    except (PickleRefusedError, UnicodeDecodeError, MemoryError) as error:
        what = str(error)[:300] or "there is not enough memory for it"
        raise TraceError(f"{file}: no readable memory snapshot: {what}") from error
    if not isinstance(value, dict) or not isinstance(value.get("segments"), list):
        raise TraceError(f"{file}: no memory snapshot: it has no list of segments (torch.cuda.memory._dump_snapshot)")
    traces = value.get("device_traces", [])
    devices = [device for device in (traces if isinstance(traces, list) else []) if isinstance(device, list)]
    _check_lengths(file, size, value["segments"], devices)
    return Snapshot(
        segments=tuple(row for row in value["segments"] if isinstance(row, dict)),
        traces=tuple(tuple(row for row in device if isinstance(row, dict)) for device in devices),
    )


def _unpickle(file: Path, size: int) -> Any:
    if not size:
        raise PickleRefusedError("it is empty")
    allowed = min(MAX_MEMORY_BYTES, FREE_MEMORY_BYTES + MEMORY_PER_BYTE * size)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return load_plain(data, max_memory_bytes=allowed)


def _check_lengths(file: Path, size: int, segments: list[Any], devices: list[list[Any]]) -> None:
    """A list that is listed many times takes no memory, but it would take for ever to go through."""
    blocks = (row.get("blocks") for row in segments if isinstance(row, dict))
    listed = sum(len(rows) for rows in blocks if isinstance(rows, list)) + sum(map(len, devices))
    if len(devices) > MAX_DEVICES or listed > FREE_MEMORY_BYTES // 1024 + size // MIN_EVENT_BYTES:
        raise TraceError(
            f"{file}: no memory snapshot: {listed:,} events and blocks of {len(devices):,} devices do not fit into its "
            f"{size:,} bytes"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What a snapshot gave."""

    left_out: Counter[str]
    """Events that could not be used, by reason."""
    allocations: tuple[tuple[Any, ...], ...]
    """Rows of the table `allocations`: the largest blocks of each device at its peak, with their stacks."""


def add_to(run: Path, rank: int, file: Path) -> Added:
    """Write a snapshot's events into a rank's trace tables, beside what is there. Raises TraceError and OSError."""
    return _write(run, rank, load(file), file)


def _write(run: Path, rank: int, snapshot: Snapshot, file: Path) -> Added:
    return Added(left_out=_write_events(run, rank, snapshot, file), allocations=tuple(_allocations(snapshot)))


def _allocations(snapshot: Snapshot) -> Iterator[tuple[Any, ...]]:
    for device, raw in enumerate(snapshot.traces):
        peak = peak_of(usable(raw, Counter()), snapshot.segments_of(device))
        for block in peak.blocks[:TOP_BLOCKS]:
            stack = "\n".join(block.frames)[-MAX_STACK:]
            yield (0, "peak", "device", "unexplained", block.bytes, "", "", "", f"cuda {device}", "", stack)


def _write_events(run: Path, rank: int, snapshot: Snapshot, file: Path) -> Counter[str]:
    writer = TraceWriter(run, rank, writer=_free_writer(run, rank))
    left_out: Counter[str] = Counter()
    names = ("time_ns", "address", "bytes", "allocated_bytes", "reserved_bytes")
    for device, raw in enumerate(snapshot.traces):
        rows = [
            (
                total.event.time_ns,
                total.event.address,
                total.event.allocates * total.event.bytes,
                total.allocated_bytes,
                total.reserved_bytes,
            )
            for total in totals(usable(raw, left_out), snapshot.segments_of(device))
            if total.event.allocates
        ]
        if any(abs(row[3]) >= LARGEST or abs(row[4]) >= LARGEST for row in rows):
            raise TraceError(f"{file}: no memory snapshot: its sizes add up to more than any memory has")
        if rows:
            columns: dict[str, list[Any]] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            columns |= {"on_device": [True] * len(rows), "device": [device] * len(rows)}
            writer.append("memory_events", columns)
    writer.close()
    return left_out


def import_alone(run: Path, rank: int, file: Path, *, rank_source: str, source: str) -> Added:
    """A rank of which there is a snapshot and no trace. Raises TraceError and OSError."""
    snapshot = load(file)
    if not snapshot.segments and not any(snapshot.traces):
        raise TraceError(f"{file}: no memory snapshot: it has neither a segment nor an event")
    added = _write(run, rank, snapshot, file)
    times = [time for events in snapshot.traces for event in events if (time := time_of(event)) is not None]
    meta = TraceMeta(
        format="torch snapshot",
        source=source,
        rank_source=rank_source,
        events={"memory events": sum(map(len, snapshot.traces))},
        left_out=dict(added.left_out),
        first_ns=min(times, default=None),
        last_ns=max(times, default=None),
        timestamp_unit="us",
        notes=("a memory snapshot alone: nothing is known of kernels and operators",),
    )
    write_meta(run, rank, meta)
    return added


def _free_writer(run: Path, rank: int) -> int:
    folder = TraceWriter(run, rank).folder
    numbers = [int(parts[1]) for file in folder.glob("*.parquet") if (parts := file.name.split("."))[1].isdigit()]
    return max(numbers, default=-1) + 1
