"""A small caching allocator in Python that remembers as torch's does: for snapshots of known truth.

Shape and meaning of the fields are those of torch 2.13 (`torch/cuda/memory.py`, `_snapshot`): events hold requested
sizes, blocks the rounded ones beside them, `free_requested` names the requested size again.
"""

from typing import Any

ROUND = 512
SMALL_BYTES, SMALL_SEGMENT, LARGE_SEGMENT = 2**20, 2 * 2**20, 20 * 2**20


class Allocator:
    """One device: `trace` and `segments` as in a snapshot; `live`, `peak_bytes` and `peak_live` are the truth."""

    def __init__(self, device: int = 0, *, ring: int = 10**9, start_us: int = 1_700_000_000_000_000) -> None:
        self.device = device
        self.ring = ring
        self.now_us = start_us
        self.trace: list[dict[str, Any]] = []
        self.segments: list[dict[str, Any]] = []
        self.live: dict[int, int] = {}
        self.peak_bytes = 0
        self.peak_live: dict[int, int] = {}
        self._next_address = 0x7F00_0000_0000

    @property
    def reserved_bytes(self) -> int:
        return sum(segment["total_size"] for segment in self.segments)

    @property
    def requested_bytes(self) -> int:
        return sum(self.live.values())

    def allocate(self, size: int, frames: list[dict[str, Any]] | None = None) -> int:
        rounded = max(ROUND, -(-size // ROUND) * ROUND)
        kind = "small" if rounded <= SMALL_BYTES else "large"
        segment, position = self._room(rounded, kind)
        block = segment["blocks"][position]
        rest = block["size"] - rounded
        block |= {"size": rounded, "requested_size": size, "state": "active_allocated", "frames": frames or []}
        if rest:
            free = {
                "address": block["address"] + rounded,
                "size": rest,
                "requested_size": 0,
                "state": "inactive",
                "frames": [],
            }
            segment["blocks"].insert(position + 1, free)
        address: int = block["address"]
        self.live[address] = size
        self._remember("alloc", address, size, frames)
        if self.requested_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_live = self.requested_bytes, dict(self.live)
        return address

    def free(self, address: int) -> None:
        size = self.live.pop(address)
        self._remember("free_requested", address, size, None)
        self._remember("free_completed", address, size, None)
        for segment in self.segments:
            for block in segment["blocks"]:
                if block["address"] == address:
                    block |= {"state": "inactive", "requested_size": 0, "frames": []}
            segment["blocks"] = self._joined(segment["blocks"])

    def empty_cache(self) -> None:
        for segment in list(self.segments):
            if all(block["state"] == "inactive" for block in segment["blocks"]):
                self.segments.remove(segment)
                self._remember("segment_free", segment["address"], segment["total_size"], None)

    def snapshot(self) -> dict[str, Any]:
        for segment in self.segments:
            live = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
            segment["allocated_size"] = segment["active_size"] = sum(block["size"] for block in live)
            segment["requested_size"] = sum(block["requested_size"] for block in live)
        traces: list[list[dict[str, Any]]] = [[] for _ in range(self.device)]
        return {
            "segments": self.segments,
            "device_traces": [*traces, self.trace],
            "allocator_settings": {"expandable_segments": False, "max_split_size": -1},
            "external_annotations": [],
        }

    def _room(self, size: int, kind: str) -> tuple[dict[str, Any], int]:
        for segment in self.segments:
            for position, block in enumerate(segment["blocks"]):
                if segment["segment_type"] == kind and block["state"] == "inactive" and block["size"] >= size:
                    return segment, position
        total = SMALL_SEGMENT if kind == "small" else max(LARGE_SEGMENT, -(-size // SMALL_SEGMENT) * SMALL_SEGMENT)
        address = self._next_address
        self._next_address += total
        block = {"address": address, "size": total, "requested_size": 0, "state": "inactive", "frames": []}
        segment = {
            "device": self.device, "address": address, "total_size": total, "stream": 0, "segment_type": kind,
            "segment_pool_id": (0, 0), "is_expandable": False, "frames": [], "blocks": [block],
        }  # fmt: skip
        self.segments.append(segment)
        self._remember("segment_alloc", address, total, None)
        return segment, 0

    @staticmethod
    def _joined(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        joined: list[dict[str, Any]] = []
        for block in blocks:
            if joined and joined[-1]["state"] == block["state"] == "inactive":
                joined[-1]["size"] += block["size"]
            else:
                joined.append(block)
        return joined

    def _remember(self, action: str, address: int, size: int, frames: list[dict[str, Any]] | None) -> None:
        self.now_us += 1
        self.trace.append(
            {"action": action, "addr": address, "size": size, "stream": 0, "device": self.device, "pool_id": (0, 0),
             "time_us": self.now_us, "compile_context": "N/A", "user_metadata": "", "frames": frames or []}
        )  # fmt: skip
        del self.trace[: max(0, len(self.trace) - self.ring)]


def random_history(seed: int, operations: int = 400, **options: Any) -> Allocator:
    """Allocations and frees by chance, of sizes from a byte to 30 MB, each with a stack of its own."""
    import random

    chance = random.Random(seed)
    allocator = Allocator(**options)
    for number in range(operations):
        if allocator.live and chance.random() < 0.48:
            allocator.free(chance.choice(list(allocator.live)))
        else:
            size = int(2 ** chance.uniform(0, 25))
            frames = [
                {"filename": "/x/torch/functional.py", "line": number, "name": "inner"},
                {"filename": "/x/train.py", "line": 7, "name": "outer"},
            ]
            allocator.allocate(size, frames)
        if chance.random() < 0.02:
            allocator.empty_cache()
    return allocator
