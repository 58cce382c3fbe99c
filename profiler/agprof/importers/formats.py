"""What a file is, by its first bytes and never by its name."""

import gzip
import zipfile
import zlib
from enum import Enum
from pathlib import Path

from agprof.errors import TraceError
from agprof.importers.nsys_export import MAGIC as SQLITE

_HEAD_BYTES = 4096
_TAR_MAGIC = slice(257, 262)
REPORT_SUFFIXES = (".nsys-rep", ".qdrep")


class Format(Enum):
    """What `agprof import` takes."""

    KINETO = "kineto"
    NSYS_SQLITE = "nsys sqlite"
    NSYS_REPORT = "nsys report"
    TORCH_SNAPSHOT = "torch memory snapshot"
    ZIP = "zip"
    TAR = "tar"


def detect(file: Path) -> Format | None:
    """The format of a file, also inside gzip; None when it is none of ours. Raises TraceError when it can't be read."""
    head = first_bytes(file)
    if head.startswith(SQLITE):
        return Format.NSYS_SQLITE
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) and zipfile.is_zipfile(file):
        return Format.ZIP
    if head[_TAR_MAGIC] == b"ustar":
        return Format.TAR
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    if text[:1] in (b"{", b"["):
        return Format.KINETO
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        return Format.TORCH_SNAPSHOT
    if _is_report(file, head):
        return Format.NSYS_REPORT
    return None


def is_gzip(file: Path) -> bool:
    """Whether the file is compressed. Raises TraceError when it can't be read."""
    return _read(file, 2) == b"\x1f\x8b"


def first_bytes(file: Path) -> bytes:
    """The beginning of a file's content, unpacked where it is gzip. Raises TraceError."""
    head = _read(file, _HEAD_BYTES)
    if not head.startswith(b"\x1f\x8b"):
        return head
    try:
        with gzip.open(file) as opened:
            return opened.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{file}: the gzip stream is damaged at its beginning: {error}") from error


def _read(file: Path, size: int) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise TraceError(f"{file}: can't be read: {error.strerror or error}") from error


def _is_report(file: Path, head: bytes) -> bool:
    # The container of .nsys-rep and .qdrep is not documented: its name decides, together with not being anything else.
    return file.name.removesuffix(".gz").endswith(REPORT_SUFFIXES) and bool(head)
