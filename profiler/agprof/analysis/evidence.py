"""What findings and the verdict are judged by, gathered once."""

from dataclasses import dataclass
from statistics import mean, median

import polars as pl

from agprof.analysis.view import View, mean_parts
from agprof.model.answers import CommunicationAnswer, TimeAnswer
from agprof.model.figure import Figure
from agprof.model.memory_answers import MemoryAnswer
from agprof.model.straggler_answers import StragglerAnswer
from agprof.model.system_answers import SystemAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank whose own work takes longer than that of the others, which wait for it."""

    rank: int
    own_ns: float
    """Mean of the rank's step without communication."""
    others_ns: float
    """Median of the same over the other ranks."""
    waiting_ns: float
    """Mean communication of the other ranks beyond the straggler's own."""
    phase: str
    """The phase in which it loses most."""

    @property
    def lost_ns(self) -> float:
        """What the others wait for: no more than the difference, no more than they wait."""
        return max(0.0, min(self.own_ns - self.others_ns, self.waiting_ns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Inputs of the findings."""

    view: View
    time: TimeAnswer
    communication: CommunicationAnswer
    memory: MemoryAnswer
    system: SystemAnswer
    calls: pl.DataFrame
    """`comm_calls.matched_calls` of the steady steps."""
    parts: dict[str, float]
    """Mean ns per phase over ranks and steady steps."""
    mean_ns: float
    straggler: Straggler | None
    stragglers: StragglerAnswer | None = None
    """Which ranks are slow, and why; None with one rank, or without a matched collective."""

    def share(self, phase: str) -> float:
        """A phase's share of the mean step; 0 when there is none."""
        return self.parts[phase] / self.mean_ns if self.mean_ns else 0.0


def gather(
    view: View,
    time: TimeAnswer,
    communication: CommunicationAnswer,
    memory: MemoryAnswer,
    system: SystemAnswer,
    calls: pl.DataFrame,
    stragglers: StragglerAnswer | None = None,
) -> Evidence:
    """Collect the evidence from the answers."""
    steady = view.steady
    return Evidence(
        view=view,
        time=time,
        communication=communication,
        memory=memory,
        system=system,
        calls=calls.join(steady.select("rank", "step"), on=["rank", "step"], how="semi"),
        parts=mean_parts(steady),
        mean_ns=view.mean_step_ns,
        straggler=find_straggler(time, steady),
        stragglers=stragglers,
    )


def find_straggler(time: TimeAnswer, steady: pl.DataFrame) -> Straggler | None:
    """One rank whose own work is longer by over 5 % of the step, while the others stand longer in collectives.

    With two ranks the others are the one other. A rank that is slow and makes nobody wait is no straggler, nor is one
    that is the slowest in less than three quarters of the steady steps: that is chance.
    """
    ranks = time.ranks
    if len(ranks) < 2:
        return None
    own = {row.rank: row.step_ns - row.parts_ns["communication"] for row in ranks}
    slowest = max(ranks, key=lambda row: (own[row.rank], -row.rank))
    others = [row for row in ranks if row.rank != slowest.rank]
    typical = median(own[row.rank] for row in others)
    waiting = mean(row.parts_ns["communication"] for row in others) - slowest.parts_ns["communication"]
    found = Straggler(
        rank=slowest.rank,
        own_ns=own[slowest.rank],
        others_ns=typical,
        waiting_ns=waiting,
        phase=max(
            (phase for phase in slowest.parts_ns if phase != "communication"),
            key=lambda phase: slowest.parts_ns[phase] - median(row.parts_ns[phase] for row in others),
        ),
    )
    if found.lost_ns <= 0.05 * slowest.step_ns:
        return None
    return found if _how_often_slowest(steady, slowest.rank) >= 0.75 else None


def _how_often_slowest(steady: pl.DataFrame, rank: int) -> float:
    """Share of steps in which no rank's own work took longer than this one's."""
    own = steady.select("rank", "step", own=pl.col("duration_ns") - pl.col("communication"))
    slowest = own.filter(pl.col("own") == pl.col("own").max().over("step"))
    return slowest.filter(pl.col("rank") == rank).height / max(1, own["step"].n_unique())


def saving(ns: float, n: int, method: str, *, measured: bool = False) -> Figure:
    """An estimated saving per step."""
    return Figure(value=max(0.0, ns), unit="ns", source="measured" if measured else "modelled", n=n, method=method)
