"""Run folders with any spans, any device trace and any names, for tests of the exporters."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store import layout
from agprof.store.reader import Run, read_run
from agprof.store.traces import TraceMeta, TraceWriter, write_meta
from synthetic import BOOT_NS, rank_header, row, write_stream

NASTY = (
    "</script>", "\x00\x1f\x7f", "\u2028\u2029", '"\\', "\ud800 lone", "", "'{{7*7}}'", "\U0001f600", "ProfilerStep#3",
)  # fmt: skip
MEGABYTE = "n" * 1_000_000
NAMES = st.one_of(st.sampled_from(NASTY), st.text(max_size=12))
TIME = st.integers(0, 60)
"""Few different times, so that slices nest, cross, touch and are empty."""

SPAN = st.fixed_dictionaries(
    {
        "category": st.sampled_from(["phase", "range", "module"]),
        "name": NAMES,
        "start_ns": TIME,
        "duration_ns": TIME,
        "thread": st.integers(1, 2),
    }
)
COLLECTIVE = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["all_reduce", "barrier"]),
        "group": NAMES,
        "start_ns": TIME,
        "issued_ns": TIME,
        "in_flight_ns": st.one_of(st.none(), TIME),
        "async_op": st.booleans(),
        "bytes": st.one_of(st.none(), st.integers(0, 2**40)),
        "thread": st.integers(1, 2),
    }
)
NUMBER = st.one_of(st.none(), st.integers(-(2**31), 2**53))
GPU_ROW = st.fixed_dictionaries(
    {
        "start_ns": TIME,
        "duration_ns": TIME,
        "kind": st.sampled_from(GpuKind).map(int),
        "device": st.integers(0, 1),
        "stream": st.one_of(st.none(), st.integers(0, 2)),
        "text": NAMES,
        "correlation": st.one_of(st.none(), st.integers(1, 6)),
        "external_id": NUMBER,
        "bytes": NUMBER,
        "graph_node": NUMBER,
    }
)
CPU_ROW = st.fixed_dictionaries(
    {
        "start_ns": TIME,
        "duration_ns": TIME,
        "kind": st.sampled_from(CpuKind).map(int),
        "thread": st.integers(-3, 3),
        "text": NAMES,
        "correlation": st.one_of(st.none(), st.integers(1, 6)),
        "external_id": NUMBER,
        "sequence": NUMBER,
        "forward_thread": NUMBER,
        "stream": st.one_of(st.none(), st.integers(0, 2)),
    }
)


COUNTER_ROW = st.fixed_dictionaries(
    {"time_ns": TIME, "text": NAMES, "value": st.floats(allow_nan=False, allow_infinity=False)}
)
MEMORY_ROW = st.fixed_dictionaries(
    {
        "time_ns": TIME,
        "on_device": st.booleans(),
        "device": st.one_of(st.none(), st.integers(0, 1)),
        "address": NUMBER,
        "bytes": st.integers(-(2**40), 2**40),
        "allocated_bytes": NUMBER,
        "reserved_bytes": NUMBER,
    }
)


@contextmanager
def run_of(
    spans: dict[int, list[dict[str, Any]]],
    collectives: dict[int, list[dict[str, Any]]] | None = None,
    trace: dict[str, list[dict[str, Any]]] | None = None,
) -> Iterator[Run]:
    """A run whose ranks, each on a node of its own with its own clock, have these spans; rank 0 also a trace."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / layout.RANKS).mkdir()
        (folder / layout.MANIFEST).write_text("{}")
        for rank, rows in spans.items():
            header = rank_header(rank, len(spans), node=rank)
            boot = header["clock"]["monotonic_ns"]
            tables = {
                "spans": [_span(number, values, boot) for number, values in enumerate(rows)],
                "collectives": [_collective(values, boot) for values in (collectives or {}).get(rank, [])],
            }
            write_stream(layout.rank_stream(folder, rank), header, tables)
        if trace is not None:
            write_trace(folder, 0, trace)
        yield read_run(folder)
    finally:
        shutil.rmtree(folder)


def write_trace(folder: Path, rank: int, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Rows by table, whose names are texts and whose times count from the run's begin."""
    writer = TraceWriter(folder, rank)
    for table, rows in tables.items():
        if rows:
            columns = {name: [values[name] for values in rows] for name in rows[0] if name != "text"}
            time = "start_ns" if "start_ns" in columns else "time_ns"
            columns[time] = [BOOT_NS + value for value in columns[time]]
            if "text" in rows[0]:
                columns["name"] = [writer.name(_plain(values["text"])) for values in rows]
            writer.append(table, columns)
    writer.close()
    write_meta(folder, rank, TraceMeta(format="kineto", source="made up", events={}, left_out={}))


def _plain(text: str) -> str:
    """Polars, as every table, holds Unicode only; what a file's decoder makes of lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _span(number: int, values: dict[str, Any], boot: int) -> tuple[Any, ...]:
    start = boot + values["start_ns"]
    return row(
        "spans", span=number, step=0, micro_step=0, category=values["category"], name=values["name"], start_ns=start,
        end_ns=start + values["duration_ns"], thread=values["thread"], depth=0,
    )  # fmt: skip


def _collective(values: dict[str, Any], boot: int) -> tuple[Any, ...]:
    start = boot + values["start_ns"]
    issued = start + values["issued_ns"]
    end = None if values["in_flight_ns"] is None else issued + values["in_flight_ns"]
    return row(
        "collectives", step=0, micro_step=0, op=values["op"], group=values["group"], group_size=2,
        bytes=values["bytes"], dtype="float32", async_op=values["async_op"], start_ns=start, issue_end_ns=issued,
        end_ns=end, wait_ns=0, tap="wrapper", thread=values["thread"], caller="backward",
    )  # fmt: skip
