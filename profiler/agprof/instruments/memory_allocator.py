"""What torch's allocators say they hold: measured on its own, so that an account of tensors can be checked against it.

CUDA's caching allocator counts itself. The CPU's counts only while a profiler looks at memory or while its own flag
`caffe2_report_cpu_memory_usage` is set (it is the same counter that fills "Total Allocated" of torch's profiler). The
flag is set when torch has just been imported, before any tensor exists, and cleared when the account is done: from then
on the counter holds the bytes of the whole process, those that no Python object shows included. Counting costs about
1 us per allocation.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD_BYTES = 1_234_577
"""An allocation by which the counter is recognised."""
WARNING = 1
"""torch's log level from which it says nothing of single allocations."""


class CpuAllocator:
    """The counter of torch's CPU allocator; `bytes` is None where this build of torch has none that can be read."""

    METHOD = "bytes that torch's CPU allocator holds, by its own counter"

    def __init__(self, torch: Any) -> None:
        """With None for torch it counts nothing."""
        self._flag: Any = None
        self._counter: Any = None
        try:
            if torch is not None:
                self._open(torch)
        except (OSError, AttributeError, ValueError):
            self.stop()

    def _open(self, torch: Any) -> None:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"), mode=os.RTLD_NOLOAD)
        if ctypes.c_int.in_dll(library, "FLAGS_caffe2_log_level").value < WARNING:
            return  # it would log every allocation
        reporter = library._ZN3c1025profiledCPUMemoryReporterEv
        reporter.restype = ctypes.c_void_p
        flag = ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage")
        if flag.value:
            return  # somebody else uses it
        self._flag = flag
        flag.value = True
        self._counter = _counter_in(torch, int(reporter()))
        if self._counter is None:
            self.stop()

    @property
    def bytes(self) -> int | None:
        """Held now by tensors and kernels of this process."""
        counter = self._counter
        return counter.value if counter is not None else None

    def stop(self) -> None:
        """Count no more. Safe to call twice, and in a forked child."""
        flag, self._flag, self._counter = self._flag, None, None
        if flag is not None:
            flag.value = False


def _counter_in(torch: Any, address: int) -> Any:
    """The field of c10's ProfiledCPUMemoryReporter (mutex, table, counter) that follows an allocation to the byte."""
    fields = [ctypes.c_size_t.from_address(address + offset) for offset in range(0, 112, 8)]
    before = [field.value for field in fields]
    probe = torch.empty(ODD_BYTES, dtype=torch.uint8, device="cpu")
    during = [field.value for field in fields]
    del probe
    after = [field.value for field in fields]
    for field, *values in zip(fields, before, during, after, strict=True):
        if values[1] - values[0] == ODD_BYTES and values[2] == values[0]:
            return field
    return None


class _MallInfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def malloc_reader() -> Callable[[], int] | None:
    """Reads the bytes in use from glibc's malloc, those of Python and of libraries included; None elsewhere."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    function.restype = _MallInfo2

    def read() -> int:
        info = function()
        return int(info.uordblks + info.hblkhd)

    return read


class CudaAllocator:
    """Statistics of the current device's caching allocator. Never resets anybody's peak."""

    def __init__(self, torch: Any) -> None:
        """CUDA must be initialised."""
        self._stats = torch._C._cuda_memoryStats
        self._device = torch.cuda.current_device()
        self._peak_before = self._read("allocated_bytes", "peak")
        self.highest_bytes = 0
        """Highest allocated bytes of the samples."""
        self.reserved_at_highest = 0

    def _read(self, what: str, which: str) -> int:
        return int(self._stats(self._device)[what]["all"][which])

    def sample(self) -> None:
        stats = self._stats(self._device)
        allocated = int(stats["allocated_bytes"]["all"]["current"])
        if allocated >= self.highest_bytes:
            self.highest_bytes = allocated
            self.reserved_at_highest = int(stats["reserved_bytes"]["all"]["current"])

    def peak(self) -> tuple[int, int, str]:
        """Highest allocated bytes since this object was made, reserved bytes then, and how they are known."""
        peak = self._read("allocated_bytes", "peak")
        reserved = max(self.reserved_at_highest, peak)
        if peak > self._peak_before:
            return peak, reserved, "CUDA allocator's own peak, reached in this step"
        return (
            self.highest_bytes,
            self.reserved_at_highest,
            "highest of the CUDA allocator's values after operations: its own peak is from before this step",
        )

    def now(self) -> tuple[int, int]:
        """Allocated and reserved bytes."""
        stats = self._stats(self._device)
        return int(stats["allocated_bytes"]["all"]["current"]), int(stats["reserved_bytes"]["all"]["current"])
