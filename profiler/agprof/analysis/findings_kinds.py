"""Findings on steps that differ: two kinds of them, told apart by a range of the job's where one does, or spread."""

from dataclasses import dataclass
from statistics import mean, median, quantiles

import polars as pl

from agprof.analysis.evidence import Evidence, saving
from agprof.analysis.intervals import union
from agprof.analysis.statistics import two_modes
from agprof.analysis.time import PHASE_WORDS
from agprof.analysis.view import mean_parts
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent
from agprof.model.tables import PHASES

_ENOUGH = 8
"""Steady steps below which the shape of their distribution is not judged."""
_MIN_PART = 0.2
"""Of the steps: each kind."""
_MIN_DIFFERENCE = 0.1
"""Of the fast kind's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """Two kinds of steps. Times are medians of the slowest rank's steps."""

    fast_ns: float
    slow_ns: float
    slow_share: float
    difference_ns: float
    """Of the two, explained by `where`."""
    steps: int
    where: str
    """What they differ in, as a sentence."""
    range_name: str | None
    """The job's range that tells them apart."""


def bimodal_steps(evidence: Evidence) -> Finding | None:
    """Steps come in two kinds."""
    kinds = find_kinds(evidence)
    if kinds is None:
        return None
    name = kinds.range_name
    fast, slow = format_value(kinds.fast_ns, "ns"), format_value(kinds.slow_ns, "ns")
    two = f"{slow} with `{name[:60]}`, {fast} without" if name is not None else f"{fast} and {slow}"
    return Finding(
        key="bimodal-steps",
        title=f"Steps come in two kinds: {two}",
        evidence=f"{percent(kinds.slow_share)} of {kinds.steps} steady steps are of the slow kind; {kinds.where}",
        section="time",
        saving_ns_per_step=saving(
            kinds.slow_share * kinds.difference_ns,
            evidence.time.step_time.n,
            "at most: share of slow steps x the difference of the two medians"
            + (", as far as the range's own time goes" if name is not None else ""),
        ),
        confidence="measured",
        change=(
            f"Spread the work of `{name[:60]}` evenly over steps, or make it rarer or cheaper{_for_others(evidence)}."
            if name is not None
            else "Find what the loop does only in some steps (a branch, longer input, an evaluation) and put "
            "`agprof.range` around it; balance it over steps, or make it rarer."
        ),
        check="the chart of steps shows one band.",
    )


def _for_others(evidence: Evidence) -> str:
    """What it gives where ranks wait for one another."""
    return ": ranks then wait less for one another" if len(evidence.view.ranks) > 1 else ""


def find_kinds(evidence: Evidence) -> Kinds | None:
    """By a range that runs in some steps only and explains most of the difference; else by two clear modes."""
    by_range = [kinds for kinds in (_by_range(evidence, name) for name in _some_steps_only(evidence)) if kinds]
    if by_range:
        return max(by_range, key=lambda kinds: kinds.difference_ns)
    modes = two_modes(evidence.view.steady_durations)
    if modes is None:
        return None
    fast, slow, share = modes
    phase, difference = _where_modes_differ(evidence, (fast + slow) / 2)
    return Kinds(
        fast_ns=fast,
        slow_ns=slow,
        slow_share=share,
        difference_ns=slow - fast,
        steps=evidence.time.steady_steps,
        where=f"they differ by {format_value(difference, 'ns')} in {PHASE_WORDS[phase]}.",
        range_name=None,
    )


def _steady_steps(evidence: Evidence) -> pl.DataFrame:
    return evidence.view.slowest.filter(pl.col("kind") == "steady").select("step", "duration_ns")


def _ranges(evidence: Evidence) -> pl.DataFrame:
    spans = evidence.view.tables["spans"].filter(pl.col("category") == "range")
    return spans.join(_steady_steps(evidence), on="step", how="semi")


def _some_steps_only(evidence: Evidence) -> list[str]:
    """Names of ranges that a good part of the steps has on some rank, and a good part on none."""
    steps = _steady_steps(evidence).height
    if steps < _ENOUGH:
        return []
    least = max(2, _MIN_PART * steps)
    seen = _ranges(evidence).group_by("name").agg(n=pl.col("step").n_unique()).sort("name")
    return [name for name, n in seen.iter_rows() if least <= n <= steps - least]


def _by_range(evidence: Evidence, name: str) -> Kinds | None:
    """The steps with and without the range, when its own time makes them longer."""
    steps = _steady_steps(evidence)
    ranges = _ranges(evidence).filter(pl.col("name") == name)
    covered = union(ranges, ("rank", "step")).with_columns(ns=pl.col("end_ns") - pl.col("start_ns"))
    per_step = (
        covered.group_by("rank", "step").agg(pl.col("ns").sum()).group_by("step").agg(pl.col("ns").max()).sort("step")
    )
    slow = steps.join(per_step, on="step", how="inner")
    fast = steps.join(per_step, on="step", how="anti")
    with_it, without = (rows["duration_ns"].to_list() for rows in (slow, fast))
    if not with_it or not without:
        return None
    low, high, own = median(without), median(with_it), float(median(slow["ns"].to_list()))
    # The range takes a good part of a step, and steps with it are longer by about as much: it hides behind nothing.
    if own < _MIN_DIFFERENCE * low or high - low < 0.5 * own:
        return None
    return Kinds(
        fast_ns=float(low),
        slow_ns=float(high),
        slow_share=slow.height / steps.height,
        difference_ns=min(own, high - low),
        steps=steps.height,
        where=(
            f"only they have the range `{name[:60]}`: {format_value(own, 'ns')} of them, "
            f"{percent(own / high)} of a slow step."
        ),
        range_name=name,
    )


def _where_modes_differ(evidence: Evidence, middle: float) -> tuple[str, float]:
    slow = evidence.view.slowest.filter((pl.col("kind") == "steady") & (pl.col("duration_ns") > middle)).select("step")
    rows = evidence.view.steady
    of_slow = mean_parts(rows.join(slow, on="step", how="semi"))
    of_fast = mean_parts(rows.join(slow, on="step", how="anti"))
    phase = max(PHASES, key=lambda name: of_slow[name] - of_fast[name])
    return phase, of_slow[phase] - of_fast[phase]


def unstable_steps(evidence: Evidence) -> Finding | None:
    """Step times spread widely, without two kinds of them."""
    durations = evidence.view.steady_durations
    if len(durations) < _ENOUGH or find_kinds(evidence) is not None:
        return None
    lower, middle, upper = quantiles(durations, n=4, method="inclusive")
    if not middle or (upper - lower) / middle < 0.15:
        return None
    return Finding(
        key="unstable-steps",
        title=f"Step times spread by {percent((upper - lower) / middle)}",
        evidence=(
            f"Half of the {len(durations)} steady steps lie between {format_value(lower, 'ns')} and "
            f"{format_value(upper, 'ns')}; the slowest takes {format_value(max(durations), 'ns')}."
        ),
        section="time",
        saving_ns_per_step=saving(
            mean(durations) - lower, len(durations), "if every step were as fast as the fastest quarter is at most"
        ),
        confidence="rule of thumb",
        change="Look in the chart of steps for what slow steps share: other programs on the host, garbage collection, "
        "varying lengths of the input.",
        check="the interval of the median gets narrower.",
    )
