"""What one process has used, read from files of /proc/PID that are kept open.

Kept open for two reasons. A reading is one system call per file, where opening it costs more than reading it. And a
descriptor of /proc/PID belongs to that process: when its number has gone to another one, reading fails.
"""

import os
from typing import NamedTuple

from agprof.sampler.kernel_files import KernelFile

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOADER_NAME = b"pt_data_worker"
"""What torch 2.5 and later calls the main thread of a DataLoader's worker (torch.utils.data._utils.worker)."""

GONE = (ProcessLookupError, FileNotFoundError)
"""The process has ended."""


class Stat(NamedTuple):
    """Of /proc/PID/stat (proc_pid_stat(5)), what is needed here."""

    name: bytes
    state: bytes
    parent: int
    cpu_ticks: int
    threads: int
    start_ticks: int
    """When it began, since the host did (CLOCK_BOOTTIME)."""
    rss_pages: int

    @property
    def ended(self) -> bool:
        """A zombie has no memory and would be shown as 0 bytes."""
        return self.state in (b"Z", b"X")


def parse_stat(data: bytes) -> Stat:
    """Raises ProcessLookupError when there is nothing, ValueError or IndexError on anything else."""
    if not data:
        raise ProcessLookupError("the process has ended")
    # The name may hold spaces and parentheses.
    end = data.rindex(b")")
    n = data[end + 2 :].split(None, 22)
    name = data[data.index(b"(") + 1 : end]
    return Stat(name, n[0], int(n[1]), int(n[11]) + int(n[12]), int(n[17]), int(n[19]), int(n[21]))


class Reading(NamedTuple):
    """One process at one time; None where it can't be read."""

    cpu_ticks: int
    threads: int
    rss_bytes: int
    read_bytes: int | None
    write_bytes: int | None
    voluntary: int | None
    """Context switches of the main thread because it waited."""
    involuntary: int | None
    """And because the CPU was taken away."""
    wait_ns: int | None
    """Time in which the main thread was ready to run and had no CPU."""
    is_loader: bool


class ProcessFiles:
    """The files of one process. Opening them raises what the system raises when the process has ended."""

    def __init__(self, procfs: str, pid: int) -> None:
        self.pid = pid
        folder = f"{procfs}/{pid}"
        self._stat = KernelFile(f"{folder}/stat")
        self._others: dict[str, KernelFile | None] = {
            name: KernelFile(f"{folder}/{name}") for name in ("status", "io", "schedstat")
        }
        self.denied = False
        """Some of its counters belong to another user."""
        first = parse_stat(self._stat.read_short())
        if first.ended:
            self.close()
            raise ProcessLookupError("the process has ended")
        self.start_ticks = first.start_ticks

    def read(self) -> Reading:
        """Raises one of GONE when the process has ended."""
        stat = parse_stat(self._stat.read_short())
        if stat.ended or stat.start_ticks != self.start_ticks:
            raise ProcessLookupError("the process has ended")
        status, io, schedstat = self._other("status"), self._other("io"), self._other("schedstat")
        rss_kib = None if status is None else number_after(status, b"\nVmRSS:")
        return Reading(
            stat.cpu_ticks,
            stat.threads,
            # The figure in `stat` leaves out what is still counted per CPU: on large hosts many megabytes.
            stat.rss_pages * PAGE_BYTES if rss_kib is None else rss_kib * 1024,
            None if io is None else number_after(io, b"\nread_bytes:"),
            None if io is None else number_after(io, b"\nwrite_bytes:"),
            None if status is None else number_after(status, b"\nvoluntary_ctxt_switches:"),
            None if status is None else number_after(status, b"\nnonvoluntary_ctxt_switches:"),
            None if schedstat is None else int(schedstat.split(None, 2)[1]),
            stat.name == LOADER_NAME,
        )

    def close(self) -> None:
        self._stat.close()
        for file in self._others.values():
            if file is not None:
                file.close()

    def _other(self, name: str) -> bytes | None:
        file = self._others[name]
        if file is None:
            return None
        try:
            return file.read_short() or None
        except PermissionError:
            self._others[name] = None
            self.denied = True
        except FileNotFoundError:
            # Not in this kernel; if the process has just ended, its `stat` says so the next time.
            self._others[name] = None
        return None


def number_after(data: bytes, label: bytes) -> int | None:
    begin = data.find(label)
    if begin < 0:
        return None
    begin += len(label)
    end = data.find(b"\n", begin)
    return int(data[begin : end if end >= 0 else None].split(None, 1)[0])


def pss_bytes(procfs: str, pid: int) -> int:
    """Proportional set size. Raises OSError or ValueError."""
    with open(f"{procfs}/{pid}/smaps_rollup", "rb", buffering=0) as file:  # noqa: PTH123
        pss_kib = number_after(file.read(4096), b"\nPss:")
    if pss_kib is None:
        # A process that is ending has no memory map left.
        raise ProcessLookupError(f"process {pid} has no memory map")
    return pss_kib * 1024


def may_be_unnamed_loader(procfs: str, pid: int, parent: int | None) -> bool:
    """Whether this may be a DataLoader's worker of torch before 2.5, which gave it no name.

    Such a worker is a fork of its parent, with the parent's command line, or was started by multiprocessing's spawn.
    """
    command = command_line(procfs, pid)
    if b"multiprocessing" in command and (b"spawn_main" in command or b"forkserver" in command):
        return True
    return parent is not None and command != b"" and command == command_line(procfs, parent)


def command_line(procfs: str, pid: int) -> bytes:
    """The words of its command line, each with a zero byte behind it; empty where it can't be read."""
    try:
        with open(f"{procfs}/{pid}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123
            return file.read(65536)
    except OSError:
        return b""
