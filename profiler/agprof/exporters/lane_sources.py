"""Where the spans of the lanes come from: the tables of a run, as one frame per rank on wall-clock time."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from agprof.exporters.clocks import MAX_NS
from agprof.model.format import format_value
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.reader import Run
from agprof.store.traces import RankTrace

OWN, TRACE = "agprof", "trace"
"""Domains: what agprof measured, and what a device trace holds."""

SCHEMA: Mapping[str, type[pl.DataType]] = {
    "lane_name": pl.String,
    "nests": pl.Boolean,
    "domain": pl.Categorical,
    "category": pl.Categorical,
    "name": pl.Categorical,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "payload": pl.Int64,
}
_GPU_CATEGORIES = {
    GpuKind.KERNEL: "kernel",
    GpuKind.MEMCPY: "memory",
    GpuKind.MEMSET: "memory",
    GpuKind.SYNC: "sync",
    GpuKind.ANNOTATION: "annotation",
    GpuKind.OTHER: "other",
}
_CPU_CATEGORIES = {
    CpuKind.OP: "op",
    CpuKind.RUNTIME: "runtime",
    CpuKind.DRIVER: "runtime",
    CpuKind.ANNOTATION: "annotation",
    CpuKind.PYTHON: "python",
    CpuKind.OVERHEAD: "other",
    CpuKind.OTHER: "other",
}
_TIMED = (
    ("steps", "start_ns"),
    ("spans", "start_ns"),
    ("device_spans", "start_ns"),
    ("collectives", "start_ns"),
    ("waits", "start_ns"),
    ("generations", "start_ns"),
    ("marks", "time_ns"),
)


def ranks(run: Run) -> list[int]:
    """Ranks that left a stream or a trace."""
    return sorted({stream.number for stream in run.streams if stream.scope == "rank"} | set(run.traces))


def first_ns(run: Run, rank: int, clock_ns: int) -> int | None:
    """The least time of a rank's spans and marks, on wall-clock time."""
    firsts: list[Any] = [run.tables[name].filter(pl.col("rank") == rank)[column].min() for name, column in _TIMED]
    if (trace := run.traces.get(rank)) is not None:
        firsts += [trace.tables[name].select(pl.col("start_ns").min()).collect().item() for name in ("gpu", "cpu")]
    known = [first for first in firsts if first is not None]
    return min(known) + clock_ns if known else None


def marks(run: Run, rank: int, clock_ns: int) -> pl.DataFrame:
    """name, time_ns, payload (the step)."""
    rows = run.tables["marks"].filter(pl.col("rank") == rank).drop_nulls("time_ns").sort("time_ns")
    return rows.select(pl.col("name").fill_null("mark"), time_ns=pl.col("time_ns") + clock_ns, payload=pl.col("step"))


def spans(run: Run, rank: int, clock_ns: int, *, trace: bool) -> pl.DataFrame:
    """Columns of SCHEMA and `order`: the lane's number, lanes in the order in which they are shown."""
    frames = [_shaped(frame) for frame in _own(run, rank)]
    if trace and rank in run.traces:
        frames += [_shaped(frame) for frame in _traced(run.traces[rank])]
    frames = [frame.with_columns(source=pl.lit(number)) for number, frame in enumerate(frames)]
    if not frames:
        return pl.DataFrame(schema={**SCHEMA, "order": pl.UInt32})
    return (
        pl.concat(frames)
        .drop_nulls(["start_ns", "end_ns"])
        # A damaged time near the ends of 64 bits would wrap around below.
        .filter(pl.col("start_ns").is_between(-MAX_NS, MAX_NS) & pl.col("end_ns").is_between(-MAX_NS, MAX_NS))
        .with_columns(
            pl.col("start_ns") + clock_ns,
            pl.col("end_ns") + clock_ns,
            pl.col("name").fill_null("(no name)"),
            order=pl.struct("source", "lane_name").rank("dense").cast(pl.UInt32),
        )
        .drop("source")
    )


