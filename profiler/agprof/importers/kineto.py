"""Kineto JSON, what `torch.profiler` writes, becomes the tables of a run folder.

The list of events is read in pieces of a megabyte through one buffer, cut between two events, decoded into typed
structs and turned into columns; large files by several processes. What does not fit the fast way is read again in
order, event by event. See docs/trace-analysis.md for what it costs.
"""

import gc
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from agprof.errors import TraceError
from agprof.importers import kineto_share as share
from agprof.importers.kineto_chunk import Chunks
from agprof.importers.kineto_events import CPU_KINDS, GPU_KINDS, INSTANT, NOT_WORK
from agprof.importers.kineto_frame import packed_tail_metadata, read_frame, tail_metadata
from agprof.importers.kineto_order import Ending, read_in_order
from agprof.importers.kineto_rows import Rows, Tally
from agprof.importers.kineto_source import GZIP_MAGIC, open_source
from agprof.store import layout
from agprof.store.traces import TraceMeta, TraceWriter, write_meta

SHARED_FROM_BYTES = 128 * 2**20
"""A second process costs a third of a second to start; below this size of the file it does not pay."""
SHARED_FROM_PACKED_BYTES = 7 * 2**20
_EPOCH_US = 1e15
"""Microseconds since 1970 are more than this (since 2001), those since a base are less (they would last 30 years)."""
_DROPPED = re.compile(r"[Dd]ropped\D{0,40}?(\d+)")
_MOST_NOTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KinetoHead:
    """What a file says of itself without its events."""

    rank: int | None
    world_size: int | None
    host: str | None
    metadata: Mapping[str, Any]
    """Everything at the file's top level but the events, as far as it was looked for."""


def peek(file: Path, *, max_unpacked_bytes: int | None = None) -> KinetoHead:
    """What the file says of itself: from its beginning, else from its end. Raises TraceError when it is no Kineto
    file or can't be read."""
    frame = read_frame(file, max_unpacked_bytes)
    metadata = dict(frame.metadata)
    if not frame.bare and "distributedInfo" not in metadata:
        metadata |= _tail(file, max_unpacked_bytes)
    return head_of(metadata)


