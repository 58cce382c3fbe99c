"""One rank's device activities and the host calls that launched them, as arrays: where most trace analyses begin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from agprof.analysis.trace_intervals import NOTHING, Bools, Disjoint, Ints, together, union
from agprof.analysis.trace_names import GRAPH_LAUNCH, synchronises
from agprof.model.communication_kernels import Communication
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
    """Calls of the runtime and the driver."""

    start: Ints
    end: Ints
    thread: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Kernels, copies and memsets of one rank, sorted by begin. Synchronisation and annotations are none of them."""

    rank: int
    start: Ints
    end: Ints
    kind: np.ndarray[Any, np.dtype[np.int8]]
    """Index in CLASSES."""
    name: Ints
    correlation: Ints
    external_id: Ints
    graph: Bools
    """Whether a CUDA graph launched it."""
    launch: Ints
    """Index in `launches` of the call that launched it; -1 when it is not in the trace."""
    launches: Calls
    waits: Calls
    """Calls in which the host waits for the device."""
    text: dict[int, str]
    """Text of every name that occurs."""
    library: dict[int, str]
    """Communication kernels' name -> library."""
    devices: int
    """Devices that the rank drives; they are taken together."""
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
        return np.where(self.known, take(self.launches.start, self.launch), NONE)

    def launched_by(self) -> Ints:
        """Thread of the launch of every activity; NONE where it is not known."""
        return np.where(self.known, take(self.launches.thread, self.launch), NONE)


def load_device(trace: RankTrace, communication: Communication) -> Device | None:
    """The rank's device; None when the trace holds no kernel, copy or memset.

    Tables are read in parts, and of the host's millions of calls only those are kept that launched something or waited.
    """
    rows = _gpu_rows(trace)
    if not len(rows["start"]):
        return None
    calls = _call_rows(trace, rows["correlation"])
    launch = _launches(rows["correlation"], rows["start"], rows["end"], calls)
    text = texts(trace, np.unique(rows["name"]))
    kernels = np.unique(rows["name"][rows["kind"] == COMPUTE])
    library = {int(i): found for i in kernels if (found := communication.library(text.get(int(i), "")))}
    kind = rows["kind"]
    kind[(kind == COMPUTE) & among(rows["name"], list(library))] = COMMUNICATION
    start, end = rows["start"], rows["end"]
    return Device(
        rank=trace.rank,
        start=start,
        end=end,
        kind=kind,
        name=rows["name"],
        correlation=rows["correlation"],
        external_id=rows["external_id"],
        graph=rows["graph"] | ((launch >= 0) & take(calls["graph"], launch)),
        launch=launch,
        launches=Calls(start=calls["start"], end=calls["end"], thread=calls["thread"]),
        waits=_calls(calls, calls["waits"]),
        text=text,
        library=library,
        devices=_devices(trace),
        by_class=tuple(union(start[kind == each], end[kind == each]) for each in range(len(CLASSES))),
    )


Columns = dict[str, np.ndarray[Any, Any]]


def _gpu_rows(trace: RankTrace) -> Columns:
    """start, end, kind (COMPUTE for every kernel), name, correlation, external_id, graph; sorted."""
    classes = {int(GpuKind.KERNEL): COMPUTE, int(GpuKind.MEMCPY): MEMCPY, int(GpuKind.MEMSET): MEMSET}
    picked = (
        pl.col("start_ns").alias("start"),
        (pl.col("start_ns") + pl.col("duration_ns")).alias("end"),
        pl.col("kind").replace_strict(classes, return_dtype=pl.Int8),
        pl.col("name"),
        pl.col("correlation").fill_null(int(NONE)),
        pl.col("external_id").fill_null(int(NONE)),
        pl.col("graph_node").is_not_null().alias("graph"),
    )
    columns = gather(trace, "gpu", pl.col("kind").is_in(list(classes)), picked)
    start, end = columns["start"], columns["end"]
    ordered = (start[1:] > start[:-1]) | ((start[1:] == start[:-1]) & (end[1:] <= end[:-1]))
    if not ordered.all():
        order = np.lexsort((-end, start))
        for name in columns:
            columns[name] = columns[name][order]
    return columns


