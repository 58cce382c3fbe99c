"""Whether the kernel killed processes of a job for want of memory: its own counters, before the job and after it."""

from pathlib import Path

from agprof.model.format import format_value
from agprof.model.outcome import HostMemory
from agprof.store.memory_limits import Kills, read_kills, read_limit


def since(before: Kills, root: Path | None = None) -> HostMemory:
    """What happened since `before` was read. A counter that is not there now, or was not then, gives None."""
    now, limit = read_kills(root), read_limit(root)
    return HostMemory(
        limit_bytes=limit.bytes if limit is not None else None,
        limit=limit.kind if limit is not None else None,
        cgroup_kills=_risen(before.in_cgroup, now.in_cgroup),
        host_kills=_risen(before.on_host, now.on_host),
    )


def _risen(before: int | None, now: int | None) -> int | None:
    # A counter that fell is that of another cgroup: nothing is known.
    return None if before is None or now is None or now < before else now - before


def notes(memory: HostMemory) -> list[str]:
    """What is to be said of it, whatever became of the job."""
    if not memory.cgroup_kills:
        return []
    one = memory.cgroup_kills == 1
    limit = f" (limit {format_value(memory.limit_bytes, 'bytes')})" if memory.limit_bytes is not None else ""
    what = "a process" if one else f"{memory.cgroup_kills:,} processes"
    return [f"the kernel killed {what} of the job's cgroup for want of memory during the run{limit}"]
