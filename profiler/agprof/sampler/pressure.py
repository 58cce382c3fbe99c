"""Pressure stall information (PSI): shares of time in which tasks waited for a CPU, memory or a disk.

The kernel's own averages smear 10 s or more; these come from the differences of its microsecond counters. See the
kernel's Documentation/accounting/psi.rst.
"""

import errno
from dataclasses import dataclass
from pathlib import Path

from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.states import Probe, Rate, States, Verdict, describe, judge_system_error
from agprof.store import memory_limits

RESOURCES = ("cpu", "memory", "io")


@dataclass(frozen=True, slots=True)
class PressureShares:
    """Shares of the time since the reading before, 0..1. `stall`: all tasks waited, else at least one."""

    cpu: float | None = None
    memory: float | None = None
    memory_stall: float | None = None
    io: float | None = None
    io_stall: float | None = None


class Pressure:
    """The host's pressure; where it can't be read, that of the job's cgroup (version 2), and the states say so."""

    def __init__(self, states: States, root: Path) -> None:
        self._states = states
        self._resources = {name: _Resource(states, name, root) for name in RESOURCES}

    def read(self, now_ns: int) -> PressureShares:
        cpu, memory, io = (self._resources[name].read(now_ns) for name in RESOURCES)
        return PressureShares(cpu[0], memory[0], memory[1], io[0], io[1])


class _Resource:
    def __init__(self, states: States, name: str, root: Path) -> None:
        self._states = states
        self._name = name
        self._root = root
        self._file = KernelFile(root / "proc/pressure" / name)
        self._probe = Probe(states, f"host.pressure.{name}", _judge)
        self._some, self._full = Rate(), Rate()
        self._is_host = True

    def read(self, now_ns: int) -> tuple[float | None, float | None]:
        """(some, full)."""
        totals = self._probe.read(now_ns, self._totals if self._is_host else self._totals_of_file)
        if totals is None:
            return None, None
        if not self._is_host:
            reason = "the host's can't be read: given is the pressure of the job's cgroup"
            self._states.set(now_ns, f"host.pressure.{self._name}.host", "unsupported", reason)
        return _share(self._some, now_ns, totals.get(b"some")), _share(self._full, now_ns, totals.get(b"full"))

    def _totals(self) -> dict[bytes, int]:
        try:
            return self._totals_of_file()
        except OSError as error:
            found = memory_limits.cgroup(self._root)
            own = None if found is None else found[0] / f"{self._name}.pressure"
            if _judge(error) == "retry" or own is None or not own.is_file():
                raise
            self._is_host = False
            self._file = KernelFile(own)
            try:
                return self._totals_of_file()
            except OSError as second:
                raise type(second)(second.errno, f"{describe(error)}; of the cgroup: {second.strerror}") from second

    def _totals_of_file(self) -> dict[bytes, int]:
        """Microseconds so far, by `some` and `full`. Old kernels have no `full` for CPUs."""
        found = {}
        for line in self._file.read_short().splitlines():
            kind, _, rest = line.partition(b" ")
            found[kind] = int(rest[rest.index(b"total=") + len(b"total=") :])
        return found


def _share(rate: Rate, now_ns: int, total_us: int | None) -> float | None:
    per_s = rate.update(now_ns, total_us)
    # The counter is read a moment after the clock: a little more than the whole is the whole.
    return None if per_s is None else min(1.0, per_s / 1e6)


def _judge(error: Exception) -> Verdict:
    # What a kernel with PSI compiled in and switched off (psi=0) answers.
    if isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP:
        return "unsupported"
    return judge_system_error(error)
