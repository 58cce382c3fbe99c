"""Runs made of rows, without a folder, for tests of exporters."""

from pathlib import Path
from typing import Any

import polars as pl

from agprof.model.tables import TABLES
from agprof.store.reader import Run, Stream, schema

MONOTONIC_NS = 5_000_000_000_000
REALTIME_NS = 1_790_000_000_123_456_789


def stream(rank: int, *, host: str = "host", node: int = 0) -> Stream:
    """A rank's stream whose clock says REALTIME_NS at MONOTONIC_NS."""
    clock = {"realtime_ns": REALTIME_NS, "monotonic_ns": MONOTONIC_NS}
    return Stream(
        path=Path(f"rank-{rank:05d}.0.agp"),
        scope="rank",
        number=rank,
        attempt=0,
        header={"rank": rank, "host": host, "node": node, "clock": clock},
        ended="clean",
        damage=None,
        unread_bytes=0,
    )


def run_of(path: Path, ranks: int, rows: dict[str, list[dict[str, Any]]]) -> Run:
    """A run of `ranks` ranks whose tables hold the given rows; columns left out are null."""
    tables = {table.name: pl.DataFrame(rows.get(table.name, []), schema=schema(table)) for table in TABLES}
    return Run(
        path=path,
        manifest={},
        outcome=None,
        streams=tuple(stream(rank) for rank in range(ranks)),
        tables=tables,
        problems=(),
    )
