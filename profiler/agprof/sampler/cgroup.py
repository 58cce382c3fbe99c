"""What the job's cgroup allows and has used: memory, CPU quota, kills. Versions 1 and 2.

The sampler is started by the job's launcher and is in the job's cgroup. Memory's limits are read as the launcher reads
them (`store.memory_limits`).
"""

from dataclasses import dataclass
from pathlib import Path

from agprof.sampler.kernel_files import KernelFile, read_text
from agprof.sampler.states import SECOND_NS, Probe, Rate, States, judge_system_error
from agprof.store import memory_limits

LIMITS_PERIOD_NS = 10 * SECOND_NS
"""Limits are set when a job begins, and seldom later."""


@dataclass(frozen=True, slots=True)
class CgroupReading:
    """None: not measured, or no limit."""

    memory_bytes: int | None
    memory_limit_bytes: int | None
    cpu_limit_cores: float | None
    throttled_ratio: float | None
    oom_kills: int | None


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """A cgroup's bandwidth limit: `quota_us` of CPU time in each `period_us`."""

    folder: Path
    quota_us: int
    period_us: int

    @property
    def cores(self) -> float:
        return self.quota_us / self.period_us


class Cgroup:
    """Reads the cgroup of this process. `root` is where /proc and /sys lie."""

    def __init__(self, states: States, root: Path) -> None:
        self._states = states
        self._root = root
        self._memory_probe = Probe(states, "host.cgroup.memory", judge_system_error)
        self._kills_probe = Probe(states, "host.cgroup.oom_kills", judge_system_error)
        self._quota_probe = Probe(states, "host.cgroup.cpu", judge_system_error)
        self._throttled_probe = Probe(states, "host.cgroup.throttled", judge_system_error)
        memory = memory_limits.cgroup(root)
        self._memory = _first_of(memory, "memory.current", "memory.usage_in_bytes")
        self._events = _first_of(memory, "memory.events", "memory.oom_control")
        self._limits_due_ns = 0
        self._memory_limit: int | None = None
        self._quota: CpuQuota | None = None
        self._cpu_stat: KernelFile | None = None
        self._throttled = Rate()

    def read(self, now_ns: int) -> CgroupReading:
        if now_ns >= self._limits_due_ns:
            self._limits_due_ns = now_ns + LIMITS_PERIOD_NS
            self._memory_limit = memory_limits.read_cgroup_limit(self._root)
            self._find_quota(now_ns)
        return CgroupReading(
            memory_bytes=self._memory_probe.read(now_ns, self._memory_bytes),
            memory_limit_bytes=self._memory_limit,
            cpu_limit_cores=None if self._quota is None else self._quota.cores,
            throttled_ratio=self._throttled_ratio(now_ns),
            oom_kills=self._kills_probe.read(now_ns, self._oom_kills),
        )

    def _memory_bytes(self) -> int:
        return int(_there(self._memory).read_short())

    def _oom_kills(self) -> int:
        return _field(_there(self._events).read_short(), b"oom_kill")

    def _find_quota(self, now_ns: int) -> None:
        quota = self._quota_probe.read(now_ns, lambda: read_quota(self._root))
        before, self._quota = self._quota, quota
        if quota is None:
            self._cpu_stat = None
        elif before is None or before.folder != quota.folder:
            self._cpu_stat, self._throttled = KernelFile(quota.folder / "cpu.stat"), Rate()

    def _throttled_ratio(self, now_ns: int) -> float | None:
        """Share of time in enforcement periods whose quota was used up.

        Not by the kernel's time of throttling: that adds up the CPUs, and can be many times the time that passed.
        """
        quota, stat = self._quota, self._cpu_stat
        if quota is None or stat is None:
            return None
        periods = self._throttled_probe.read(now_ns, lambda: _field(stat.read_short(), b"nr_throttled"))
        per_s = self._throttled.update(now_ns, periods)
        # Periods are counted whole when they end, so that a short time may hold one too many.
        return None if per_s is None else min(1.0, per_s * quota.period_us / 1e6)


def read_quota(root: Path) -> CpuQuota | None:
    """The tightest CPU quota of this process's cgroup and those above it; None where there is none. Raises OSError."""
    found = []
    for folder in memory_limits.up_from(memory_limits.cgroup(root, "cpu")):
        quota = _quota_v2(folder) or _quota_v1(folder)
        if quota is not None:
            found.append(quota)
    return min(found, key=lambda quota: quota.cores, default=None)


def _quota_v2(folder: Path) -> CpuQuota | None:
    words = _words(folder / "cpu.max")
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or int(words[1]) == 0:
        return None
    return CpuQuota(folder, int(words[0]), int(words[1]))


def _quota_v1(folder: Path) -> CpuQuota | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    # -1 says `no limit`.
    if not quota or not period or not quota[0].isdigit() or int(period[0]) <= 0:
        return None
    return CpuQuota(folder, int(quota[0]), int(period[0]))


def _words(path: Path) -> list[str]:
    try:
        return read_text(path).split()
    except FileNotFoundError:
        return []


def _first_of(found: tuple[Path, Path] | None, *names: str) -> KernelFile | None:
    if found is None:
        return None
    return next((KernelFile(found[0] / name) for name in names if (found[0] / name).is_file()), None)


def _there(file: KernelFile | None) -> KernelFile:
    if file is None:
        raise FileNotFoundError("no cgroup with a memory controller is visible")
    return file


def _field(data: bytes, name: bytes) -> int:
    for line in data.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return int(words[1])
    raise NotImplementedError(f"this kernel does not count {name.decode()}")
