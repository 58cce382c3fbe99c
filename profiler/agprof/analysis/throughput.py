"""Samples and tokens per second of all ranks together."""

import polars as pl

from agprof.analysis.statistics import median_figure, nothing
from agprof.analysis.view import View
from agprof.model.figure import Figure

HOW_TO_TELL = {
    "samples": "the samples of a step could not be seen: tell them with agprof.step(samples=...)",
    "tokens": "the tokens of a step could not be seen: tell them with agprof.step(tokens=...)",
    "unpadded_tokens": "what of the tokens is padding could not be seen (no attention mask on the host in batches): "
    "tell the others with agprof.step(unpadded_tokens=...)",
}


def throughput(view: View, what: str, unit: str) -> Figure:
    """Sum over ranks per step / the slowest rank's duration; median over steady steps. `what`: a column of `steps`."""
    method = f"{what.replace('unpadded_tokens', 'tokens that are no padding')} of all ranks / the slowest rank's step"
    steady = view.steady
    if not steady.height:
        return nothing(unit, "no steady step", method=method)
    if steady[what].null_count():
        return nothing(unit, HOW_TO_TELL[what], method=method)
    sums = steady.group_by("step").agg(pl.col(what).sum(), pl.col("duration_ns").max()).sort("step")
    rates = sums.filter(pl.col("duration_ns") > 0).select(rate=pl.col(what) * 1e9 / pl.col("duration_ns"))["rate"]
    return median_figure(rates.to_list(), unit, method=method, reason="steps have no duration")
