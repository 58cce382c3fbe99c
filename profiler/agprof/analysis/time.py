"""Where a step's time goes: step time, phases per rank, every step, the user's ranges."""

import math
from typing import Any

import polars as pl

from agprof.analysis.intervals import union
from agprof.analysis.statistics import median_figure
from agprof.analysis.timeline import phase_line, timeline
from agprof.analysis.view import View, mean_parts
from agprof.model.answers import RangeRow, RankPhases, StepRow, TimeAnswer
from agprof.model.figure import Figure
from agprof.model.format import format_figure, format_value, percent
from agprof.model.tables import PHASES

STEP_METHOD = "per step the slowest rank's duration (steps table, host clock), over steady steps"

PHASE_WORDS = {
    "data": "waiting for data",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "communication": "exposed communication",
    "optimizer": "the optimizer",
    "other": "host work outside all phases",
}


def analyse_time(view: View) -> TimeAnswer:
    """The time section."""
    steady = view.steady
    step_time = step_time_figure(view)
    window, spans, note = timeline(view)
    return TimeAnswer(
        sentence=_sentence(view, step_time),
        step_time=step_time,
        warmup_steps=view.warmup_steps,
        warmup_rule=view.warmup_rule,
        steady_steps=steady["step"].n_unique(),
        profiled_steps=view.profiled,
        ranks=_ranks(steady),
        steps=_step_rows(view),
        timeline_steps=window,
        timeline=spans,
        timeline_note=note,
        ranges=range_rows(view),
        phase_line=phase_line(view),
    )


def step_time_figure(view: View) -> Figure:
    """Median step time with its interval."""
    reason = "no optimizer step was seen" if not view.steps.height else "no steady step: all are warm-up or profiled"
    return median_figure(view.steady_durations, "ns", method=STEP_METHOD, reason=reason)


def _sentence(view: View, step_time: Figure) -> str:
    if step_time.value is None:
        return f"No step time: {step_time.reason}."
    parts = mean_parts(view.steady)
    mean = view.mean_step_ns
    order = sorted(PHASES, key=lambda phase: -parts[phase])
    words = [f"{PHASE_WORDS[p]} {percent(parts[p] / mean)}" for p in order if mean and parts[p] / mean >= 0.005]
    return f"A step takes {format_figure(step_time)}: {', '.join(words) or 'no phase was seen in it'}."


def _ranks(steady: pl.DataFrame) -> tuple[RankPhases, ...]:
    answers = []
    for (rank,), rows in steady.group_by("rank", maintain_order=True):
        answers.append(
            RankPhases(
                rank=int(str(rank)),
                steps=rows.height,
                step_ns=float(rows["duration_ns"].sum()) / rows.height,
                parts_ns=mean_parts(rows),
            )
        )
    return tuple(answers)


def _step_rows(view: View) -> tuple[StepRow, ...]:
    columns = ("rank", "step", "start_ns", "duration_ns", "kind", "loss", *PHASES)
    return tuple(_step_row(view, row) for row in view.steps.select(columns).iter_rows())


def _step_row(view: View, row: tuple[Any, ...]) -> StepRow:
    rank, step, start, duration, kind, loss, *parts = row
    return StepRow(
        rank=rank,
        step=step,
        start_ns=view.since_origin(start, rank=rank),
        duration_ns=duration,
        kind=kind,
        loss=loss if loss is not None and math.isfinite(loss) else None,
        parts_ns=dict(zip(PHASES, parts, strict=True)),
    )


def range_rows(view: View, *, outside_phases: bool = False) -> tuple[RangeRow, ...]:
    """The user's ranges over steady steps, longest first; nested ones of the same name count once.

    `outside_phases` keeps only outermost ranges that lie in no phase: they name what `other` consists of.
    """
    steady = view.steady.select("rank", "step")
    ranges = view.tables["spans"].filter(pl.col("category") == "range")
    if outside_phases:
        ranges = ranges.filter(pl.col("depth") == 0)
    ranges = ranges.join(steady, on=["rank", "step"], how="semi")
    covered = union(ranges, ("rank", "step", "name"))
    time = covered.group_by("name").agg(ns=(pl.col("end_ns") - pl.col("start_ns")).sum())
    rows = ranges.group_by("name").agg(calls=pl.len()).join(time, on="name", how="inner")
    count, mean = max(1, steady.height), view.mean_step_ns
    return tuple(
        RangeRow(
            name=name,
            calls_per_step=calls / count,
            ns_per_step=ns / count,
            share=ns / count / mean if mean else 0.0,
        )
        for name, calls, ns in rows.select("name", "calls", "ns")
        .sort("ns", "name", descending=[True, False])
        .iter_rows()
    )


def describe_ranges(rows: tuple[RangeRow, ...], most: int = 3) -> str:
    """`retrieval (12 ms), logging (3.1 ms)`."""
    return ", ".join(f"{row.name[:60]} ({format_value(row.ns_per_step, 'ns')})" for row in rows[:most])
