"""One clock for all nodes: what each node's pings say of its clock, held against the collectives.

A node without pings is put on the axis by its wall clock, which is as good as its NTP. Where pings contradict each
other, or collectives contradict the clocks, nothing is merged: each node's times then begin with its own first step.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from agprof.analysis.clock_axis import PPT, ClockAxis, ClockPiece, axis_through
from agprof.analysis.clock_check import conflicts
from agprof.analysis.clock_fit import MAX_DRIFT, Line, Ping, fit
from agprof.analysis.clock_words import sentence
from agprof.model.clock_answers import ClockAnswer, ClockConflict, ClockMethod, ClockPoint, ClockState, NodeClock
from agprof.model.figure import Figure
from agprof.store.reader import Stream

STEP_NS = 1_000_000
"""A wall clock that moved by more than this against the monotonic one was set."""
JUMP_DRIFT = 5e-3
"""Rate between two pings that no clock has: it jumped, or the pings are of something else."""
WANDER = 1e-7
"""By which a rate wanders with temperature within a stretch that one line fits (quartz, some degrees)."""
CHANCE = 0.01
"""Share of the collectives that may contradict the clocks: rows that are matched wrongly."""
MOST_POINTS = 2_000
MAX_NS = 2**61
"""Times beyond it are damage: differences of those within it are 64-bit numbers."""
Tables = Mapping[str, pl.DataFrame]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedNode:
    """One node's clock, before the run's origin is known."""

    node: int
    host: str | None
    method: ClockMethod
    axis: ClockAxis
    lines: tuple[Line, ...] = ()
    pings: tuple[Ping, ...] = ()
    uncertainty_ns: int | None = None
    change_ns: int = 0
    """Largest mismatch of two stretches."""
    jump: tuple[int, int, int] | None = None
    """(ns, local time before, local time after) of a jump that no rate explains."""
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedClocks:
    """The clocks of a run. `axes` is what times are mapped by."""

    axes: Mapping[int, ClockAxis] = field(default_factory=dict)
    nodes: tuple[FittedNode, ...] = ()
    reference: int | None = None
    state: ClockState = "reconciled"
    checked: int = 0
    contradicted: int = 0
    conflicts: tuple[ClockConflict, ...] = ()


def fit_clocks(streams: Sequence[Stream], tables: Tables, node_of: Mapping[int, int]) -> FittedClocks:
    """The clocks of all nodes that left a stream. `tables` are free of rows that lack something."""
    nodes = sorted({node_of_stream(stream) for stream in streams})
    walls = _walls(streams, tables)
    by_wall = wall_offsets(streams)
    pings, reference = _pings(tables["clocks"])
    if reference is None or reference not in nodes:
        reference = min(by_wall or nodes, default=None)
        pings = {}
    lowest = by_wall.get(reference, 0) if reference is not None else 0
    spans = _spans(tables, node_of, pings)
    hosts = _hosts(streams)
    fitted = []
    for node in nodes:
        steps, host = _count_steps(walls.get(node, [])), hosts.get(node)
        if node == reference:
            method: ClockMethod = "one node" if len(nodes) == 1 else "pings" if pings else "wall clocks"
            one = FittedNode(node=node, host=host, method=method, axis=ClockAxis(), uncertainty_ns=0, steps=steps)
        elif node in pings:
            one = _fit_node(node, host, pings[node], spans[node], steps)
        else:
            axis = ClockAxis.shifted(by_wall[node] - lowest if node in by_wall else 0)
            one = FittedNode(node=node, host=host, method="wall clocks", axis=axis, steps=steps)
        fitted.append(one)
    return _judged(fitted, reference, streams, tables, node_of)


def _judged(
    nodes: Sequence[FittedNode], reference: int | None, streams: Sequence[Stream], tables: Tables,
    node_of: Mapping[int, int],
) -> FittedClocks:  # fmt: skip
    axes = {one.node: one.axis for one in nodes}
    if len(nodes) < 2:
        return FittedClocks(axes=axes, nodes=tuple(nodes), reference=reference)
    calls = _of_last_attempts(tables["collectives"], streams)
    uncertainty = {one.node: one.uncertainty_ns for one in nodes}
    checked, contradicted, worst = conflicts(calls, node_of, axes, uncertainty)
    state: ClockState = "reconciled"
    if contradicted or any(one.uncertainty_ns is None or one.change_ns > STEP_NS for one in nodes):
        state = "doubtful"
    if contradicted > CHANCE * checked or any(one.jump is not None for one in nodes):
        state = "refused"
        axes = _apart(axes, reference, tables, node_of)
    return FittedClocks(
        axes=axes,
        nodes=tuple(nodes),
        reference=reference,
        state=state,
        checked=checked,
        contradicted=contradicted,
        conflicts=worst,
    )


def answer(clocks: FittedClocks, origin_ns: int) -> ClockAnswer | None:
    """What there is to say of the clocks; None with one node. `origin_ns` is the run's, on the axis."""
    if len(clocks.nodes) < 2:
        return None
    nodes = tuple(_node_clock(one, clocks, origin_ns) for one in clocks.nodes)
    jumps = [(one.node, *one.jump) for one in clocks.nodes if one.jump is not None]
    return ClockAnswer(
        sentence=sentence(clocks.state, clocks.reference, nodes, clocks.checked, clocks.contradicted,
                          clocks.conflicts, [(node, ns) for node, ns, _, _ in jumps]),
        state=clocks.state,
        reference=clocks.reference,
        nodes=nodes,
        checked=clocks.checked,
        conflicts=clocks.conflicts,
    )  # fmt: skip


