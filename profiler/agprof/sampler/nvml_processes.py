"""Rows of `gpu_processes`: which processes hold memory on which GPU, and whose they are.

NVML numbers processes as the host does. In a container with a pid namespace of its own these numbers mean nothing, or
another process: no owner and no name is looked up there, unless a rank of ours is seen on a device, which tells that
the numbers are the same.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agprof.sampler.nvml_calls import Nvml
from agprof.sampler.nvml_device import Device
from agprof.sampler.nvml_errors import UNSUPPORTED
from agprof.sampler.states import Append

Pids = Callable[[], Mapping[int, tuple[int | None, str]]]
"""pid -> (rank, "rank" | "child") of all processes that are known to belong to a rank: `RankTrees.pids`."""
Kind = Literal["compute", "graphics"]

HOST_NAMESPACE = "pid:[4026531836]"
"""The first pid namespace: its inode number is fixed in the kernel (PROC_PID_INIT_INO)."""
NOT_AVAILABLE = 2**64 - 1
MOST_PROCESSES = 1000
"""Per device and kind; more are not written."""
NAME_LENGTH = 100
_CALLS: dict[Kind, str] = {
    "compute": "nvmlDeviceGetComputeRunningProcesses",
    "graphics": "nvmlDeviceGetGraphicsRunningProcesses",
}


class Processes:
    """Collects the processes of all devices, then appends their rows: whether pids can be told takes all of them."""

    def __init__(self, append: Append, pids: Pids, procfs: Path = Path("/proc")) -> None:
        self._append = append
        self._pids = pids
        self._procfs = str(procfs)
        self._host_namespace = _namespace(procfs) == HOST_NAMESPACE
        self._seen_ours = False
        self._found: list[tuple[int, Kind, int, int | None]] = []

    def collect(self, now_ns: int, device: Device) -> None:
        """Ask for one device's processes. Raises DeviceLostError and LibraryLostError."""
        seen = set()
        for kind, call in _CALLS.items():
            processes = device.read(now_ns, f"processes.{kind}", partial(_ask, device, call))
            for process in (processes or ())[:MOST_PROCESSES]:
                # A process of both kinds is in both lists, with the same memory.
                if process.pid in seen:
                    continue
                seen.add(process.pid)
                used = process.usedGpuMemory
                self._found.append((device.index, kind, process.pid, None if used == NOT_AVAILABLE else used))

    def write(self, now_ns: int) -> None:
        """Append the rows of what was collected."""
        found, self._found = self._found, []
        if not found:
            return
        owners = dict(self._pids())
        self._seen_ours = self._seen_ours or any(owners.get(pid, (None, ""))[1] == "rank" for _, _, pid, _ in found)
        visible = self._host_namespace or self._seen_ours
        for gpu, kind, pid, used in found:
            owner, rank, name = "not visible", None, None
            if visible:
                rank, owner = owners.get(pid, (None, "other"))
                name = program_name(self._procfs, pid)
            self._append("gpu_processes", (now_ns, gpu, pid, kind, used, owner, rank, name))


def program_name(procfs: str, pid: int) -> str | None:
    """Name of the program without its path and arguments; None where it can't be read."""
    words = _first_line(f"{procfs}/{pid}/cmdline", b"\0").split()
    # A process may write what it likes there, its arguments in one piece too; the kernel's name has 15 letters then.
    name = words[0].rstrip("/").rpartition("/")[2] if len(words) == 1 else ""
    name = name or _first_line(f"{procfs}/{pid}/comm", b"\n")
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:NAME_LENGTH] or None


def suffixes(nvml: Nvml) -> Iterator[str]:
    """Versions of the call, the best first.

    Drivers around 535.43 gave version 3 a longer struct than before and after, which the binding would cut up wrongly.
    They are known by what they export: one call that came with that struct, but not the one that replaced it.
    """
    longer = nvml.has("nvmlDeviceGetConfComputeMemSizeInfo") and not nvml.has("nvmlDeviceGetRunningProcessDetailList")
    if not longer:
        yield "_v3"
    yield "_v2"


def _ask(device: Device, call: str) -> Any:
    nvml = device.nvml
    error: Exception | None = None
    for suffix in suffixes(nvml):
        try:
            return nvml(call + suffix, device.handle)
        except Exception as failure:
            if nvml.codes.of(failure) not in UNSUPPORTED:
                raise
            error = error or failure
    assert error is not None
    raise error


def _namespace(procfs: Path) -> str | None:
    try:
        return os.readlink(procfs / "self" / "ns" / "pid")  # noqa: PTH115
    except OSError:
        return None


def _first_line(path: str, separator: bytes) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(4096).split(separator)[0].decode("utf-8", "replace")
    except OSError:
        return ""
