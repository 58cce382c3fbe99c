"""The host's threads in a window, as the critical path walks them: pieces of time, synchronising calls, hand-overs."""

import re
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from agprof.analysis.trace_host import BoolArray, IntArray, Pieces, innermost_pieces
from agprof.analysis.trace_names import synchronises
from agprof.analysis.trace_path_device import CALLS, TOLERANCE_NS, UNKNOWN, Device
from agprof.analysis.trace_window import Window
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

HOST, OPERATOR, LAUNCH, SYNC = 0, 1, 2, 3
"""What a piece of a thread shows: nothing recorded or a mere range; an operator; a call; a synchronising call."""
_BACKWARD = re.compile(r"^(autograd::engine::evaluate_function|torch::autograd::|\w+Backward\d*$)")
_RANGE = re.compile(r"^(ProfilerStep|Optimizer\.(step|zero_grad)#|enumerate\(DataLoader\)#)")
"""What traces of 2020 and 2021 call operators, and are ranges."""
_LONGEST = 1_000
_FREE = re.compile(r"Free|Unregister|Reset")
"""Calls that wait for the device at times; what they take else is their own work."""
_COPY = re.compile(r"Memcpy", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """The calls in which one thread waited for the device, ascending, and the activity that ended each wait."""

    start_ns: IntArray
    end_ns: IntArray
    activity: IntArray
    name: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOvers:
    """Where a thread went on because another one's work had ended: ascending by the piece in which it waited."""

    since_ns: IntArray
    until_ns: IntArray
    """The piece in which it waited."""
    at_ns: IntArray
    """When the other thread's work ended; this thread's time after that is its own."""
    thread: IntArray
    others: dict[int, tuple[IntArray, IntArray]]
    """The threads it may wait for, and the pieces in which they show work."""

    def before(self, time_ns: int) -> tuple[int, int]:
        """When, and to which thread, a walk back from `time_ns` leaves this thread; (UNKNOWN, -1) when it does not."""
        place = int(np.searchsorted(self.since_ns, time_ns, side="left")) - 1
        if place < 0:
            return UNKNOWN, -1
        if self.until_ns[place] <= time_ns:
            return int(self.at_ns[place]), int(self.thread[place])
        # The walk begins inside the piece: what ended after that is not its cause.
        until = np.array([time_ns], dtype=np.int64)
        ended, number = max((int(last_busy(busy, until)[0]), -other) for other, busy in self.others.items())
        return (ended, -number) if ended > self.since_ns[place] else self.before(int(self.since_ns[place]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One thread's window."""

    thread: int | None
    pieces: Pieces
    shows: IntArray
    """Of each piece: HOST, OPERATOR, LAUNCH, SYNC."""
    name: IntArray
    """Of each piece; UNKNOWN where no event is open."""
    has_ops: bool
    is_autograd: bool
    waits: Waits
    syncs: IntArray
    """Columns of all synchronising calls: begin, end, lane waited for (-1: any), when its event was recorded (UNKNOWN:
    it waits for all that was launched before)."""
    hand_overs: HandOvers


def host_threads(trace: RankTrace, window: Window, device: Device, names: dict[int, str]) -> list[Thread]:
    """Every thread of a window, by number."""
    rows = (
        trace.tables["cpu"]
        .filter(
            pl.col("kind") != int(CpuKind.OVERHEAD),
            pl.col("start_ns") < window.end_ns,
            pl.col("start_ns") + pl.col("duration_ns") > window.start_ns,
        )
        .select(
            "start_ns",
            (pl.col("start_ns") + pl.col("duration_ns")).alias("end_ns"),
            "kind",
            "name",
            pl.col("thread").fill_null(UNKNOWN),
            pl.col("correlation").fill_null(UNKNOWN),
            # Kineto numbers autograd's threads from 1 and writes 0 on forward operators.
            (pl.col("forward_thread") > 0).fill_null(False).alias("backward"),
            (pl.col("forward_thread") == 0).fill_null(False).alias("forward"),
        )
        .collect()
    )
    threads = [
        _thread(number, part, window, device, names)
        for (number,), part in sorted(rows.partition_by("thread", as_dict=True, maintain_order=True).items())
    ]
    return _hand_over(threads)


def _thread(number: int, rows: pl.DataFrame, window: Window, device: Device, names: dict[int, str]) -> Thread:
    start, end, kind, name = (rows[column].to_numpy() for column in ("start_ns", "end_ns", "kind", "name"))
    pieces = innermost_pieces(start, end, window.start_ns, window.end_ns)
    ids = np.unique(name)
    synchronising = np.isin(name, [each for each in ids.tolist() if synchronises(names.get(each, ""))])
    frees = _any_of(name, names, _FREE)
    is_call = np.isin(kind, CALLS)
    waits = is_call & synchronising & ~frees
    shows = np.select([kind == int(CpuKind.OP), waits, is_call], [OPERATOR, SYNC, LAUNCH], HOST)
    ranges = _any_of(name, names, _RANGE)
    shows = np.where((shows == OPERATOR) & ranges, HOST, shows)
    is_open = pieces.event >= 0
    return Thread(
        thread=None if number == UNKNOWN else number,
        pieces=pieces,
        shows=np.where(is_open, shows[pieces.event], HOST) if shows.size else np.zeros(pieces.event.size, np.int64),
        name=np.where(is_open, name[pieces.event], UNKNOWN),
        has_ops=bool((shows == OPERATOR).any()),
        is_autograd=not rows["forward"].any() and bool(rows["backward"].any() or _any_of(name, names, _BACKWARD).any()),
        waits=_waits(rows, is_call, synchronising, device, names),
        syncs=_syncs(rows, waits & ~_any_of(name, names, _COPY), device),
        hand_overs=_no_hand_overs(),
    )


def _any_of(name: IntArray, names: dict[int, str], pattern: re.Pattern[str]) -> BoolArray:
    """Which ids are of texts that match."""
    return np.isin(name, [each for each in set(name.tolist()) if pattern.search(names.get(each, "")[:_LONGEST])])


def _syncs(rows: pl.DataFrame, which: BoolArray, device: Device) -> IntArray:
    calls = rows.filter(pl.Series(which, dtype=pl.Boolean)).select("start_ns", "end_ns", "correlation")
    found = [
        (start, end, device.sync_lane.get(correlation, -1), device.sync_record_ns.get(correlation, UNKNOWN))
        for start, end, correlation in calls.iter_rows()
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4).T


def _waits(
    rows: pl.DataFrame, is_call: BoolArray, synchronising: BoolArray, device: Device, names: dict[int, str]
) -> Waits:
    """The calls that stood until an activity had ended.

    A call waits for what the trace says (its stream, its event), else for the activity that ended last before it
    returned; and it did wait only where that one ended after the call had begun. A copy waits for itself; one that is
    called asynchronous does so only where its host memory is pageable.
    """
    start, end, name = (rows[column].to_numpy() for column in ("start_ns", "end_ns", "name"))
    correlation = rows["correlation"].to_numpy()
    copies = _any_of(name, names, _COPY)
    own = _copies(device)
    pageable = {each for each in np.unique(device.name).tolist() if "ageable" in names.get(each, "")}
    found: list[tuple[int, int, int, int]] = []
    for row in np.flatnonzero(is_call & (synchronising | copies)).tolist():
        if copies[row]:
            activity = own.get(int(correlation[row]), -1)
            if activity >= 0 and not synchronising[row] and int(device.name[activity]) not in pageable:
                continue
        else:
            activity = _waited_for(device, int(correlation[row]), int(end[row]))
        if activity >= 0 and start[row] < device.end_ns[activity] <= end[row] + TOLERANCE_NS:
            found.append((int(start[row]), int(end[row]), activity, int(name[row])))
    # Of nested calls (the runtime's and the driver's) the outer one waits.
    outer = [wait for place, wait in enumerate(found) if place == 0 or wait[1] > found[place - 1][1]]
    columns = np.array(outer, dtype=np.int64).reshape(-1, 4).T
    return Waits(start_ns=columns[0], end_ns=columns[1], activity=columns[2], name=columns[3])


def _copies(device: Device) -> dict[int, int]:
    """Correlation -> copy."""
    copies = np.flatnonzero((device.kind == int(GpuKind.MEMCPY)) & (device.correlation != UNKNOWN))
    return dict(zip(device.correlation[copies].tolist(), copies.tolist(), strict=True))


def _waited_for(device: Device, correlation: int, until_ns: int) -> int:
    everything = device.end_ns.size
    lane = device.sync_lane.get(correlation)
    if lane is None:
        return device.by_end.last(until_ns, everything)
    recorded_ns = device.sync_record_ns.get(correlation)
    if recorded_ns is not None and (activity := device.lane_launched[lane].last(recorded_ns)) >= 0:
        return activity
    return device.lane_by_end[lane].last(until_ns, everything)


def _hand_over(threads: list[Thread]) -> list[Thread]:
    """Autograd's threads wait for the thread that enqueued the work, and that one for them.

    While a thread shows nothing, or a mere range, it went on because of the thread of the other kind whose recorded
    work ended last in that time.
    """
    workers = [number for number, thread in enumerate(threads) if thread.is_autograd]
    mains = [number for number, thread in enumerate(threads) if thread.has_ops and not thread.is_autograd]
    busy = {number: _busy(threads[number]) for number in workers + mains}
    linked = dict.fromkeys(workers, mains) | dict.fromkeys(mains, workers)
    return [
        replace(thread, hand_overs=_hand_overs(thread, {other: busy[other] for other in linked.get(number, [])}))
        for number, thread in enumerate(threads)
    ]


def _busy(thread: Thread) -> tuple[IntArray, IntArray]:
    shown = thread.shows != HOST
    return thread.pieces.start_ns[shown], thread.pieces.end_ns[shown]


def _hand_overs(thread: Thread, others: dict[int, tuple[IntArray, IntArray]]) -> HandOvers:
    waiting = thread.shows == HOST
    since, until = thread.pieces.start_ns[waiting], thread.pieces.end_ns[waiting]
    at = since.copy()
    who = np.full(since.size, -1, dtype=np.int64)
    for number, busy in others.items():
        ended = last_busy(busy, until)
        later = ended > at
        at[later], who[later] = ended[later], number
    found = who >= 0
    return HandOvers(since_ns=since[found], until_ns=until[found], at_ns=at[found], thread=who[found], others=others)


def last_busy(busy: tuple[IntArray, IntArray], until_ns: IntArray) -> IntArray:
    """Up to each time: when the last of some disjoint ascending pieces ended, at most that time; UNKNOWN if none."""
    start, end = busy
    if not start.size:
        return np.full(until_ns.size, UNKNOWN, dtype=np.int64)
    place = np.searchsorted(start, until_ns, side="left") - 1
    return np.where(place >= 0, np.minimum(end[place], until_ns), UNKNOWN)


def _no_hand_overs() -> HandOvers:
    nothing = np.zeros(0, dtype=np.int64)
    return HandOvers(since_ns=nothing, until_ns=nothing, at_ns=nothing, thread=nothing, others={})