# -- one node --------------------------------------------------------------------------------------------------------


def _fit_node(node: int, host: str | None, pings: Sequence[Ping], span: Pair, steps: int) -> FittedNode:
    lines = fit(pings, *span)
    change, jump = 0, None
    for before, after in itertools.pairwise(lines):
        begin, end = pings[before.last].local_ns, pings[after.first].local_ns
        moved = after.offset_at(end) - before.offset_at(begin)
        misses = [after.offset_at(time) - before.offset_at(time) for time in (begin, end)]
        change = max(change, *map(abs, misses))
        if abs(moved) > JUMP_DRIFT * (end - begin) and (jump is None or abs(moved) > abs(jump[0])):
            jump = (moved, begin, end)
    return FittedNode(
        node=node,
        host=host,
        method="pings",
        axis=_axis(lines, pings) if jump is None else ClockAxis.shifted(pings[0].offset_ns),
        lines=tuple(lines),
        pings=tuple(pings),
        uncertainty_ns=_uncertainty(lines, pings, span, change),
        change_ns=change,
        jump=jump,
        steps=steps,
    )


def _axis(lines: Sequence[Line], pings: Sequence[Ping]) -> ClockAxis:
    if len(lines) == 1:
        line = lines[0]
        return ClockAxis((ClockPiece(line.zero_ns, line.offset_at(line.zero_ns), round(line.drift * PPT)),))
    knots = {}
    for line in lines:
        for number in (line.first, line.last):
            time = pings[number].local_ns
            knots[time] = line.offset_at(time)
    return axis_through(sorted(knots.items()), round(lines[0].drift * PPT), round(lines[-1].drift * PPT))


def _uncertainty(lines: Sequence[Line], pings: Sequence[Ping], span: Pair, change_ns: int) -> int:
    """Largest distance from the truth between begin and end of the run."""
    begin, end = min(span[0], pings[0].local_ns), max(span[1], pings[-1].local_ns)
    worst = 0
    for at, line in enumerate(lines):
        ends = (
            begin if at == 0 else pings[line.first].local_ns,
            end if at == len(lines) - 1 else pings[line.last].local_ns,
        )
        # A line that keeps all bounds can't be farther off at a ping than both together allow.
        most = max(
            abs(ping.offset_ns - line.offset_at(ping.local_ns)) + ping.uncertainty_ns
            for ping in pings[line.first : line.last + 1]
        )
        wander = min(round(WANDER * (ends[1] - ends[0])), most)
        worst = max(worst, *(line.uncertainty_ns(time) + wander for time in ends))
    rounding = 1 + (end - begin) // PPT
    return worst + change_ns + rounding


def _count_steps(pairs: Sequence[Pair]) -> int:
    """How often the wall clock was set. Both clocks are slewed together, so that NTP's slewing does not show."""
    moved = [real - monotonic for monotonic, real in sorted(pairs)]
    return sum(abs(after - before) > STEP_NS for before, after in itertools.pairwise(moved))


