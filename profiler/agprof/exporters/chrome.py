"""Chrome's trace event JSON: `trace.json.gz` of all ranks for viewers, and one Kineto-like file per rank for readers.

Every event lies in both files; it is made and compressed once. Times are decimal microseconds with three digits after
the earliest event, whose nanoseconds since the epoch are `baseTimeNanoseconds`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from agprof.exporters.clocks import Clocks, clocks, first_ns
from agprof.exporters.gzip_parts import GzipParts, part
from agprof.exporters.json_text import microseconds, number, quoted
from agprof.exporters.pace import Pace
from agprof.exporters.scenes import chunks, node_scenes, numbers, rank_scenes, slice_chunks
from agprof.exporters.tracks import Process, Scene, Tracks
from agprof.exporters.tracks_run import host_process
from agprof.exporters.whole import whole
from agprof.model.version import __version__
from agprof.store import layout
from agprof.store.reader import Run

FILE = "trace.json.gz"
FOLDER = "chrome"
"""Of the ranks' own files."""
KINETO_CATEGORIES = {"device": "gpu_user_annotation"} | dict.fromkeys(
    ("step", "micro_step", "phase", "range", "module", "collective", "wait", "generation"), "user_annotation"
)
"""What the run's own spans are called in Kineto's terms; their own category is an argument."""


