"""Memory of the rank at phase borders. Nobody's peak statistics are ever reset."""

import os
import resource
from typing import Any

from agprof.instruments.recorder import Recorder

INSTRUMENT = "memory"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _ResidentSet:
    """Reads /proc/self/statm through one kept-open descriptor (about 2 us a read)."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def read_bytes(self) -> int | None:
        if self._fd < 0:
            return None
        return int(os.pread(self._fd, 128, 0).split(b" ", 2)[1]) * _PAGE_BYTES

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def arm(recorder: Recorder, torch: Any) -> None:
    """Add a row of the table `memory` at the end of every outermost phase and step."""
    resident = _ResidentSet()
    append = recorder.writer.rows("memory")

    def sample(at: str, step: int, time_ns: int) -> None:
        allocated = reserved = allocated_peak = None
        # Asking whether a device is available would start the CUDA driver in a process that has not chosen one yet.
        if torch.cuda.is_initialized():
            stats = torch._C._cuda_memoryStats(torch.cuda.current_device())
            allocated = stats["allocated_bytes"]["all"]["current"]
            allocated_peak = stats["allocated_bytes"]["all"]["peak"]
            reserved = stats["reserved_bytes"]["all"]["current"]
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        append(
            (
                step,
                recorder.micro_step,
                at,
                time_ns,
                resident.read_bytes(),
                peak_bytes,
                allocated,
                reserved,
                allocated_peak,
            )
        )

    def phase_end(name: str, time_ns: int) -> None:
        sample(f"{name}.end", recorder.step, time_ns)

    def step_end(step: int) -> None:
        sample("step.end", step, recorder.clock())

    recorder.on_phase_end.append(recorder.guard(INSTRUMENT, phase_end))
    recorder.on_step_end.append(recorder.guard(INSTRUMENT, step_end))
    recorder.patches.on_undo(resident.close)
