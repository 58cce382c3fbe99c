"""Findings on time: data, stragglers, host work, warm-up."""

from statistics import median

import polars as pl

from agprof.analysis import findings_input
from agprof.analysis.evidence import Evidence, saving
from agprof.analysis.time import describe_ranges, range_rows
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent


def data_wait(evidence: Evidence) -> Finding | None:
    """The ranks wait for their input."""
    share, waiting = evidence.share("data"), evidence.parts["data"]
    if share < 0.05:
        return None
    loading = findings_input.look(evidence)
    return Finding(
        key="data-wait",
        title=f"{percent(share)} of the step waits for data",
        evidence=(
            f"The ranks stand {format_value(waiting, 'ns')} of {format_value(evidence.mean_ns, 'ns')} a step in the "
            f"data loader{findings_input.in_words(loading)}."
        ),
        section="time",
        saving_ns_per_step=saving(
            waiting,
            evidence.time.step_time.n,
            "all of `data`: loading can hide behind compute",
            measured=True,
        ),
        confidence="measured",
        change=findings_input.change(loading),
        check="the phase `data` falls below 1 % of the step.",
    )


def other_large(evidence: Evidence) -> Finding | None:
    """Over a fifth of the step lies in no phase."""
    share = evidence.share("other")
    if share <= 0.2:
        return None
    ranges = range_rows(evidence.view, outside_phases=True)
    named = f" Your ranges in it: {describe_ranges(ranges)}." if ranges else " No range of yours names it."
    return Finding(
        key="other-large",
        title=f"{percent(share)} of the step is host work outside all phases",
        evidence=f"{format_value(evidence.parts['other'], 'ns')} a step lie outside data, forward, backward, "
        f"communication and the optimizer.{named}",
        section="time",
        saving_ns_per_step=saving(
            evidence.parts["other"], evidence.time.step_time.n, "at most: all of what no phase covers", measured=True
        ),
        confidence="rule of thumb",
        change="Put `with agprof.range(name):` around logging, metrics and checkpoints, then do them less often.",
        check="the part `other` shrinks, or your ranges say what it is.",
    )


def long_warmup(evidence: Evidence) -> Finding | None:
    """Warm-up steps took more than a fifth of the time of all steps, beyond what they would take when steady."""
    warm = evidence.view.slowest.filter(pl.col("kind") == "warm-up")["duration_ns"].to_list()
    steady = evidence.view.steady_durations
    if not warm or not steady:
        return None
    extra = sum(warm) - len(warm) * median(steady)
    total = int(evidence.view.slowest["duration_ns"].sum())
    if extra < 0.2 * total or extra < 10e9:
        return None
    return Finding(
        key="long-warmup",
        title=f"Warm-up costs {format_value(extra, 'ns')}",
        evidence=(
            f"The first {len(warm)} step(s) take {format_value(sum(warm), 'ns')}, "
            f"{percent(extra / total)} of all steps' time more than steady ones would."
        ),
        section="time",
        saving_ns_per_step=None,
        confidence="measured",
        change="Compile before the loop and keep the caches (torch.compile, DeepSpeed ops, autotuning); for a "
        "comparison run more steps.",
        check="the first steps come down in the chart of steps.",
    )
