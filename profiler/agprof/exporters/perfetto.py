"""Perfetto's protobuf trace, `trace.perfetto-trace`: all ranks, nanoseconds since the epoch, streamed to disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import polars as pl

from agprof.exporters import perfetto_packets as packets
from agprof.exporters.clocks import clocks, first_ns
from agprof.exporters.pace import Pace
from agprof.exporters.perfetto_packets import EventType
from agprof.exporters.protobuf import varint, varints
from agprof.exporters.scenes import chunks, node_scenes, numbers, rank_scenes, slice_chunks
from agprof.exporters.tracks import Scene, Slices, Tracks
from agprof.exporters.whole import whole
from agprof.store.reader import Run

FILE = "trace.perfetto-trace"
_TRACK_UUIDS = 2**40
_COUNTER_UUIDS = 2**41
_CATEGORY, _NAME = 1, 2


def export(run: Run, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write the trace. Raises OSError."""
    on_wall, tracks = clocks(run.streams), Tracks()
    base_ns = first_ns(run, on_wall)
    path = folder / FILE
    with whole(path) as place, place.open("wb") as file:
        pace = Pace(say, "perfetto: slices written:")
        writer = _Writer(file, tracks, pace, origin_ns=min(0, base_ns))
        file.write(packets.first(base_ns - writer.origin_ns))
        for rank in numbers(run, "rank"):
            for scene in rank_scenes(run, rank, on_wall, tracks):
                writer.scene(scene)
        for scene in node_scenes(run, on_wall, tracks):
            writer.scene(scene)
    for sentence in tracks.sentences():
        say(sentence)
    return [path]


@dataclass(slots=True)
class _Writer:
    """Writes scenes as packets; knows which names and tracks the file has already."""

    file: BinaryIO
    tracks: Tracks
    pace: Pace
    origin_ns: int
    """Taken from every time, because Perfetto knows none before zero; 0 unless the run says it began before 1970."""
    interned: dict[tuple[int, str], int] = field(default_factory=dict)
    described: set[int] = field(default_factory=set)
    counters: dict[tuple[int, str], int] = field(default_factory=dict)

    def scene(self, scene: Scene) -> None:
        """Raises OSError."""
        self._describe()
        for slices in scene.slices:
            self._slices(slices)
        for frame in scene.instants:
            for rows in chunks(frame):
                self.file.write(b"".join(self._instants(rows)))
        for frame in (*scene.counters, *scene.derived_counters):
            for rows in chunks(frame):
                self.file.write(b"".join(self._counter_values(rows)))

    def _describe(self) -> None:
        """Describe processes and tracks that are new."""
        for process in self.tracks.processes.values():
            if process.pid not in self.described:
                self.described.add(process.pid)
                self.file.write(packets.process(process.pid, process.pid, process.name))
        for track in self.tracks.threads.values():
            if (uuid := _TRACK_UUIDS + track.tid) not in self.described:
                self.described.add(uuid)
                self.file.write(packets.track(uuid, track.pid, track.name, track.order))

    def _iid(self, kind: int, text: str) -> int:
        """The number of a text, which the file is told when it is new."""
        key = (kind, text)
        if key not in self.interned:
            self.interned[key] = len(self.interned) + 1
            self.file.write(packets.names(kind, self.interned[key], text))
        return self.interned[key]

    def _slices(self, slices: Slices) -> None:
        """Begins and ends. Of those at one time on one track, ends come before begins, as viewers need it."""
        open_ends: dict[int, list[tuple[int, bytes]]] = {}
        for rows in slice_chunks(slices):
            self._describe()
            self.file.write(b"".join(self._begins(rows, open_ends)))
            self.pace.add(rows.height)
        for ends in open_ends.values():
            self.file.write(b"".join(packet for _, packet in reversed(ends)))

    def _begins(self, rows: pl.DataFrame, open_ends: dict[int, list[tuple[int, bytes]]]) -> Iterator[bytes]:
        starts = rows["start_ns"] - self.origin_ns
        begin_times, end_times = varints(starts.to_numpy()), varints((starts + rows["duration_ns"]).to_numpy())
        begins: dict[tuple[int, str, str], bytes] = {}
        ends: dict[int, bytes] = {}
        columns = ("tid", "start_ns", "duration_ns", "category", "name", "args", "flow_out", "flow_in")
        for begin, end, row in zip(begin_times, end_times, rows.select(columns).iter_rows(), strict=True):
            tid, start, duration, category, name, args, flow_out, flow_in = row
            if tid not in ends:
                ends[tid] = packets.event(EventType.END, _TRACK_UUIDS + tid)
                open_ends.setdefault(tid, [])
            still_open = open_ends[tid]
            while still_open and still_open[-1][0] <= start:
                yield still_open.pop()[1]
            still_open.append((start + duration, packets.packet(end, ends[tid])))
            key = (tid, category, name)
            body = begins.get(key)
            if body is None:
                iids = self._iid(_CATEGORY, category), self._iid(_NAME, name)
                body = begins[key] = packets.event(EventType.BEGIN, _TRACK_UUIDS + tid, *iids)
            if flow_out is not None:
                body += packets.flow(flow_out, ends=False)
            if flow_in is not None:
                body += packets.flow(flow_in, ends=True)
            yield packets.packet(begin, body + packets.arguments(args) if args else body)

    def _instants(self, rows: pl.DataFrame) -> Iterator[bytes]:
        for tid, time, category, name, args in rows.select("tid", "time_ns", "category", "name", "args").iter_rows():
            iids = self._iid(_CATEGORY, category), self._iid(_NAME, name)
            body = packets.event(EventType.INSTANT, _TRACK_UUIDS + tid, *iids)
            yield self._at(time, body + packets.arguments(args) if args else body)

    def _counter_values(self, rows: pl.DataFrame) -> Iterator[bytes]:
        for pid, name, series, time, value in rows.select("pid", "name", "series", "time_ns", "value").iter_rows():
            key = (pid, name if name == series else f"{name} {series}")
            if key not in self.counters:
                self.counters[key] = _COUNTER_UUIDS + len(self.counters)
                yield packets.counter_track(self.counters[key], pid, key[1])
            yield self._at(time, packets.event(EventType.COUNTER, self.counters[key]) + packets.value(value))

    def _at(self, time_ns: int, body: bytes) -> bytes:
        return packets.packet(varint(time_ns - self.origin_ns), body)
