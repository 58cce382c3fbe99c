"""Bytes read and written by all disks, from /proc/diskstats."""

import re
from pathlib import Path
from typing import NamedTuple

from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.states import SECOND_NS

SECTOR_BYTES = 512
"""/proc/diskstats counts in these, whatever the disk's own sectors are."""
LOOK_PERIOD_NS = 30 * SECOND_NS
_STACKED = re.compile(rb"(loop|ram|zram|dm-|md|nbd|sr|fd)[0-9]|.*(?<=[0-9])p[0-9]+$|(sd|vd|xvd|hd)[a-z]+[0-9]+$")


class DiskBytes(NamedTuple):
    """Since the host began."""

    read: int
    written: int


class Disks:
    """Sums the disks that are devices: not their partitions, nor what is stacked on them (device mapper, RAID, loop).

    A byte that goes through an encrypted volume on a disk is counted once.
    """

    def __init__(self, root: Path) -> None:
        self._diskstats = KernelFile(root / "proc/diskstats")
        self._block = root / "sys/block"
        self._is_device: dict[bytes, bool] = {}
        self._due_ns = 0

    def read(self, now_ns: int) -> dict[bytes, DiskBytes]:
        """Each disk. Raises OSError, ValueError, IndexError."""
        if now_ns >= self._due_ns:
            self._due_ns = now_ns + LOOK_PERIOD_NS
            self._is_device.clear()
        found = {}
        for line in self._diskstats.read().splitlines():
            words = line.split(None, 10)
            name = words[2]
            is_device = self._is_device.get(name)
            if is_device is None:
                is_device = self._is_device[name] = self._look(name)
            if is_device:
                found[name] = DiskBytes(int(words[5]) * SECTOR_BYTES, int(words[9]) * SECTOR_BYTES)
        return found

    def _look(self, name: bytes) -> bool:
        if not self._block.is_dir():
            return _STACKED.match(name) is None
        # The kernel writes `!` for a `/` in the name of a device.
        folder = self._block / name.decode("utf-8", "replace").replace("/", "!")
        return (folder / "device").exists()
