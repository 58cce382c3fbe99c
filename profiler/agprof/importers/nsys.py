"""Nsight Systems: the SQLite export of a report becomes the tables of a run folder, all its ranks in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from agprof.errors import TraceError
from agprof.importers import nsys_gpu, nsys_host
from agprof.importers.nesting import crossings
from agprof.importers.nsys_export import Export
from agprof.importers.nsys_ranks import GPU_TABLES, NVTX, RUNTIME, NsysRank, device_facts, find_ranks
from agprof.importers.nsys_rows import Target, Targets
from agprof.importers.nsys_session import Session, read_session
from agprof.store.traces import TraceMeta, TraceWriter, write_meta

NO_EPOCH = "the export does not say when its session was: times are ns since the session began"
_CHECKED_ROWS = 200_000
_UNREAD = {"OSRT_API": "OS runtime calls", "COMPOSITE_EVENTS": "CPU samples", "SCHED_EVENTS": "context switches"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NsysHead:
    """What an export says of itself."""

    session: Session
    ranks: tuple[NsysRank, ...]


def peek(file: Path) -> NsysHead:
    """Session and ranks of an export. Raises TraceError."""
    with Export(file) as export:
        session = read_session(export)
        return NsysHead(session=session, ranks=find_ranks(export, session))


def import_file(
    file: Path,
    run: Path,
    head: NsysHead,
    ranks: Sequence[int],
    *,
    rank_sources: Sequence[str],
    source: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[TraceMeta, ...]:
    """Write the tables of `head.ranks` under the numbers `ranks`, and their `trace.json`.

    `head` is what `peek` gave for this file, which checked it.

    Times are `utcEpochNs` of the session plus the event's, in whole nanoseconds. `source`: the name to remember the
    file by. Raises TraceError with one sentence, and OSError when the run folder can't be written.
    """
    with Export(file, check=False) as export:
        targets = Targets(
            [
                Target(rank=rank, writer=TraceWriter(run, number))
                for rank, number in zip(head.ranks, ranks, strict=True)
            ],
            base_ns=head.session.base_ns or 0,
            limit_ns=head.session.limit_ns,
            tell=_telling(export, progress),
        )
        for step in (nsys_gpu.read, nsys_host.read):
            step(export, targets)
        metas = []
        for target, number, told in zip(targets.all, ranks, rank_sources, strict=True):
            target.writer.close()
            metas.append(_meta(export, head, target, told, source or file.name))
            write_meta(run, number, metas[-1])
    if all(meta.first_ns is None for meta in metas):
        raise TraceError(f"{file}: none of its events can be used: {dict(metas[0].left_out)}")
    return tuple(metas)


def _meta(export: Export, head: NsysHead, target: Target, rank_source: str, source: str) -> TraceMeta:
    return TraceMeta(
        format="nsys",
        source=source,
        rank_source=rank_source,
        world_size=target.rank.world_size or head.session.world_size,
        host=head.session.host,
        producer=head.session.producer,
        devices=device_facts(head.session, target.rank),
        events=dict(target.events),
        left_out=dict(target.left_out),
        first_ns=target.first_ns,
        last_ns=target.last_ns,
        timestamp_unit="ns",
        notes=tuple(_notes(export, head, target)),
    )


def _notes(export: Export, head: NsysHead, target: Target) -> list[str]:
    notes = []
    if head.session.base_ns is None:
        notes.append(NO_EPOCH)
    if target.rank.device is not None and export.table(RUNTIME) is None:
        notes.append(f"no table {RUNTIME}: launches are not known (nsys profile --trace=cuda records them)")
    if export.table(NVTX) is None:
        notes.append("no NVTX ranges: there are no steps, operators or phases to attribute kernels to")
    if target.rank.device is not None and export.table(GPU_TABLES[0]) is None:
        notes.append(f"no table {GPU_TABLES[0]}: the export holds no kernel")
    if target.events.get("CUPTI_ACTIVITY_KIND_GRAPH_TRACE"):
        notes.append("CUDA graphs were traced as wholes: their kernels are not known one by one")
    crossing = _crossings(target)
    if crossing:
        notes.append(
            f"{crossing:,} host events cross others of their thread, which calls and push/pop ranges can't do: "
            "times in the file are wrong, or it is damaged"
        )
    notes += [f"{words} are not imported" for table, words in _UNREAD.items() if export.table(table) is not None]
    return notes


def _crossings(target: Target) -> int:
    files = sorted(target.writer.folder.glob("cpu.*.parquet"))
    if not files:
        return 0
    return crossings(pl.scan_parquet(files).select("thread", "start_ns", "duration_ns").head(_CHECKED_ROWS).collect())


def _telling(export: Export, progress: Callable[[float], None] | None) -> Callable[[int], None]:
    if progress is None:
        return lambda rows: None
    total = max(1, sum(export.count(base) for base in (*nsys_gpu.TABLES, *nsys_host.TABLES)))
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        progress(min(1.0, done / total))

    return tell
