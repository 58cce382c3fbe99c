"""Trace files become an ordinary run folder: tables and streams written; all or nothing."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agprof.errors import StoreError, TraceError
from agprof.importers import kineto, nsys, torch_snapshot
from agprof.importers.archives import MAX_MEMBERS, Budget, gunzip, shown, unpack
from agprof.importers.formats import REPORT_SUFFIXES, Format, detect, first_bytes, is_gzip
from agprof.importers.manifest import write_manifest
from agprof.importers.ranks import Assigned, Claim, assign, rank_of_name
from agprof.importers.trace_stream import write_stream
from agprof.model.communication_kernels import Communication
from agprof.store import layout
from agprof.store.traces import RankTrace, read_traces

Progress = Callable[[str, float], None]
ExportReport = Callable[[Path, Path], Path]
"""Has nsys export a report (first) to an SQLite file (second)."""
_MOST_NOTES = 50
MAX_DEPTH = 8
"""Archives in archives: one can hold itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file to import, of known format; unpacked where it has to be."""

    path: Path
    label: str
    """As the user knows it."""
    format: Format
    head: nsys.NsysHead | kineto.KinetoHead | None

    @property
    def ranks(self) -> int:
        return len(self.head.ranks) if isinstance(self.head, nsys.NsysHead) else 1


@dataclass(slots=True, kw_only=True)
class _Import:
    """One import on its way."""

    scratch: Path
    budget: Budget
    export_report: ExportReport
    tell: Progress
    sources: list[Source] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    allocations: dict[int, Sequence[tuple[Any, ...]]] = field(default_factory=dict)
    """By rank, what memory snapshots say of the largest blocks: rows of the table."""
    seen: set[Path] = field(default_factory=set)
    """Every file so far, whatever it was called by."""
    unpacked: int = 0
    depth: int = 0
    """Archives in archives that are being unpacked."""

    @property
    def allowed_bytes(self) -> int | None:
        """What one compressed trace may unpack to where the user says it; None: what the reader takes for a trace."""
        return self.budget.max_bytes

    def place(self) -> Path:
        """A new folder for unpacked files."""
        self.unpacked += 1
        folder = self.scratch / str(self.unpacked)
        folder.mkdir(parents=True)
        return folder


def import_files(
    files: Sequence[Path],
    out: Path,
    *,
    name: str,
    export_report: ExportReport,
    communication: Mapping[str, str] | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make the run folder `out` of trace files, folders and archives of them; its path.

    Nothing that looks like a run is left when it fails. `communication`: further kernels that are communication, as
    library -> regular expression. `max_bytes`: see `archives.Budget`. Raises TraceError when a file can't be used, and
    StoreError when the folder can't be written.
    """
    try:
        if out.exists():
            raise StoreError(f"{out} exists already; name another folder with --out, or remove it")
        with _half_finished(out) as (half, scratch):
            work = _Import(
                scratch=scratch,
                budget=Budget(max_bytes=max_bytes),
                export_report=export_report,
                tell=progress or (lambda what, share: None),
            )
            for file in files:
                _collect(work, file)
            _import_all(work, half, name, communication or {})
            half.rename(out)
    except OSError as error:
        where = error.filename or out
        raise StoreError(f"{where}: can't be written or read: {error.strerror or error}") from error
    return out


