"""The answers from a run's device traces, kept beside them, so that a second report need not compute them again.

traces/answer.msgpack: a map of `fingerprint` and `answer`. The fingerprint holds the names, sizes and times of change
of all files of the traces and whatever else the answer depends on; another one, or a damaged file, is no answer.
"""

import os
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from agprof.model.trace_answers import TraceAnswer
from agprof.store import layout

_NAME = "answer.msgpack"


class _Kept(msgspec.Struct):
    fingerprint: str
    answer: TraceAnswer


class _Mark(msgspec.Struct):
    fingerprint: str


def fingerprint(run: Path, depends_on: Sequence[object]) -> str:
    """Of the traces as they lie there, and of the text of everything in `depends_on`. Raises OSError."""
    digest = blake2b(digest_size=16)
    for part in depends_on:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\x00")
    for file in sorted((run / layout.TRACES).glob("rank-*/*")):
        state = file.stat()
        name = os.fsencode(file.relative_to(run))
        digest.update(name + f"\x00{state.st_size}\x00{state.st_mtime_ns}\x00".encode())
    return digest.hexdigest()


def read_answer(run: Path, wanted: str) -> TraceAnswer | None:
    """What was kept under this fingerprint; None when nothing was, or it can't be read."""
    try:
        data = (run / layout.TRACES / _NAME).read_bytes()
        if msgspec.msgpack.decode(data, type=_Mark).fingerprint != wanted:
            return None
        return msgspec.msgpack.decode(data, type=_Kept).answer
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def keep_answer(run: Path, fingerprint_: str, answer: TraceAnswer) -> None:
    """Keep an answer; the whole of it or nothing, also when the disk is full. Raises OSError."""
    target = run / layout.TRACES / _NAME
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        partial.write_bytes(msgspec.msgpack.encode(_Kept(fingerprint_, answer)))
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
