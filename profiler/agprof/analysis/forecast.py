"""Step time of a setup that was not run, from one that was: its compute, and its communication on another link.

    step = compute + exposed
    exposed = F' - min(h F', W)     F' = F + M(target) - M(run), no less than 0

F: communication in flight per step as measured (queues and waiting for the last rank included); M: sum over the step's
collectives of t(op, n, S) by `comm_models`; h: share of F that was hidden; W: time of the step in which it can hide,
from the first collective's issue to the last one's. Where the target has the run's ranks and link, that is the step as
measured. Ranks do the same work each (weak scaling), total bytes S stay; what ZeRO divides of the optimizer is divided.
Emulated nodes share this machine's cores: compute grows as there are more threads than cores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import polars as pl

from agprof.analysis.comm_calls import matched_calls
from agprof.analysis.comm_models import (
    Link,
    Network,
    Point,
    backend_of,
    ceiling_points,
    fit_network,
    fitting_ceilings,
    hops,
    link_of,
    nodes_of,
    wire,
)
from agprof.analysis.intervals import covered_until
from agprof.analysis.parts import collectives_in_flight
from agprof.analysis.statistics import median_figure, nothing
from agprof.analysis.view import View
from agprof.model.compare_answers import ForecastAnswer, ForecastRow
from agprof.model.figure import Figure
from agprof.model.forecast_answers import ForecastTarget
from agprof.model.format import format_value, percent

Z95 = 1.96
_PROJECTED = (2, 4, 8)
"""Times the nodes of the base that a comparison forecasts too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Collectives of a step that are alike."""

    op: str
    group_size: int
    bytes: int
    calls: float
    """Per rank and step."""
    whole: bool
    """The group is all ranks, and grows with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """A measured run, as the forecast takes it. Times in ns per step: means over ranks, medians over steps."""

    label: str
    ranks: int
    nodes: int
    link: Link
    backend: str
    step: Figure
    compute_ns: float
    optimizer_ns: float
    """Of compute."""
    in_flight_ns: float
    exposed_ns: float
    window_ns: float
    kinds: tuple[Kind, ...]
    network: Network | None
    """None: no transfer could be timed."""
    zero_stage: int
    threads: int
    cores: int

    @property
    def hidden_share(self) -> float:
        return max(0.0, 1 - self.exposed_ns / self.in_flight_ns) if self.in_flight_ns > 0 else 0.0


def basis(view: View, label: str) -> Basis | None:
    """None for a run without steady steps."""
    rows = view.steady
    if not rows.height:
        return None
    steps = _per_step(view)
    step = median_figure(steps["duration_ns"].to_list(), "ns", method="mean over ranks per step", reason="")
    exposed = float(median(steps["communication"].to_list()))
    ranks = view.fact("dist.world_size")
    kinds = _kinds(view, ranks if isinstance(ranks, int) else len(view.ranks))
    zero = view.fact("deepspeed.zero_stage")
    host = view.run.manifest.get("host")
    cores = host.get("usable_cores") if isinstance(host, dict) else None
    threads = view.fact("omp_num_threads")
    return Basis(
        label=label,
        ranks=_count(ranks, len(view.ranks)),
        nodes=nodes_of(view),
        link=link_of(view),
        backend=backend_of(view),
        step=step,
        compute_ns=max(0.0, float(step.value or 0.0) - exposed),
        optimizer_ns=float(median(steps["optimizer"].to_list())),
        in_flight_ns=max(exposed, float(median(steps["in_flight"].to_list()))),
        exposed_ns=exposed,
        window_ns=float(median(steps["window"].to_list())),
        kinds=kinds,
        network=_network(view),
        zero_stage=zero if isinstance(zero, int) else 0,
        threads=_count(threads, 1),
        cores=_count(cores, 1),
    )


def _count(value: Any, default: int) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    return value if good else max(1, default)


def _per_step(view: View) -> pl.DataFrame:
    """Per steady step the means over ranks of duration, exposed, in flight, optimizer, and the window for hiding."""
    steady = view.steady
    flight = collectives_in_flight(view.tables["collectives"], view.tables["waits"])
    inside = covered_until(steady.select("rank", at_ns="end_ns"), flight) - covered_until(
        steady.select("rank", at_ns="start_ns"), flight
    )
    issued = (
        view.tables["collectives"]
        .group_by("rank", "step")
        .agg(window=pl.col("start_ns").max() - pl.col("start_ns").min())
    )
    return (
        steady.with_columns(in_flight=inside)
        .join(issued, on=["rank", "step"], how="left")
        .group_by("step")
        .agg(
            pl.col("duration_ns", "communication", "optimizer", "in_flight").mean(),
            pl.col("window").fill_null(0).mean(),
        )
        .sort("step")
    )


