"""What torch's allocator remembers (`torch.cuda.memory._snapshot`), replayed: totals over time, what lived at the peak.

The history begins anywhere, since its ring forgets; but the segments say what is held when it ends. So it is counted
back from there, and the totals are exact. They are bytes as they were asked for (`requested_size`): the events hold
those, and not the sizes to which the allocator rounds. Values may come from anybody: what is not of its type is left
out, and counted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALLOCATED = {"alloc": 1, "free_requested": -1}
"""torch's own counter of allocated bytes falls when a free is asked for, not when it is done."""
RESERVED = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
SILENT = ("free_completed", "free", "snapshot", "oom", "workspace_snapshot")
LIVE = "active_allocated"
LARGEST = 2**62
MAX_FRAMES = 24
"""Of one stack: the innermost."""
_LONGEST_NAME = 300

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One allocation, free, or change of what is reserved."""

    time_ns: int
    action: str
    address: int | None
    bytes: int
    raw: Raw

    @property
    def allocates(self) -> int:
        """1, -1 or 0."""
        return ALLOCATED.get(self.action, 0)


@dataclass(frozen=True, slots=True)
class Total:
    """What was allocated and reserved after an event."""

    event: Event
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class LiveBlock:
    """A block that was allocated at a moment."""

    address: int | None
    bytes: int
    frames: tuple[str, ...]
    """`file:line function`, outermost first; () when no stack was kept."""
    time_ns: int | None
    """When it was allocated; None: before the history begins."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest of the allocated bytes, and everything that was live then, largest first."""

    time_ns: int | None
    """None without any event: the end."""
    allocated_bytes: int
    reserved_bytes: int
    blocks: tuple[LiveBlock, ...]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """One pool of a device at the end of the history."""

    name: str
    """`large`, `small`, with the id of a private pool behind it."""
    reserved_bytes: int
    live_bytes: int
    """Requested by live blocks."""
    rounding_bytes: int
    """Live blocks' sizes beyond what was requested."""
    awaiting_bytes: int
    """Freed, but another stream may still use it."""
    free_bytes: int
    """Free parts of segments that also hold something live: no other pool and no other process can have them."""
    cached_bytes: int
    """Segments in which nothing is live: given back when memory gets short."""


def usable(events: Sequence[Raw], left_out: Counter[str]) -> list[Event]:
    """The events of one device that change a total; what can't be used is counted by its reason."""
    kept = []
    for raw in events:
        time_ns, size, action = time_of(raw), count(raw.get("size")), raw.get("action")
        if type(action) is not str or (action not in ALLOCATED and action not in RESERVED and action not in SILENT):
            left_out["unknown action of the allocator"] += 1
        elif action in SILENT:
            continue
        elif time_ns is None:
            left_out["no time"] += 1
        elif size is None:
            left_out["no size"] += 1
        else:
            kept.append(Event(time_ns, action, count(raw.get("addr")), size, raw))
    return kept


def totals(events: Sequence[Event], segments: Sequence[Raw]) -> Iterator[Total]:
    """After each event, in order. `segments`: those of the same device, at the end of the history."""
    allocated = sum(requested(block) for row in segments for block in blocks_of(row) if is_live(block))
    reserved = sum(count(row.get("total_size")) or 0 for row in segments)
    for event in events:
        allocated -= ALLOCATED.get(event.action, 0) * event.bytes
        reserved -= RESERVED.get(event.action, 0) * event.bytes
    for event in events:
        allocated += ALLOCATED.get(event.action, 0) * event.bytes
        reserved += RESERVED.get(event.action, 0) * event.bytes
        yield Total(event, allocated, reserved)


def peak_of(events: Sequence[Event], segments: Sequence[Raw]) -> Peak:
    """The first of the highest moments, with what was live then: by undoing the history from its end."""
    highest: Total | None = None
    position = -1
    for index, total in enumerate(totals(events, segments)):
        if highest is None or total.allocated_bytes > highest.allocated_bytes:
            highest, position = total, index
    live = {address: block for row in segments for address, block in _live_blocks(row)}
    for event in reversed(events[position + 1 :]):
        if event.address is None:
            continue
        if event.allocates > 0:
            live.pop(event.address, None)
        elif event.allocates < 0:
            live[event.address] = LiveBlock(event.address, event.bytes, (), None)
    made = {event.address: event for event in events[: position + 1] if event.allocates > 0}
    blocks = [_with_origin(block, made.get(block.address)) for block in live.values()]
    return Peak(
        time_ns=highest.event.time_ns if highest else None,
        allocated_bytes=highest.allocated_bytes if highest else sum(block.bytes for block in blocks),
        reserved_bytes=highest.reserved_bytes if highest else sum(count(s.get("total_size")) or 0 for s in segments),
        blocks=tuple(sorted(blocks, key=lambda block: (-block.bytes, block.address or 0))),
    )