def _call_rows(trace: RankTrace, launched: Ints) -> Columns:
    """start, end, thread, correlation, waits, graph of the calls that launched something or waited."""
    text = trace.tables["names"].filter(pl.col("text").str.contains("^(cuda|cu|hip)")).collect()
    names = dict(text.iter_rows())
    waits = [i for i, t in names.items() if synchronises(t)]
    graphs = [i for i, t in names.items() if GRAPH_LAUNCH.match(t)]
    wanted = np.sort(launched[(launched != NONE) & (launched != 0)])
    kinds = (int(CpuKind.RUNTIME), int(CpuKind.DRIVER))
    picked = (
        pl.col("start_ns").alias("start"),
        (pl.col("start_ns") + pl.col("duration_ns")).alias("end"),
        pl.col("thread").fill_null(int(NONE)),
        pl.col("correlation").fill_null(int(NONE)),
        pl.col("name").is_in(waits).alias("waits"),
        pl.col("name").is_in(graphs).alias("graph"),
    )
    return gather(trace, "cpu", pl.col("kind").is_in(kinds), picked, lambda part: part["waits"] | _found(part, wanted))


def _found(part: Columns, wanted: Ints) -> Bools:
    if not len(wanted):
        return np.zeros(len(part["correlation"]), dtype=np.bool_)
    at = np.minimum(np.searchsorted(wanted, part["correlation"]), len(wanted) - 1)
    return np.asarray(wanted[at] == part["correlation"])


def gather(
    trace: RankTrace,
    table: str,
    wanted: pl.Expr,
    picked: Sequence[pl.Expr],
    kept: Callable[[Columns], Bools] | None = None,
) -> Columns:
    """Some columns of the wanted rows, file by file: a whole table with its sorted copy takes several times as much."""
    found: list[Columns] = []
    for frame in trace.in_parts(table):
        rows = frame.filter(wanted).select(picked).collect()
        part: Columns = {name: rows[name].to_numpy() for name in rows.columns}
        mask = kept(part) if kept is not None else None
        # Copies, so that no part's own memory stays behind a view.
        found.append({name: values[mask] if mask is not None else values.copy() for name, values in part.items()})
    return {name: np.concatenate([part.pop(name) for part in found]) for name in list(found[0])}


def _devices(trace: RankTrace) -> int:
    busy = pl.col("kind").is_in((int(GpuKind.KERNEL), int(GpuKind.MEMCPY), int(GpuKind.MEMSET)))
    seen = [frame.filter(busy).select(pl.col("device").unique()).collect() for frame in trace.in_parts("gpu")]
    return pl.concat(seen)["device"].n_unique()


def _calls(rows: Columns, mask: Bools) -> Calls:
    return Calls(start=rows["start"][mask], end=rows["end"][mask], thread=rows["thread"][mask])


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


def _launches(correlation: Ints, start: Ints, end: Ints, calls: Columns) -> Ints:
    """Index of the call that launched each activity, or -1.

    Of several calls with one correlation (the runtime's and the driver's inside it) the first to begin. A call that
    begins after its activity ended is not its launch.
    """
    ids = calls["correlation"]
    known = np.flatnonzero((ids != NONE) & (ids != 0))
    if not len(known):
        return np.full(len(correlation), -1, dtype=np.int64)
    order, ids = known, ids[known]
    if not (ids[1:] > ids[:-1]).all():
        order = known[np.lexsort((calls["start"][known], ids))]
        ids = calls["correlation"][order]
    at = np.minimum(np.searchsorted(ids, correlation, side="left"), len(ids) - 1)
    found = order[at]
    good = (ids[at] == correlation) & (calls["start"][found] <= np.maximum(end, start + 1))
    return np.where(good, found, np.int64(-1))