def _kinds(view: View, world: int) -> tuple[Kind, ...]:
    steady = view.steady
    calls = view.tables["collectives"].join(steady.select("rank", "step"), on=["rank", "step"], how="semi")
    rows = calls.group_by("op", "group_size", "bytes").agg(calls=pl.len()).sort("op", "group_size", "bytes")
    return tuple(
        Kind(op=op, group_size=n, bytes=size or 0, calls=count / steady.height, whole=n == world)
        for op, n, size, count in rows.iter_rows()
        if n > 0 and (size is None or size >= 0)
    )


def _network(view: View) -> Network | None:
    """Of the ceilings that fit the run, else of its own collectives; no faster than the rate of its link."""
    backend = backend_of(view)
    ceilings = fitting_ceilings(view)
    found = None
    if ceilings:
        found = fit_network(ceiling_points(ceilings), backend, f"agprof bench-comm, {ceilings[0].link}")
    if found is None:
        points = _own_points(view)
        found = fit_network(points, backend, "the run's own collectives by size") or _by_bytes(points, backend)
    if found is None:
        return None
    return replace(found, byte_ns=max(found.byte_ns, link_of(view).wire_ns_per_byte if nodes_of(view) > 1 else 0.0))


def _own_points(view: View) -> list[Point]:
    """Median transfer by size, of calls that no earlier one was in the way of."""
    calls = matched_calls(view).drop_nulls(["transfer_ns", "bytes"]).filter(pl.col("transfer_ns") > 0)
    calls = calls.sort("rank", "start_ns").with_columns(
        before=pl.max_horizontal("end_ns", "issue_end_ns").cum_max().shift(1).over("rank")
    )
    alone = calls.filter(pl.col("before").is_null() | (pl.col("before") <= pl.col("start_ns")))
    sizes = alone.group_by("op", "group_size", "bytes").agg(pl.col("transfer_ns").median())
    return [(op, n, size, time) for op, n, size, time in sizes.sort("op", "group_size", "bytes").iter_rows()]