def _node_clock(one: FittedNode, clocks: FittedClocks, origin_ns: int) -> NodeClock:
    offset, drift = _figures(one, clocks, origin_ns)
    axis = clocks.axes[one.node]
    every = max(1, -(-len(one.pings) // MOST_POINTS))
    points = tuple(
        ClockPoint(
            time_ns=axis.common(ping.local_ns) - origin_ns,
            residual_ns=ping.local_ns + ping.offset_ns - one.axis.common(ping.local_ns),
            uncertainty_ns=ping.uncertainty_ns,
        )
        for ping in one.pings[::every]
    )
    return NodeClock(
        node=one.node,
        host=one.host,
        method=one.method,
        offset=offset,
        drift=drift,
        uncertainty_ns=one.uncertainty_ns,
        points=points,
        wall_clock_steps=one.steps,
    )


def _figures(one: FittedNode, clocks: FittedClocks, origin_ns: int) -> tuple[Figure, Figure]:
    """Offset at the run's origin and drift of a node, with all that the pings allow."""
    if one.node == clocks.reference:
        method = "the reference itself"
        zero = Figure(value=0, unit="ns", source="declared", n=0, low=0, high=0, method=method)
        return zero, Figure(value=0, unit="ratio", source="declared", n=0, low=0, high=0, method=method)
    local = clocks.axes[one.node].local(origin_ns)
    offset = one.axis.common(local) - local
    if not one.lines:
        method = "difference of the wall clocks minus that of the monotonic ones, when the nodes' first streams began"
        why = "one reading of the wall clocks tells no drift"
        return (
            Figure(value=offset, unit="ns", source="measured", n=1, method=method),
            Figure(value=None, unit="ratio", source="measured", n=0, method=method, reason=why),
        )
    n = len(one.pings)
    many = f", in {len(one.lines)} stretches of one rate each" if len(one.lines) > 1 else ""
    method = f"line through the least round trips of {n} burst(s) of pings{many}; interval: all lines they allow"
    line = next((line for line in one.lines if local <= one.pings[line.last].local_ns), one.lines[-1])
    low, high = line.bounds_at(local)
    first, last = one.pings[0].local_ns, one.pings[-1].local_ns
    slopes = [slope for line in one.lines for _, slope in line.corners]
    drift = one.lines[0].drift
    if len(one.lines) > 1:
        drift = (one.axis.common(last) - one.axis.common(first)) / (last - first) - 1
        slopes = [line.drift for line in one.lines] + [drift]
    bounded = f"; no rate beyond {MAX_DRIFT * 1e6:,.0f} ppm, by which clocks are slewed at most"
    return (
        Figure(value=offset, unit="ns", source="measured", n=n, low=min(low, offset), high=max(high, offset),
               method=method),
        Figure(value=drift, unit="ratio", source="measured", n=n, low=min(slopes), high=max(slopes),
               method=method + bounded),
    )  # fmt: skip


# -- what the run folder says ----------------------------------------------------------------------------------------


def node_of_stream(stream: Stream) -> int:
    """The node of a rank or sampler; 0 where the header does not tell."""
    if stream.scope == "node":
        return stream.number
    node = stream.header.get("node")
    return node if isinstance(node, int) else 0


def _clock(stream: Stream) -> Pair | None:
    """(monotonic, realtime) of the stream's header."""
    clock = stream.header.get("clock")
    if not isinstance(clock, Mapping):
        return None
    real, monotonic = clock.get("realtime_ns"), clock.get("monotonic_ns")
    if not isinstance(real, int) or not isinstance(monotonic, int) or max(abs(real), abs(monotonic)) > MAX_NS:
        return None
    return monotonic, real


def _ordered(streams: Sequence[Stream]) -> list[Stream]:
    return sorted(streams, key=lambda s: (s.scope, s.number, s.attempt))


def _hosts(streams: Sequence[Stream]) -> dict[int, str]:
    hosts: dict[int, str] = {}
    for stream in _ordered(streams):
        host = stream.header.get("host")
        if isinstance(host, str):
            hosts.setdefault(node_of_stream(stream), host)
    return hosts


def wall_offsets(streams: Sequence[Stream]) -> dict[int, int]:
    """realtime - monotonic by node, as its first stream says it."""
    offsets: dict[int, int] = {}
    for stream in _ordered(streams):
        pair = _clock(stream)
        if pair is not None:
            offsets.setdefault(node_of_stream(stream), pair[1] - pair[0])
    return offsets


def _walls(streams: Sequence[Stream], tables: Tables) -> dict[int, list[Pair]]:
    """By node all pairs (monotonic, realtime) that were read."""
    walls: dict[int, list[Pair]] = {}
    for stream in streams:
        if (pair := _clock(stream)) is not None:
            walls.setdefault(node_of_stream(stream), []).append(pair)
    rows = tables["clocks"].drop_nulls("realtime_ns").select("node", "time_ns", "realtime_ns")
    for node, monotonic, real in rows.iter_rows():
        walls.setdefault(node, []).append((monotonic, real))
    return walls


def _pings(rows: pl.DataFrame) -> tuple[dict[int, list[Ping]], int | None]:
    """By node its pings in order of time, and the reference node that most of them were of."""
    if not rows.height:
        return {}, None
    reference = int(rows["reference_node"].mode().min())  # type: ignore[arg-type]
    rows = (
        rows.filter((pl.col("reference_node") == reference) & (pl.col("node") != reference))
        .filter(pl.col("uncertainty_ns").is_between(0, MAX_NS))
        .filter(pl.all_horizontal(pl.col("time_ns", "reference_ns").is_between(-MAX_NS, MAX_NS)))
        .sort("node", "time_ns", "uncertainty_ns")
        .unique(["node", "time_ns"], keep="first", maintain_order=True)
    )
    pings: dict[int, list[Ping]] = {}
    for node, local, of_reference, uncertainty in rows.select(
        "node", "time_ns", "reference_ns", "uncertainty_ns"
    ).iter_rows():
        pings.setdefault(node, []).append(Ping(local, of_reference - local, uncertainty))
    return pings, reference


def _spans(tables: Tables, node_of: Mapping[int, int], pings: Mapping[int, Sequence[Ping]]) -> dict[int, Pair]:
    """By node its first and last time: of steps, samples and pings."""
    found = {node: [known[0].local_ns, known[-1].local_ns] for node, known in pings.items()}
    for name, begin, end in (("steps", "start_ns", "end_ns"), ("host_samples", "time_ns", "time_ns")):
        scope = "rank" if name == "steps" else "node"
        rows = tables[name].group_by(scope).agg(pl.col(begin).min().alias("a"), pl.col(end).max().alias("b"))
        for number, first, last in rows.iter_rows():
            node = node_of.get(number, 0) if scope == "rank" else number
            found.setdefault(node, []).extend((first, last))
    return {node: (min(times), max(times)) for node, times in found.items()}


def _of_last_attempts(calls: pl.DataFrame, streams: Sequence[Stream]) -> pl.DataFrame:
    """Without those of ranks before their last start: a restarted rank makes the calls of a step again."""
    begins: dict[int, int] = {}
    for stream in _ordered(streams):
        if stream.scope == "rank" and stream.attempt and (pair := _clock(stream)) is not None:
            begins[stream.number] = pair[0]
    if not begins:
        return calls
    begin = pl.col("rank").replace_strict(begins, default=None, return_dtype=pl.Int64)
    return calls.filter(begin.is_null() | (pl.col("start_ns") >= begin))


def _apart(
    axes: Mapping[int, ClockAxis], reference: int | None, tables: Tables, node_of: Mapping[int, int]
) -> dict[int, ClockAxis]:
    """Axes on which each node's times begin where those of the reference do."""
    spans = _spans(tables, node_of, {})
    firsts = {node: begin for node, (begin, _) in spans.items()}
    steps: dict[int, int] = {}
    for rank, begin in tables["steps"].group_by("rank").agg(pl.col("start_ns").min()).iter_rows():
        node = node_of.get(rank, 0)
        steps[node] = min(begin, steps.get(node, begin))
    firsts.update(steps)
    if reference not in firsts:
        return dict(axes)
    zero = firsts[reference]
    return {node: ClockAxis.shifted(zero - firsts[node] if node in firsts else 0) for node in axes}
