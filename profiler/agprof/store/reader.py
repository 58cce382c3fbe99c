"""Reads a run folder into tables (polars data frames with the columns of `model.tables`)."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from agprof.errors import StoreError
from agprof.model.ceilings import MeasuredCeiling, read_ceiling
from agprof.model.comm_ceiling import CommCeiling, read_comm_ceiling
from agprof.model.plan_answers import PlanAnswer
from agprof.model.plan_json import plan_from_dict
from agprof.model.tables import BY_NAME, SCHEMA_VERSION, TABLES, Scope, Table
from agprof.store import layout
from agprof.store.columns import DTYPES, Collector
from agprof.store.frames import StreamFollower, unread_bytes
from agprof.store.traces import RankTrace, read_traces

_MAX_CEILINGS = 1000
_Ceiling = TypeVar("_Ceiling", MeasuredCeiling, CommCeiling)
_STREAM_NAME = re.compile(r"(?:rank|node)-(\d+)\.(\d+)" + re.escape(layout.SUFFIX))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One stream as it was found."""

    path: Path
    scope: Scope
    number: int
    """Rank or node."""
    attempt: int
    header: Mapping[str, Any]
    ended: str | None
    """The writer's own word at the end (`clean`, `exception`); None when it never came: killed, or still running."""
    damage: str | None
    unread_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder, read."""

    path: Path
    manifest: Mapping[str, Any]
    """run.json; {} when it is missing."""
    outcome: Mapping[str, Any] | None
    """outcome.json; None while the job runs or when agprof itself was killed."""
    streams: tuple[Stream, ...]
    tables: Mapping[str, pl.DataFrame]
    """Every table of `model.tables`, also the empty ones, with `rank` or `node` as first column."""
    problems: tuple[str, ...]
    """What could not be read, in sentences."""
    traces: Mapping[int, RankTrace] = field(default_factory=dict)
    """Device traces by rank; {} when there are none."""
    ceilings: tuple[MeasuredCeiling, ...] = ()
    """What `agprof peak` had measured on the launching machine's devices when the run began."""
    plan: PlanAnswer | None = None
    """plan.json: what `agprof plan` said of the job; None when it was not asked."""
    comm_ceilings: tuple[CommCeiling, ...] = ()
    """What `agprof bench-comm` had measured on the launching machine when the run began."""


def schema(table: Table) -> dict[str, type[pl.DataType]]:
    """The data frame schema of a table as this module returns it."""
    return {table.scope: pl.Int64, **{column.name: DTYPES[column.type] for column in table.columns}}


def read_run(path: Path) -> Run:
    """Read a run folder, also of a job that was killed or still runs.

    Raises StoreError when the path is no run folder, or was written by a newer agprof.
    """
    if not path.is_dir():
        raise StoreError(f"{path} is not a run folder: no such directory")
    problems: list[str] = []
    manifest = _read_json(path / layout.MANIFEST, problems)
    files = _stream_files(path / layout.RANKS, problems) + _stream_files(path / layout.NODES, problems)
    if manifest is None and not problems and not files:
        raise StoreError(f"{path} is not a run folder: it has neither {layout.MANIFEST} nor streams in {layout.RANKS}/")
    if manifest is None and not (path / layout.MANIFEST).exists():
        problems.insert(0, f"{layout.MANIFEST} is missing: the workload and the command are not known")
    manifest = manifest or {}
    if (fault := _version_fault(manifest)) is not None:
        raise StoreError(f"{path} {fault}")
    streams: list[Stream] = []
    parts: dict[str, list[pl.DataFrame]] = {table.name: [] for table in TABLES}
    for file in files:
        _read_stream(file, streams, parts, problems)
    outcome = _read_json(path / layout.OUTCOME, problems)
    return Run(
        path=path,
        manifest=manifest,
        outcome=outcome,
        streams=tuple(streams),
        tables={table.name: _concatenate(table, parts[table.name]) for table in TABLES},
        traces=read_traces(path, problems),
        ceilings=_read_ceilings(path / layout.PEAK, read_ceiling, problems),
        comm_ceilings=_read_ceilings(path / layout.COMM, read_comm_ceiling, problems),
        plan=_read_plan(path / layout.PLAN, problems),
        problems=tuple(problems),
    )