def _by_bytes(points: Sequence[Point], backend: str) -> Network | None:
    """From the largest transfer alone."""
    moved = [(wire(op, n, backend) * size, time) for op, n, size, time in points]
    most, time = max(moved, default=(0.0, 0.0))
    if most <= 0:
        return None
    return Network(
        hop_ns=0.0, hop_error_ns=0.0, byte_ns=time / most, byte_error_ns=0.0, off=0.0,
        source="the run's largest collective, latency taken for nothing: it has too few sizes for a fit",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costs:
    """M of a step, and what it is made of."""

    ns: float
    hops: float
    wire_bytes: float


def _costs(kinds: Sequence[Kind], backend: str, times: float, alpha: float, beta: float) -> _Costs:
    """`times`: ranks of the target over those of the run, for groups of all ranks."""
    total_hops = total_wire = 0.0
    for kind in kinds:
        n = max(1, round(kind.group_size * times)) if kind.whole else kind.group_size
        total_hops += kind.calls * hops(kind.op, n, backend)
        total_wire += kind.calls * wire(kind.op, n, backend) * kind.bytes
    return _Costs(ns=alpha * total_hops + beta * total_wire, hops=total_hops, wire_bytes=total_wire)


def target_link(base: Basis, target: ForecastTarget, nodes: int) -> Link:
    """The link that is asked about; none between ranks of one node."""
    if nodes == 1:
        return Link(words="one node, no link")
    same = target.rate_bits_per_s is None and target.delay_ns is None
    if same and base.nodes > 1:
        return base.link
    rate = target.rate_bits_per_s if target.rate_bits_per_s is not None else base.link.rate_bits_per_s
    delay = target.delay_ns if target.delay_ns is not None else base.link.delay_ns
    words = [f"{rate / 1e6:g} Mbit/s" if rate else "rate not limited"]
    words += [f"{delay / 1e6:g} ms each way"] if delay else []
    emulated = base.link.emulated or target.emulated
    return Link(rate_bits_per_s=rate, delay_ns=delay, emulated=emulated, words=", ".join(words))


def _on(base: Basis, link: Link, crowded: float) -> tuple[float, float]:
    """(ns per hop, ns per wire byte) of the run's network with another link in it.

    What the ranks themselves need stays, times `crowded`; of a network whose rate is not known all time is taken for
    the link's.
    """
    network = base.network
    if network is None:
        return link.delay_ns or 0.0, link.wire_ns_per_byte
    own_hop, own_byte = network.hop_ns, network.byte_ns
    if base.nodes > 1:
        same = link == base.link
        known = base.link.rate_bits_per_s is not None
        link_hop = min(own_hop, float(base.link.delay_ns or 0))
        link_byte = min(own_byte, base.link.wire_ns_per_byte) if known or same else own_byte
        own_hop, own_byte = own_hop - link_hop, own_byte - link_byte
        if same:
            return own_hop * crowded + link_hop, own_byte * crowded + link_byte
        if link.rate_bits_per_s is None and not known:
            return own_hop * crowded + (link.delay_ns or 0), own_byte * crowded + link_byte
    return own_hop * crowded + (link.delay_ns or 0), own_byte * crowded + link.wire_ns_per_byte


def forecast(base: Basis, target: ForecastTarget) -> ForecastRow:
    """The step time of the target."""
    nodes = target.nodes if target.nodes is not None else base.nodes
    per_node = target.ranks_per_node or max(1, base.ranks // base.nodes)
    ranks = nodes * per_node
    link = target_link(base, target, nodes)
    return ForecastRow(
        label=f"{nodes} node{'s' * (nodes > 1)}, {ranks} rank{'s' * (ranks > 1)}",
        ranks=ranks,
        nodes=nodes,
        link=link.words,
        predicted=_predict(base, ranks, nodes, link),
        measured=None,
    )


def _predict(base: Basis, ranks: int, nodes: int, link: Link) -> Figure:
    source = base.network.source if base.network is not None else "the link's rate alone"
    method = (
        f"compute + exposed communication; communication by hops and wire bytes (docs/forecast.md), from {source}; "
        "interval: the fit's error and the step's spread, 95 %"
    )
    compute = _compute_ns(base, ranks, link)
    if ranks == 1:
        return _figure(base, compute, 0.0, method)
    reason = _why_not(base, nodes, link)
    if reason is not None:
        return nothing("ns", reason, method=method, source="modelled")
    network = base.network
    here = _costs(base.kinds, base.backend, 1.0, *((network.hop_ns, network.byte_ns) if network else (0.0, 0.0)))
    there = _costs(base.kinds, base.backend, ranks / base.ranks, *_on(base, link, _crowded(base, ranks, link)))
    flight = max(0.0, base.in_flight_ns + there.ns - here.ns)
    error = 0.0
    if network is not None:
        error = math.hypot(
            (there.hops - here.hops) * network.hop_error_ns,
            (there.wire_bytes - here.wire_bytes) * network.byte_error_ns,
            network.off * (there.ns - here.ns),
        )
    return _figure(base, compute + exposed_ns(base, flight), error, method)


def _why_not(base: Basis, nodes: int, link: Link) -> str | None:
    """Why nothing can be said of several ranks; None where it can."""
    moved = any(kind.bytes for kind in base.kinds)
    if base.ranks == 1 and not moved:
        return "one rank moved nothing: run it on two ranks once"
    if base.ranks > 1 and moved and base.network is None:
        return "no transfer of the run could be timed on all its ranks"
    if nodes > 1 and base.nodes == 1 and link.rate_bits_per_s is None:
        return "the link between the nodes is not known: give its rate"
    return None


def exposed_ns(base: Basis, flight_ns: float) -> float:
    """What is not hidden of so much communication in flight: never falls when there is more."""
    window = max(base.window_ns, base.in_flight_ns - base.exposed_ns)
    return flight_ns - min(base.hidden_share * flight_ns, window)


def _compute_ns(base: Basis, ranks: int, link: Link) -> float:
    compute = base.compute_ns
    if base.zero_stage >= 1:
        compute += min(base.optimizer_ns, compute) * (base.ranks / ranks - 1)
    return compute * _crowded(base, ranks, link)


def _crowded(base: Basis, ranks: int, link: Link) -> float:
    """How much longer the ranks' own work takes: emulated nodes share this machine's cores."""
    if not link.emulated:
        return 1.0
    there, here = (max(1.0, count * base.threads / base.cores) for count in (ranks, base.ranks))
    return there / here


def _figure(base: Basis, value: float, error_ns: float, method: str) -> Figure:
    step = base.step
    spread = (step.high - step.low) / 2 if step.low is not None and step.high is not None else 0.0
    # The step's spread scales with the step.
    spread *= value / step.value if step.value else 1.0
    half = math.hypot(spread, Z95 * error_ns)
    return Figure(
        value=value, unit="ns", source="modelled", n=step.n, low=max(0.0, value - half), high=value + half,
        method=method,
    )  # fmt: skip


Side = tuple[str, Sequence[View]]
"""Label, and the run or its repeats."""


def forecast_sides(sides: Sequence[Side], target: ForecastTarget | None = None) -> ForecastAnswer | None:
    """Forecast from the first side: every other side, to check the model, and the target, or more nodes of its kind.

    Of repeats the one with the median step stands for all. None where the first side has no steady step.
    """
    base = _typical(*sides[0]) if sides else None
    if base is None:
        return None
    rows = []
    for label, views in sides[1:]:
        other = _typical(label, views)
        if other is None:
            continue
        row = forecast(base, _as_target(other))
        rows.append(
            ForecastRow(
                label=label, ranks=other.ranks, nodes=other.nodes, link=other.link.words or row.link,
                predicted=row.predicted, measured=other.step,
            )
        )  # fmt: skip
    if target is not None:
        rows.append(forecast(base, target))
    elif base.nodes > 1:
        rows += [forecast(base, ForecastTarget(nodes=base.nodes * times)) for times in _PROJECTED]
    return ForecastAnswer(sentence=_sentence(base, rows), basis=_basis_words(base), rows=tuple(rows))


def forecast_comparison(sides: Sequence[Side], baseline: int) -> ForecastAnswer | None:
    """The same for a comparison: None where all sides have the ranks, nodes and link of the baseline."""
    first = sides[baseline]
    others = [side for at, side in enumerate(sides) if at != baseline]
    setups = {_setup(views[0]) for _, views in sides if views}
    return forecast_sides([first, *others]) if len(setups) > 1 else None


def _setup(view: View) -> tuple[Any, ...]:
    link = link_of(view)
    return view.fact("dist.world_size"), nodes_of(view), link.rate_bits_per_s, link.delay_ns


def _typical(label: str, views: Sequence[View]) -> Basis | None:
    found = [each for view in views if (each := basis(view, label)) is not None]
    return sorted(found, key=lambda each: each.step.value or 0.0)[(len(found) - 1) // 2] if found else None


def _as_target(other: Basis) -> ForecastTarget:
    return ForecastTarget(
        nodes=other.nodes,
        ranks_per_node=max(1, other.ranks // other.nodes),
        rate_bits_per_s=other.link.rate_bits_per_s,
        delay_ns=other.link.delay_ns if other.link.delay_ns is not None else (0 if other.link.emulated else None),
        emulated=other.link.emulated,
    )


def _basis_words(base: Basis) -> str:
    ranks = f"{base.ranks} rank{'s' * (base.ranks > 1)} on {base.nodes} node{'s' * (base.nodes > 1)}"
    return f"{base.label}: {ranks}; network: {base.network.source if base.network is not None else 'not measured'}"


def _sentence(base: Basis, rows: Sequence[ForecastRow]) -> str:
    known = [row for row in rows if row.predicted.value is not None]
    checked = [row for row in known if row.measured is not None and row.measured.value]
    if not known:
        reason = next((row.predicted.reason for row in rows if row.predicted.reason), "nothing was asked for")
        return f"No forecast: {reason}."
    if checked:
        worst = max(checked, key=_off)
        return f"From {base.label}, the model predicts what was measured to within {percent(_off(worst))}."
    row = known[-1]
    return f"{row.label} ({row.link}): {format_value(row.predicted.value or 0, 'ns')} a step expected."


def _off(row: ForecastRow) -> float:
    assert row.measured is not None
    return abs((row.predicted.value or 0.0) / (row.measured.value or 1.0) - 1)
