"""Collectives of a trace: from what it says of them, else from the names of communication kernels.

Total bytes S are nccl-tests' (model.tables): all-gather n x input, reduce-scatter n x output, others the buffer.
"""

import polars as pl

from agprof.importers.trace_ranges import COLLECTIVE
from agprof.model.communication_kernels import Communication, operation
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

SCHEMA = {"op": pl.String, "group": pl.String, "group_size": pl.Int64, "bytes": pl.Int64, "dtype": pl.String,
          "start_ns": pl.Int64, "issue_end_ns": pl.Int64, "end_ns": pl.Int64, "thread": pl.Int64}  # fmt: skip
UNKNOWN_GROUP = "unknown"
_ELEMENT_BYTES = {
    "byte": 1, "char": 1, "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "half": 2, "bfloat16": 2, "short": 2, "float16": 2, "int16": 2,
    "float": 4, "int": 4, "float32": 4, "int32": 4,
    "double": 8, "long": 8, "float64": 8, "int64": 8, "complexfloat": 8,
}  # fmt: skip
_TOLD = ("op", "group", "group_size", "dtype", "elements_in", "elements_out")


def find_collectives(
    trace: RankTrace, names: pl.DataFrame, ranges: pl.DataFrame, communication: Communication
) -> pl.DataFrame:
    """Columns of SCHEMA, in order of time; `ranges` are those of `trace_ranges.host_ranges`.

    A kernel's call is the host call that launched it; its end is the kernel's. Where the trace neither speaks of
    collectives nor shows their kernels, ranges that are called after them count.

    What the trace says of a kernel stands on itself (correlation) or on the host's event that caused it (external id).
    Host events that caused no kernel are calls of their own: gloo's. group_size is 0, and the group `unknown`, where
    the trace does not say.
    """
    # Waiting for a collective is told as one, too.
    told = trace.table("comm_args").filter(pl.col("op") != "wait").with_columns(pl.col("group_size").fill_null(0))
    on_device = told.drop_nulls("correlation").unique("correlation", maintain_order=True)
    on_host = told.filter(pl.col("correlation").is_null())
    kernels = _kernels(trace, on_device["correlation"], communication)
    known = kernels.join(on_device.select("correlation", *_TOLD), on="correlation", how="left").join(
        on_host.drop_nulls("external_id").unique("external_id", maintain_order=True).select("external_id", *_TOLD),
        on="external_id",
        how="left",
        suffix="_host",
    )
    spoken = pl.col("op").is_not_null()
    merged = known.with_columns(pl.when(spoken).then(name).otherwise(f"{name}_host").alias(name) for name in _TOLD)
    merged = merged.with_columns(pl.coalesce("op", "named").alias("op"), pl.col("group_size").fill_null(0))
    caused = kernels["external_id"].drop_nulls().unique()
    # Of a coalesced call the host's event and the kernel both speak: one call.
    rest = on_host.filter(pl.col("external_id").is_null() | ~pl.col("external_id").is_in(caused.implode()))
    if not kernels.height and not told.height:
        return _finished(_ranges(ranges))
    parts = [_launched(trace, merged), _called(trace, rest)]
    return pl.concat([_finished(part) for part in parts]).sort("start_ns", maintain_order=True)


def _kernels(trace: RankTrace, spoken_of: pl.Series, communication: Communication) -> pl.DataFrame:
    """Communication kernels: those that the trace speaks of, and those that are known by their names."""
    known = _known_by_name(trace, communication)
    wanted = pl.col("name").is_in(known["name"].implode()) | pl.col("correlation").is_in(spoken_of.implode())
    end = pl.col("start_ns") + pl.col("duration_ns")
    return (
        trace.tables["gpu"]
        .filter((pl.col("kind") == int(GpuKind.KERNEL)) & wanted.fill_null(value=False))
        .select("name", "correlation", "external_id", kernel_ns="start_ns", end_ns=end)
        .collect()
        .join(known, on="name", how="left", maintain_order="left")
    )


def _known_by_name(trace: RankTrace, communication: Communication) -> pl.DataFrame:
    """Columns `name`, `named`: the operation of every name that communication kernels have."""
    is_kernel = pl.col("kind") == int(GpuKind.KERNEL)
    used = trace.tables["gpu"].filter(is_kernel).select("name").unique().collect()
    texts = used.join(trace.table("names").unique("name", maintain_order=True), on="name", how="inner")
    rows = [(name, operation(text)) for name, text in texts.iter_rows() if communication.communicates(text)]
    return pl.DataFrame(rows, schema={"name": pl.Int64, "named": pl.String}, orient="row")


