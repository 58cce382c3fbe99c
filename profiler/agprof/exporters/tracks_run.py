"""The run's own tables on tracks: steps, phases, ranges, modules, collectives, waits, generations, marks, samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from agprof.exporters.clocks import Clocks
from agprof.exporters.json_text import boolean, members, number, quoted
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
    longest,
)
from agprof.model.tables import BY_NAME
from agprof.store.reader import Run

STEP_TRACK, THREAD_TRACK, GENERATE_TRACK, FLIGHT_TRACK, DEVICE_TRACK, MARK_TRACK = range(6)
"""In the order in which they are shown."""
_PLACED_BY = ("track", "thread", "label")
MARK = "mark"

_Counter = tuple[str, str, str, float]
"""Column, counter's name, series, divisor."""
MEMORY_COUNTERS: tuple[_Counter, ...] = (
    ("rss_bytes", "memory", "resident set (bytes)", 1),
    ("allocated_bytes", "device memory", "allocated (bytes)", 1),
    ("reserved_bytes", "device memory", "reserved (bytes)", 1),
)
PROCESS_COUNTERS: tuple[_Counter, ...] = (
    ("cpu_cores", "CPU", "cores", 1),
    ("rss_bytes", "sampled memory", "resident set (bytes)", 1),
)
HOST_COUNTERS: tuple[_Counter, ...] = (
    ("cpu_ratio", "CPU", "busy (%)", 0.01),
    ("memory_used_bytes", "memory", "used (bytes)", 1),
    ("network_sent_bytes_per_s", "network", "sent (bytes/s)", 1),
    ("network_received_bytes_per_s", "network", "received (bytes/s)", 1),
    ("loopback_bytes_per_s", "network", "loopback (bytes/s)", 1),
    ("disk_read_bytes_per_s", "disk", "read (bytes/s)", 1),
    ("disk_write_bytes_per_s", "disk", "written (bytes/s)", 1),
)
GPU_COUNTERS: tuple[_Counter, ...] = (
    ("utilization_ratio", "utilisation", "busy (%)", 0.01),
    ("memory_used_bytes", "memory", "used (bytes)", 1),
    ("power_mw", "power", "power (W)", 1000),
    ("temperature_c", "temperature", "core (°C)", 1),
    ("sm_clock_mhz", "clock", "SM (MHz)", 1),
)


def host_process(rank: int, clocks: Clocks, tracks: Tracks) -> Process:
    host = clocks.hosts.get(rank)
    return tracks.process(("rank", rank), f"rank {rank:02d} ({host or 'host'})", 10 * rank, rank)


def rank_scene(run: Run, rank: int, clocks: Clocks, tracks: Tracks) -> Scene:
    """What the rank's own stream says, and the samples of its process tree."""
    process = host_process(rank, clocks, tracks)
    shift = clocks.of_rank(rank)
    tables = {name: _rows(run, name, tracks, rank=rank) for name, table in BY_NAME.items() if table.scope == "rank"}
    sources = [
        _steps(tables["steps"]), _micro_steps(tables["micro_steps"]), _spans(tables["spans"]),
        _collectives(tables["collectives"]), _waits(tables["waits"]), _generations(tables["generations"]),
        _device_spans(tables["device_spans"], tables["spans"]),
    ]  # fmt: skip

    def track(key: tuple[Any, ...], lane: int) -> Track:
        kind, thread, label = key
        name = lane_name(_track_name(kind, thread, label), lane)
        return tracks.thread(process, ("run", *key, lane), name, kind, thread if lane == 0 else None)

    samples = _rows(run, "process_samples", tracks).filter(pl.col("rank") == rank)
    workers, own = samples.filter(pl.col("role") == "worker"), samples.filter(pl.col("role") == "rank")
    return Scene(
        rank=rank,
        slices=[_merged(sources, shift, Placer(tracks=tracks, by=_PLACED_BY, track=track))],
        instants=_marks(tables["marks"], process, shift, tracks),
        counters=[
            *_counters(tables["memory"], MEMORY_COUNTERS, process, shift),
            *_counters(own, PROCESS_COUNTERS, process, shift),
            *_counters(workers, PROCESS_COUNTERS, process, shift, prefix="workers' "),
        ],
    )


