"""Several processes read one file: each takes the next piece that nobody has taken, and writes Parquet parts."""

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agprof.errors import TraceError
from agprof.importers.kineto_chunk import Chunks
from agprof.importers.kineto_frame import Frame, members
from agprof.importers.kineto_order import Stop, whole_events
from agprof.importers.kineto_rows import Rows, Tally
from agprof.importers.kineto_source import open_source
from agprof.importers.kineto_take import NeedsOrderError
from agprof.importers.kineto_window import TooLongError, Window
from agprof.store.traces import TraceWriter

_NUMBER = struct.Struct("<q")


class Job(msgspec.Struct, kw_only=True):
    """What one of the processes is to do."""

    file: str
    run: str
    rank: int
    writer: int
    offset_ns: int
    start: int
    separator: bytes
    comma: int
    bare: bool
    claims: str
    """File in which the number of the next free piece stands."""
    max_unpacked_bytes: int | None


class Part(msgspec.Struct, kw_only=True):
    """What one of the processes has done."""

    tally: Tally
    ended: bool = False
    """It read the last piece, and the list ends there as it should."""
    metadata: bytes | None = None
    """What follows the events, for the one that read the last piece."""
    failed: str | None = None
    """Why all must be read again in order."""
    error: str | None = None
    """Why the file can't be read at all."""


class Claims:
    """Hands out the numbers 0, 1, 2... to several processes, each once."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def next(self) -> int:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            stored = os.pread(self._file, _NUMBER.size, 0)
            number: int = _NUMBER.unpack(stored)[0] if stored else 0
            os.pwrite(self._file, _NUMBER.pack(number + 1), 0)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return number

    def stop(self) -> None:
        """Hand out numbers beyond the end of any file from now on."""
        os.pwrite(self._file, _NUMBER.pack(2**40), 0)

    def close(self) -> None:
        os.close(self._file)


def read_share(job: Job, tell: Callable[[float], None] | None = None) -> Part:
    """Take pieces until there are no more. Raises OSError when rows can't be written."""
    rows = Rows(TraceWriter(Path(job.run), job.rank, job.writer), job.offset_ns)
    chunks = Chunks(rows, in_order=False)
    frame = Frame(start=job.start, separator=job.separator, comma=job.comma, bare=job.bare, metadata={}, first_us=None)
    part = Part(tally=Tally())
    source = open_source(Path(job.file), job.max_unpacked_bytes)
    claims = Claims(Path(job.claims))
    try:
        window = Window(source, frame)
        while (piece := window.piece(claims.next())) is not None:
            if tell is not None:
                tell(source.part_done())
            if piece.events is not None and not chunks.take(piece.events):
                part.failed = "a piece is no list of events"
                claims.stop()
            if piece.rest is not None:
                part.metadata = _last(piece.rest, chunks)
                part.ended = part.metadata is not None
        if source.broken:
            part.failed = source.broken
    except (NeedsOrderError, TooLongError) as error:
        part.failed = type(error).__name__
    except TraceError as error:
        part.error = str(error)
    finally:
        claims.close()
        source.close()
    part.tally = rows.finish()
    return part


def start_helper(job: Job) -> "subprocess.Popen[bytes]":
    """Start another process on the same file. Not by multiprocessing, which would run the user's main module again.

    Raises OSError.
    """
    roots = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, roots)),
        "POLARS_MAX_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "agprof.importers.kineto_helper"]
    helper = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert helper.stdin is not None
    helper.stdin.write(msgspec.json.encode(job))
    helper.stdin.close()
    return helper


def helper_part(helper: "subprocess.Popen[bytes]") -> Part:
    """What a helper has done; a failed part when it did not end in order."""
    assert helper.stdout is not None
    answer = helper.stdout.read()
    helper.wait()
    try:
        return msgspec.json.decode(answer, type=Part)
    except msgspec.MsgspecError:
        return Part(tally=Tally(), failed=f"a helping process ended with {helper.returncode}")


def merged(parts: list[Part]) -> Tally:
    """The tallies of several processes as one."""
    events: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for part in parts:
        for total, some in ((events, part.tally.events), (left_out, part.tally.left_out)):
            for key, count in some.items():
                total[key] = total.get(key, 0) + count
    first = [part.tally.first_ns for part in parts if part.tally.first_ns is not None]
    last = [part.tally.last_ns for part in parts if part.tally.last_ns is not None]
    units = {part.tally.timestamp_unit for part in parts}
    return Tally(
        events=events,
        left_out=left_out,
        first_ns=min(first, default=None),
        last_ns=max(last, default=None),
        timestamp_unit="ns" if "ns" in units else "us" if "us" in units else "",
    )


def metadata_of(part: Part, *, bare: bool) -> dict[str, Any] | None:
    """What follows the events; None when that isn't as it should be."""
    tail = part.metadata or b""
    return ({} if not tail.strip() else None) if bare else members(tail)


def _last(rest: bytes, chunks: Chunks) -> bytes | None:
    """Take the file's last events; returns what follows the list, None when it has no end."""
    extent = whole_events(rest)
    if extent.stop is not Stop.END:
        return None
    if extent.events_end and not chunks.take(memoryview(b"[" + rest[: extent.events_end] + b"]")):
        return None
    return rest[extent.at :]
