"""Device traces built by hand, row by row, without a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from agprof.model.trace_tables import TRACE_TABLES, CpuKind, GpuKind
from agprof.store.traces import RankTrace, TraceMeta, name_id, trace_schema

MAIN = 100
"""The thread that everything runs on unless said otherwise."""


@dataclass(slots=True)
class TraceBuilder:
    """Collects rows; `build` makes the trace of one rank."""

    rank: int = 0
    world_size: int | None = None
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    base_ns: int = 0

    def gpu(
        self, name: str, start: int, duration: int, *, kind: GpuKind = GpuKind.KERNEL, stream: int = 7, **more: Any
    ) -> "TraceBuilder":
        return self._row("gpu", name, start, duration, kind=int(kind), device=0, stream=stream, **more)

    def cpu(
        self, name: str, start: int, duration: int, *, kind: CpuKind = CpuKind.OP, thread: int = MAIN, **more: Any
    ) -> "TraceBuilder":
        return self._row("cpu", name, start, duration, kind=int(kind), thread=thread, **more)

    def launch(
        self, name: str, at: int, start: int, duration: int, *, correlation: int, thread: int = MAIN, **more: Any
    ) -> "TraceBuilder":
        """A kernel and the call that launches it, which takes 2 ns."""
        call = "cudaLaunchKernel"
        self.cpu(call, at, 2, kind=CpuKind.RUNTIME, thread=thread, correlation=correlation)
        return self.gpu(name, start, duration, correlation=correlation, **more)

    def comm(self, start: int, op: str, **more: Any) -> "TraceBuilder":
        self.rows.setdefault("comm_args", []).append({"start_ns": start, "op": op, **more})
        return self

    def build(self) -> RankTrace:
        rows = dict(self.rows)
        rows["names"] = [{"name": number, "text": text} for text, number in self.names.items()]
        tables = {table.name: _frame(table.name, rows.get(table.name, [])) for table in TRACE_TABLES}
        spans = [row for name in ("gpu", "cpu") for row in self.rows.get(name, [])]
        meta = TraceMeta(
            format="kineto",
            source="built by hand",
            world_size=self.world_size,
            events={"X": len(spans)},
            first_ns=min((row["start_ns"] for row in spans), default=None),
            last_ns=max((row["start_ns"] + row["duration_ns"] for row in spans), default=None),
            time_base_ns=self.base_ns,
        )
        return RankTrace(rank=self.rank, meta=meta, tables=tables)

    def _row(self, table: str, name: str, start: int, duration: int, **more: Any) -> "TraceBuilder":
        number = self.names.setdefault(name, name_id(name))
        row = {"start_ns": start + self.base_ns, "duration_ns": duration, "name": number, **more}
        self.rows.setdefault(table, []).append(row)
        return self


def _frame(name: str, rows: Sequence[Mapping[str, Any]]) -> pl.LazyFrame:
    schema = trace_schema(next(table for table in TRACE_TABLES if table.name == name))
    frame = pl.LazyFrame([{column: row.get(column) for column in schema} for row in rows], schema=schema)
    if "duration_ns" in schema:
        return frame.sort("start_ns", "duration_ns", descending=[False, True], maintain_order=True)
    return frame