def import_file(
    file: Path,
    run: Path,
    rank: int,
    *,
    rank_source: str = "",
    shift_ns: int = 0,
    processes: int | None = None,
    max_unpacked_bytes: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> TraceMeta:
    """Write the tables of one rank from a Kineto file (.json, .json.gz), and its `trace.json`.

    Times are `baseTimeNanoseconds` plus the event's, in whole nanoseconds since the epoch, plus `shift_ns`.
    `processes` is how many may read at once (None: two for a large file). A gzip file that unpacks to more than
    `max_unpacked_bytes` is refused (None: 64 GiB, or 250 times its size). `progress` is told the part done, 0 to 1.
    Raises TraceError with one sentence, and then leaves no tables; OSError when the run folder can't be written.
    """
    reading = _Reading(file, run, rank, shift_ns, max_unpacked_bytes, progress)
    try:
        with _no_collection():
            tally, ending = reading.read(processes if processes is not None else _processes(file))
    except BaseException:
        reading.clear()
        raise
    metadata = dict(reading.frame.metadata) | ending.metadata
    meta = _meta(file, metadata, tally, ending, rank_source)
    meta = replace(meta, time_base_ns=(reading.base_ns(metadata) or 0) + shift_ns)
    if "traceEvents" in ending.metadata:
        meta = replace(meta, notes=(*meta.notes, "a second list of traceEvents in the file was not read"))
    if reading.base_ns(metadata) is None and (reading.frame.first_us or _EPOCH_US) < _EPOCH_US:
        note = "no baseTimeNanoseconds was found: times count from an unknown moment, not from the epoch"
        meta = replace(meta, notes=(*meta.notes, note))
    write_meta(run, rank, meta)
    if progress is not None:
        progress(1.0)
    return meta


class _Reading:
    """One file on its way into one rank's folder."""

    def __init__(
        self,
        file: Path,
        run: Path,
        rank: int,
        shift_ns: int,
        max_unpacked_bytes: int | None,
        progress: Callable[[float], None] | None,
    ) -> None:
        self._file, self._run, self._rank = file, run, rank
        self._shift_ns, self._most, self._progress = shift_ns, max_unpacked_bytes, progress
        self.frame = read_frame(file, max_unpacked_bytes)

    def read(self, processes: int) -> tuple[Tally, Ending]:
        """Read by the fast way, or in order; again, where the end of the file names another base of its times."""
        metadata = dict(self.frame.metadata)
        packed = _is_packed(self._file)
        if not self.frame.bare and "baseTimeNanoseconds" not in metadata:
            if not packed:
                metadata |= tail_metadata(self._file)
            elif (self.frame.first_us or 0.0) < _EPOCH_US:
                metadata |= packed_tail_metadata(self._file, self._most)
        base_ns = self.base_ns(metadata) or 0
        tally, ending = self._read_from(base_ns, processes)
        found_ns = self.base_ns(dict(self.frame.metadata) | ending.metadata) or base_ns
        if found_ns != base_ns:
            tally, ending = self._read_from(found_ns, processes)
        return tally, ending

    def base_ns(self, metadata: Mapping[str, Any]) -> int | None:
        """Raises TraceError when the file gives a base that is none."""
        base = metadata.get("baseTimeNanoseconds")
        if base is None:
            return None
        if not isinstance(base, int) or isinstance(base, bool) or not 0 <= base < 2**61:
            raise TraceError(f"{self._file}: baseTimeNanoseconds is {str(base)[:40]!r}, not a number of ns since 1970")
        return base

    def clear(self) -> None:
        """Take away what was written."""
        folder = layout.trace_folder(self._run, self._rank)
        for path in [*folder.glob("*.parquet"), folder / layout.TRACE_META]:
            path.unlink(missing_ok=True)

    def _read_from(self, base_ns: int, processes: int) -> tuple[Tally, Ending]:
        self.clear()
        found = self._shared(base_ns, processes) if self.frame.separator is not None else None
        if found is None:
            self.clear()
            found = self._in_order(base_ns)
        return found

    def _shared(self, base_ns: int, processes: int) -> tuple[Tally, Ending] | None:
        """Read by several processes, of which this is one; None when it must be done in order."""
        with tempfile.TemporaryDirectory(prefix="agprof-kineto-") as folder:
            jobs = [self._job(base_ns, writer, Path(folder) / "claims") for writer in range(max(1, processes))]
            helpers = [share.start_helper(job) for job in jobs[1:]]
            try:
                parts = [share.read_share(jobs[0], self._progress)]
                parts += [share.helper_part(helper) for helper in helpers]
            finally:
                for helper in helpers:
                    helper.kill()
                    helper.wait()
        for part in parts:
            if part.error is not None:
                raise TraceError(part.error)
        last = [part for part in parts if part.ended]
        if any(part.failed for part in parts) or len(last) != 1:
            return None
        metadata = share.metadata_of(last[0], bare=self.frame.bare)
        return None if metadata is None else (share.merged(parts), Ending(metadata=metadata))

    def _job(self, base_ns: int, writer: int, claims: Path) -> share.Job:
        assert self.frame.separator is not None
        return share.Job(
            file=str(self._file),
            run=str(self._run),
            rank=self._rank,
            writer=writer,
            offset_ns=base_ns + self._shift_ns,
            start=self.frame.start,
            separator=self.frame.separator,
            comma=self.frame.comma,
            bare=self.frame.bare,
            claims=str(claims),
            max_unpacked_bytes=self._most,
        )

    def _in_order(self, base_ns: int) -> tuple[Tally, Ending]:
        rows = Rows(TraceWriter(self._run, self._rank), base_ns + self._shift_ns)
        chunks = Chunks(rows, in_order=True)
        source = open_source(self._file, self._most)
        try:
            ending = read_in_order(source, self.frame, chunks, self._file, self._progress)
        finally:
            source.close()
        chunks.exact.close()
        return rows.finish(), ending


def head_of(metadata: Mapping[str, Any]) -> KinetoHead:
    """The head of a file with this metadata."""
    distributed = metadata.get("distributedInfo")
    info = distributed if isinstance(distributed, dict) else {}
    host = next((metadata[key] for key in ("host_name", "hostname") if isinstance(metadata.get(key), str)), None)
    return KinetoHead(
        rank=_count(info.get("rank")), world_size=_count(info.get("world_size")), host=host, metadata=metadata
    )


def _meta(file: Path, metadata: Mapping[str, Any], tally: Tally, ending: Ending, rank_source: str) -> TraceMeta:
    head = head_of(metadata)
    devices = metadata.get("deviceProperties")
    said = [str(line) for key in ("INFO", "WARNING", "ERROR") for line in _list(metadata.get(key))]
    dropped = [int(match[1]) for line in said if (match := _DROPPED.search(line)) and len(match[1]) < 16]
    known = GPU_KINDS.keys() | CPU_KINDS.keys() | NOT_WORK | {INSTANT, ""}
    strange = [name for name in tally.events if name not in known and not name.startswith("ph ")]
    unknown = [f"{name[:60]} ({tally.events[name]})" for name in strange]
    notes = [f"categories that are not known, taken for host events: {', '.join(unknown[:10])}"] if unknown else []
    notes += [line[:300] for line in said if "stopped early? = 1" in line or not line.startswith("INFO")]
    version = metadata.get("schemaVersion")
    return TraceMeta(
        format="kineto",
        source=file.name,
        rank_source=rank_source,
        world_size=head.world_size,
        host=head.host,
        producer=f"schemaVersion {version}" if isinstance(version, int) else "",
        devices=tuple(_plain(device) for device in _list(devices) if isinstance(device, dict)),
        events=tally.events,
        left_out=tally.left_out,
        dropped_events=sum(dropped) if dropped else None,
        truncated=ending.truncated,
        first_ns=tally.first_ns,
        last_ns=tally.last_ns,
        timestamp_unit=tally.timestamp_unit,
        notes=tuple(notes[:_MOST_NOTES]),
    )


def _tail(file: Path, max_unpacked_bytes: int | None) -> dict[str, Any]:
    return packed_tail_metadata(file, max_unpacked_bytes) if _is_packed(file) else tail_metadata(file)


def _is_packed(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(2) == GZIP_MAGIC


def _processes(file: Path) -> int:
    large = SHARED_FROM_PACKED_BYTES if _is_packed(file) else SHARED_FROM_BYTES
    return min(2, len(os.sched_getaffinity(0))) if file.stat().st_size >= large else 1


def _plain(value: Any) -> Any:
    """The value with decimals as floats, as JSON can hold it."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which would walk millions of events that hold no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