def _read_plan(path: Path, problems: list[str]) -> PlanAnswer | None:
    value = _read_json(path, problems)
    if value is None:
        return None
    try:
        return plan_from_dict(value)
    except ValueError as error:
        problems.append(f"{path.name} can't be used: {error}")
        return None


def _read_ceilings(path: Path, read: Callable[[object], _Ceiling], problems: list[str]) -> tuple[_Ceiling, ...]:
    file = _read_json(path, problems)
    if file is None:
        return ()
    listed = file.get("ceilings")
    found = []
    for number, value in enumerate(listed[:_MAX_CEILINGS] if isinstance(listed, list) else ()):
        try:
            found.append(read(value))
        except ValueError as error:
            problems.append(f"{path.name}: ceiling {number} {error}; left out")
    if not isinstance(listed, list):
        problems.append(f"{path.name} has no list of ceilings")
    return tuple(found)


def _concatenate(table: Table, frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema(table))


def _version_fault(values: Mapping[str, Any]) -> str | None:
    version = values.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and 1 <= version <= SCHEMA_VERSION:
        return None
    return f"has schema version {version!r:.40}; this agprof reads up to {SCHEMA_VERSION}: use a newer agprof"


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} can't be read: {error}")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a JSON object")
        return None
    return value


def _stream_files(folder: Path, problems: list[str]) -> list[Path]:
    """The streams of a folder by number and attempt. Pipes, devices and foreign names become problems."""
    found: list[tuple[int, int, Path]] = []
    for file in sorted(folder.glob(f"*{layout.SUFFIX}")):
        match = _STREAM_NAME.fullmatch(file.name)
        if match is None or not file.is_file():
            problems.append(f"{folder.name}/{file.name} is not a stream of this run; left out")
        else:
            found.append((int(match[1]), int(match[2]), file))
    return [file for _, _, file in sorted(found)]


def _read_stream(file: Path, streams: list[Stream], parts: dict[str, list[pl.DataFrame]], problems: list[str]) -> None:
    scope: Scope = "rank" if file.parent.name == layout.RANKS else "node"
    label = f"{scope}s/{file.name}"
    follower = StreamFollower(file)
    try:
        header = follower.read_header()
        if header is None:
            problems.append(
                f"{label} has no readable header: {follower.damage or 'its writer died as it began'}; left out"
            )
            return
        number = header.get(scope)
        fault = _version_fault(header)
        if fault is None and (not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31):
            fault = f"does not say which {scope} it is of"
        if fault is not None or not isinstance(number, int):
            problems.append(f"{label} {fault}; left out")
            return
        collectors = {t.name: Collector(t, number, parts[t.name]) for t in TABLES if t.scope == scope}
        unknown: dict[str, int] = {}
        for block in follower.blocks():
            if block.table in collectors:
                collectors[block.table].add(block)
            else:
                unknown[block.table] = unknown.get(block.table, 0) + block.count
    except StoreError as error:
        problems.append(str(error))
        return
    for collector in collectors.values():
        collector.convert()
        problems.extend(collector.problems(label))
    for name, count in unknown.items():
        kind = f"table {name} of a {BY_NAME[name].scope}" if name in BY_NAME else f"unknown table {name!r:.60}"
        problems.append(f"{label}: {count} rows of {kind}; left out")
    if follower.damage is not None:
        problems.append(f"{label}: {follower.damage}; {unread_bytes(follower)} bytes from there on are not used")
    streams.append(
        Stream(
            path=file,
            scope=scope,
            number=number,
            attempt=int(file.name.removesuffix(layout.SUFFIX).rpartition(".")[2]),
            header=header,
            ended=follower.ended,
            damage=follower.damage,
            unread_bytes=unread_bytes(follower),
        )
    )
