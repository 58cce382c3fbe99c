"""Brings a node's files into the run folder over its control channel, where the nodes share no file system.

A file is a message with its name, messages with its pieces (base64, each with its CRC-32), and one with its SHA-256.
Names come from another machine: they are checked as if they were hostile, and nothing that exists is written over.
"""

import base64
import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from agprof.store import layout

PIECE_BYTES = 256 * 1024
MAX_FILE_BYTES = 8 * 2**30
MAX_NODE_BYTES = 32 * 2**30
MAX_FILES = 20_000
_MAX_DEPTH = 6
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,199}")
_AT_TOP = frozenset({layout.LAUNCHER_LOG, layout.SAMPLER_LOG, layout.FAILURES})
"""Of node 0, when it does not see the run folder either."""
_TOLD = 5
_MAX_LEFT_OUT = 1000


def name_problem(name: str) -> str | None:
    """The rule that the name of a sent file breaks, or None."""
    parts = name.split("/")
    if len(name) > 1000 or not 1 <= len(parts) <= _MAX_DEPTH or not all(_PART.fullmatch(part) for part in parts):
        return "is no plain relative path"
    if len(parts) == 1 and name not in _AT_TOP:
        return "belongs to agprof itself"
    return None


def pieces(folder: Path, *, without: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    """The messages that bring over the regular files of a folder, small ones first; `without`: names left out.

    The last message says how many there were and which were left out, with the reason.
    """
    left_out: list[tuple[str, str]] = []
    files, total = 0, 0
    for size, name in sorted(_found(folder)):
        if name in without:
            continue
        problem = name_problem(name)
        if problem is None and (size > MAX_FILE_BYTES or total + size > MAX_NODE_BYTES or files >= MAX_FILES):
            problem = f"has {size:,} bytes, more than is sent"
        if problem is not None:
            left_out.append((name[:200], problem))
            continue
        try:
            yield from _file(folder / name, name)
        except OSError as error:
            left_out.append((name, str(error.strerror or error)))
            yield {"file_given_up": name}
            continue
        files, total = files + 1, total + size
    yield {"sent": {"files": files, "bytes": total, "left_out": left_out[:_MAX_LEFT_OUT]}}


def _found(folder: Path) -> Iterator[tuple[int, str]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            path = Path(parent) / name
            with suppress(OSError):
                if path.is_file() and not path.is_symlink() and not name.startswith("."):
                    yield path.stat().st_size, path.relative_to(folder).as_posix()


def _file(path: Path, name: str) -> Iterator[dict[str, Any]]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        yield {"file": name}
        while data := file.read(PIECE_BYTES):
            digest.update(data)
            yield {"piece": base64.b64encode(data).decode("ascii"), "crc": zlib.crc32(data)}
    yield {"file_end": name, "sha256": digest.hexdigest()}


@dataclass(slots=True)
class _Open:
    name: str
    part: Path
    file: IO[bytes]
    digest: Any
    size: int = 0


@dataclass(slots=True)
class Collected:
    """What came of one node."""

    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    complete: bool = False
    """The node said that this was all."""


class Collection:
    """Takes the messages of one node's `pieces` and writes its files into the run folder."""

    def __init__(self, run_dir: Path, node: int) -> None:
        self._run = run_dir
        self._node = node
        self._open: _Open | None = None
        self.result = Collected()

    def take(self, message: Mapping[str, Any]) -> bool:
        """False for a message that is none of a file. Never raises for what a node sent or a disk refuses."""
        try:
            return self._take(message)
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._give_up(f"{type(error).__name__}: {error}")
            return True

    def close(self) -> Collected:
        """A file that was still on its way is dropped."""
        self._give_up("it was still on its way")
        return self.result

    def _take(self, message: Mapping[str, Any]) -> bool:
        if "file" in message:
            self._give_up("another began before its end")
            self._begin(str(message["file"]))
        elif "piece" in message:
            self._write(base64.b64decode(message["piece"], validate=True), message.get("crc"))
        elif "file_end" in message:
            self._finish(str(message.get("sha256")))
        elif "file_given_up" in message:
            self._give_up("the node could not read it")
        elif "sent" in message:
            self._give_up("the node sent no end of it")
            left_out = list(message["sent"]["left_out"])[:_MAX_LEFT_OUT]
            self.result.problems.extend(f"{name!s:.200}: {why!s:.200}" for name, why in left_out)
            self.result.complete = True
        else:
            return False
        return True

    def _begin(self, name: str) -> None:
        problem = name_problem(name)
        if problem is None and self.result.files >= MAX_FILES:
            problem = f"is more than {MAX_FILES:,} files"
        if problem is not None:
            self.result.problems.append(f"{name!a:.200} {problem}")
            return
        target = self._run / PurePosixPath(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(self._run.resolve()):
            self.result.problems.append(f"{name!a:.200} leads out of the run folder")
            return
        if os.path.lexists(target):
            self.result.problems.append(f"{name!a:.200} is there already")
            return
        part = target.with_name(f".{target.name}.node{self._node}.part")
        self._open = _Open(name, part, part.open("xb"), hashlib.sha256())

    def _write(self, data: bytes, crc: Any) -> None:
        if self._open is None:
            return  # of a file that was refused
        if zlib.crc32(data) != crc:
            raise ValueError("a piece arrived damaged")
        self._open.size += len(data)
        if self._open.size > MAX_FILE_BYTES or self.result.bytes + self._open.size > MAX_NODE_BYTES:
            raise ValueError("it is larger than is taken")
        self._open.digest.update(data)
        self._open.file.write(data)

    def _finish(self, sha256: str) -> None:
        if self._open is None:
            return
        if self._open.digest.hexdigest() != sha256:
            raise ValueError("it arrived damaged")
        self._open.file.close()
        target = self._run / self._open.name
        if os.path.lexists(target):
            raise FileExistsError(f"{target.name} is there already")
        self._open.part.rename(target)
        self.result.files += 1
        self.result.bytes += self._open.size
        self._open = None

    def _give_up(self, why: str) -> None:
        if self._open is None:
            return
        self.result.problems.append(f"{self._open.name}: {why}")
        with suppress(OSError):
            self._open.file.close()
        with suppress(OSError):
            self._open.part.unlink()
        self._open = None


def collection_note(who: str, result: Collected) -> str | None:
    """What is to be said of a collection, in a sentence; None when all came."""
    if result.complete and not result.problems:
        return None
    words = f"{who}: {result.files} files came over"
    if not result.complete:
        words += ", and it ended before it had sent all"
    if result.problems:
        more = len(result.problems) - _TOLD
        words += f"; left out: {'; '.join(result.problems[:_TOLD])}{f'; {more} more' if more > 0 else ''}"
    return words