@contextmanager
def _half_finished(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder beside `out` that becomes it, and one for unpacked files; both are gone at the end.

    So are the folders above them that were made for it, when nothing came to stand in them.
    """
    made = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    own = out.parent / f".{out.name[:100]}.import-{os.getpid()}"
    half, scratch = own / "run", own / "unpacked"
    shutil.rmtree(own, ignore_errors=True)
    half.mkdir(parents=True)
    scratch.mkdir()
    try:
        yield half, scratch
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _collect(work: _Import, given: Path) -> None:
    """Find what a path of the command line holds."""
    if not given.exists():
        raise TraceError(f"{given}: there is no such file")
    if given.is_dir():
        if (given / layout.MANIFEST).is_file():
            raise TraceError(f"{given} is a run folder already: agprof report {given}")
        _collect_all(work, sorted(_files_in(given)), given.name)
        return
    if not given.is_file():
        raise TraceError(f"{given}: is neither a file nor a folder")
    _add(work, given, given.name, required=True)


def _files_in(folder: Path) -> Iterator[Path]:
    for number, file in enumerate(f for f in folder.rglob("*") if f.is_file()):
        if number >= MAX_MEMBERS:
            raise TraceError(f"{folder}: holds more than {MAX_MEMBERS:,} files; name the traces themselves")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file


def _collect_all(work: _Import, files: Sequence[Path], whose: str) -> None:
    """Files that nobody named one by one: what is no trace is left out, and said."""
    before = len(work.sources)
    exported = {file.with_suffix("") for file in files if file.suffix == ".sqlite"}
    for file in files:
        if file.suffix in REPORT_SUFFIXES and file.with_suffix("") in exported:
            work.notes.append(f"{shown(file.name)} stands beside its own SQLite export; left out")
        else:
            _add(work, file, file.name, required=False)
    if len(work.sources) == before:
        raise TraceError(
            f"{whose}: holds no trace (Kineto .json, nsys .sqlite, .nsys-rep, torch memory snapshot) in "
            f"{len(files):,} files{''.join(f'; {note}' for note in work.notes[:3])}"
        )


def _add(work: _Import, path: Path, label: str, *, required: bool) -> None:
    work.tell(f"looking at {label}", 0.0)
    if path.resolve() in work.seen:
        if required:
            raise TraceError(f"{path}: is given twice; name each file once")
        work.notes.append(f"{shown(label)} is a file that was given already; left out")
        return
    work.seen.add(path.resolve())
    format_ = detect(path)
    if format_ is None:
        if required:
            raise TraceError(
                f"{path}: is no trace: neither Kineto JSON, nor an nsys SQLite export, nor a report (.nsys-rep), nor a "
                "torch memory snapshot, nor an archive of them"
            )
        work.notes.append(f"{shown(label)} is no trace; left out")
    elif format_ in (Format.ZIP, Format.TAR):
        _unpack(work, path, label, tar=format_ is Format.TAR)
    else:
        with _named(work, label):
            source = _source(work, path, label, format_, required=required)
        if source is not None:
            work.sources.append(source)


@contextmanager
def _named(work: _Import, label: str) -> Iterator[None]:
    """Errors name an unpacked file as the user knows it, and not by where it was unpacked to."""
    try:
        yield
    except TraceError as error:
        place = re.escape(str(work.scratch))
        raise TraceError(re.sub(rf"{place}[^\n:]*", lambda _: label, str(error))) from error


def _unpack(work: _Import, path: Path, label: str, *, tar: bool) -> None:
    if work.depth >= MAX_DEPTH:
        raise TraceError(f"{label}: lies in {MAX_DEPTH} archives already; unpack what you need of them")
    work.depth += 1
    folder = work.place()
    if tar and is_gzip(path):
        path = gunzip(path, folder / "archive.tar", work.budget)
    members = folder / "members"
    members.mkdir()
    result = unpack(path, members, work.budget, tar=tar)
    work.notes += result.refused
    if not result.files:
        raise TraceError(f"{label}: nothing could be unpacked; {'; '.join(result.refused[:3]) or 'it is empty'}")
    _collect_all(work, result.files, label)
    work.depth -= 1


def _source(work: _Import, path: Path, label: str, format_: Format, *, required: bool) -> Source | None:
    if format_ is Format.KINETO:
        try:
            head = kineto.peek(path, max_unpacked_bytes=work.allowed_bytes)
        except TraceError:
            if required or _looks_like_kineto(path):
                raise
            work.notes.append(f"{shown(label)} is JSON and no trace; left out")
            return None
        merged = _merged_ranks(head)
        if merged is not None and not required:
            work.notes.append(f"{shown(label)} is the viewers' file of {merged} ranks; left out")
            return None
        if merged is not None and merged > 1:
            raise TraceError(
                f"{path}: holds {merged} ranks on one timeline, for viewers; import the folder chrome beside it, which "
                "has a file for each rank"
            )
        return Source(path=path, label=label, format=format_, head=head)
    if is_gzip(path):
        path = gunzip(path, work.place() / path.name.removesuffix(".gz"), work.budget)
    if format_ is Format.NSYS_REPORT:
        work.tell(f"nsys exports {label}", 0.0)
        path = work.export_report(path, work.place() / "report.sqlite")
        format_ = Format.NSYS_SQLITE
    exported = nsys.peek(path) if format_ is Format.NSYS_SQLITE else None
    return Source(path=path, label=label, format=format_, head=exported)


def _merged_ranks(head: kineto.KinetoHead) -> int | None:
    """Ranks in the one file that `agprof export --format chrome` makes of all; None for every other file."""
    own = head.metadata.get("agprof")
    found = own.get("merged_ranks") if isinstance(own, dict) else None
    return found if isinstance(found, int) else None


def _looks_like_kineto(path: Path) -> bool:
    head = first_bytes(path)
    return any(word in head for word in (b'"traceEvents"', b'"ph"', b'"schemaVersion"', b'"deviceProperties"'))


def _import_all(work: _Import, run: Path, name: str, communication: Mapping[str, str]) -> None:
    traces = [source for source in work.sources if source.format is not Format.TORCH_SNAPSHOT]
    snapshots = [source for source in work.sources if source.format is Format.TORCH_SNAPSHOT]
    assigned = assign(_claims(traces))
    (run / layout.RANKS).mkdir()
    (run / layout.NODES).mkdir()
    total, done = sum(source.path.stat().st_size for source in traces) or 1, 0
    position = 0
    for source in traces:
        size = source.path.stat().st_size
        own = assigned[position : position + source.ranks]
        position += source.ranks
        tell = _telling(work.tell, source.label, done / total, size / total)
        with _named(work, source.label):
            _write_tables(source, run, own, work.allowed_bytes, tell)
        done += size
    _add_snapshots(work, snapshots, run, [found.rank for found in assigned])
    problems: list[str] = []
    read = read_traces(run, problems)
    if problems:
        raise TraceError(f"what was imported can't be read back: {problems[0]}")
    work.notes += _write_streams(work, run, read, Communication.with_user(communication))
    write_manifest(
        run,
        name=name,
        traces=read,
        files=[_described(source) for source in work.sources],
        communication=communication,
        notes=work.notes[:_MOST_NOTES],
    )


def _claims(sources: Sequence[Source]) -> Iterator[Claim]:
    for source in sources:
        if isinstance(source.head, nsys.NsysHead):
            alone = len(source.head.ranks) == 1
            for found in source.head.ranks:
                yield Claim(
                    label=source.label,
                    rank=found.rank,
                    source=found.rank_source,
                    name=source.label if alone else None,
                )
        else:
            rank = source.head.rank if source.head is not None else None
            yield Claim(label=source.label, rank=rank, source="distributedInfo", name=source.label)


def _write_tables(
    source: Source, run: Path, assigned: Sequence[Assigned], allowed_bytes: int | None, tell: Callable[[float], None]
) -> None:
    if isinstance(source.head, nsys.NsysHead):
        nsys.import_file(
            source.path,
            run,
            source.head,
            [found.rank for found in assigned],
            rank_sources=[found.source for found in assigned],
            source=source.label,
            progress=tell,
        )
    else:
        kineto.import_file(
            source.path,
            run,
            assigned[0].rank,
            rank_source=assigned[0].source,
            max_unpacked_bytes=allowed_bytes,
            progress=tell,
        )


def _telling(tell: Progress, label: str, begin: float, share: float) -> Callable[[float], None]:
    return lambda part: tell(label, begin + share * min(1.0, max(0.0, part)))


def _add_snapshots(work: _Import, snapshots: Sequence[Source], run: Path, ranks: Sequence[int]) -> None:
    """Each snapshot to the rank in its name; with one trace and one snapshot there is nothing to ask."""
    taken: dict[int, str] = {}
    for number, source in enumerate(snapshots):
        told = rank_of_name(source.label)
        if told is None and len(snapshots) == 1 and len(ranks) <= 1:
            told = ranks[0] if ranks else 0
        if told is None and not ranks:
            told = number
        if told is None or (ranks and told not in ranks):
            raise TraceError(
                f"{source.label}: it is not known which of ranks {', '.join(map(str, sorted(ranks)[:8]))} this memory "
                "snapshot is of; put the rank into its name: rank0.pickle"
            )
        if told in taken:
            raise TraceError(f"{taken[told]} and {source.label} are both memory snapshots of rank {told}; give one")
        taken[told] = source.label
        work.tell(source.label, 1.0)
        if told in ranks:
            added = torch_snapshot.add_to(run, told, source.path)
            work.notes += [f"{source.label}: {count:,} events: {reason}" for reason, count in added.left_out.items()]
        else:
            rank_source = "file name" if rank_of_name(source.label) is not None else "order of the files"
            added = torch_snapshot.import_alone(run, told, source.path, rank_source=rank_source, source=source.label)
        work.allocations[told] = added.allocations


def _write_streams(
    work: _Import, run: Path, traces: Mapping[int, RankTrace], communication: Communication
) -> list[str]:
    hosts = list(dict.fromkeys(trace.meta.host for _, trace in sorted(traces.items())))
    sizes = [trace.meta.world_size for trace in traces.values() if trace.meta.world_size]
    notes: list[str] = []
    for rank, trace in sorted(traces.items()):
        work.tell(f"steps and phases of rank {rank}", 1.0)
        node = hosts.index(trace.meta.host)
        notes += write_stream(
            run,
            trace,
            node=node,
            world_size=max(sizes, default=None),
            communication=communication,
            allocations=work.allocations.get(rank, ()),
        )
    return notes


def _described(source: Source) -> dict[str, Any]:
    return {
        "name": source.label,
        "format": source.format.value,
        "bytes": source.path.stat().st_size,
        "ranks": source.ranks,
    }
