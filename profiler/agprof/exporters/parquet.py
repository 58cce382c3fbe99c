"""Every table of a run as a Parquet file: real texts instead of ids, and wall time beside the run's own clock.

`parquet/<table>.parquet` is a table of `model.tables`, `parquet/trace_<table>.parquet` one of `model.trace_tables` with
the rows of all ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from agprof.analysis.clock_axis import ClockAxis, common_column
from agprof.analysis.one_axis import axes_of_ranks, on_one_axis, pinged_axes
from agprof.exporters.clocks import Clocks, clocks
from agprof.exporters.pace import Pace
from agprof.exporters.whole import whole
from agprof.model.tables import SCHEMA_VERSION, TABLES, Table
from agprof.model.trace_tables import CPU, GPU, TRACE_TABLES, TRACE_VERSION, CpuKind, GpuKind
from agprof.model.version import __version__
from agprof.store.reader import Run
from agprof.store.traces import RankTrace, trace_schema

FOLDER = "parquet"
_TIMES = ("start_ns", "time_ns")
_KINDS: dict[str, type[GpuKind] | type[CpuKind]] = {GPU.name: GpuKind, CPU.name: CpuKind}
NAMES = "names"
"""The only table that is not written: its texts stand where its ids were."""


def export(run: Run, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the tables, also the empty ones. Raises OSError."""
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    wall = _wall(run, say)
    pace = Pace(say, "parquet: tables written:")
    files = []
    for table in TABLES:
        files.append(target / f"{table.name}.parquet")
        _write(_run_table(run, table, wall), files[-1], table, SCHEMA_VERSION)
        pace.add(1)
    for table in TRACE_TABLES:
        if run.traces and table.name != NAMES:
            files.append(target / f"trace_{table.name}.parquet")
            _write(pl.concat(_trace_frames(run, table, wall)), files[-1], table, TRACE_VERSION)
            pace.add(1)
    return files


def _write(frame: pl.LazyFrame, path: Path, table: Table, version: int) -> None:
    """Stream a frame into a file that appears when it is whole."""
    metadata = {
        "agprof.version": __version__,
        "agprof.schema_version": str(version),
        "agprof.table": table.name,
        "agprof.doc": table.doc,
    }
    with whole(path) as place:
        frame.sink_parquet(place, compression="zstd", metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wall:
    """What makes a node's own time the wall time of the reference node: an axis, then a constant."""

    by_node: Mapping[int, ClockAxis]
    by_rank: Mapping[int, ClockAxis]
    offsets: Clocks


def _wall(run: Run, say: Callable[[str], None]) -> _Wall:
    axes = pinged_axes(run)
    offsets = clocks(on_one_axis(run, say).streams)
    return _Wall(by_node=axes, by_rank=axes_of_ranks(run, axes), offsets=offsets)


def _run_table(run: Run, table: Table, wall: _Wall) -> pl.LazyFrame:
    frame = run.tables[table.name].lazy()
    time = next((column.name for column in table.columns if column.name in _TIMES), None)
    if time is None:
        return frame
    offset = wall.offsets.of_rank if table.scope == "rank" else wall.offsets.of_node
    axes = wall.by_rank if table.scope == "rank" else wall.by_node
    found = run.tables[table.name][table.scope].drop_nulls().unique().to_list()
    shift = pl.col(table.scope).replace_strict({number: offset(number) for number in found}, default=None,
                                               return_dtype=pl.Int64)  # fmt: skip
    return frame.with_columns(wall=_wall_time(common_column(axes, pl.col(table.scope), pl.col(time)) + shift))


def _trace_frames(run: Run, table: Table, wall: _Wall) -> Iterator[pl.LazyFrame]:
    for rank, trace in sorted(run.traces.items()):
        frame = trace.tables[table.name]
        if "name" in trace_schema(table):
            frame = _with_texts(frame, trace)
        if table.name in _KINDS:
            words = {int(kind): kind.name.lower() for kind in _KINDS[table.name]}
            frame = frame.with_columns(pl.col("kind").replace_strict(words, default=None, return_dtype=pl.String))
        time = next((column.name for column in table.columns if column.name in _TIMES), None)
        if time is not None:
            on_axis = wall.by_rank.get(rank, ClockAxis()).column(pl.col(time))
            frame = frame.with_columns(wall=_wall_time(on_axis + wall.offsets.of_rank(rank)))
        yield frame.select(pl.lit(rank, pl.Int64).alias("rank"), pl.all())


def _with_texts(frame: pl.LazyFrame, trace: RankTrace) -> pl.LazyFrame:
    names = trace.tables[NAMES].unique("name", keep="first")
    columns = frame.collect_schema().names()
    return (
        frame.join(names, on="name", how="left", maintain_order="left")
        .drop("name")
        .rename({"text": "name"})
        .select(columns)
    )


def _wall_time(nanoseconds: pl.Expr) -> pl.Expr:
    """A point in time, to the nanosecond, UTC."""
    return nanoseconds.cast(pl.Datetime("ns", "UTC"))
