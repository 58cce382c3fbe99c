"""The total of a memory account, measured apart from its parts: by torch's allocators, or by malloc where they can't.

On a GPU the total is what the caching allocator holds from the driver (reserved), of which `fragmentation` is what no
tensor has. The CUDA context can't be told from other processes' memory here, and is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agprof.instruments.memory_allocator import CpuAllocator, CudaAllocator, malloc_reader
from agprof.instruments.memory_tracker import Allocation, MemoryTracker

BY_WALK = "sum of all tensors that Python's collector finds: this build of torch has no counter of CPU allocations"
BY_MALLOC = "all tensors at the step's begin, and by how much glibc's malloc held more at highs of the tensors' bytes"
FOREIGN = ", and tensors in memory of others (numpy, shared, mapped files)"


@dataclass(frozen=True, slots=True)
class Total:
    """A row that belongs to the total: part `total` or `fragmentation`."""

    space: str
    part: str
    bytes: int
    method: str


@dataclass(slots=True)
class Now:
    """What the allocators say at a moment; None: they can't."""

    cpu: int | None
    malloc: int | None
    pinned: int
    cuda: tuple[int, int] | None
    """Allocated, reserved."""


class Totals:
    """Allocators of this process. With `counts`, counting on the CPU begins with the object and ends with `stop`."""

    def __init__(self, torch: Any, *, counts: bool = True) -> None:
        self._torch = torch
        self._cpu = CpuAllocator(torch if counts else None)
        self._malloc = malloc_reader()
        self._cuda: CudaAllocator | None = None
        self._highest_cpu = 0
        self._peak_seen = 0
        self._unseen: int | None = None
        """What the allocator held beyond the tensors' bytes after the operation before."""
        self._in_collectives = 0
        self.copied_bytes = 0
        """At the peak: by how much that had grown in collectives. gloo copies what it reduces and gathers, on threads
        that no dispatch mode sees."""
        self._malloc_begin = 0
        self._malloc_highest = 0
        self._base = 0
        self._highs: dict[str, Now] = {}
        self.method = ""

    def stop(self) -> None:
        """Count no more. Safe to call twice."""
        self._cpu.stop()

    def now(self) -> Now:
        cuda = None
        if self._torch.cuda.is_initialized():
            self._cuda = self._cuda or CudaAllocator(self._torch)
            cuda = self._cuda.now()
        cpu = self._cpu.bytes
        malloc = self._malloc() if cpu is None and self._malloc is not None else None
        return Now(cpu, malloc, _pinned_bytes(self._torch) if cuda else 0, cuda)

    def begin(self, now: Now, standing: list[Allocation], tracker: MemoryTracker) -> list[Total]:
        """The step begins: totals of what stands."""
        if self._torch.cuda.is_initialized():
            self._cuda = CudaAllocator(self._torch)  # its peak is compared with that of this moment
        self._malloc_begin = self._malloc_highest = now.malloc or 0
        self._base = _host_bytes(standing)
        self._highest_cpu = now.cpu or 0
        self._peak_seen = tracker.peak_bytes
        return self.stated(now, standing)

    def stated(self, now: Now, records: list[Allocation]) -> list[Total]:
        """Totals of a moment at which `records` were alive."""
        totals = []
        if now.cuda is not None:
            allocated, reserved = now.cuda
            totals = _device(allocated, reserved, "CUDA allocator's reserved bytes")
        host, method = _host_bytes(records), BY_WALK
        if now.cpu is not None:
            host, method = self._with_foreign(now.cpu + now.pinned, records)
        if now.cuda is None or host:
            totals.append(Total("host", "total", host, method))
        return totals

    def sample(self, tracker: MemoryTracker, *, is_collective: bool) -> bool:
        """After an operation; cheap. True when the CPU's allocator never held more: this is the peak so far."""
        held = self._cpu.bytes
        if held is None:
            return False
        if self._cuda is not None:
            if tracker.peak_bytes > self._peak_seen:
                # The device's peak is what is explained; the host's part is told for that moment.
                self._peak_seen, self._highest_cpu = tracker.peak_bytes, held
            return False
        unseen = held - tracker.live_bytes
        if self._unseen is not None and is_collective and unseen > self._unseen:
            self._in_collectives += unseen - self._unseen
        elif self._unseen is not None and unseen < self._unseen:
            self._in_collectives = max(0, self._in_collectives + unseen - self._unseen)
        self._unseen = unseen
        if held <= self._highest_cpu:
            return False
        self._highest_cpu, self.copied_bytes = held, self._in_collectives
        return True

    def sample_slowly(self, tracker: MemoryTracker) -> None:
        """At highs of the tensors' bytes."""
        if self._cuda is not None:
            self._cuda.sample()
        if self._cpu.bytes is None and self._malloc is not None:
            self._malloc_highest = max(self._malloc_highest, self._malloc())

    def note_high(self, name: str) -> None:
        """This moment is the highest of its kind."""
        self._highs[name] = self.now()

    def high(self, name: str, records: list[Allocation]) -> list[Total]:
        """Totals of the moment that was noted last under `name`."""
        return self.stated(self._highs[name], records)

    def peak(self, records: list[Allocation]) -> list[Total]:
        """Totals of the step's highest point, at which `records` were alive."""
        totals = []
        if self._cuda is not None:
            allocated, reserved, method = self._cuda.peak()
            totals = _device(allocated, reserved, f"CUDA allocator's reserved bytes at the peak ({method})")
        held, method = self._host_peak(records)
        if self._cuda is None or held:
            totals.append(Total("host", "total", held, method))
        self.method = totals[0].method if totals else ""
        return totals

    def _host_peak(self, records: list[Allocation]) -> tuple[int, str]:
        if self._cpu.bytes is None:
            if self._malloc is None:
                return _host_bytes(records), BY_WALK
            return self._base + self._malloc_highest - self._malloc_begin, BY_MALLOC
        if self._cuda is not None:
            return self._with_foreign(self._highest_cpu + _pinned_bytes(self._torch), records)
        return self._with_foreign(self._highest_cpu, records)

    def _with_foreign(self, held: int, records: Iterable[Allocation]) -> tuple[int, str]:
        foreign = sum(record.bytes for record in records if record.is_foreign)
        return held + foreign, CpuAllocator.METHOD + (FOREIGN if foreign else "")


def _device(allocated: int, reserved: int, method: str) -> list[Total]:
    return [
        Total("device", "total", reserved, method),
        Total("device", "fragmentation", reserved - allocated, "reserved and not in a tensor"),
    ]


def _host_bytes(records: Iterable[Allocation]) -> int:
    return sum(record.bytes for record in records if record.space == "host")


def _pinned_bytes(torch: Any) -> int:
    """Pinned host memory by CUDA's host allocator; 0 where it does not say."""
    try:
        return int(torch.cuda.host_memory_stats()["allocated_bytes.current"])
    except Exception:
        return 0
