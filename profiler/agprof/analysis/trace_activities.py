"""One rank's device activities and the host calls that launched them, as arrays: where most trace analyses begin."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from agprof.analysis.trace_intervals import NOTHING, Bools, Disjoint, Ints, together, union
from agprof.analysis.trace_names import GRAPH_LAUNCH, Communication, synchronises
from agprof.model.trace_answers import KernelClass
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

CLASSES: tuple[KernelClass, ...] = ("compute", "communication", "memcpy", "memset")
"""The classes of busy time, in the order in which one hides the other; an activity's class is an index in it."""
COMPUTE, COMMUNICATION, MEMCPY, MEMSET = range(4)
NONE = np.int64(-(2**63))
"""Stands for `no value` in the arrays of correlations, threads and times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls of the runtime and the driver, sorted by begin."""

    start: Ints
    end: Ints
    thread: Ints
    name: Ints
    correlation: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Kernels, copies and memsets of one rank, sorted by begin. Synchronisation and annotations are none of them."""

    rank: int
    start: Ints
    end: Ints
    kind: Ints
    """Index in CLASSES."""
    name: Ints
    correlation: Ints
    external_id: Ints
    device: Ints
    stream: Ints
    graph: Bools
    """Whether a CUDA graph launched it."""
    launch: Ints
    """Index in `calls` of the call that launched it; -1 when it is not in the trace."""
    calls: Calls
    text: dict[int, str]
    """Text of every name that occurs on the device or in a call."""
    library: dict[int, str]
    """Communication kernels' name -> library."""
    by_class: tuple[Disjoint, ...] = field(default=(NOTHING, NOTHING, NOTHING, NOTHING))
    """Union of each class."""

    @property
    def busy(self) -> Disjoint:
        """The time in which anything ran."""
        return together(*self.by_class)

    @property
    def known(self) -> Bools:
        """Activities whose launch is in the trace."""
        return self.launch >= 0

    def launched_at(self) -> Ints:
        """Begin of the launch of every activity; NONE where it is not known."""
        return np.where(self.known, take(self.calls.start, self.launch), NONE)

    def launched_by(self) -> Ints:
        """Thread of the launch of every activity; NONE where it is not known."""
        return np.where(self.known, take(self.calls.thread, self.launch), NONE)


def load_device(trace: RankTrace, communication: Communication) -> Device | None:
    """The rank's device; None when the trace holds no kernel, copy or memset."""
    busy = (int(GpuKind.KERNEL), int(GpuKind.MEMCPY), int(GpuKind.MEMSET))
    rows = trace.tables["gpu"].filter(pl.col("kind").is_in(busy)).drop("bytes").collect()
    if not rows.height:
        return None
    calls = load_calls(trace)
    start = ints(rows["start_ns"])
    end = start + ints(rows["duration_ns"])
    name, correlation = ints(rows["name"]), ints(rows["correlation"])
    text = texts(trace, np.unique(np.concatenate((name, calls.name))))
    kernel = ints(rows["kind"]) == int(GpuKind.KERNEL)
    library = {
        int(id_): found for id_ in np.unique(name[kernel]) if (found := communication.library(text.get(int(id_), "")))
    }
    kind = _classes(ints(rows["kind"]), name, library)
    launch = _launches(correlation, start, end, calls)
    by_graph = among(calls.name, [i for i, t in text.items() if GRAPH_LAUNCH.match(t)])
    graph = rows["graph_node"].is_not_null().to_numpy() | ((launch >= 0) & take(by_graph, launch))
    return Device(
        rank=trace.rank,
        start=start,
        end=end,
        kind=kind,
        name=name,
        correlation=correlation,
        external_id=ints(rows["external_id"]),
        device=ints(rows["device"]),
        stream=ints(rows["stream"]),
        graph=graph,
        launch=launch,
        calls=calls,
        text=text,
        library=library,
        by_class=tuple(union(start[kind == each], end[kind == each]) for each in range(len(CLASSES))),
    )


def load_calls(trace: RankTrace) -> Calls:
    """Runtime and driver calls: those that launch, and those in which the host waits."""
    kinds = (int(CpuKind.RUNTIME), int(CpuKind.DRIVER))
    columns = ("start_ns", "duration_ns", "thread", "name", "correlation")
    rows = trace.tables["cpu"].filter(pl.col("kind").is_in(kinds)).select(columns).collect()
    start = ints(rows["start_ns"])
    return Calls(
        start=start,
        end=start + ints(rows["duration_ns"]),
        thread=ints(rows["thread"]),
        name=ints(rows["name"]),
        correlation=ints(rows["correlation"]),
    )


def waiting_calls(device: Device) -> Bools:
    """Which calls make the host wait for the device."""
    return among(device.calls.name, [i for i, t in device.text.items() if synchronises(t)])


def texts(trace: RankTrace, ids: Ints) -> dict[int, str]:
    """Texts of the given ids; those without one are left out."""
    names = trace.tables["names"].filter(pl.col("name").is_in(pl.Series(ids).implode())).collect()
    return dict(names.unique("name", keep="first", maintain_order=True).iter_rows())


def ints(values: pl.Series) -> Ints:
    """A column as int64, None as NONE."""
    return values.fill_null(int(NONE)).to_numpy() if values.null_count() else values.to_numpy()


def among(values: Ints, some: list[int]) -> Bools:
    """Whether each value is one of some."""
    return np.isin(values, np.array(some, dtype=np.int64))


def take(values: np.ndarray[Any, Any], index: Ints) -> np.ndarray[Any, Any]:
    """`values[index]`, anything where the index is -1."""
    return values[np.maximum(index, 0)] if len(values) else np.zeros(len(index), dtype=values.dtype)


def _classes(kind: Ints, name: Ints, library: dict[int, str]) -> Ints:
    found = np.full(len(kind), COMPUTE, dtype=np.int64)
    found[kind == int(GpuKind.MEMCPY)] = MEMCPY
    found[kind == int(GpuKind.MEMSET)] = MEMSET
    found[(kind == int(GpuKind.KERNEL)) & among(name, list(library))] = COMMUNICATION
    return found


def _launches(correlation: Ints, start: Ints, end: Ints, calls: Calls) -> Ints:
    """Index of the call that launched each activity, or -1.

    Of several calls with one correlation (the runtime's and the driver's inside it) the first to begin. A call that
    begins after its activity ended is not its launch.
    """
    known = np.flatnonzero((calls.correlation != NONE) & (calls.correlation != 0))
    if not len(known):
        return np.full(len(correlation), -1, dtype=np.int64)
    order = known[np.argsort(calls.correlation[known], kind="stable")]
    ids = calls.correlation[order]
    at = np.minimum(np.searchsorted(ids, correlation, side="left"), len(ids) - 1)
    found = order[at]
    good = (ids[at] == correlation) & (calls.start[found] <= np.maximum(end, start + 1))
    return np.where(good, found, np.int64(-1))
