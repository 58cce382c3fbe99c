"""Wall time of a run: every node's monotonic clock put on the epoch, so that ranks and nodes share one time axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from agprof.model.tables import BY_NAME
from agprof.store.reader import Run, Stream

DRAWN_TABLES = (
    "steps", "micro_steps", "spans", "device_spans", "collectives", "waits", "generations", "memory", "marks",
    "host_samples", "process_samples", "gpu_samples",
)  # fmt: skip

MAX_NS = 2**62
"""Times and durations beyond it are damage; the sum of two within it still is a 64-bit number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What to add to a time of a rank or node for nanoseconds since the epoch."""

    offsets_ns: Mapping[int, int]
    """By node: realtime - monotonic, as the node's first stream says it."""
    node_of: Mapping[int, int]
    """By rank."""
    hosts: Mapping[int, str]
    """Host name by rank."""

    def of_node(self, node: int) -> int:
        """The node's offset; a node that says nothing of its clock gets the lowest node's."""
        if node in self.offsets_ns:
            return self.offsets_ns[node]
        return self.offsets_ns[min(self.offsets_ns)] if self.offsets_ns else 0

    def of_rank(self, rank: int) -> int:
        return self.of_node(self.node_of.get(rank, 0))


def clocks(streams: Sequence[Stream]) -> Clocks:
    """The clocks of a run, from the headers of its streams."""
    offsets: dict[int, int] = {}
    node_of: dict[int, int] = {}
    hosts: dict[int, str] = {}
    for stream in sorted(streams, key=lambda s: (s.scope, s.number, s.attempt)):
        header = stream.header
        node = header.get("node")
        node = node if isinstance(node, int) else 0
        if stream.scope == "rank":
            node_of.setdefault(stream.number, node)
            host = header.get("host")
            if isinstance(host, str):
                hosts.setdefault(stream.number, host)
        clock: Any = header.get("clock")
        if node in offsets or not isinstance(clock, Mapping):
            continue
        real, monotonic = clock.get("realtime_ns"), clock.get("monotonic_ns")
        if isinstance(real, int) and isinstance(monotonic, int):
            offsets[node] = real - monotonic
    return Clocks(offsets_ns=offsets, node_of=node_of, hosts=hosts)


def first_ns(run: Run, clocks: Clocks) -> int:
    """Wall time of the earliest event that is drawn: no time after it is negative. 0 without events."""
    found: list[int] = []
    for name in DRAWN_TABLES:
        frame, scope = run.tables[name], BY_NAME[name].scope
        offset = clocks.of_rank if scope == "rank" else clocks.of_node
        for number, earliest in _earliest(frame, scope).iter_rows():
            found.append(earliest + offset(number))
    for rank, trace in run.traces.items():
        for lazy in trace.tables.values():
            if (column := _time_column(lazy.collect_schema().names())) is not None:
                earliest = lazy.select(pl.col(column).min()).collect().item()
                found += [] if earliest is None else [earliest + clocks.of_rank(rank)]
    return min((time for time in found if abs(time) <= MAX_NS), default=0)


def _earliest(frame: pl.DataFrame, scope: str) -> pl.DataFrame:
    """Number of the rank or node, its earliest time."""
    column = _time_column(frame.columns)
    if column is None:
        raise ValueError(f"no column of times among {frame.columns}")
    return frame.drop_nulls([scope, column]).group_by(scope).agg(pl.col(column).min())


def _time_column(columns: Sequence[str]) -> str | None:
    return next((name for name in ("start_ns", "time_ns") if name in columns), None)
