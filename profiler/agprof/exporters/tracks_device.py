"""Device traces on tracks: host threads, streams of each device, arrows from launch to kernel, memory, counters.

Categories and the keys of arguments are Kineto's, so that an exported trace is one that Kineto's readers understand.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from agprof.exporters.clocks import Clocks
from agprof.exporters.json_text import members, number, quoted
from agprof.exporters.tracks import (
    COUNTER_COLUMNS,
    INSTANT_COLUMNS,
    SLICE_COLUMNS,
    Placer,
    Process,
    Scene,
    Slices,
    Track,
    Tracks,
    lane_name,
)
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
_BESIDE = {GpuKind.ANNOTATION: 1, GpuKind.SYNC: 2, GpuKind.OTHER: 3}
"""Kinds that have a track of their own beside the stream's, because they overlap its kernels."""
_BESIDE_NAMES = ("", ", annotations", ", synchronisation", ", other events")
_HOST_ORDER, _ALLOCATIONS_ORDER = 100, 10_000
"""Tracks of the run's own come before those of its trace."""
_LAUNCHED = (GpuKind.KERNEL, GpuKind.MEMCPY, GpuKind.MEMSET, GpuKind.SYNC)
"""Kinds to which an arrow leads from the host call."""
MEMORY_CATEGORY = "cpu_instant_event"


def trace_scene(trace: RankTrace, clocks: Clocks, tracks: Tracks) -> Scene:
    """Everything of one rank's trace; of its two large tables one is in memory at a time, as numbers."""
    shift = clocks.of_rank(trace.rank)
    names = trace.table("names").unique("name", keep="first")
    host = host_process(trace.rank, clocks, tracks)
    memory, derived = _memory(trace.table("memory_events"), shift, host, tracks)
    counters = _counters(trace.table("counters").join(names, on="name", how="inner"), shift, host.pid)
    return Scene(
        rank=trace.rank,
        slices=_slices(trace, names, shift, host, tracks),
        instants=memory,
        counters=counters,
        derived_counters=derived,
    )


def _slices(trace: RankTrace, names: pl.DataFrame, shift: int, host: Process, tracks: Tracks) -> Iterator[Slices]:
    comm = _collective_arguments(trace.table("comm_args")).with_columns(pl.col("start_ns") + shift)
    of_host, of_device = (_of(comm, key) for key in ("external_id", "correlation"))
    cpu = trace.table("cpu")
    flows = _flows(cpu, trace.table("gpu", "kind", "correlation"), tracks)
    texts = _Texts(names, of_host, ("start_ns", "external_id"), _HOST_ARGUMENTS, _words(CPU_CATEGORIES))
    yield texts.slices(_host_events(cpu, flows, shift), _host_placer(host, tracks))
    del cpu
    gpu = _device_events(trace.table("gpu"), flows, shift, trace.table("event_waits"))
    texts = _Texts(names, of_device, ("start_ns", "correlation"), _DEVICE_ARGUMENTS, _words(GPU_CATEGORIES))
    yield texts.slices(gpu, _device_placer(trace.rank, tracks))


def _words(categories: Mapping[Any, str]) -> dict[int, str]:
    return {int(kind): text for kind, text in categories.items()}


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of a table's rows, which they get when they are written."""

    names: pl.DataFrame
    collectives: pl.DataFrame
    """Columns `said_by`, and `collective`: arguments that say of which collective an event is."""
    said_by: tuple[str, str]
    arguments: pl.Expr
    categories: Mapping[int, str]

    def slices(self, frame: pl.DataFrame, placer: Placer) -> Slices:
        sizes = [self.names["text"].str.len_bytes().max(), self.collectives["collective"].str.len_bytes().max()]
        longest = sum(size for size in sizes if isinstance(size, int))
        return Slices(frame=frame, finish=lambda rows: self._finish(rows, placer), longest=longest)

    def _finish(self, rows: pl.DataFrame, placer: Placer) -> pl.DataFrame:
        named = rows.join(self.names, on="name", how="inner", maintain_order="left")
        placer.tracks.leave_out("their name is not in the run folder", rows.height - named.height)
        rows = named.join(self.collectives, on=self.said_by, how="left", nulls_equal=True, maintain_order="left")
        rows = placer.place(rows).with_columns(own=self.arguments)
        both = pl.concat_str(pl.when(pl.col("own") != "").then("own"), "collective", separator=",", ignore_nulls=True)
        category = pl.col("kind").replace_strict(self.categories, default="other", return_dtype=pl.String)
        rows = rows.with_columns(name=pl.col("text"), category=category, args=both)
        return rows.select(pl.col(name).cast(dtype) for name, dtype in SLICE_COLUMNS.items())


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