def _ranges(ranges: pl.DataFrame) -> pl.DataFrame:
    """Collectives from ranges: `all_reduce` is a call that the caller stands in (agprof's own ranges are called so),
    `gloo:all_reduce` the life of an asynchronous work of PyTorch's, which nobody need wait for."""
    annotation = pl.col("kind") == int(CpuKind.ANNOTATION)
    named = ranges.filter((pl.col("what") == COLLECTIVE) & pl.col("which").is_in(["call", "work"]) & annotation)
    call = pl.col("which") == "call"
    blank = {name: pl.lit(None, dtype=pl.Int64) for name in ("elements_in", "elements_out")}
    return named.select(
        "start_ns",
        "thread",
        op=pl.col("text").str.replace(r"^\w+:", "").str.replace(r" .*$", ""),  # all_reduce 2.25 KiB
        group=pl.lit(None, dtype=pl.String),
        group_size=pl.lit(0, dtype=pl.Int64),
        dtype=pl.lit(None, dtype=pl.String),
        issue_end_ns=pl.when(call).then("end_ns").otherwise("start_ns"),
        end_ns=pl.col("end_ns"),
        **blank,
    ).sort("start_ns", maintain_order=True)


def _launched(trace: RankTrace, rows: pl.DataFrame) -> pl.DataFrame:
    """With the host call of the same correlation; without one the call is taken to be where the kernel began."""
    calls = (
        trace.tables["cpu"]
        .filter(pl.col("kind").is_in([int(CpuKind.RUNTIME), int(CpuKind.DRIVER)]))
        .filter(pl.col("correlation").is_in(rows["correlation"].drop_nulls().unique().implode()))
        .select("correlation", "thread", call_ns="start_ns", return_ns=pl.col("start_ns") + pl.col("duration_ns"))
        .collect()
        .unique("correlation", maintain_order=True)
    )
    joined = rows.join(calls, on="correlation", how="left", maintain_order="left")
    return joined.with_columns(
        start_ns=pl.coalesce("call_ns", "kernel_ns"), issue_end_ns=pl.coalesce("return_ns", "kernel_ns")
    )


def _called(trace: RankTrace, rows: pl.DataFrame) -> pl.DataFrame:
    """With the host's event that says it, found by its begin; nobody saw these end."""
    begins = rows["start_ns"].unique()
    events = (
        trace.tables["cpu"]
        .filter(pl.col("start_ns").is_in(begins.implode()))
        .select("start_ns", "thread", issue_end_ns=pl.col("start_ns") + pl.col("duration_ns"), event="external_id")
        .collect()
        .sort("issue_end_ns", descending=True)
    )
    same = events.filter(pl.col("event").is_not_null()).unique(["start_ns", "event"], keep="last", maintain_order=True)
    by_id = rows.join(same, left_on=["start_ns", "external_id"], right_on=["start_ns", "event"], how="left")
    others = events.unique("start_ns", keep="first", maintain_order=True).select(
        "start_ns", other_thread="thread", other_end="issue_end_ns"
    )
    joined = by_id.join(others, on="start_ns", how="left", maintain_order="left")
    return joined.with_columns(
        thread=pl.coalesce("thread", "other_thread"),
        issue_end_ns=pl.coalesce("issue_end_ns", "other_end", "start_ns"),
        end_ns=pl.lit(None, dtype=pl.Int64),
    )


def _finished(rows: pl.DataFrame) -> pl.DataFrame:
    size = pl.col("dtype").str.to_lowercase().str.strip_prefix("c10::")
    width = size.replace_strict(_ELEMENT_BYTES, default=None, return_dtype=pl.Int64)
    n = pl.when(pl.col("group_size") > 0).then("group_size")
    gathered = pl.max_horizontal(pl.col("elements_out"), pl.col("elements_in") * n)
    scattered = pl.max_horizontal(pl.col("elements_in"), pl.col("elements_out") * n)
    elements = (
        pl.when(pl.col("op") == "all_gather")
        .then(gathered)
        .when(pl.col("op") == "reduce_scatter")
        .then(scattered)
        .otherwise(pl.max_horizontal("elements_in", "elements_out"))
    )
    return rows.with_columns(
        bytes=elements * width, group=pl.col("group").fill_null(UNKNOWN_GROUP), thread=pl.col("thread").fill_null(0)
    ).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
