"""Device traces on tracks: host threads, streams of each device, arrows from launch to kernel, memory, counters.

Categories and the keys of arguments are Kineto's, so that an exported trace is one that Kineto's readers understand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from agprof.exporters.clocks import Clocks
from agprof.exporters.json_text import members, number, quoted
from agprof.exporters.tracks import COUNTER_COLUMNS, INSTANT_COLUMNS, SLICE_COLUMNS, Scene, Slices, Tracks, lane_name
from agprof.exporters.tracks_run import host_process
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

GPU_CATEGORIES: Mapping[GpuKind, str] = {
    GpuKind.KERNEL: "kernel",
    GpuKind.MEMCPY: "gpu_memcpy",
    GpuKind.MEMSET: "gpu_memset",
    GpuKind.SYNC: "cuda_sync",
    GpuKind.ANNOTATION: "gpu_user_annotation",
    GpuKind.OTHER: "cuda_event",
}
CPU_CATEGORIES: Mapping[CpuKind, str] = {
    CpuKind.OP: "cpu_op",
    CpuKind.RUNTIME: "cuda_runtime",
    CpuKind.DRIVER: "cuda_driver",
    CpuKind.ANNOTATION: "user_annotation",
    CpuKind.PYTHON: "python_function",
    CpuKind.OVERHEAD: "overhead",
    CpuKind.OTHER: "other",
}
_BESIDE = {GpuKind.SYNC: "synchronisation", GpuKind.ANNOTATION: "annotations", GpuKind.OTHER: "other events"}
"""Kinds that have a track of their own beside the stream's, because they overlap its kernels."""
_LAUNCHED = (GpuKind.KERNEL, GpuKind.MEMCPY, GpuKind.MEMSET, GpuKind.SYNC)
"""Kinds to which an arrow leads from the host call."""
MEMORY_CATEGORY = "cpu_instant_event"