def export(run: Run, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the trace. Raises OSError."""
    on_wall, tracks, pace = clocks(run.streams), Tracks(), Pace(say, "chrome: events written:")
    base_ns = first_ns(run, on_wall)
    ranks = numbers(run, "rank")
    files = [folder / FILE]
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with whole(folder / FILE) as place, GzipParts(place) as merged:
        merged.text(_head(_metadata(run, base_ns) | {"agprof": {"version": __version__, "merged_ranks": len(ranks)}}))
        for rank in ranks:
            files.append(folder / FOLDER / f"{layout.rank_stem(rank)}.json.gz")
            with whole(files[-1]) as own_place, GzipParts(own_place) as own:
                own.text(_head(_metadata(run, base_ns) | _of_rank(run, rank, len(ranks), on_wall)))
                for scene in rank_scenes(run, rank, on_wall, tracks):
                    for lines, derived in _pieces(scene, base_ns):
                        _write_lines(lines, (merged,) if derived else (merged, own))
                        pace.add(lines.len())
                _write_lines(_names(tracks, rank), (merged, own))
                own.text(_tail(host_process(rank, on_wall, tracks)))
        for scene in node_scenes(run, on_wall, tracks):
            for lines, _ in _pieces(scene, base_ns):
                _write_lines(lines, (merged,))
        _write_lines(_names(tracks, None), (merged,))
        merged.text(_tail(next(iter(tracks.processes.values()), None)))
    for sentence in tracks.sentences():
        say(sentence)
    return files


def _metadata(run: Run, base_ns: int) -> dict[str, Any]:
    return {
        "schemaVersion": 1,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": base_ns,
        "agprof": {"version": __version__},
    }


def _of_rank(run: Run, rank: int, ranks: int, on_wall: Clocks) -> dict[str, Any]:
    header = next((s.header for s in run.streams if s.scope == "rank" and s.number == rank), {})
    trace = run.traces.get(rank)
    world_size = header.get("world_size", trace.meta.world_size if trace is not None else None)
    host = on_wall.hosts.get(rank) or (trace.meta.host if trace is not None else None)
    found: dict[str, Any] = {
        "distributedInfo": {"rank": rank, "world_size": world_size if isinstance(world_size, int) else ranks}
    }
    if host is not None:
        found["host_name"] = host
    if trace is not None and trace.meta.devices:
        found["deviceProperties"] = list(trace.meta.devices)
    return found


def _head(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, indent=1, default=dict).removesuffix("\n}") + ',\n "traceEvents": [\n'


def _tail(process: Process | None) -> str:
    """The last event, and the end. Every other event ends in a comma, so that parts can stand in any file."""
    pid, order = (0, 0) if process is None else (process.pid, process.order)
    return _described("process_sort_index", pid, 0, {"sort_index": order}) + "\n]\n}\n"


def _pieces(scene: Scene, base_ns: int) -> Iterator[tuple[pl.Series, bool]]:
    """The lines of a scene piece by piece, and whether they are for viewers alone: made from other events."""
    for slices in scene.slices:
        for rows in slice_chunks(slices):
            yield _slice_lines(rows, base_ns), scene.derived
            yield _flow_lines(rows, base_ns), scene.derived
    for frame in scene.instants:
        for rows in chunks(frame):
            yield _instant_lines(rows, base_ns), scene.derived
    for frame in scene.counters:
        for rows in chunks(frame):
            yield _counter_lines(rows, base_ns), scene.derived
    for frame in scene.derived_counters:
        for rows in chunks(frame):
            yield _counter_lines(rows, base_ns), True


def _write_lines(lines: pl.Series, files: tuple[GzipParts, ...]) -> None:
    if lines.is_empty():
        return
    text = lines.str.join(",\n").item() + ",\n"
    made = part(text.encode())
    for file in files:
        file.write(made)


def _slice_lines(frame: pl.DataFrame, base_ns: int) -> pl.Series:
    category = pl.col("category").replace(KINETO_CATEGORIES)
    return _lines(
        frame, '{"ph":"X","cat":', pl.lit(_texts(frame, category)), ',"name":', _name(frame),
        *_place(), ',"ts":', microseconds(pl.col("start_ns") - base_ns), ',"dur":', microseconds(pl.col("duration_ns")),
        ',"args":{', pl.col("args").fill_null(""), "}}",
    )  # fmt: skip


def _flow_lines(frame: pl.DataFrame, base_ns: int) -> pl.Series:
    """The ends of arrows, each within its slice: at the slice's begin."""
    ends = []
    for column, kind in (("flow_out", '{"ph":"s","id":'), ("flow_in", '{"ph":"f","bp":"e","id":')):
        rows = frame.drop_nulls(column)
        ends.append(
            _lines(rows, kind, number(column), *_place(), ',"ts":', microseconds(pl.col("start_ns") - base_ns),
                   ',"cat":"ac2g","name":"ac2g"}')
        )  # fmt: skip
    return pl.concat(ends)


def _instant_lines(frame: pl.DataFrame, base_ns: int) -> pl.Series:
    return _lines(
        frame, '{"ph":"i","s":"t","cat":', pl.lit(_texts(frame, pl.col("category"))), ',"name":', _name(frame),
        *_place(), ',"ts":', microseconds(pl.col("time_ns") - base_ns), ',"args":{', pl.col("args").fill_null(""), "}}",
    )  # fmt: skip


def _counter_lines(frame: pl.DataFrame, base_ns: int) -> pl.Series:
    return _lines(
        frame, '{"ph":"C","name":', _name(frame), ',"pid":', number("pid"), ',"tid":0,"ts":',
        microseconds(pl.col("time_ns") - base_ns), ',"args":{', pl.lit(_texts(frame, pl.col("series"))), ":",
        number("value"), "}}",
    )  # fmt: skip


def _lines(frame: pl.DataFrame, *parts: str | pl.Expr) -> pl.Series:
    exprs = [pl.lit(each) if isinstance(each, str) else each for each in parts]
    return frame.select(pl.concat_str(exprs).alias("line")).to_series() if frame.height else pl.Series(dtype=pl.String)


def _place() -> tuple[str | pl.Expr, ...]:
    return ',"pid":', number("pid"), ',"tid":', number("tid")


def _name(frame: pl.DataFrame) -> pl.Expr:
    return pl.lit(quoted(frame["name"]))


def _texts(frame: pl.DataFrame, expression: pl.Expr) -> pl.Series:
    return quoted(frame.select(expression.alias("text")).to_series())


def _names(tracks: Tracks, rank: int | None) -> pl.Series:
    """Names and order of a rank's processes and tracks, or of the nodes'."""
    lines: list[str] = []
    mine = {process.pid: process for process in tracks.processes.values() if process.rank == rank}
    for process in mine.values():
        lines.append(_described("process_name", process.pid, 0, {"name": process.name}))
        lines.append(_described("process_sort_index", process.pid, 0, {"sort_index": process.order}))
    for track in tracks.threads.values():
        if track.pid in mine:
            lines.append(_described("thread_name", track.pid, track.tid, {"name": track.name}))
            lines.append(_described("thread_sort_index", track.pid, track.tid, {"sort_index": track.order}))
    return pl.Series(lines, dtype=pl.String)


def _described(what: str, pid: int, tid: int, args: Mapping[str, Any]) -> str:
    event = {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}
    return json.dumps(event, separators=(",", ":"))
