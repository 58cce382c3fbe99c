"""Device traces in a run folder: Parquet parts per rank and table, written by importers, read as lazy frames.

traces/rank-00000/gpu.0.0.parquet       table . writer . part
traces/rank-00000/trace.json            TraceMeta; written last, so that a folder without it is incomplete
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from agprof.errors import StoreError
from agprof.model.tables import Table, Type
from agprof.model.trace_tables import TRACE_TABLES, TRACE_VERSION
from agprof.store import layout

ROWS_PER_PART = 131_072
MOST_CHARACTERS = 2**24
"""Names are written, and some perhaps twice, once they are longer together than this."""
_DTYPES: dict[Type, type[pl.DataType]] = {"int": pl.Int64, "float": pl.Float64, "str": pl.String, "bool": pl.Boolean}
_TABLES = {table.name: table for table in TRACE_TABLES}
_PART = re.compile(r"(\w+)\.(\d+)\.(\d+)\.parquet")

Values = Sequence[Any] | np.ndarray[Any, Any] | pl.Series


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMeta:
    """What is known of one rank's trace beside its rows. Plain JSON values only."""

    version: int = TRACE_VERSION
    format: str
    """kineto | nsys."""
    source: str
    """Name of the file it was read from, without folders."""
    rank_source: str = ""
    """How the rank is known: `distributedInfo`, `file name`, `order of the files`, `MPI`, `own capture`..."""
    world_size: int | None = None
    host: str | None = None
    producer: str = ""
    """Version of what wrote the file, as `Nsight Systems 2023.4.4` or `schemaVersion 1`."""
    devices: tuple[Mapping[str, Any], ...] = ()
    """One map per device: id, name, and what else the trace says of it."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Events read, by the trace's own category."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Events that were not used, by reason: `negative duration`, `no time`, ..."""
    dropped_events: int | None = None
    """Events that the profiler itself says it lost; None where it says nothing of it."""
    truncated: str | None = None
    """Where and how the file broke off, when what was read is a prefix only."""
    first_ns: int | None = None
    last_ns: int | None = None
    """Begin of the first and end of the last event."""
    timestamp_unit: str = ""
    """Resolution in which the file holds its times: `ns`, `us`."""
    time_base_ns: int | None = None
    """What was added to the file's own times to make them those of the tables."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTrace:
    """One rank's trace: every table of `model.trace_tables` as a lazy frame, also the empty ones.

    `gpu` and `cpu` are sorted by start_ns, then longest first.
    """

    rank: int
    meta: TraceMeta
    tables: Mapping[str, pl.LazyFrame]
    parts: Mapping[str, Sequence[pl.LazyFrame]] = field(default_factory=dict)
    """The same rows file by file, in no order, for who must not hold a whole table; {} where there are no files."""

    def in_parts(self, name: str) -> Sequence[pl.LazyFrame]:
        """The rows of a table in pieces that fit into memory one at a time, in no order."""
        return self.parts.get(name) or (self.tables[name],)

    def table(self, name: str, *columns: str) -> pl.DataFrame:
        """The rows of a table, or only some of its columns."""
        frame = self.tables[name]
        return (frame.select(columns) if columns else frame).collect()

    def names(self) -> dict[int, str]:
        """Text of every id."""
        return dict(self.table("names").unique("name", maintain_order=True).iter_rows())


def trace_schema(table: Table) -> dict[str, type[pl.DataType]]:
    return {column.name: _DTYPES[column.type] for column in table.columns}


def name_id(text: str) -> int:
    """The id of a name: the first 63 bits of its BLAKE2b hash."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _Names(dict[str, int]):
    """Ids of names by their text, made when first asked for."""

    characters = 0

    def __missing__(self, text: str) -> int:
        self.characters += len(text)
        found = self[text] = name_id(text)
        return found


