"""What the sampler itself cost, where it slowed down or was started again, and what it could not measure."""

from collections.abc import Iterator

import polars as pl

from agprof.analysis.statistics import nothing
from agprof.analysis.system_states import sampler_gaps, starts_of_samplers, without_loading
from agprof.analysis.view import View
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent

_SHARE = r"([a-z]+\.[a-z]+ [0-9.]+) %"
"""As in `host.medium 0.21 %, gpu.fast 0.30 % of a core`, which a sampler says of itself every 10 s."""
_MOST_NOTES = 60
"""Of fields that could not be measured."""


def sampler_problems(view: View) -> Iterator[str]:
    """Stretches in which a node was not sampled."""
    gaps = sampler_gaps(view)
    for node in sorted({gap.node for gap in gaps}):
        lengths = [gap.end_ns - gap.start_ns for gap in gaps if gap.node == node]
        longest = format_value(max(lengths), "ns")
        how_many = "a gap of" if len(lengths) == 1 else f"{len(lengths):,} gaps, the longest"
        yield f"The sampler of node {node} has {how_many} {longest}."


def sampler_cpu(state: pl.DataFrame) -> Figure:
    """Share of one core, of the node whose sampler took most. A sampler that is started again counts from 0."""
    method = "CPU time of the sampler over the time it ran"
    known = state.drop_nulls("self_cpu_ns").sort("node", "time_ns", maintain_order=True)
    steps = pl.col("self_cpu_ns").diff()
    spans = known.group_by("node").agg(
        cpu=steps.filter(steps >= 0).sum(), span=pl.col("time_ns").diff().filter(steps >= 0).sum()
    )
    shares = spans.filter(pl.col("span") > 0).select(share=pl.col("cpu") / pl.col("span"))["share"]
    most = shares.max()
    if not isinstance(most, float):
        return nothing("ratio", "no sampler ran, or not for long enough", method=method)
    return Figure(value=most, unit="ratio", source="measured", n=shares.len(), method=method)


def tier_shares(state: pl.DataFrame) -> dict[int, dict[str, float]]:
    """Node -> thread and tier -> mean share of one core."""
    said = state.filter((pl.col("field") == "self") & (pl.col("reason") != ""))
    parts = said.select("node", part=pl.col("reason").str.extract_all(_SHARE)).explode("part").drop_nulls()
    named = parts.with_columns(pl.col("part").str.strip_suffix(" %").str.splitn(" ", 2).struct.unnest())
    shares = named.with_columns(share=pl.col("field_1").cast(pl.Float64, strict=False) / 100)
    means = shares.group_by("node", "field_0").agg(pl.col("share").mean()).drop_nulls().sort("node", "field_0")
    found: dict[int, dict[str, float]] = {}
    for node, name, share in means.iter_rows():
        found.setdefault(node, {})[name] = share
    return found


def sampler_notes(view: View) -> Iterator[str]:
    """Cost by tier, restarts, remarks on what was measured, and what was not."""
    state = view.tables["sampler_state"]
    for node, shares in tier_shares(state).items():
        told = ", ".join(f"{name} {percent(share)}" for name, share in shares.items())
        yield f"The sampler of node {node} took of one core, by thread and tier: {told}."
    for node, starts in sorted(starts_of_samplers(view).items()):
        times = "once" if len(starts) == 1 else f"{len(starts)} times"
        yield f"The sampler of node {node} was started again {times}; what it counts began anew there."
    remarks = (pl.col("state") == "ok") & (pl.col("reason") != "") & pl.col("field").str.starts_with("gpu")
    for field, reason in state.filter(remarks).select("field", "reason").unique().sort("field", "reason").rows():
        yield f"{field}: {reason[:300]}."
    yield from _not_measured(state)


def _not_measured(state: pl.DataFrame) -> Iterator[str]:
    """Fields with the same state and reason together: eight GPUs often lack the same."""
    rows = without_loading(state.sort("node", "time_ns", maintain_order=True))
    rows = rows.filter((pl.col("state") != "ok") & (pl.col("field") != "self"))
    rows = rows.filter(~(pl.col("field").str.starts_with("process.") & pl.col("reason").str.ends_with("has ended")))
    came_back = pl.col("field").is_in(_read_at_the_end(state)) & (pl.col("state") == "retry")
    grouped = (
        rows.group_by("state", "reason", came_back=came_back)
        .agg(pl.col("field").unique().sort())
        .sort(pl.col("field").list.first(), "came_back", "reason")
    )
    for number, (state_, reason, again, fields) in enumerate(grouped.iter_rows()):
        if number == _MOST_NOTES:
            yield f"{grouped.height - _MOST_NOTES} more reasons are in the table of what was not measured."
            return
        named = ", ".join(field[:60] for field in fields[:8]) + (" ..." if len(fields) > 8 else "")
        later = "; read again later" if again else ""
        yield f"{named}: {state_}{f' ({reason[:300]})' if reason else ''}{later}."


def _read_at_the_end(state: pl.DataFrame) -> list[str]:
    """Fields whose last state is ok on every node that told one."""
    last = state.sort("node", "time_ns", maintain_order=True).unique(["node", "field"], keep="last")
    well = last.group_by("field").agg((pl.col("state") == "ok").all())
    return well.filter(pl.col("state"))["field"].to_list()
