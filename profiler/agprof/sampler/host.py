"""The whole host: CPU, memory, pressure, network, disks, the job's cgroup, energy."""

import os
from pathlib import Path

from agprof.sampler.cgroup import Cgroup
from agprof.sampler.cpu_times import CpuShares, CpuTimes, whole_of
from agprof.sampler.disks import DiskBytes, Disks
from agprof.sampler.interfaces import Interfaces
from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.network import Traffic, parse_net_dev
from agprof.sampler.pressure import Pressure
from agprof.sampler.rapl import Rapl
from agprof.sampler.states import Append, Probe, Rate, States, judge_system_error
from agprof.sampler.sums import SumRate

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FIELDS = ("cpu", "memory", "swap", "swapping", "network", "disk", "load")


class Host:
    """Appends one row of `host_samples` per call. `root` is where /proc and /sys lie."""

    def __init__(self, append: Append, states: States, root: Path = Path("/")) -> None:
        self._append = append
        self._states = states
        self._probes = {name: Probe(states, f"host.{name}", judge_system_error) for name in _FIELDS}
        names = ("stat", "meminfo", "vmstat", "net/dev", "loadavg")
        self._files = {name: KernelFile(root / "proc" / name) for name in names}
        self._disks = Disks(root)
        self._interfaces = Interfaces(root)
        self._pressure = Pressure(states, root)
        self._cgroup = Cgroup(states, root)
        self._rapl = Rapl(states, root)
        self._last_ns: int | None = None
        self._last_cpu: CpuTimes | None = None
        self._sent, self._received, self._loopback = SumRate[str](), SumRate[str](), Rate()
        self._disk_read, self._disk_written = SumRate[bytes](), SumRate[bytes]()
        self._swap_in, self._swap_out = Rate(), Rate()

    def sample(self, now_ns: int) -> int:
        """Append a row. Returns 0: no part of the time spent is on a budget of its own."""
        period_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        self._last_ns = now_ns
        cpu = self._cpu(now_ns)
        memory = self._memory(now_ns)
        network = self._network(now_ns)
        disk_read, disk_written = self._disk(now_ns)
        pressure = self._pressure.read(now_ns)
        cgroup = self._cgroup.read(now_ns)
        energy = self._rapl.read(now_ns)
        self._append(
            "host_samples",
            (
                now_ns,
                period_ns,
                None if cpu is None else cpu.busy,
                *memory,
                *network,
                disk_read,
                disk_written,
                self._probes["load"].read(now_ns, lambda: float(self._files["loadavg"].read_short().split(None, 1)[0])),
                None if cpu is None else cpu.iowait,
                None if cpu is None else cpu.steal,
                pressure.cpu,
                pressure.memory,
                pressure.memory_stall,
                pressure.io,
                pressure.io_stall,
                *self._swapping(now_ns),
                cgroup.memory_bytes,
                cgroup.memory_limit_bytes,
                cgroup.cpu_limit_cores,
                cgroup.throttled_ratio,
                cgroup.oom_kills,
                energy.cpu_uj,
                energy.dram_uj,
            ),
        )
        return 0

    def _cpu(self, now_ns: int) -> CpuShares | None:
        now = self._probes["cpu"].read(now_ns, lambda: whole_of(self._files["stat"].read()))
        last, self._last_cpu = self._last_cpu, now
        return None if now is None or last is None else now.shares_since(last)

    def _memory(self, now_ns: int) -> tuple[int | None, int | None, int | None]:
        """(used, total, swap used) in bytes."""
        data = self._probes["memory"].read(now_ns, self._files["meminfo"].read)
        if data is None:
            return None, None, None
        fields = fields_of(data, (b"MemTotal:", b"MemAvailable:", b"SwapTotal:", b"SwapFree:"))
        total, available, swap, swap_free = (None if value is None else value * 1024 for value in fields)
        has_swap = swap is not None and swap_free is not None
        self._say_whether_there(now_ns, "host.swap", has_swap, "/proc/meminfo tells nothing of swap")
        return (
            None if total is None or available is None else total - available,
            total,
            None if swap is None or swap_free is None else swap - swap_free,
        )

    def _swapping(self, now_ns: int) -> tuple[float | None, float | None]:
        """(in, out) in bytes per second."""
        data = self._probes["swapping"].read(now_ns, self._files["vmstat"].read)
        pages = (None, None) if data is None else fields_of(data, (b"pswpin", b"pswpout"))
        if data is not None:
            self._say_whether_there(now_ns, "host.swapping.counters", None not in pages, "this kernel has no swap")
        size = [None if count is None else count * PAGE_BYTES for count in pages]
        return self._swap_in.update(now_ns, size[0]), self._swap_out.update(now_ns, size[1])

    def _network(self, now_ns: int) -> tuple[float | None, float | None, float | None]:
        """(sent, received, loopback) in bytes per second."""
        found = self._probes["network"].read(now_ns, lambda: parse_net_dev(self._files["net/dev"].read()))
        if found is None:
            return None, None, None
        counted = self._counted(now_ns, found)
        self._say_whether_there(
            now_ns, "host.network.interfaces", bool(counted), "no interface but loopback is visible"
        )
        return (
            self._sent.update(now_ns, {name: found[name].sent_bytes for name in counted}),
            self._received.update(now_ns, {name: found[name].received_bytes for name in counted}),
            self._loopback.update(now_ns, found["lo"].sent_bytes if "lo" in found else None),
        )

    def _counted(self, now_ns: int, found: dict[str, Traffic]) -> list[str]:
        """Names of the hardware interfaces; where there are none (a container) of all but loopback.

        A packet of a container goes through a virtual interface, a bridge and the hardware: it is counted once.
        """
        known = self._interfaces.look_up(now_ns, found)
        hardware = [name for name in found if known[name].is_hardware]
        return hardware or [name for name in found if known[name].kind != "loopback"]

    def _disk(self, now_ns: int) -> tuple[float | None, float | None]:
        """(read, written) in bytes per second."""
        found: dict[bytes, DiskBytes] | None = self._probes["disk"].read(now_ns, lambda: self._disks.read(now_ns))
        if found is None:
            return None, None
        self._say_whether_there(now_ns, "host.disk.devices", bool(found), "no disk is visible")
        return (
            self._disk_read.update(now_ns, {name: disk.read for name, disk in found.items()}),
            self._disk_written.update(now_ns, {name: disk.written for name, disk in found.items()}),
        )

    def _say_whether_there(self, now_ns: int, name: str, there: bool, reason: str) -> None:
        # A field of its own: reading it works, there is only nothing to read.
        self._states.set(now_ns, name, "ok" if there else "unsupported", "" if there else reason)


def fields_of(data: bytes, names: tuple[bytes, ...]) -> tuple[int | None, ...]:
    """The number behind each name that begins a line; None where there is no such line."""
    return tuple(_field_of(data, name) for name in names)


def _field_of(data: bytes, name: bytes) -> int | None:
    begin = 0 if data.startswith(name + b" ") else data.find(b"\n" + name + b" ") + 1
    if begin == 0 and not data.startswith(name + b" "):
        return None
    begin += len(name)
    end = data.find(b"\n", begin)
    return int(data[begin : end if end >= 0 else None].split(None, 1)[0])
