"""What `agprof doctor` reads of the operating system: limits, places, clock, permissions, network."""

import ctypes
import ipaddress
import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from agprof.model.doctor_facts import ClockFacts, Interface, Limit, Permissions, Place
from agprof.store.memory_limits import read_limit

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
_LIMITS = {
    "open files": resource.RLIMIT_NOFILE,
    "locked memory": resource.RLIMIT_MEMLOCK,
    "processes": resource.RLIMIT_NPROC,
    "address space": resource.RLIMIT_AS,
    "stack": resource.RLIMIT_STACK,
    "core file": resource.RLIMIT_CORE,
    "file size": resource.RLIMIT_FSIZE,
}
_STA_UNSYNC = 0x0040
_TIME_ERROR = 5
_IFF_UP = 0x1


def limits() -> tuple[Limit, ...]:
    """Resource limits of this process, which ranks started by it inherit."""
    found = []
    for name, number in _LIMITS.items():
        soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number))
        found.append(Limit(name=name, soft=soft, hard=hard))
    return tuple(found)


def places(folders: Mapping[str, Path], root: Path = Path("/")) -> tuple[Place, ...]:
    """Free space of each folder, or of the nearest one above it that exists."""
    mounts = _mounts(root)
    return tuple(_place(what, folder, mounts) for what, folder in folders.items())


def _place(what: str, folder: Path, mounts: Mapping[str, str]) -> Place:
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is None:
        return Place(what=what, path=str(folder))
    kind = next(
        (mounts[str(path)] for path in (there.resolve(), *there.resolve().parents) if str(path) in mounts), None
    )
    writable = os.access(there, os.W_OK)
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return Place(what=what, path=str(folder), kind=kind, writable=writable)
    return Place(
        what=what, path=str(folder), total_bytes=usage.total, free_bytes=usage.free, kind=kind, writable=writable
    )


def _mounts(root: Path) -> dict[str, str]:
    """Mount point -> file system; the last mounted counts."""
    found = {}
    for line in _lines(root / "proc/self/mounts"):
        words = line.split()
        if len(words) >= 3:
            found[words[1].replace("\\040", " ")] = words[2]
    return found


def permissions(root: Path = Path("/")) -> Permissions:
    """What this process may look at in others, in the CPU's counters and in the GPU's."""
    capabilities = next(
        (int(line.split()[1], 16) for line in _lines(root / "proc/self/status") if line.startswith("CapEff:")), None
    )

    def can(*numbers: int) -> bool | None:
        return None if capabilities is None else any(capabilities >> number & 1 for number in numbers)

    nvidia = [line.partition(":") for line in _lines(root / "proc/driver/nvidia/params")]
    admin_only = next((value.strip() for key, _, value in nvidia if key.strip() == "RmProfilingAdminOnly"), None)
    return Permissions(
        root=os.geteuid() == 0,
        ptrace_scope=_number(root / "proc/sys/kernel/yama/ptrace_scope"),
        perf_event_paranoid=_number(root / "proc/sys/kernel/perf_event_paranoid"),
        ptrace_capable=can(CAP_SYS_PTRACE),
        perf_capable=can(CAP_PERFMON, CAP_SYS_ADMIN),
        gpu_counters_admin_only=None if admin_only is None else admin_only == "1",
    )


def clock(root: Path = Path("/")) -> ClockFacts:
    """The kernel's clock source, and whether the kernel takes its clock for right."""
    folder = root / "sys/devices/system/clocksource/clocksource0"
    synchronized, error_s = _adjtimex()
    return ClockFacts(
        source=_text(folder / "current_clocksource"),
        available=tuple((_text(folder / "available_clocksource") or "").split()),
        synchronized=synchronized,
        max_error_s=error_s,
    )


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (adjtimex(2)), and room for what follows."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def _adjtimex() -> tuple[bool | None, float | None]:
    """(synchronised, bound of the error in s). Reading needs no privilege: `modes` is 0."""
    state = _Timex()
    try:
        code = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None, None
    if code < 0:
        return None, None
    return code != _TIME_ERROR and not state.status & _STA_UNSYNC, state.maxerror / 1e6


def interfaces(root: Path = Path("/")) -> tuple[Interface, ...]:
    """Network interfaces with their addresses; IPv6 link-local ones are left out."""
    addresses = _addresses()
    found = []
    for folder in sorted((root / "sys/class/net").glob("*")):
        flags = _text(folder / "flags")
        speed = _number(folder / "speed")
        found.append(
            Interface(
                name=folder.name,
                up=flags is not None and bool(int(flags, 16) & _IFF_UP),
                addresses=tuple(addresses.get(folder.name, ())),
                speed_bits_per_s=speed * 10**6 if speed is not None and speed > 0 else None,
            )
        )
    return tuple(found)


def _addresses() -> dict[str, list[str]]:
    import psutil

    found: dict[str, list[str]] = {}
    for name, listed in psutil.net_if_addrs().items():
        for address in listed:
            try:
                ip = ipaddress.ip_address(address.address.partition("%")[0])
            except ValueError:
                continue  # a hardware address
            if not ip.is_link_local:
                found.setdefault(name, []).append(str(ip))
    return found


def infiniband(root: Path = Path("/")) -> tuple[str, ...]:
    """InfiniBand (or RoCE) ports that are active: mlx5_0/1."""
    ports = sorted((root / "sys/class/infiniband").glob("*/ports/*/state"))
    active = (path for path in ports if "ACTIVE" in (_text(path) or ""))
    return tuple(f"{path.parents[2].name}/{path.parent.name}" for path in active)


def memory(root: Path = Path("/")) -> tuple[int | None, int | None, int | None]:
    """(memory of the machine, the cgroup's limit where there is one, swap), in bytes."""
    values = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        if key in ("MemTotal", "SwapTotal"):
            values[key] = int(value.split()[0]) * 1024
    limit = read_limit(root)
    own = limit.bytes if limit is not None and limit.kind == "cgroup" else None
    return values.get("MemTotal"), own, values.get("SwapTotal")


def numa_nodes(root: Path = Path("/")) -> int | None:
    """NUMA nodes with memory or cores."""
    return len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None


def governor(root: Path = Path("/")) -> str | None:
    """How the kernel chooses the CPU's frequency; None where it does not (virtual machines)."""
    return _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def container(root: Path = Path("/")) -> str | None:
    """The kind of container this process is in, by the files that they leave."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / "singularity.d").exists() or (root / ".singularity.d").exists():
        return "singularity"
    words = _text(root / "proc/1/cgroup") or ""
    return next((kind for kind in ("kubepods", "docker", "lxc", "slurm") if kind in words), None)


def boot_id(root: Path = Path("/")) -> str | None:
    """The kernel's number of this boot; containers of one machine share it."""
    return _text(root / "proc/sys/kernel/random/boot_id")


def driver(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's kernel module, as the kernel tells it; None where none is loaded."""
    text = _text(root / "proc/driver/nvidia/version") or ""
    words = text.partition("\n")[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None
