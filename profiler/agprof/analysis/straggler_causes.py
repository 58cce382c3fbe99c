"""Why a rank is slow: what it and its resources did in the steps in which it was the slowest, against the others'.

The first cause that explains half of the excess, by what was measured, is told; nothing is told of what was not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from agprof.analysis.straggler_resources import Resources
from agprof.analysis.view import View
from agprof.model.figure import Confidence
from agprof.model.format import format_value, percent
from agprof.model.straggler_answers import Cause
from agprof.model.system_answers import GpuMapping

EXPLAINS = 0.5
"""Of the excess that a cause has to explain."""
LEAST_EXCESS = 0.01
"""Of the step: below it there is nothing to explain."""
MORE_WORK = 0.02
"""Samples or tokens above the others' from which they are more work."""
LEAST_CPU_WAIT = 0.05
"""Share of the time without a CPU, beyond the others'."""
CPU_WAIT_EXPLAINS = 0.25
"""Of the excess: samples are few, and what waits for a CPU runs with cold caches."""
SWITCHES_PER_S, MORE_SWITCHES, LESS_CPU = 20.0, 3.0, 0.9
LOWER_CLOCK, LEAST_HEAT = 0.03, 0.01
PRESSURE = 0.05
NETWORK_ERRORS = 100
_PHASES = ("data", "forward", "backward", "optimizer", "other")


@dataclass(frozen=True, slots=True)
class LikelyCause:
    cause: Cause
    evidence: str
    confidence: Confidence


@dataclass(frozen=True, slots=True)
class Slow:
    """A rank in the steps in which it is the slowest, or in all where it never is. Sums over these steps, ns."""

    rank: int
    steps: int
    own_ns: float
    others_ns: float
    """Of the median of the others, step by step."""
    rows: pl.DataFrame
    """All ranks' rows of these steps."""

    @property
    def excess_ns(self) -> float:
        return self.own_ns - self.others_ns


@dataclass(frozen=True, slots=True)
class Look:
    """What causes are judged by."""

    steady: pl.DataFrame
    """Columns of `View.steps` + own_ns of the steady steps that count."""
    ranges: pl.DataFrame
    """The user's ranges in them: rank, step, name, calls, ns."""
    resources: Resources

    @staticmethod
    def at(view: View, steady: pl.DataFrame, mapping: Sequence[GpuMapping]) -> "Look":
        """`steady`: rank, step, own_ns."""
        rows = view.steps.join(steady.select("rank", "step", "own_ns"), on=["rank", "step"], how="inner")
        spans = view.tables["spans"].filter(pl.col("category") == "range")
        ranges = spans.join(rows.select("rank", "step"), on=["rank", "step"], how="semi")
        summed = ranges.group_by("rank", "step", "name").agg(
            calls=pl.len(), ns=(pl.col("end_ns") - pl.col("start_ns")).clip(0).sum()
        )
        return Look(rows, summed, Resources(view, mapping))

    def slow(self, rank: int) -> Slow:
        top = self.steady.filter(pl.col("own_ns") == pl.col("own_ns").max().over("step"))
        mine = top.filter(pl.len().over("step") == 1).filter(pl.col("rank") == rank)["step"]
        rows = self.steady.filter(pl.col("step").is_in(mine.implode())) if len(mine) else self.steady
        own, others = against_others(rows, rank, pl.col("own_ns"))
        return Slow(rank, rows["step"].n_unique(), own, others, rows)


def against_others(rows: pl.DataFrame, rank: int, value: pl.Expr) -> tuple[float, float]:
    """Sums over the steps of `rows`: the rank's value, and the median of the other ranks' values in each."""
    mine = rows.filter(pl.col("rank") == rank).select(value.alias("value"))["value"].sum()
    others = rows.filter(pl.col("rank") != rank).group_by("step").agg(value.median().alias("value"))["value"].sum()
    return float(mine or 0), float(others or 0)


def likely_cause(look: Look, rank: int) -> LikelyCause:
    """The likely cause of a rank's excess, with the figures that speak for it."""
    slow = look.slow(rank)
    mean = float(slow.rows["duration_ns"].sum()) / max(1, slow.rows.height)
    if slow.excess_ns < LEAST_EXCESS * mean * slow.steps:
        return LikelyCause("not known", "its own time is like that of the other ranks", "measured")
    for judge in (_data, _more_counted, _more_ranges, _gpu, _cpu, _memory, _network):
        found = judge(look, slow)
        if found is not None:
            return found
    return LikelyCause("not known", _nothing(look, slow), "measured")


def _each(ns: float, slow: Slow) -> str:
    return format_value(ns / max(1, slow.steps), "ns")


def _data(look: Look, slow: Slow) -> LikelyCause | None:
    mine, others = against_others(slow.rows, slow.rank, pl.col("data"))
    if mine - others < EXPLAINS * slow.excess_ns:
        return None
    evidence = (
        f"it stands {_each(mine, slow)} a step in its data loader, the others {_each(others, slow)}; "
        f"its own time is {_each(slow.excess_ns, slow)} longer"
    )
    return LikelyCause("data", evidence, "measured")


def _more_counted(look: Look, slow: Slow) -> LikelyCause | None:
    """More samples or tokens, by half of what its time is longer at least."""
    longer = slow.excess_ns / slow.others_ns if slow.others_ns else 0.0
    for column, what in (("unpadded_tokens", "tokens without padding"), ("tokens", "tokens"), ("samples", "samples")):
        if slow.rows[column].null_count():
            continue
        mine, others = against_others(slow.rows, slow.rank, pl.col(column))
        more = mine / others - 1 if others else 0.0
        if more >= max(MORE_WORK, EXPLAINS * longer):
            evidence = (
                f"it has {percent(more)} more {what} than the others in the steps in which it is the slowest, and its "
                f"own time is {percent(longer)} longer"
            )
            return LikelyCause("more work", evidence, "measured")
    return None


