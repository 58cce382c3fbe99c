"""Small SQLite exports as Nsight Systems of different years writes them."""

import sqlite3
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
EPOCH_NS = 1_700_000_000_000_000_000


def process(pid: int) -> int:
    """A serialized global id of a process, its thread 0."""
    return (1 << 48) | (pid << 24)


def thread(pid: int, tid: int) -> int:
    return process(pid) | tid


def write_export(file: Path, tables: Mapping[str, Sequence[Row]], *, epoch_ns: int | None = EPOCH_NS) -> Path:
    """A database with these tables; the columns of each are the keys of all its rows."""
    connection = sqlite3.connect(file)
    both = dict(tables)
    if epoch_ns is not None:
        both.setdefault("TARGET_INFO_SESSION_START_TIME", [{"utcEpochNs": epoch_ns}])
    for name, rows in both.items():
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["id"]
        connection.execute(f'CREATE TABLE "{name}" ({", ".join(f"{chr(34)}{c}{chr(34)}" for c in columns)})')
        marks = ", ".join("?" * len(columns))
        connection.executemany(
            f'INSERT INTO "{name}" VALUES ({marks})', [[row.get(column) for column in columns] for row in rows]
        )
    connection.commit()
    connection.close()
    return file


def strings(*texts: str) -> list[Row]:
    """Table StringIds: the ids are 1, 2, ..."""
    return [{"id": number, "value": text} for number, text in enumerate(texts, 1)]


def kernel(start: int, end: int, name: int, *, pid: int | None = 10, device: int = 0, **more: Any) -> Row:
    row = {"start": start, "end": end, "deviceId": device, "streamId": 7, "correlationId": more.pop("correlation", 0),
           "demangledName": name, "shortName": name, **more}  # fmt: skip
    return row if pid is None else {**row, "globalPid": process(pid)}


def call(start: int, end: int, name: int, *, pid: int = 10, tid: int = 10, correlation: int = 0) -> Row:
    return {"start": start, "end": end, "globalTid": thread(pid, tid), "correlationId": correlation, "nameId": name,
            "eventClass": 0}  # fmt: skip


def nvtx(
    start: int, end: int | None, text: str | None, *, type_: int = 59, pid: int = 10, tid: int = 10, **more: Any
) -> Row:
    return {"start": start, "end": end, "eventType": type_, "text": text, "globalTid": thread(pid, tid),
            "domainId": more.pop("domain", 0), **more}  # fmt: skip


def payload(domain: int, schema: int, body: bytes) -> bytes:
    """binaryData as nsys 2026 writes it."""
    return struct.pack("<IIIIQQ", domain, 0, schema, 0, len(body), 32 + len(body)) + body
