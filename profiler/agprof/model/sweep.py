"""Runs beside one another: what `analysis.sweep` returns and `sweep.json` holds."""

from dataclasses import dataclass

from agprof.model.answers import RunAnswers
from agprof.model.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One variant and what became of it."""

    values: tuple[str, ...]
    """As given on the command line, one per key of the sweep."""
    exit_code: int | None
    """None: it was not started, because the sweep had been interrupted."""
    answers: RunAnswers | None
    """None: there is no run folder."""
    problem: str = ""
    """Why it could not be started, or why its folder could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One variant's figures."""

    values: tuple[str, ...]
    run_id: str | None
    """Name of its run folder in the sweep's folder."""
    exit_code: int | None
    status_sentence: str
    step_time: Figure
    executed_flops: Figure
    """Counted in the profile step, recomputation included; one rank."""
    communication_bytes: Figure
    """Per step and rank."""
    communication_exposed: Figure
    """Per step and rank."""
    memory_peak: Figure
    samples_per_s: Figure
    tokens_per_s: Figure
    trainable_share: Figure
    optimizer_state: Figure
    """Bytes on one rank."""
    energy_per_sample: Figure
    """J over the steady steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTable:
    """All variants, in the order in which they ran."""

    version: int
    keys: tuple[str, ...]
    """Dotted keys of the workload file that the sweep changed."""
    rows: tuple[SweepRow, ...]
    notes: tuple[str, ...]
    """Whole sentences: what a missing figure means."""
