"""Unpacks archives and compressed files that nobody vouches for: safe members only, within limits.

What is refused is said and the rest is unpacked. A limit that is passed ends the import: a bomb is not read halfway.
"""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from agprof.errors import TraceError

MAX_MEMBERS = 10_000
MAX_BYTES = 64 * 2**30
"""Bytes unpacked by one import, unless `--max-size` says otherwise."""
MAX_RATIO = 200
"""Unpacked over packed; traces shrink to a sixteenth or so. Below FREE_BYTES no ratio is looked at."""
FREE_BYTES = 256 * 2**20
_CHUNK = 2**20
_TRUSTED = "if you trust it, allow more with --max-size"


@dataclass(slots=True, kw_only=True)
class Budget:
    """What an import may still unpack."""

    max_bytes: int | None = None
    """What the user allows; None: MAX_BYTES, and MAX_RATIO times its size of each file."""
    used_bytes: int = 0

    def take(self, size: int, written: int, packed: int, where: str) -> None:
        """Count unpacked bytes; `written` of a file that has `packed`. Raises TraceError when they are too many."""
        self.used_bytes += size
        most = MAX_BYTES if self.max_bytes is None else self.max_bytes
        if self.used_bytes > most:
            raise TraceError(f"{where}: unpacks to more than {most:,} bytes; {_TRUSTED}")
        if self.max_bytes is None and written > FREE_BYTES and written > MAX_RATIO * max(packed, 1):
            raise TraceError(
                f"{where}: unpacks to more than {MAX_RATIO} times its {packed:,} bytes, as no trace does; {_TRUSTED}"
            )


@dataclass(slots=True)
class Unpacked:
    """What came out of an archive."""

    files: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Sentences on members that were left out."""


def unpack(archive: Path, folder: Path, budget: Budget, *, tar: bool) -> Unpacked:
    """Unpack a zip or tar archive into a folder. Raises TraceError when it is damaged or passes a limit.

    A compressed tar is to be unpacked with `gunzip` before: tarfile trusts the sizes that it reads.
    """
    result = Unpacked()
    try:
        with ExitStack() as stack:
            members = _tar_members(archive, stack) if tar else _zip_members(archive, stack)
            for number, member in enumerate(members):
                if number >= MAX_MEMBERS:
                    raise TraceError(f"{archive}: has more than {MAX_MEMBERS:,} members; unpack what you need of it")
                _take(member, archive, folder, budget, result)
    except (
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        zlib.error,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        raise TraceError(f"{archive}: the archive can't be unpacked: {str(error)[:200]}") from error
    return result


def gunzip(file: Path, target: Path, budget: Budget) -> Path:
    """Unpack a gzip file. Raises TraceError when it is damaged or passes a limit."""
    try:
        with gzip.open(file) as source:
            _copy(source, target, budget, packed=file.stat().st_size, where=str(file))
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{file}: the gzip stream is damaged: {str(error)[:200]}") from error
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    name: str
    packed: int
    refusal: str | None
    """Why it is not unpacked; "" for what is no file and needs no word."""
    open: Callable[[], IO[bytes] | None]


def _take(member: _Member, archive: Path, folder: Path, budget: Budget, result: Unpacked) -> None:
    refusal = member.refusal if member.refusal is not None else unsafe_name(member.name)
    if refusal is not None:
        if refusal:
            result.refused.append(f"{archive.name}: member {shown(member.name)} is left out: {refusal}")
        return
    source = member.open()
    if source is None:
        return
    # The member's own folders are not made: its last name says its rank, and the number keeps names apart.
    target = folder / f"{len(result.files):05d}" / (PurePosixPath(member.name).name[-200:])
    target.parent.mkdir(parents=True)
    with source:
        _copy(source, target, budget, packed=member.packed, where=f"{archive} ({shown(member.name)})")
    result.files.append(target)


def _copy(source: IO[bytes] | gzip.GzipFile, target: Path, budget: Budget, *, packed: int, where: str) -> None:
    written = 0
    with target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            budget.take(len(chunk), written, packed, where)
            if shutil.disk_usage(target.parent).free < len(chunk) + FREE_BYTES:
                raise TraceError(f"{where}: there is no room to unpack it in {target.parent}")
            out.write(chunk)


def unsafe_name(name: str) -> str | None:
    """Why a member's name is refused; None when it is a plain relative path.

    >>> unsafe_name("a/../b"), unsafe_name("/etc/passwd"), unsafe_name("traces/rank0.json")
    ('its name has `..`', 'its name is absolute', None)
    """
    path = name.replace("\\", "/")
    if path.startswith("/") or path[1:3] == ":/":
        return "its name is absolute"
    if ".." in path.split("/"):
        return "its name has `..`"
    if "\x00" in path or not PurePosixPath(path).name:
        return "it has no usable name"
    return None


def shown(name: str) -> str:
    """A name from outside as a message shows it: printable and short."""
    return ascii(name[:120])


def _zip_members(archive: Path, stack: ExitStack) -> Iterator[_Member]:
    opened = stack.enter_context(zipfile.ZipFile(archive))
    for info in opened.infolist():
        mode = info.external_attr >> 16
        refusal: str | None = None
        if info.is_dir():
            refusal = ""
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            refusal = "it is a link or a device"
        elif info.flag_bits & 1:
            refusal = "it is encrypted"
        yield _Member(
            name=info.filename,
            packed=info.compress_size,
            refusal=refusal,
            open=lambda info=info: opened.open(info),  # type: ignore[misc]
        )


def _tar_members(archive: Path, stack: ExitStack) -> Iterator[_Member]:
    opened = stack.enter_context(tarfile.open(archive, "r:"))  # noqa: SIM115
    for info in opened:
        refusal: str | None = None
        if info.isdir():
            refusal = ""
        elif not info.isreg():
            refusal = "it is a link or a device"
        yield _Member(
            name=info.name,
            packed=info.size,
            refusal=refusal,
            open=lambda info=info: opened.extractfile(info),  # type: ignore[misc]
        )
    with archive.open("rb") as file:
        file.seek(opened.offset)
        # tarfile takes a damaged or missing header for the end; the end is a block of zeros.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise TraceError(f"{archive}: the archive is cut short or damaged")
