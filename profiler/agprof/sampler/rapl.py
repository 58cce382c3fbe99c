"""Energy of the host's CPUs and their memory by RAPL's counters, through the kernel's powercap framework.

/sys/class/powercap/intel-rapl:N is a zone; AMD's CPUs come under the same name. Zones `package-...` are CPU packages,
and a subzone `dram` is the memory attached to one. `psys` covers the whole platform and holds the packages too,
`core` and `uncore` are parts of a package: none of them is added to it.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agprof.sampler.kernel_files import KernelFile, read_text
from agprof.sampler.states import Probe, States, Verdict, judge_system_error

ZONES = "sys/class/powercap"
PLAUSIBLE_W = 2000
"""More than any CPU package draws: a counter that rose faster was reset, or went round more than once."""
_HINT = (
    "only root may read it (CVE-2020-8694); an administrator can allow it to a group: "
    "chgrp GROUP {0} && chmod g+r {0}, for each zone and after each start of the host"
)


@dataclass(slots=True)
class Zone:
    """One counter of microjoules."""

    file: KernelFile
    range_uj: int
    """Where it goes back to 0."""
    last_uj: int | None = None
    last_ns: int = 0

    def energy_uj(self, now_ns: int) -> int | None:
        """Microjoules since the reading before, a wrap counted; None at first and after a reset. Raises OSError."""
        now_uj = int(self.file.read_short())
        last_uj, self.last_uj = self.last_uj, now_uj
        last_ns, self.last_ns = self.last_ns, now_ns
        if last_uj is None:
            return None
        delta_uj = now_uj - last_uj
        if delta_uj < 0:
            delta_uj += self.range_uj
        # 1 W x 1 ns = 1e-3 uJ; and in the longest time that one turn of the counter surely lasts.
        longest_uj = PLAUSIBLE_W * (now_ns - last_ns) / 1000
        return delta_uj if 0 <= delta_uj <= longest_uj <= self.range_uj else None


@dataclass(frozen=True, slots=True)
class HostEnergy:
    """Microjoules since the reading before."""

    cpu_uj: int | None
    dram_uj: int | None


class Rapl:
    """Sums the zones of the CPU packages, and those of their memory. `root` is where /sys lies."""

    def __init__(self, states: States, root: Path) -> None:
        self._folder = root / ZONES
        self._cpu = _Sum(states, "host.rapl.cpu", self._packages)
        self._dram = _Sum(states, "host.rapl.dram", self._memories)

    def read(self, now_ns: int) -> HostEnergy:
        return HostEnergy(self._cpu.read(now_ns), self._dram.read(now_ns))

    def _packages(self) -> list[Zone]:
        return self._zones("intel-rapl:*", 1, "package")

    def _memories(self) -> list[Zone]:
        return self._zones("intel-rapl:*:*", 2, "dram")

    def _zones(self, pattern: str, depth: int, prefix: str) -> list[Zone]:
        if not self._folder.is_dir():
            raise FileNotFoundError("no powercap framework: the kernel or the hypervisor shows no RAPL")
        # intel-rapl-mmio is another way to the same packages and is left out.
        zones = [_zone(path) for path in sorted(self._folder.glob(pattern)) if path.name.count(":") == depth]
        found = [zone for zone, name in zones if name.startswith(prefix)]
        if not found:
            raise FileNotFoundError(f"no RAPL zone is a {prefix}")
        return found


class _Sum:
    """The sum over zones that are found at the first reading."""

    def __init__(self, states: States, field: str, find: Callable[[], list[Zone]]) -> None:
        self._find = find
        self._probe = Probe(states, field, _judge)
        self._zones: list[Zone] | None = None

    def read(self, now_ns: int) -> int | None:
        return self._probe.read(now_ns, lambda: self._energy_uj(now_ns))

    def _energy_uj(self, now_ns: int) -> int | None:
        try:
            if self._zones is None:
                self._zones = self._find()
            energies = [zone.energy_uj(now_ns) for zone in self._zones]
        except PermissionError as error:
            hint = _HINT.format(error.filename or "energy_uj")
            raise PermissionError(errno.EACCES, f"{error.filename}: {hint}") from error
        return None if None in energies else sum(energy for energy in energies if energy is not None)


def _zone(path: Path) -> tuple[Zone, str]:
    name = read_text(path / "name")
    return Zone(KernelFile(path / "energy_uj"), int(read_text(path / "max_energy_range_uj"))), name


def _judge(error: Exception) -> Verdict:
    # What some virtual machines answer: the zone is there and has no data.
    if isinstance(error, OSError) and error.errno == errno.ENODATA:
        return "unsupported"
    return judge_system_error(error)