def trace_scene(trace: RankTrace, clocks: Clocks, tracks: Tracks) -> Scene:
    """Everything of one rank's trace; its tables are in memory until the scene is dropped."""
    shift = clocks.of_rank(trace.rank)
    names = trace.table("names").unique("name", keep="first")
    comm = _collective_arguments(trace.table("comm_args")).with_row_index("said")
    gpu = _with_collectives(trace.table("gpu"), comm, "correlation")
    cpu = _with_collectives(trace.table("cpu"), comm, "external_id").with_row_index("row")
    flows = _flows(gpu, cpu, tracks)
    host = host_process(trace.rank, clocks, tracks)
    waits = trace.table("event_waits").unique("correlation", keep="first")
    gpu = gpu.join(waits, on="correlation", how="left", maintain_order="left")
    texts = _Texts(names, comm.select("said", "collective"))
    on_host = _host_slices(_known(cpu, names, tracks), flows, shift, host, tracks)
    on_device = _device_slices(_known(gpu, names, tracks), flows, shift, trace.rank, tracks)
    slices = [
        texts.slices(on_host, _HOST_ARGUMENTS, CPU_CATEGORIES),
        texts.slices(on_device, _DEVICE_ARGUMENTS, GPU_CATEGORIES),
    ]
    memory, derived = _memory(trace.table("memory_events"), shift, host, tracks)
    counters = _counters(trace.table("counters").join(names, on="name", how="inner"), shift, host.pid)
    return Scene(rank=trace.rank, slices=slices, instants=memory, counters=counters, derived_counters=derived)


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of a trace, which rows get when they are written."""

    names: pl.DataFrame
    collectives: pl.DataFrame
    """Column `said`: number of the arguments in `collective`."""

    def slices(self, frame: pl.DataFrame, arguments: pl.Expr, categories: Mapping[Any, str]) -> Slices:
        words = {int(kind): text for kind, text in categories.items()}
        columns = [pl.col(name).cast(dtype) for name, dtype in SLICE_COLUMNS.items()]

        def finish(rows: pl.DataFrame) -> pl.DataFrame:
            rows = rows.join(self.names, on="name", how="left", maintain_order="left")
            rows = rows.join(self.collectives, on="said", how="left", maintain_order="left").with_columns(own=arguments)
            both = pl.concat_str(
                pl.when(pl.col("own") != "").then("own"), "collective", separator=",", ignore_nulls=True
            )
            category = pl.col("kind").replace_strict(words, default="other", return_dtype=pl.String)
            return rows.with_columns(name=pl.col("text"), category=category, args=both).select(columns)

        sizes = [self.names["text"].str.len_bytes().max(), self.collectives["collective"].str.len_bytes().max()]
        return Slices(frame=frame, finish=finish, longest=sum(size for size in sizes if isinstance(size, int)))


_HOST_ARGUMENTS = members({
    "External id": number("external_id"),
    "Sequence number": number("sequence"),
    "Fwd thread id": number("forward_thread"),
    "stream": number("stream"),
    "correlation": number("correlation"),
    "agprof thread": pl.when(pl.col("thread") != pl.col("tid")).then(number("thread")),
})  # fmt: skip
_DEVICE_ARGUMENTS = members({
    "External id": number("external_id"),
    "device": number("device"),
    "stream": number("stream"),
    "correlation": number("correlation"),
    "bytes": number("bytes"),
    "graph node id": number("graph_node"),
    "wait_on_stream": number("waited_stream"),
    "wait_on_cuda_event_record_corr_id": number("record_correlation"),
})  # fmt: skip


def _known(frame: pl.DataFrame, names: pl.DataFrame, tracks: Tracks) -> pl.DataFrame:
    """The rows whose name the run folder holds: the others are counted, not drawn."""
    known = frame.join(names, on="name", how="semi", maintain_order="left")
    tracks.leave_out("their name is not in the run folder", frame.height - known.height)
    return known


def _flows(gpu: pl.DataFrame, cpu: pl.DataFrame, tracks: Tracks) -> pl.DataFrame:
    """Number of the arrow, row of the launch, correlation: one arrow for each launch whose work is in the trace."""
    calls = cpu.filter(pl.col("kind").is_in([CpuKind.RUNTIME, CpuKind.DRIVER]) & pl.col("correlation").is_not_null())
    work = gpu.filter(pl.col("correlation").is_not_null() & pl.col("kind").is_in(_LAUNCHED))
    launches = (
        calls.unique("correlation", keep="first", maintain_order=True)
        .join(work.select("correlation").unique(), on="correlation", how="semi", maintain_order="left")
        .select("row", "correlation")
        .with_row_index("flow", offset=tracks.flows + 1)
        .with_columns(pl.col("flow").cast(pl.Int64))
    )
    tracks.flows += launches.height
    return launches


def _collective_arguments(frame: pl.DataFrame) -> pl.DataFrame:
    """Per event that says it: what it says of its collective, as members of its arguments."""
    frame = frame.with_columns(
        op_json=quoted(frame["op"]), group_json=quoted(frame["group"]), dtype_json=quoted(frame["dtype"])
    )
    return frame.select(
        "start_ns", "correlation", "external_id",
        members({
            "Collective name": pl.col("op_json"), "In msg nelems": number("elements_in"),
            "Out msg nelems": number("elements_out"), "Group size": number("group_size"), "dtype": pl.col("dtype_json"),
            "Process Group Name": pl.col("group_json"), "Seq": number("sequence"),
        }).alias("collective"),
    )  # fmt: skip


def _with_collectives(frame: pl.DataFrame, comm: pl.DataFrame, key: str) -> pl.DataFrame:
    """The frame with column `said`; a device activity is known by its correlation, a host event by the other."""
    mine = comm.filter(pl.col("correlation").is_not_null() if key == "correlation" else pl.col("correlation").is_null())
    mine = mine.select("start_ns", key, "said").unique(["start_ns", key], keep="first")
    return frame.join(mine, on=["start_ns", key], how="left", nulls_equal=True, maintain_order="left")


def _host_slices(frame: pl.DataFrame, flows: pl.DataFrame, shift: int, process: Any, tracks: Tracks) -> pl.DataFrame:
    def track(key: tuple[Any, ...], lane: int) -> Any:
        (thread,) = key
        name = "unknown thread" if thread is None else f"thread {thread}"
        return tracks.thread(process, ("host", thread, lane), lane_name(name, lane), thread if lane == 0 else None)

    started = flows.select("row", flow_out="flow")
    frame = frame.join(started, on="row", how="left", maintain_order="left").with_columns(pl.col("start_ns") + shift)
    placed = tracks.place(frame, ["thread"], track)
    return placed.with_columns(flow_in=pl.lit(None, pl.Int64))


def _device_slices(frame: pl.DataFrame, flows: pl.DataFrame, shift: int, rank: int, tracks: Tracks) -> pl.DataFrame:
    def track(key: tuple[Any, ...], lane: int) -> Any:
        device, stream, beside = key
        label = "device" if device is None else f"GPU {device}"
        process = tracks.process(("device", rank, device), f"rank {rank:02d} {label}", 10 * rank + 1, rank)
        name = ("no stream" if stream is None else f"stream {stream}") + (f", {beside}" if beside else "")
        return tracks.thread(process, (stream, beside, lane), lane_name(name, lane))

    ended = flows.select("correlation", flow_in="flow")
    work = pl.col("kind").is_in(_LAUNCHED)
    frame = frame.join(ended, on="correlation", how="left", maintain_order="left").with_columns(
        pl.col("start_ns") + shift,
        flow_in=pl.when(work).then("flow_in"),
        beside=pl.col("kind").replace_strict(_BESIDE, default="", return_dtype=pl.String),
        flow_out=pl.lit(None, pl.Int64),
    )
    return tracks.place(frame, ["device", "stream", "beside"], track)


def _memory(
    frame: pl.DataFrame, shift: int, process: Any, tracks: Tracks
) -> tuple[list[pl.DataFrame], list[pl.DataFrame]]:
    """Allocations as Kineto's instants, and what is allocated and reserved as counters."""
    if frame.is_empty():
        return [], []
    track = tracks.thread(process, "allocations", "allocations")
    frame = frame.with_columns(pl.col("time_ns") + shift)
    instants = frame.select(
        pid=pl.lit(process.pid, pl.Int64),
        tid=pl.lit(track.tid, pl.Int64),
        time_ns="time_ns",
        name=pl.lit("[memory]"),
        category=pl.lit(MEMORY_CATEGORY),
        args=members({
            "Total Reserved": number("reserved_bytes"),
            "Total Allocated": number("allocated_bytes"),
            "Bytes": number("bytes"),
            "Addr": number("address"),
            "Device Id": number("device"),
            "Device Type": pl.when("on_device").then(pl.lit("1")).otherwise(pl.lit("0")),
        }),
    )  # fmt: skip
    return [instants.select(*INSTANT_COLUMNS)], _memory_counters(frame, process.pid)


def _memory_counters(frame: pl.DataFrame, pid: int) -> list[pl.DataFrame]:
    found = []
    for (on_device, device), rows in frame.partition_by(["on_device", "device"], as_dict=True).items():
        where = f"GPU {device}" if on_device else "host"
        for column, series in (("allocated_bytes", "allocated (bytes)"), ("reserved_bytes", "reserved (bytes)")):
            values = rows.drop_nulls(column)
            if values.is_empty():
                continue
            found.append(values.select(
                pid=pl.lit(pid, pl.Int64), name=pl.lit(f"allocator of {where}"), series=pl.lit(series),
                time_ns="time_ns", value=pl.col(column).cast(pl.Float64),
            ))  # fmt: skip
    return found


def _counters(frame: pl.DataFrame, shift: int, pid: int) -> list[pl.DataFrame]:
    frame = frame.filter(pl.col("value").is_finite()).select(
        pid=pl.lit(pid, pl.Int64), name="text", series=pl.lit("value"), time_ns=pl.col("time_ns") + shift, value="value"
    )
    return [frame.select(*COUNTER_COLUMNS)] if frame.height else []