def _shaped(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def _own(run: Run, rank: int) -> Iterator[pl.DataFrame]:
    def rows(table: str) -> pl.DataFrame:
        return run.tables[table].filter(pl.col("rank") == rank)

    def lane(name: str | pl.Expr, category: str | pl.Expr, *, nests: bool = True) -> dict[str, pl.Expr]:
        return {
            "lane_name": pl.lit(name) if isinstance(name, str) else name,
            "category": pl.lit(category) if isinstance(category, str) else category,
            "nests": pl.lit(nests),
            "domain": pl.lit(OWN),
        }

    step = pl.col("step").alias("payload")
    yield rows("steps").with_columns(step, name=pl.format("step {}", "step"), **lane("steps", "step"))
    # A phase is a category of its own: it has the phase's colour.
    category = pl.when(pl.col("category") == "phase").then("name").otherwise("category")
    phases = rows("spans").with_columns(step)
    # Thread ids are long and say nothing: the thread that has most of the spans needs none.
    main = pl.lit(phases["thread"].drop_nulls().mode().min(), dtype=pl.Int64)
    other = pl.format("phases and ranges, thread {}", "thread")
    thread = pl.when(pl.col("thread") == main).then(pl.lit("phases and ranges")).otherwise(other)
    yield phases.with_columns(**lane(thread, category))
    on_device = rows("device_spans").join(phases.select("span", "name", "category", "payload"), on="span", how="left")
    yield on_device.with_columns(end_ns=pl.col("start_ns") + pl.col("duration_ns"), **lane("device phases", category))
    yield _named_calls(rows("collectives")).with_columns(**lane("communication", "communication", nests=False))
    yield rows("waits").with_columns(step, name="wait " + pl.col("op"), **lane("waits", "wait"))
    name = pl.format(
        "generate {} x {} tokens", *(pl.col(c).cast(pl.String).fill_null("?") for c in ("batch", "new_tokens"))
    )
    yield rows("generations").with_columns(step, name=name, **lane("generations", "generate"))


def _named_calls(calls: pl.DataFrame) -> pl.DataFrame:
    """A synchronous call as long as its caller stood in it, an asynchronous one until it was complete; bytes in the
    name and, exactly, as payload."""
    sizes = {size: f" {format_value(size, 'bytes')}" for size in calls["bytes"].drop_nulls().unique().to_list()}
    words = pl.col("bytes").replace_strict(sizes, default="", return_dtype=pl.String).fill_null("")
    return calls.with_columns(
        name=pl.col("op") + words,
        end_ns=pl.when("async_op").then(pl.max_horizontal("issue_end_ns", "end_ns")).otherwise("issue_end_ns"),
        payload=pl.col("bytes"),
    )


def _traced(trace: RankTrace) -> Iterator[pl.DataFrame]:
    """What runs on a device's stream side by side is drawn side by side; what a host thread calls nests."""
    texts = trace.tables["names"].unique("name", maintain_order=True).select("name", "text").collect()

    def rows(table: str, categories: Mapping[Any, str], *columns: str) -> pl.DataFrame:
        kinds = {int(kind): word for kind, word in categories.items()}
        frame = trace.table(table, "start_ns", "duration_ns", "kind", "name", "correlation", *columns)
        return frame.join(texts, on="name", how="left", maintain_order="left").with_columns(
            category=pl.col("kind").replace_strict(kinds, default="other", return_dtype=pl.String),
            end_ns=pl.col("start_ns") + pl.col("duration_ns"),
            name=pl.col("text"),
            payload=pl.col("correlation"),
            domain=pl.lit(TRACE),
        )

    def word(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.String).fill_null("?")

    yield rows("gpu", _GPU_CATEGORIES, "device", "stream").with_columns(
        lane_name=pl.format("GPU {} stream {}", word("device"), word("stream")), nests=pl.lit(False)
    )
    yield rows("cpu", _CPU_CATEGORIES, "thread").with_columns(
        lane_name=pl.format("thread {} (trace)", word("thread")), nests=pl.lit(True)
    )
