"""Views made of rows, without a folder: ranks' facts and a node's GPUs, for tests of what is said of GPUs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from agprof.analysis.view import View, prepare
from agprof.model.tables import TABLES
from agprof.store.reader import Run, Stream, schema
from runs_of_rows import stream

Rows = list[dict[str, Any]]


def view_of(
    rows: Mapping[str, Rows],
    *,
    facts: Mapping[int, Mapping[str, Any] | Sequence[tuple[str, Any]]] | None = None,
    node_of: Mapping[int, int] | None = None,
    ahead_ns: Mapping[int, int] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> View:
    """The view of a run whose tables hold `rows`; `facts` are given per rank, as a mapping or as pairs in order.

    `ahead_ns`: node -> how far its monotonic clock is ahead of the others'.
    """
    told = facts or {}
    pairs = {rank: list(own.items() if isinstance(own, Mapping) else own) for rank, own in told.items()}
    fact_rows = [
        {"rank": rank, "time_ns": number, "key": key, "value": json.dumps(value)}
        for rank, own in pairs.items()
        for number, (key, value) in enumerate(own)
    ]
    every: dict[str, Rows] = {**rows, "facts": [*rows.get("facts", []), *fact_rows]}
    tables = {table.name: pl.DataFrame(every.get(table.name, []), schema=schema(table)) for table in TABLES}
    nodes = node_of or dict.fromkeys(pairs, 0)
    run = Run(
        path=Path("run"),
        manifest=manifest or {},
        outcome=None,
        streams=tuple(_stream(rank, node, (ahead_ns or {}).get(node, 0)) for rank, node in sorted(nodes.items())),
        tables=tables,
        problems=(),
    )
    return prepare(run)


def _stream(rank: int, node: int, ahead_ns: int) -> Stream:
    plain = stream(rank, node=node)
    clock = plain.header["clock"]
    return replace(plain, header={**plain.header, "clock": clock | {"monotonic_ns": clock["monotonic_ns"] + ahead_ns}})


def gpu_row(gpu: int, *, node: int = 0, **values: Any) -> dict[str, Any]:
    """A row of `gpus`: a whole H100 unless told otherwise."""
    return {
        "node": node,
        "gpu": gpu,
        "uuid": uuid(gpu, node=node),
        "pci_bus_id": f"00000000:{0x10 + gpu:02X}:00.0",
        "name": "NVIDIA H100 80GB HBM3",
        "memory_total_bytes": 80 * 2**30,
        "mig_enabled": False,
        **values,
    }


def uuid(number: int, *, node: int = 0, kind: str = "GPU") -> str:
    return f"{kind}-{number:08x}-{node:04x}-4106-c12f-20bd9faed9f6"
