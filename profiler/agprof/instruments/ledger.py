"""torch's flight recorder as the ledger: whatever it saw and our taps did not is unseen.

The flight recorder lives in C++ below every way to start a collective, and keeps the last N of them in a ring. It is
read once, at the end: reading holds the interpreter for about 15 us an entry, so reading it while training would cost
more than everything else here. When the ring has overflowed, both sides are compared over the part that it still
holds, and the totals, which overflow does not touch, are compared whole.
"""

import collections
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from agprof.instruments.comm_groups import Group, label
from agprof.instruments.recorder import Recorder

_VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_DUMPS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")

_KINDS = {
    "_all_gather_base": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "all_gather_single": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter",
    "allreduce_coalesced": "all_reduce",
    "all_reduce_coalesced": "all_reduce",
    "all_reduce_barrier": "barrier",
    "_broadcast_oop": "broadcast",
    "_reduce_oop": "reduce",
}
_ITEM_BYTES = {
    "Byte": 1, "Char": 1, "Bool": 1, "Short": 2, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "Long": 8,
    "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float8_e4m3fn": 1, "Float8_e5m2": 1,
}  # fmt: skip

Event = tuple[int, Group, str, str | None, int | None]
"""(end of the call, group, call, device type, bytes)"""
Key = tuple[str, str]
"""(group's name, kind as recorded)"""


class Ledger:
    """Keeps the last calls that our taps saw, as many as the flight recorder keeps, and compares at the end."""

    def __init__(self, recorder: Recorder, torch: Any, entries: int) -> None:
        self._recorder = recorder
        self._torch = torch
        self._seen: collections.deque[Event] = collections.deque(maxlen=entries)
        self._counts: dict[tuple[Group, str, str | None], Iterator[int]] = {}

    @staticmethod
    def of_environment(recorder: Recorder, torch: Any) -> "Ledger | None":
        """None where the flight recorder is off or this torch has none."""
        texts = [os.environ[name] for name in _VARIABLES if name in os.environ]
        entries = int(texts[0]) if texts and texts[0].isdigit() else 0
        bindings = getattr(torch._C, "_distributed_c10d", None)
        if not recorder.settings.flight_recorder or entries <= 0 or not hasattr(bindings, _DUMPS[0]):
            return None
        return Ledger(recorder, torch, entries)

    def note(self, end: int, group: Group, call: str, device: str | None, size: int | None) -> None:
        """A call that the backend executed."""
        self._seen.append((end, group, call, device, size))
        key = (group, call, device)
        counter = self._counts.get(key)
        if counter is None:
            counter = self._counts.setdefault(key, itertools.count())
        next(counter)  # an increment would lose counts between threads

    def finish(self) -> None:
        """Compare and write the table `ledger`, and the totals as facts."""
        rings = self._rings()
        offset = time.time_ns() - time.monotonic_ns()
        overflowed = [ring for ring in rings if min(entry["record_id"] for entry in ring) > 0]
        since = max((min(entry["time_created_ns"] for entry in ring) - offset for ring in overflowed), default=0)
        recorded = _recorded(
            (entry for ring in rings for entry in ring if not since or entry["time_created_ns"] - offset >= since),
            self._sizes(),
        )
        seen = self._seen_since(since)
        for key in sorted({*recorded, *seen}):
            count, size = recorded.get(key, (0, 0))
            seen_count, seen_size = seen.get(key, (0, 0))
            self._recorder.writer.append("ledger", (*key, count, seen_count, size, seen_size, not overflowed))
        total = sum(max(entry["record_id"] for entry in ring) + 1 for ring in rings)
        self._recorder.fact("comm.recorded_total", total)
        self._recorder.fact("comm.seen_total", self._seen_total())

    def _rings(self) -> list[list[dict[str, Any]]]:
        """The entries of each backend's flight recorder that has any."""
        bindings = self._torch._C._distributed_c10d
        dumps = (json.loads(getattr(bindings, name)(True, False)) for name in _DUMPS if hasattr(bindings, name))
        return [dump["entries"] for dump in dumps if dump.get("entries")]

    def _seen_total(self) -> int:
        """Calls of the whole run that the flight recorder should have."""
        total = 0
        for (group, call, device), counter in self._counts.items():
            recorded = group.recorded_as(call, device)
            total += next(counter) * recorded[1] if recorded is not None else 0
        return total

    def _seen_since(self, since: int) -> dict[Key, tuple[int, int]]:
        """Our calls that ended at `since` or later: the oldest recorded entry was made inside one of them."""
        totals: dict[Key, tuple[int, int]] = {}
        for end, group, call, device, size in list(self._seen):
            recorded = group.recorded_as(call, device) if end >= since else None
            if recorded is not None:
                _add(totals, (group.name, recorded[0]), recorded[1], size or 0)
        return totals

    def _sizes(self) -> dict[str, int]:
        """Ranks of each group that was used."""
        return {group.name: group.size for group, _, _ in self._counts}


def _recorded(entries: Iterable[dict[str, Any]], group_sizes: dict[str, int]) -> dict[Key, tuple[int, int]]:
    totals: dict[Key, tuple[int, int]] = {}
    for entry in entries:
        kind = entry["profiling_name"].partition(":")[2].split(" ")[0]
        kind = _KINDS.get(kind, kind)
        if kind == "coalesced":
            continue  # a bracket around entries of its own
        group = label(*entry["process_group"])
        _add(totals, (group, kind), 1, _bytes(entry, kind, group_sizes.get(group, 1)))
    return totals


def _bytes(entry: dict[str, Any], kind: str, ranks: int) -> int:
    """The bytes as the table `collectives` has them. Ranks that are not the root record only their own piece."""
    into, out = _side(entry["input_sizes"], entry["input_dtypes"]), _side(entry["output_sizes"], entry["output_dtypes"])
    if kind in {"all_gather", "gather"}:
        return into * ranks
    return out * ranks if kind in {"scatter", "reduce_scatter"} else into


def _side(sizes: list[list[int]], dtypes: list[str]) -> int:
    total = 0
    for shape, dtype in zip(sizes, dtypes, strict=False):
        count = _ITEM_BYTES.get(dtype, 0)
        for length in shape:
            count *= length
        total += count
    return total


def _add(totals: dict[Key, tuple[int, int]], key: Key, count: int, size: int) -> None:
    count_before, size_before = totals.get(key, (0, 0))
    totals[key] = (count_before + count, size_before + size)