def _more_ranges(look: Look, slow: Slow) -> LikelyCause | None:
    """A range of the job that it ran more often than the others."""
    cells = slow.rows.select("rank", "step")
    best: tuple[float, str, int] | None = None
    ranges = look.ranges.join(cells, on=["rank", "step"], how="semi")
    for (name,), own in ranges.group_by("name"):
        rows = cells.join(own, on=["rank", "step"], how="left").with_columns(pl.col("calls", "ns").fill_null(0))
        calls, usual = against_others(rows, slow.rank, pl.col("calls"))
        mine, others = against_others(rows, slow.rank, pl.col("ns"))
        if calls <= usual or mine - others < EXPLAINS * slow.excess_ns:
            continue
        found = (mine - others, str(name), _steps_with_more(rows, slow.rank))
        # Of equals the first by name: groups come in no order.
        if best is None or (-found[0], found[1]) < (-best[0], best[1]):
            best = found
    if best is None:
        return None
    ns, name, steps = best
    evidence = (
        f"in {steps} of the {slow.steps} steps in which it is the slowest it runs `{name[:60]}` more often than the "
        f"others: {_each(ns, slow)} a step of the {_each(slow.excess_ns, slow)} that its own time is longer"
    )
    return LikelyCause("more work", evidence, "measured")


def _steps_with_more(rows: pl.DataFrame, rank: int) -> int:
    mine = rows.filter(pl.col("rank") == rank).select("step", mine="calls")
    others = rows.filter(pl.col("rank") != rank).group_by("step").agg(others=pl.col("calls").median())
    return mine.join(others, on="step").filter(pl.col("mine") > pl.col("others")).height


def _gpu(look: Look, slow: Slow) -> LikelyCause | None:
    heat, heat_others = look.resources.against_others("heat", slow.rank)
    if heat is not None and heat_others is not None and heat - heat_others >= LEAST_HEAT:
        evidence = (
            f"heat holds its GPU's clocks down {percent(heat)} of the time, those of the others {percent(heat_others)}"
        )
        return LikelyCause("heat", evidence, "modelled")
    clock, clock_others = look.resources.against_others("sm_clock_mhz", slow.rank)
    if clock is not None and clock_others and clock < (1 - LOWER_CLOCK) * clock_others:
        evidence = f"its GPU's SM clock is {clock:,.0f} MHz, {clock_others:,.0f} MHz on the others (medians)"
        return LikelyCause("lower clock", evidence, "modelled")
    return None


def _cpu(look: Look, slow: Slow) -> LikelyCause | None:
    """Its main thread was ready to run and had no CPU; or, where that is not known, was interrupted far more often."""
    resources, rank = look.resources, slow.rank
    wait, wait_others = resources.against_others("cpu_wait", rank)
    cores, cores_others = resources.against_others("cpu_cores", rank)
    less = cores is not None and cores_others is not None and cores <= LESS_CPU * cores_others
    share = f"; it gets {cores:.2f} cores, the others {cores_others:.2f}" if less else ""
    if wait is not None and wait_others is not None:
        more = wait - wait_others
        whole = float(slow.rows.filter(pl.col("rank") == rank)["duration_ns"].sum())
        if more < LEAST_CPU_WAIT or more * whole < CPU_WAIT_EXPLAINS * slow.excess_ns:
            return None
        evidence = (
            f"its main thread is ready to run and has no CPU {percent(wait)} of the time, those of the others "
            f"{percent(wait_others)}{share}"
        )
        return LikelyCause("CPU taken away", evidence, "modelled")
    switches, switches_others = resources.against_others("switches", rank)
    if switches is None or switches_others is None:
        return None
    if switches < max(SWITCHES_PER_S, MORE_SWITCHES * switches_others) or not less:
        return None
    evidence = (
        f"its CPU is taken away {switches:,.0f} times a second, those of the others {switches_others:,.0f}{share}"
    )
    return LikelyCause("CPU taken away", evidence, "rule of thumb")


def _memory(look: Look, slow: Slow) -> LikelyCause | None:
    mine, others = look.resources.against_other_nodes("memory_pressure", slow.rank)
    if mine is None or others is None or mine < PRESSURE or others > 0.5 * mine:
        return None
    evidence = f"tasks of its node wait for memory {percent(mine)} of the time, those of the others {percent(others)}"
    return LikelyCause("memory pressure", evidence, "rule of thumb")


def _network(look: Look, slow: Slow) -> LikelyCause | None:
    mine, others = look.resources.against_other_nodes("network_errors", slow.rank)
    if mine is None or others is None or mine < NETWORK_ERRORS or others > 0.5 * mine:
        return None
    evidence = f"its node's interfaces lost {mine:,.0f} packets, those of the others {others:,.0f}"
    return LikelyCause("network", evidence, "rule of thumb")


def _nothing(look: Look, slow: Slow) -> str:
    """Where the time goes, and what was looked at in vain."""
    over = {}
    for phase in _PHASES:
        mine, others = against_others(slow.rows, slow.rank, pl.col(phase))
        over[phase] = mine - others
    phase = max(over, key=lambda name: over[name])
    looked = ["input", "work", *look.resources.known(slow.rank)]
    return f"most of it in {phase}; {', '.join(looked)} of the rank are like the others'"
