"""Files of /proc and /sys that are read again and again, kept open so that a reading is one system call."""

import os
from pathlib import Path

_CHUNK_BYTES = 65536
_SHORT_BYTES = 4096


class KernelFile:
    """One file of /proc or /sys, opened at its first reading. Raises OSError as the system does.

    A descriptor of a file in /proc/PID stays with that process: when the process has ended, reading says so
    (ProcessLookupError), even if its number belongs to another by then.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._fd: int | None = None

    def read(self) -> bytes:
        """The whole file as it is now."""
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._fd, _CHUNK_BYTES, 0)
            # The kernel gives files made of many records (vmstat, net/dev) in pieces of a page.
            while piece := os.pread(self._fd, _CHUNK_BYTES, len(data)):
                data += piece
        except OSError:
            self.close()
            raise
        return data

    def read_short(self) -> bytes:
        """The same for a file that the kernel gives whole, in one system call less: those of processes, of /sys."""
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._fd, _SHORT_BYTES, 0)
        except OSError:
            self.close()
            raise
        return data if len(data) < _SHORT_BYTES else self.read()

    def close(self) -> None:
        """Give the descriptor back. The next reading opens the file again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def read_text(path: Path | str) -> str:
    """A small file, read once, without the line's end. Raises OSError."""
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read(_CHUNK_BYTES).decode("utf-8", "replace").strip()
