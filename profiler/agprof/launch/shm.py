"""The shared-memory buffers that DeepSpeed's ranks leave in /dev/shm for ever (66 MiB per rank)."""

import os
from collections.abc import Collection
from pathlib import Path

SHM = Path("/dev/shm")
_PREFIX = "deepspeed_allreduce_buffer_"


def buffers(folder: Path = SHM) -> frozenset[str]:
    """Names of the buffers there are now, of whatever job."""
    try:
        return frozenset(path.name for path in folder.glob(f"{_PREFIX}*"))
    except OSError:
        return frozenset()


def remove_left_behind(before: frozenset[str], *, master_ports: Collection[int], folder: Path = SHM) -> tuple[str, ...]:
    """Remove the buffers that a job with these master ports made since `before` and that no process maps any more.

    DeepSpeed names them PREFIX_uid_address_port_rank. Returns the names of those removed.
    """
    own = f"{_PREFIX}{os.getuid()}_"
    removed: list[str] = []
    for name in sorted(buffers(folder) - before):
        path = folder / name
        try:
            if not name.startswith(own) or name.split("_")[-2] not in {str(port) for port in master_ports}:
                continue
            if path.lstat().st_uid != os.getuid() or _is_mapped(path):
                continue
            path.unlink()
        except OSError:
            continue
        removed.append(name)
    return tuple(removed)


def _is_mapped(path: Path) -> bool:
    needle = f" {path}".encode()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if any(line.endswith(needle) for line in maps.read_bytes().splitlines()):
                return True
        except OSError:
            continue
    return False