def node_scene(run: Run, node: int, clocks: Clocks, tracks: Tracks) -> Scene:
    """The samples of a node and of its GPUs."""
    process = tracks.process(("node", node), f"node {node:02d}", 10_000_000 + node, None)
    shift = clocks.of_node(node)
    counters = _counters(_rows(run, "host_samples", tracks, node=node), HOST_COUNTERS, process, shift)
    samples = _rows(run, "gpu_samples", tracks, node=node)
    for (gpu,), rows in sorted(samples.partition_by(["gpu"], as_dict=True).items()):
        counters += _counters(rows, GPU_COUNTERS, process, shift, prefix=f"GPU {gpu} ")
    return Scene(rank=None, counters=counters)


def _rows(run: Run, name: str, tracks: Tracks, **where: int) -> pl.DataFrame:
    """The table's rows of a rank or node; those without a value that each row must have are counted."""
    frame = run.tables[name]
    for column, value in where.items():
        frame = frame.filter(pl.col(column) == value)
    clean = frame.drop_nulls([column.name for column in BY_NAME[name].columns if not column.optional])
    tracks.leave_out(f"incomplete rows of {name}", frame.height - clean.height)
    return clean


def _track_name(kind: int, thread: int | None, label: str) -> str:
    return {
        STEP_TRACK: "steps",
        THREAD_TRACK: f"thread {thread}",
        GENERATE_TRACK: "generate",
        FLIGHT_TRACK: f"in flight: {label[:200]}",
        DEVICE_TRACK: "device, by CUDA events",
    }[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The slices of one table."""

    rows: pl.DataFrame
    """The table's, and columns of JSON texts that `args` need."""
    places: pl.DataFrame
    """For each row _PLACED_BY, start_ns, duration_ns."""
    category: pl.Expr
    name: pl.Expr
    args: Mapping[str, pl.Expr]

    def texts(self, positions: pl.Series) -> pl.DataFrame:
        """Name, category and arguments of some rows; the category is an argument too."""
        rows = self.rows[positions].with_columns(category=self.category)
        rows = rows.with_columns(category_json=quoted(rows["category"]))
        args = members({"category": pl.col("category_json"), **self.args})
        return rows.select(self.name.alias("name"), "category", args.alias("args"))


def _merged(sources: Sequence[_Source], shift: int, placer: Placer) -> Slices:
    """The slices of several tables in the order of time."""
    places = [
        source.places.with_columns(pl.col("start_ns") + shift, source=pl.lit(number)).with_row_index("row")
        for number, source in enumerate(sources)
    ]
    order = pl.concat(places).sort("start_ns", "duration_ns", descending=[False, True], maintain_order=True)

    def finish(rows: pl.DataFrame) -> pl.DataFrame:
        placed = placer.place(rows).with_row_index("at")
        parts = [
            part.hstack(sources[number].texts(part["row"]))
            for (number,), part in placed.partition_by(["source"], maintain_order=True, as_dict=True).items()
        ]
        whole = pl.concat(parts).sort("at") if parts else placed.with_columns(name=None, category=None, args=None)
        return _as(whole.with_columns(flow_out=None, flow_in=None), SLICE_COLUMNS)

    return Slices(frame=order, finish=finish, longest=max((longest(source.rows) for source in sources), default=0))


def _source(
    frame: pl.DataFrame,
    kind: pl.Expr | int,
    category: pl.Expr,
    name: pl.Expr,
    end: pl.Expr,
    args: Mapping[str, pl.Expr],
    label: pl.Expr | None = None,
    thread: pl.Expr | None = None,
) -> _Source:
    places = frame.select(
        track=pl.lit(kind, pl.Int64) if isinstance(kind, int) else kind.cast(pl.Int64),
        thread=pl.lit(None, pl.Int64) if thread is None else thread.cast(pl.Int64),
        label=pl.lit("") if label is None else label,
        start_ns="start_ns",
        duration_ns=end - pl.col("start_ns"),
    )
    return _Source(rows=frame, places=places, category=category, name=name, args=args)


def _in_step(frame: pl.DataFrame) -> dict[str, pl.Expr]:
    return {name: number(name) for name in ("step", "micro_step") if name in frame.columns}


def _steps(frame: pl.DataFrame) -> _Source:
    args = {**_in_step(frame), "loss": number("loss"), "samples": number("samples"), "tokens": number("tokens"),
            "profiled": boolean("profiled")}  # fmt: skip
    name = pl.format("step {}", pl.col("step"))
    return _source(frame, STEP_TRACK, pl.lit("step"), name, pl.col("end_ns"), args)


def _micro_steps(frame: pl.DataFrame) -> _Source:
    name = pl.format("micro-step {}", pl.col("micro_step"))
    args = {**_in_step(frame), "loss": number("loss")}
    return _source(frame, STEP_TRACK, pl.lit("micro_step"), name, pl.col("end_ns"), args)


def _spans(frame: pl.DataFrame) -> _Source:
    return _source(
        frame, THREAD_TRACK, pl.col("category"), pl.col("name"), pl.col("end_ns"), _in_step(frame),
        thread=pl.col("thread"),
    )  # fmt: skip


def _collectives(frame: pl.DataFrame) -> _Source:
    """A synchronous one lies on its thread; an asynchronous one, from its issue to its completion, beside it."""
    frame = frame.with_columns(op_json=quoted(frame["op"]), group_json=quoted(frame["group"]),
                               dtype_json=quoted(frame["dtype"]), caller_json=quoted(frame["caller"]))  # fmt: skip
    args = {
        **_in_step(frame),
        "Collective name": pl.col("op_json"), "Process Group Name": pl.col("group_json"),
        "Group size": number("group_size"), "dtype": pl.col("dtype_json"), "bytes": number("bytes"),
        "wait_ns": number("wait_ns"), "caller": pl.col("caller_json"),
        "seen to end": pl.when(pl.col("end_ns").is_null()).then(pl.lit("false")),
    }  # fmt: skip
    end = pl.coalesce(pl.when("async_op").then("end_ns"), pl.col("issue_end_ns"))
    return _source(
        frame,
        pl.when("async_op").then(pl.lit(FLIGHT_TRACK)).otherwise(pl.lit(THREAD_TRACK)),
        pl.lit("collective"),
        pl.col("op"),
        end,
        args,
        label=pl.when("async_op").then("group").otherwise(pl.lit("")),
        thread=pl.when(~pl.col("async_op")).then("thread"),
    )


def _waits(frame: pl.DataFrame) -> _Source:
    name = pl.format("wait {}", pl.col("op"))
    return _source(
        frame, THREAD_TRACK, pl.lit("wait"), name, pl.col("end_ns"), _in_step(frame), thread=pl.col("thread")
    )


def _generations(frame: pl.DataFrame) -> _Source:
    args = {**_in_step(frame), "batch": number("batch"), "prompt_tokens": number("prompt_tokens"),
            "new_tokens": number("new_tokens")}  # fmt: skip
    return _source(frame, GENERATE_TRACK, pl.lit("generation"), pl.lit("generate"), pl.col("end_ns"), args)


def _device_spans(frame: pl.DataFrame, spans: pl.DataFrame) -> _Source:
    hosts = spans.select("span", "step", "micro_step", "name").unique("span", keep="last", maintain_order=True)
    joined = frame.select("span", "start_ns", "duration_ns").join(hosts, on="span", maintain_order="left")
    end = pl.col("start_ns") + pl.col("duration_ns")
    return _source(joined, DEVICE_TRACK, pl.lit("device"), pl.col("name"), end, _in_step(joined))


def _marks(frame: pl.DataFrame, process: Process, shift: int, tracks: Tracks) -> list[pl.DataFrame]:
    if frame.is_empty():
        return []
    track = tracks.thread(process, "marks", "marks", MARK_TRACK)
    frame = frame.with_columns(
        pl.col("time_ns") + shift,
        pid=pl.lit(process.pid, pl.Int64),
        tid=pl.lit(track.tid, pl.Int64),
        category=pl.lit(MARK),
        args=members({"source": quoted_column(frame, "source"), "step": number("step")}),
    )
    return [_as(frame, INSTANT_COLUMNS)]


def quoted_column(frame: pl.DataFrame, column: str) -> pl.Expr:
    return pl.lit(quoted(frame[column]))


def _counters(
    frame: pl.DataFrame, wanted: tuple[_Counter, ...], process: Process, shift: int, prefix: str = ""
) -> list[pl.DataFrame]:
    """A frame for each counter that has values at all."""
    found = []
    for column, name, series, divisor in wanted:
        rows = frame.select(
            pid=pl.lit(process.pid, pl.Int64),
            name=pl.lit(prefix + name),
            series=pl.lit(series),
            time_ns=pl.col("time_ns") + shift,
            value=pl.col(column).cast(pl.Float64) / divisor,
        ).filter(pl.col("value").is_finite())
        if not rows.is_empty():
            found.append(_as(rows.sort("time_ns", maintain_order=True), COUNTER_COLUMNS))
    return found


def _as(frame: pl.DataFrame, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    return frame.select(pl.col(name).cast(dtype) for name, dtype in columns.items())
