"""A device trace as the rows that nsys has for it: kernels, copies, fills and runtime calls."""

import sqlite3
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import polars as pl

from agprof.exporters.nsys_tables import COPY_KINDS, CUPTI_TABLES, Names
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

_WHERE = "start, end, deviceId, contextId, streamId, correlationId, globalPid"
_SHAPE = (
    "registersPerThread, gridX, gridY, gridZ, blockX, blockY, blockZ, staticSharedMemory, dynamicSharedMemory, "
    "localMemoryPerThread, localMemoryTotal, gridId"
)
_THREAD_BITS = 0xFFFFFF


def add_device_rows(
    database: sqlite3.Connection, trace: RankTrace, names: Names, shift_ns: int, process_id: int
) -> None:
    """Add a trace's rows, `shift_ns` added to their times; what would begin before 0 is left out.

    Launch shapes are not in our tables: 0, as nsys has it where it does not know.
    """
    for table in CUPTI_TABLES:
        database.execute(table)
    ids = {number: names.id(text) for number, text in trace.names().items()}
    gpu = _shifted(trace.table("gpu"), shift_ns)
    kernels = gpu.filter(pl.col("kind") == GpuKind.KERNEL)
    texts = [ids.get(name, 0) for name in kernels["name"].to_list()]
    database.executemany(
        f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL ({_WHERE}, demangledName, shortName, graphNodeId, {_SHAPE}) "
        f"VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, {', '.join('0' * 12)})",
        zip(*_where(kernels, process_id), texts, texts, kernels["graph_node"].to_list(), strict=False),
    )
    copies = gpu.filter(pl.col("kind") == GpuKind.MEMCPY)
    words = trace.names()
    kinds = [_copy_kind(words.get(name, "")) for name in copies["name"].to_list()]
    database.executemany(
        f"INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY ({_WHERE}, bytes, copyKind) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
        zip(*_where(copies, process_id), copies["bytes"].fill_null(0).to_list(), kinds, strict=False),
    )
    fills = gpu.filter(pl.col("kind") == GpuKind.MEMSET)
    database.executemany(
        f"INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET ({_WHERE}, value, bytes) VALUES (?, ?, ?, 0, ?, ?, ?, 0, ?)",
        zip(*_where(fills, process_id), fills["bytes"].fill_null(0).to_list(), strict=False),
    )
    _add_calls(database, trace, ids, shift_ns, process_id)


def _add_calls(
    database: sqlite3.Connection, trace: RankTrace, ids: dict[int, int], shift_ns: int, process_id: int
) -> None:
    calls = _shifted(
        trace.tables["cpu"].filter(pl.col("kind").is_in([CpuKind.RUNTIME, CpuKind.DRIVER])).collect(), shift_ns
    )
    database.executemany(
        "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME (start, end, eventClass, globalTid, correlationId, nameId, "
        "returnValue) VALUES (?, ?, ?, ?, ?, ?, 0)",
        zip(
            calls["start_ns"].to_list(),
            calls["end_ns"].to_list(),
            (calls["kind"] == CpuKind.DRIVER).cast(pl.Int64).to_list(),
            [process_id | (thread or 0) & _THREAD_BITS for thread in calls["thread"].to_list()],
            calls["correlation"].to_list(),
            [ids.get(name, 0) for name in calls["name"].to_list()],
            strict=True,
        ),
    )


def _shifted(frame: pl.DataFrame, shift_ns: int) -> pl.DataFrame:
    start = pl.col("start_ns") + shift_ns
    return frame.with_columns(start_ns=start, end_ns=start + pl.col("duration_ns")).filter(
        (pl.col("start_ns") >= 0) & (pl.col("duration_ns") >= 0)
    )


def _where(frame: pl.DataFrame, process_id: int) -> list[Iterable[Any]]:
    """Columns start, end, deviceId, streamId, correlationId, globalPid."""
    return [
        frame["start_ns"].to_list(),
        frame["end_ns"].to_list(),
        frame["device"].fill_null(0).to_list(),
        frame["stream"].fill_null(0).to_list(),
        frame["correlation"].to_list(),
        repeat(process_id),
    ]


def _copy_kind(name: str) -> int:
    return next((kind for word, kind in COPY_KINDS.items() if word in name), 0)