def _flows(cpu: pl.DataFrame, gpu: pl.DataFrame, tracks: Tracks) -> pl.DataFrame:
    """Number of the arrow, row of the launch, correlation: one arrow for each launch whose work is in the trace."""
    calls = cpu.select("kind", "correlation").with_row_index("row").drop_nulls("correlation")
    calls = calls.filter(pl.col("kind").is_in([CpuKind.RUNTIME, CpuKind.DRIVER]))
    work = gpu.filter(pl.col("kind").is_in(_LAUNCHED)).select("correlation").drop_nulls().unique()
    launches = (
        calls.unique("correlation", keep="first", maintain_order=True)
        .join(work, on="correlation", how="semi", maintain_order="left")
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


def _of(comm: pl.DataFrame, key: str) -> pl.DataFrame:
    """What device activities say, which are known by their correlation, or host events, by their external id."""
    on_device = pl.col("correlation").is_not_null()
    mine = comm.filter(on_device if key == "correlation" else ~on_device)
    return mine.select("start_ns", key, "collective").unique(["start_ns", key], keep="first")


def _host_events(frame: pl.DataFrame, flows: pl.DataFrame, shift: int) -> pl.DataFrame:
    numbers = np.zeros(frame.height, dtype=np.int64)
    numbers[flows["row"].to_numpy()] = flows["flow"].to_numpy()
    return frame.with_columns(
        pl.col("start_ns") + shift, flow_out=_not_zero(pl.lit(pl.Series(numbers))), flow_in=pl.lit(None, pl.Int64)
    )


def _not_zero(values: pl.Expr) -> pl.Expr:
    return pl.when(values != 0).then(values)


def _host_placer(process: Process, tracks: Tracks) -> Placer:
    def track(key: tuple[Any, ...], lane: int) -> Track:
        (thread,) = key
        name = "unknown thread" if thread is None else f"thread {thread} (trace)"
        wanted = thread if lane == 0 else None
        return tracks.thread(process, ("host", thread, lane), lane_name(name, lane), _HOST_ORDER + lane, wanted)

    return Placer(tracks=tracks, by=["thread"], track=track)


def _device_events(frame: pl.DataFrame, flows: pl.DataFrame, shift: int, waits: pl.DataFrame) -> pl.DataFrame:
    known = frame.select("correlation").join(
        flows.select("correlation", flow_in="flow"), on="correlation", how="left", maintain_order="left"
    )
    known = known.join(
        waits.unique("correlation", keep="first"), on="correlation", how="left", maintain_order="left"
    ).drop("correlation")
    return frame.hstack(known).with_columns(
        pl.col("start_ns") + shift,
        flow_in=pl.when(pl.col("kind").is_in(_LAUNCHED)).then("flow_in"),
        flow_out=pl.lit(None, pl.Int64),
        beside=pl.col("kind").replace_strict(_BESIDE, default=0, return_dtype=pl.Int64),
    )


def _device_placer(rank: int, tracks: Tracks) -> Placer:
    def track(key: tuple[Any, ...], lane: int) -> Track:
        device, stream, beside = key
        label = "device" if device is None else f"GPU {device}"
        process = tracks.process(("device", rank, device), f"rank {rank:02d} {label}", 10 * rank + 1, rank)
        name = ("no stream" if stream is None else f"stream {stream}") + _BESIDE_NAMES[beside]
        order = 10 * min(max(stream or 0, 0), 10**6) + beside
        return tracks.thread(process, (stream, beside, lane), lane_name(name, lane), order)

    return Placer(tracks=tracks, by=["device", "stream", "beside"], track=track)


def _memory(
    frame: pl.DataFrame, shift: int, process: Any, tracks: Tracks
) -> tuple[list[pl.DataFrame], list[pl.DataFrame]]:
    """Allocations as Kineto's instants, and what is allocated and reserved as counters."""
    if frame.is_empty():
        return [], []
    track = tracks.thread(process, "allocations", "allocations", _ALLOCATIONS_ORDER)
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
        pid=pl.lit(pid, pl.Int64), name="text", series="text", time_ns=pl.col("time_ns") + shift, value="value"
    )
    return [frame.select(*COUNTER_COLUMNS)] if frame.height else []