class TraceWriter:
    """Writes one rank's tables. Several writers (processes) may write the same rank under different numbers.

    Not for the training process: it needs polars.
    """

    def __init__(self, run: Path, rank: int, writer: int = 0) -> None:
        """Raises OSError when the folder can't be made."""
        self.folder = layout.trace_folder(run, rank)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = writer
        self._parts: dict[str, int] = {}
        self._pending: dict[str, list[pl.DataFrame]] = {}
        self._names = _Names()

    def name(self, text: str) -> int:
        """The id of a name, which is remembered for table `names`."""
        return self._names[text]

    def name_ids(self, texts: Iterable[str]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """The ids of many names, in one array."""
        names = self._names
        ids = np.array([names[text] for text in texts], np.int64)
        if names.characters > MOST_CHARACTERS:
            self._write_names()
        return ids

    def append(self, table: str, columns: Mapping[str, Values]) -> None:
        """Add rows as columns of equal length; optional columns may be left out. Raises OSError, and ValueError
        when a required column is missing or one is unknown."""
        schema = trace_schema(_TABLES[table])
        if unknown := set(columns) - set(schema):
            raise ValueError(f"table {table} has no column {sorted(unknown)}")
        frame = pl.DataFrame(dict(columns), strict=False)
        if missing := {c.name for c in _TABLES[table].columns if not c.optional} - set(columns):
            raise ValueError(f"table {table} needs the columns {sorted(missing)}")
        frame = frame.select(
            (pl.col(name) if name in columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in schema.items()
        )
        pending = self._pending.setdefault(table, [])
        pending.append(frame)
        if sum(each.height for each in pending) >= ROWS_PER_PART:
            self._flush(table)

    def close(self) -> None:
        """Write what is left, and the names. Raises OSError."""
        self._write_names()
        for table in list(self._pending):
            self._flush(table)

    def _write_names(self) -> None:
        if self._names:
            texts = [text.encode("utf-8", "replace").decode() for text in self._names]
            self.append("names", {"name": list(self._names.values()), "text": texts})
            self._names = _Names()

    def _flush(self, table: str) -> None:
        frames = self._pending.pop(table, [])
        if not frames:
            return
        part = self._parts.get(table, 0)
        self._parts[table] = part + 1
        pl.concat(frames).write_parquet(self.folder / f"{table}.{self._writer}.{part}.parquet", compression="lz4")


def write_meta(run: Path, rank: int, meta: TraceMeta) -> None:
    """Write `trace.json`, which makes the trace complete. Raises OSError."""
    path = layout.trace_folder(run, rank) / layout.TRACE_META
    path.write_text(json.dumps(asdict(meta), indent=1) + "\n", encoding="utf-8")


def read_traces(run: Path, problems: list[str] | None = None) -> dict[int, RankTrace]:
    """The traces of a run folder by rank; {} when it has none. What can't be read is said in `problems`.

    Raises StoreError when a trace was written by a newer agprof.
    """
    problems = problems if problems is not None else []
    found: dict[int, RankTrace] = {}
    for folder in sorted((run / layout.TRACES).glob("rank-*")):
        number = folder.name.removeprefix("rank-")
        label = f"{layout.TRACES}/{folder.name}"
        if not number.isdigit():
            problems.append(f"{label} is no trace of a rank; left out")
            continue
        meta = _read_meta(folder, label, problems)
        if meta is not None:
            parts = _parts(folder, label, problems)
            tables = {name: _whole(table, parts[name]) for name, table in _TABLES.items()}
            found[int(number)] = RankTrace(rank=int(number), meta=meta, tables=tables, parts=parts)
    return found


def _read_meta(folder: Path, label: str, problems: list[str]) -> TraceMeta | None:
    try:
        values = json.loads((folder / layout.TRACE_META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{label} has no {layout.TRACE_META}: its import did not end; left out")
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{label}/{layout.TRACE_META} can't be read: {error}; left out")
        return None
    version = values.get("version") if isinstance(values, dict) else None
    if not isinstance(version, int) or version < 1:
        problems.append(f"{label}/{layout.TRACE_META} has no version; left out")
        return None
    if version > TRACE_VERSION:
        raise StoreError(
            f"{folder} has trace version {version}; this agprof reads up to {TRACE_VERSION}: use a newer agprof"
        )
    try:
        return msgspec.convert(values, TraceMeta)
    except msgspec.ValidationError as error:
        problems.append(f"{label}/{layout.TRACE_META} is not as it should be: {error}; left out")
        return None


def _parts(folder: Path, label: str, problems: list[str]) -> dict[str, tuple[pl.LazyFrame, ...]]:
    parts: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        match = _PART.fullmatch(file.name)
        if match is None or match[1] not in _TABLES:
            problems.append(f"{label}/{file.name} is no table of a trace; left out")
        else:
            parts.setdefault(match[1], []).append(file)
    return {name: _scan(table, parts.get(name, []), label, problems) for name, table in _TABLES.items()}


def _scan(table: Table, files: list[Path], label: str, problems: list[str]) -> tuple[pl.LazyFrame, ...]:
    schema = trace_schema(table)
    frames = []
    for file in files:
        try:
            if dict(pl.read_parquet_schema(file)) != schema:
                problems.append(f"{label}/{file.name} has other columns than table {table.name}; left out")
                continue
        except (OSError, pl.exceptions.PolarsError) as error:
            problems.append(f"{label}/{file.name} can't be read: {error}; left out")
            continue
        frames.append(pl.scan_parquet(file))
    return tuple(frames)


def _whole(table: Table, frames: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    schema = trace_schema(table)
    if not frames:
        return pl.LazyFrame(schema=schema)
    whole = pl.concat(frames)
    if "duration_ns" in schema:
        return whole.sort("start_ns", "duration_ns", descending=[False, True], maintain_order=True)
    order = next((name for name in ("start_ns", "time_ns") if name in schema), None)
    return whole if order is None else whole.sort(order, maintain_order=True)
