"""What the kernel allows of host memory, and whom it killed for want of it: read from /proc and the cgroup's files.

Used by the process that launches a job (before and after it), by a rank that ran out, and by the sampler. Nothing here
raises: what can't be read is None.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
"""Where /proc and /sys are, unless a test says otherwise."""
_NO_LIMIT = 2**60
"""cgroup v1 says `no limit` by the largest number of pages."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The lowest limit of host memory that this process is under."""

    bytes: int
    kind: str
    """cgroup | host"""


@dataclass(frozen=True, slots=True)
class Kills:
    """Processes that the kernel killed for want of memory so far, by its own counters."""

    in_cgroup: int | None
    """Of this process's cgroup (v2: and those below it), by whatever lack of memory."""
    on_host: int | None
    """Of the whole machine, or virtual machine."""


def read_limit(root: Path | None = None) -> Limit | None:
    """The cgroup's limit (the lowest of it and those above), or the machine's memory where that is less."""
    root = root or ROOT
    size = read_cgroup_limit(root)
    found = [] if size is None else [Limit(size, "cgroup")]
    total = _fields(root / "proc/meminfo").get("MemTotal:")
    if total is not None:
        found.append(Limit(total * 1024, "host"))
    return min(found, key=lambda limit: limit.bytes, default=None)


def read_cgroup_limit(root: Path | None = None) -> int | None:
    """The lowest memory limit of this process's cgroup and those above it, in bytes; None where there is none."""
    sizes = [size for folder in up_from(cgroup(root or ROOT)) if (size := _cgroup_limit(folder)) is not None]
    return min(sizes, default=None)


def read_kills(root: Path | None = None) -> Kills:
    """The counters as they stand now."""
    root = root or ROOT
    folder = cgroup(root)
    in_cgroup = None
    if folder is not None:
        # v2 keeps it in memory.events, v1 in memory.oom_control (both since Linux 4.13).
        for name in ("memory.events", "memory.oom_control"):
            in_cgroup = _fields(folder[0] / name).get("oom_kill", in_cgroup)
    return Kills(in_cgroup, _fields(root / "proc/vmstat").get("oom_kill"))


def cgroup(root: Path | None = None, controller: str = "memory") -> tuple[Path, Path] | None:
    """(folder of this process's cgroup, where its hierarchy is mounted); None where there is none to see."""
    root = root or ROOT
    mounts = root / "sys/fs/cgroup"
    for hierarchy, controllers, path in _memberships(root, controller):
        if controller in controllers:
            # v1; several controllers may share one hierarchy, named after all of them.
            mount = next((m for m in (mounts / controller, mounts / ",".join(controllers)) if m.is_dir()), None)
        elif hierarchy == "0" and (mounts / "cgroup.controllers").is_file():
            mount = mounts
        else:
            continue
        if mount is not None:
            # In a container the path is that of the host, while the mount begins at the container's own cgroup.
            inside = mount / path.lstrip("/")
            return (inside if inside.is_dir() and ".." not in path else mount), mount
    return None


def _memberships(root: Path, controller: str) -> list[tuple[str, list[str], str]]:
    """(hierarchy, controllers, path) of /proc/self/cgroup, v1's hierarchy of the controller first."""
    rows = []
    for line in _lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            rows.append((parts[0], parts[1].split(","), parts[2]))
    return sorted(rows, key=lambda row: controller not in row[1])


def up_from(found: tuple[Path, Path] | None) -> list[Path]:
    """The folder that `cgroup` found, and those above it up to the mount."""
    if found is None:
        return []
    folder, mount = found
    return [step for step in (folder, *folder.parents) if step == mount or mount in step.parents]


def _cgroup_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        for line in _lines(folder / name)[:1]:
            if line.strip().isdigit() and int(line) < _NO_LIMIT:
                return int(line)
    return None


def _fields(file: Path) -> dict[str, int]:
    """Lines of `name number` as a mapping."""
    found = {}
    for line in _lines(file):
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
