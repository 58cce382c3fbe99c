"""Why a device idles: every gap is cut into parts by what the host did until it launched what ends the gap.

Definition in docs/trace-analysis.md; the parts add up to the idle time exactly.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.trace_activities import NONE, Calls, Device, ints, take, texts
from agprof.analysis.trace_intervals import NOTHING, Bools, Disjoint, Ints, both, together, union, without
from agprof.analysis.trace_names import DATA
from agprof.model.trace_answers import IdleCause
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace

CAUSES: tuple[IdleCause, ...] = ("launch", "kernel wait", "synchronisation", "data", "unknown")


@dataclass(frozen=True, slots=True)
class HostWaits:
    """When the host stood in a synchronising call, and, per thread, in a data loader."""

    synchronising: Calls
    data: dict[int, Disjoint]


def host_waits(trace: RankTrace, device: Device) -> HostWaits:
    """What the host waited for."""
    return HostWaits(synchronising=device.waits, data=_data_ranges(trace))


def idle_by_cause(device: Device, waits: HostWaits, idle: Disjoint) -> dict[IdleCause, Disjoint]:
    """The device's idle time by cause.

    Of the activity that ends a gap: from the end of its launch call on the device waits (`kernel wait`). The call
    itself, which may load a module for seconds, is the host's (`launch`). Before the call the launching thread stands
    in a data loader (`data`), in a synchronising call (`synchronisation`), or works (`launch`). `unknown` where the
    launch is not in the trace, or nothing ends the gap.
    """
    if not len(idle.start):
        return dict.fromkeys(CAUSES, NOTHING)
    called, returned, thread = _next_launch(device, idle)
    known = called != NONE
    cut = np.clip(returned, idle.start, idle.end)
    # Only gaps that the host has a share in: there may be a million others.
    late = known & (cut > idle.start)
    share = union(idle.start[late], cut[late])
    host = _Gaps(idle.start[late], np.minimum(cut, called)[late], thread[late])
    del called, returned, thread
    data = _inside(host, waits.data)
    synchronising = without(_inside(host, _waits_for_work(waits.synchronising, idle)), data)
    told = together(data, synchronising)
    return {
        "launch": without(share, told),
        "kernel wait": union(np.where(known, cut, idle.end), idle.end),
        "synchronisation": synchronising,
        "data": data,
        "unknown": union(idle.start[~known], idle.end[~known]),
    }


@dataclass(frozen=True, slots=True)
class _Gaps:
    start: Ints
    end: Ints
    thread: Ints


def _waits_for_work(calls: Calls, idle: Disjoint) -> dict[int, Disjoint]:
    """Per thread, the synchronising calls, without what they take of a gap that they begin in: nothing was there to
    wait for. A call's own work (`cudaFree` may set up a context for seconds) is no waiting."""
    gap = np.maximum(np.searchsorted(idle.start, calls.start, side="right") - 1, 0)
    in_gap = (idle.start[gap] <= calls.start) & (calls.start < idle.end[gap])
    return by_thread(calls.thread, np.where(in_gap, idle.end[gap], calls.start), calls.end)


def _next_launch(device: Device, idle: Disjoint) -> tuple[Ints, Ints, Ints]:
    """Begin, end and thread of the launch of what ends each gap; NONE where it is not known.

    What a graph runs after its first activity does not wait for the end of the call: there its begin stands for it.

    Of several activities that begin together the first in the table; of an empty one inside a gap nothing is said, for
    it occupies no time.
    """
    solid = device.end > device.start
    if not solid.any():
        nothing = np.full(len(idle.start), NONE)
        return nothing, nothing, nothing
    starts, launches, later = device.start, device.launch, _later_in_graph(device)
    if not solid.all():
        starts, launches, later = starts[solid], launches[solid], later[solid]
    first = np.minimum(np.searchsorted(starts, idle.end, side="left"), len(starts) - 1)
    launch = np.where(starts[first] == idle.end, launches[first], np.int64(-1))
    known = launch >= 0
    called, returned = take(device.launches.start, launch), take(device.launches.end, launch)
    return (
        np.where(known, called, NONE),
        np.where(known, np.where(later[first], called, returned), NONE),
        np.where(known, take(device.launches.thread, launch), NONE),
    )


def _later_in_graph(device: Device) -> Bools:
    """Activities that a graph's launch caused, but for the first of each launch."""
    later = device.graph & device.known
    graph = np.flatnonzero(later)
    later[graph[np.unique(device.launch[graph], return_index=True)[1]]] = False
    return later


def _inside(host: _Gaps, waits: dict[int, Disjoint]) -> Disjoint:
    """The parts of the host's share of gaps in which the gap's own thread waited."""
    mine = rows_by(host.thread) if waits else {}
    found = [
        both(union(host.start[mine[thread]], host.end[mine[thread]]), waited)
        for thread, waited in waits.items()
        if thread in mine
    ]
    return together(*found)


def by_thread(thread: Ints, start: Ints, end: Ints) -> dict[int, Disjoint]:
    """Union of intervals per thread."""
    return {number: union(start[rows], end[rows]) for number, rows in rows_by(thread).items()}


def rows_by(values: Ints) -> dict[int, Ints]:
    """Indices of the rows that hold each value, ascending."""
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return {int(ordered[at]): rows for at, rows in zip(first, np.split(order, first[1:]), strict=True)}


def _data_ranges(trace: RankTrace) -> dict[int, Disjoint]:
    """Data loaders' ranges, annotated by torch or by the user."""
    wide = trace.tables["names"].filter(pl.col("text").str.contains(f"(?i){DATA.pattern}")).collect()
    if not wide.height:
        return {}
    kinds = (int(CpuKind.ANNOTATION), int(CpuKind.OP))
    wanted = pl.col("kind").is_in(kinds) & pl.col("name").is_in(wide["name"].implode())
    rows = trace.tables["cpu"].filter(wanted).select("start_ns", "duration_ns", "thread", "name").collect()
    text = texts(trace, ints(rows["name"]))
    good = _waits_for_data(ints(rows["name"]), text)
    start = ints(rows["start_ns"])
    return by_thread(ints(rows["thread"])[good], start[good], (start + ints(rows["duration_ns"]))[good])


def _waits_for_data(name: Ints, text: dict[int, str]) -> Bools:
    return np.isin(name, np.array([i for i, t in text.items() if DATA.search(t[:500])], dtype=np.int64))