def pools_of(segments: Sequence[Raw]) -> tuple[PoolUse, ...]:
    """The pools of a device at the end, largest first. Their parts add up to what is reserved, rounding included."""
    sums: dict[str, list[int]] = {}
    for row in segments:
        use = sums.setdefault(_pool(row), [0] * 6)
        reserved = count(row.get("total_size")) or 0
        live = rounding = awaiting = 0
        for block in blocks_of(row):
            size = count(block.get("size")) or 0
            if is_live(block):
                live += (asked := min(requested(block), size))
                rounding += size - asked
            elif block.get("state") in ("active_awaiting_free", "active_pending_free"):
                awaiting += size
        rest = max(0, reserved - live - rounding - awaiting)
        holds = live or rounding or awaiting
        for index, value in enumerate((reserved, live, rounding, awaiting, rest if holds else 0, 0 if holds else rest)):
            use[index] += value
    found = (PoolUse(name, *use) for name, use in sums.items())
    return tuple(sorted(found, key=lambda pool: (-pool.reserved_bytes, pool.name)))


def time_of(raw: Raw) -> int | None:
    """An event's time in ns since the epoch."""
    time_us = count(raw.get("time_us"))
    return None if time_us is None or time_us >= LARGEST // 1000 else time_us * 1000


def count(value: Any) -> int | None:
    """A whole number that can be a size, an address or a time; else None."""
    return value if type(value) is int and 0 <= value < LARGEST else None


def blocks_of(segment: Raw) -> Iterator[Raw]:
    """The blocks of a segment, with their addresses also where an old torch left them out."""
    blocks = segment.get("blocks")
    address = count(segment.get("address"))
    for block in blocks if isinstance(blocks, list) else ():
        if not isinstance(block, dict):
            continue
        yield block if "address" in block or address is None else {**block, "address": address}
        if address is not None:
            address += count(block.get("size")) or 0


def is_live(block: Raw) -> bool:
    """Whether a tensor holds the block."""
    return block.get("state") == LIVE


def requested(block: Raw) -> int:
    """The bytes that were asked for; the block's size where it does not say."""
    asked = count(block.get("requested_size"))
    if asked is None:
        history = block.get("history")
        first = history[0] if isinstance(history, list) and history else None
        asked = count(first.get("real_size")) if isinstance(first, dict) else None
    return asked if asked is not None else count(block.get("size")) or 0


def frames_of(raw: Raw) -> tuple[str, ...]:
    """The stack of an event or block: the innermost frames, outermost of them first."""
    frames = raw.get("frames")
    kept = []
    for frame in frames[:MAX_FRAMES] if isinstance(frames, list) else ():
        if not isinstance(frame, dict):
            continue
        file, line, name = frame.get("filename"), count(frame.get("line")), frame.get("name")
        where = file[-_LONGEST_NAME:] if isinstance(file, str) else "?"
        what = name[:_LONGEST_NAME] if isinstance(name, str) else "?"
        kept.append(f"{where}:{line if line is not None else '?'} {what}".replace("\n", " "))
    return tuple(reversed(kept))


def _live_blocks(segment: Raw) -> Iterator[tuple[int, LiveBlock]]:
    for block in blocks_of(segment):
        address = count(block.get("address"))
        if is_live(block) and address is not None:
            yield address, LiveBlock(address, requested(block), frames_of(block), None)


def _with_origin(block: LiveBlock, made: Event | None) -> LiveBlock:
    if made is None:
        return block
    return LiveBlock(block.address, block.bytes, frames_of(made.raw) or block.frames, made.time_ns)


def _pool(segment: Raw) -> str:
    kind = segment.get("segment_type")
    name = kind if kind in ("large", "small") else "other"
    private = segment.get("segment_pool_id")
    if isinstance(private, tuple) and len(private) == 2 and any(private):
        return f"{name} of pool {count(private[0])}.{count(private[1])}"
    return name
