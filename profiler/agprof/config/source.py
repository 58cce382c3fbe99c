"""Reads the bytes of a workload file as text, with limits. Knows nothing of YAML's meaning."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from agprof.config.problems import Problem, config_error, printable
from agprof.errors import ConfigError

MAX_BYTES = 1_000_000
"""Largest workload file."""

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


def read_source(path: Path, open_file: Callable[[Path, int], int] = os.open) -> str:
    """The text of a file. `open_file` stands for `os.open`.

    Raises ConfigError: missing, not a regular file, unreadable, larger than MAX_BYTES, not UTF-8 text.
    """
    name = printable(str(path))
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = open_file(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        hint = "; it is a link to a file that does not exist" if path.is_symlink() else ""
        raise ConfigError(f"{name}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name}: the file can't be read: {reason}; check its path and permissions") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{name}: is a directory; name the workload file in it")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{name}: is not a regular file; name a YAML file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: the file can't be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: is larger than 1 MB; a workload file holds settings, not data")
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """Bytes to text. Raises ConfigError, with the position, on anything but printable UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{name}:1:1: the file is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode("utf-8-sig", "replace"))
        rule = f"the file is not text: byte 0x{data[error.start]:02x} is not UTF-8; name a YAML file, saved as UTF-8"
        raise ConfigError(f"{name}:{line}:{column}: {rule}") from None
    bad = _NOT_TEXT.search(text)
    if bad is not None:
        line, column = _position(text[: bad.start()])
        rule = f"the file is not text: it holds the control character {bad.group()!a}; remove it"
        raise config_error([Problem(f"{name}:{line}:{column}", "", rule)], name)
    if not text.strip():
        raise ConfigError(f"{name}:1:1: the file is empty; `agprof init NAME` writes one to begin with")
    return text


def is_file(path: Path) -> bool:
    """Whether the path leads to a regular file; a path that can't even be asked about leads to none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _position(before: str) -> tuple[int, int]:
    breaks = list(_LINE_BREAK.finditer(before))
    start = breaks[-1].end() if breaks else 0
    return len(breaks) + 1, len(before) - start + 1
