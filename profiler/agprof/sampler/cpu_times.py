"""Time of CPUs by /proc/stat: what they did between two readings."""

from dataclasses import dataclass

_IDLE, _IOWAIT, _STEAL = 3, 4, 7
_COUNTED = 8
"""user nice system idle iowait irq softirq steal; guest time, which follows, is part of user already."""


@dataclass(frozen=True, slots=True)
class CpuShares:
    """Shares of the time between two readings, 0..1."""

    busy: float
    """All but idle and iowait: stolen time too, for it was no longer to be had."""
    iowait: float
    steal: float


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """The counters of one CPU, or of all together, in clock ticks."""

    ticks: tuple[int, ...]

    def shares_since(self, last: "CpuTimes") -> CpuShares | None:
        """None when no time has passed, or counting has begun anew.

        The kernel's idle and iowait may step back a little where CPUs sleep; the others only when counting restarts.
        """
        deltas = [now - before for now, before in zip(self.ticks, last.ticks, strict=True)]
        if any(delta < 0 for index, delta in enumerate(deltas) if index not in (_IDLE, _IOWAIT)):
            return None
        idle, iowait = max(0, deltas[_IDLE]), max(0, deltas[_IOWAIT])
        busy = sum(deltas) - deltas[_IDLE] - deltas[_IOWAIT]
        total = busy + idle + iowait
        if total == 0:
            return None
        return CpuShares(busy / total, iowait / total, deltas[_STEAL] / total)


def whole_of(stat: bytes) -> CpuTimes:
    """All CPUs together. Raises ValueError when /proc/stat is not what it should be."""
    line = stat[: stat.index(b"\n")].split()
    if line[0] != b"cpu":
        raise ValueError("/proc/stat does not begin with the line of all CPUs")
    return _times(line)


def cores_of(stat: bytes) -> dict[int, CpuTimes]:
    """Each logical CPU that is online, by its number. Raises ValueError."""
    found = {}
    for line in stat.split(b"\n")[1:]:
        if not line.startswith(b"cpu"):
            break
        words = line.split()
        found[int(words[0][3:])] = _times(words)
    return found


def _times(words: list[bytes]) -> CpuTimes:
    ticks = tuple(map(int, words[1 : 1 + _COUNTED]))
    if len(ticks) < _COUNTED:
        raise ValueError(f"/proc/stat gives {len(ticks)} times of a CPU: {_COUNTED} are needed (Linux 2.6.11)")
    return CpuTimes(ticks)
