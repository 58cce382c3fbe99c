"""Reads a run folder into tables (polars data frames with the columns of `model.tables`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from agprof.errors import StoreError
from agprof.model.tables import SCHEMA_VERSION, TABLES, Scope, Table, Type
from agprof.store import layout
from agprof.store.frames import Rows, StreamFollower, unread_bytes

_DTYPES: dict[Type, type[pl.DataType]] = {"int": pl.Int64, "float": pl.Float64, "str": pl.String, "bool": pl.Boolean}


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


def schema(table: Table) -> dict[str, type[pl.DataType]]:
    """The data frame schema of a table as this module returns it."""
    return {table.scope: pl.Int64, **{column.name: _DTYPES[column.type] for column in table.columns}}


def read_run(path: Path) -> Run:
    """Read a run folder, also of a job that was killed or still runs.

    Raises StoreError when the path is no run folder, or was written by a newer agprof.
    """
    if not path.is_dir():
        raise StoreError(f"{path} is not a run folder: no such directory")
    problems: list[str] = []
    manifest = _read_json(path / layout.MANIFEST, problems)
    files = sorted((path / layout.RANKS).glob(f"*{layout.SUFFIX}")) + sorted(
        (path / layout.NODES).glob(f"*{layout.SUFFIX}")
    )
    if not manifest and not files:
        raise StoreError(f"{path} is not a run folder: it has neither {layout.MANIFEST} nor streams in {layout.RANKS}/")
    version = manifest.get("schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path} has schema version {version}; this agprof reads up to {SCHEMA_VERSION}")
    if not manifest:
        problems.append(f"{layout.MANIFEST} is missing: the workload and the command are not known")
    streams: list[Stream] = []
    parts: dict[str, list[pl.DataFrame]] = {table.name: [] for table in TABLES}
    for file in files:
        _read_stream(file, streams, parts, problems)
    outcome = _read_json(path / layout.OUTCOME, problems) or None
    tables = {table.name: _concatenate(table, parts[table.name]) for table in TABLES}
    return Run(
        path=path,
        manifest=manifest,
        outcome=outcome,
        streams=tuple(streams),
        tables=tables,
        problems=tuple(problems),
    )


def _concatenate(table: Table, frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema(table))


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} can't be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is not a JSON object")
        return {}
    return value


def _read_stream(file: Path, streams: list[Stream], parts: dict[str, list[pl.DataFrame]], problems: list[str]) -> None:
    scope: Scope = "rank" if file.parent.name == layout.RANKS else "node"
    follower = StreamFollower(file)
    rows: dict[str, Rows] = {}
    try:
        for name, batch in follower.poll():
            rows.setdefault(name, []).extend(batch)
    except StoreError as error:
        problems.append(str(error))
        return
    label = f"{scope}s/{file.name}"
    if follower.damage is not None:
        problems.append(f"{label}: {follower.damage}; {unread_bytes(follower)} bytes behind it are not used")
    if follower.header is None:
        problems.append(f"{label} has no header: its writer died as it began")
        return
    number = int(follower.header.get(scope, -1))
    for table in TABLES:
        if table.scope == scope and rows.get(table.name):
            parts[table.name].append(_frame(table, number, rows[table.name], problems, label))
    stem = file.name.removesuffix(layout.SUFFIX)
    streams.append(
        Stream(
            path=file,
            scope=scope,
            number=number,
            attempt=int(stem.rpartition(".")[2]),
            header=follower.header,
            ended=follower.ended,
            damage=follower.damage,
            unread_bytes=unread_bytes(follower),
        )
    )


def _frame(table: Table, number: int, rows: Rows, problems: list[str], label: str) -> pl.DataFrame:
    width = len(table.columns)
    good = [row for row in rows if len(row) == width]
    if len(good) != len(rows):
        problems.append(f"{label}: {len(rows) - len(good)} rows of table {table.name} have a foreign shape; left out")
    columns = list(zip(*good, strict=True)) if good else [()] * width
    data = {
        column.name: pl.Series(column.name, values, dtype=_DTYPES[column.type], strict=False)
        for column, values in zip(table.columns, columns, strict=True)
    }
    frame = pl.DataFrame(data, schema={column.name: _DTYPES[column.type] for column in table.columns})
    return frame.select(pl.lit(number, dtype=pl.Int64).alias(table.scope), *frame.columns)
