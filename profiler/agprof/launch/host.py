"""What a launch needs to know of this machine."""

import hashlib
import os
import platform
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota, rounded down, where there is one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_MAX.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded, asked of the file system alone."""
    return Path("/dev/nvidiactl").exists()


def cpu_model() -> str | None:
    return _cpuinfo("model name") or platform.processor() or None


def cpu_flags() -> str:
    """The CPU's instruction set extensions, sorted."""
    return " ".join(sorted((_cpuinfo("flags") or _cpuinfo("Features") or "").split()))


def cache_dir(environ: Mapping[str, str]) -> Path:
    """agprof's own cache: $AGPROF_CACHE, else ~/.cache/agprof."""
    given = environ.get("AGPROF_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    return Path(environ.get("HOME") or Path.home()) / ".cache" / "agprof"


def extensions_dir(environ: Mapping[str, str]) -> Path:
    """Where compiled ops of this machine are kept: they hold for one environment, Python, torch, DeepSpeed and CPU."""
    return cache_dir(environ) / "torch_extensions" / extensions_key()


def extensions_key() -> str:
    """A name that changes when compiled ops would no longer fit: they are built with -march=native."""
    flags = cpu_flags().split()
    # The build's commands carry the path of torch's headers, and ninja rebuilds what other commands built.
    digest = hashlib.sha256(" ".join([*flags, sys.prefix]).encode()).hexdigest()[:8]
    # DeepSpeed compiles other sources under the same names where there is a GPU.
    device = "gpu" if has_gpu() else "cpu"
    versions = f"py{platform.python_version()}-torch{_version('torch')}-ds{_version('deepspeed')}"
    return f"{versions}-{platform.machine()}-{device}-{digest}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _cpuinfo(key: str) -> str | None:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)
