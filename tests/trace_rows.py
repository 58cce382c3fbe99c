"""A rank's device trace, written down row by row in a test."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from agprof.model.trace_tables import TRACE_TABLES, CpuKind, GpuKind
from agprof.store.traces import RankTrace, TraceMeta, name_id, trace_schema


@dataclass
class TraceRows:
    """Collects rows; `trace()` is the trace. Times in ns; names are texts."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {table.name: [] for table in TRACE_TABLES})
    texts: dict[int, str] = field(default_factory=dict)

    def name(self, text: str) -> int:
        self.texts[name_id(text)] = text
        return name_id(text)

    def gpu(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        stream: int | None = 7,
        correlation: int | None = None,
        kind: GpuKind = GpuKind.KERNEL,
        **more: Any,
    ) -> None:
        self.rows["gpu"].append(
            {
                "start_ns": start_ns,
                "duration_ns": end_ns - start_ns,
                "kind": int(kind),
                "device": 0,
                "stream": stream,
                "name": self.name(name),
                "correlation": correlation,
                **more,
            }
        )

    def cpu(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        thread: int | None = 1,
        correlation: int | None = None,
        kind: CpuKind = CpuKind.OP,
        **more: Any,
    ) -> None:
        self.rows["cpu"].append(
            {
                "start_ns": start_ns,
                "duration_ns": end_ns - start_ns,
                "kind": int(kind),
                "thread": thread,
                "name": self.name(name),
                "correlation": correlation,
                **more,
            }
        )

    def call(self, name: str, start_ns: int, end_ns: int, correlation: int, thread: int = 1) -> None:
        self.cpu(name, start_ns, end_ns, thread, correlation, CpuKind.RUNTIME)

    def step(self, number: int, start_ns: int, end_ns: int, thread: int = 1) -> None:
        self.cpu(f"ProfilerStep#{number}", start_ns, end_ns, thread, kind=CpuKind.ANNOTATION)

    def add(self, table: str, **row: Any) -> None:
        self.rows[table].append(row)

    def trace(self, rank: int = 0) -> RankTrace:
        names = [{"name": name, "text": text} for name, text in self.texts.items()]
        rows = self.rows | {"names": names}
        frames = {table.name: _frame(table, rows[table.name]) for table in TRACE_TABLES}
        starts = [row["start_ns"] for name in ("gpu", "cpu") for row in rows[name]]
        meta = TraceMeta(format="kineto", source="test", first_ns=min(starts, default=None))
        return RankTrace(rank=rank, meta=meta, tables=frames)


def _frame(table: Any, rows: Sequence[dict[str, Any]]) -> pl.LazyFrame:
    schema = trace_schema(table)
    frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)
    if "duration_ns" in schema:
        frame = frame.sort("start_ns", "duration_ns", descending=[False, True], maintain_order=True)
    return frame.lazy()
