"""What the sampler could not measure, why, and when it did not run at all."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from agprof.analysis.system_samples import GAP_PERIODS, on_axis, with_gaps_marked
from agprof.analysis.view import View
from agprof.model.system_answers import NotMeasured, SamplerGap
from agprof.model.tables import NVML_LOADING

_SAID_AGAIN_NS = 30_000_000_000
"""A sampler that was started again says again what it can't measure within this time."""
_MOST_STRETCHES = 3
"""Of one field and reason; more are told as one."""
_MOST_GAPS = 200
_EARLY_NS = 10_000_000_000
"""A sampler whose last sample lies so long before its ranks' last step ended before they did."""
_NO_FIELDS = ("self", "store")
"""Rows of sampler_state that are no field's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Why a field has no value, by node and field."""

    by_field: Mapping[tuple[int, str], str]
    off: bool
    """NVML was switched off in the workload file."""

    def of(self, node: int, *fields: str, default: str = "not measured on this machine") -> str:
        """The reason of the first of `fields` that has one."""
        found = next((self.by_field[node, field] for field in fields if (node, field) in self.by_field), None)
        return found or default

    def of_gpu(self, node: int, gpu: int, *fields: str, default: str = "not measured on this GPU") -> str:
        """That of a GPU's field, else of the GPU, else of NVML as a whole."""
        names = (*(f"gpu.{gpu}.{field}" for field in fields), f"gpu.{gpu}", "gpu")
        return self.of(node, *names, default="switched off with monitor.nvml: off" if self.off else default)


def reasons_of(view: View) -> Reasons:
    """The last reason of each field that was not ok, also of those that came back later."""
    rows = without_loading(view.tables["sampler_state"].sort("node", "time_ns", maintain_order=True))
    rows = rows.filter(pl.col("state").is_in(["retry", "unsupported"]))
    found = rows.unique(["node", "field"], keep="last")
    by_field = {
        (node, field): (reason or state)[:300]
        for node, field, state, reason in found.select("node", "field", "state", "reason").iter_rows()
    }
    return Reasons(by_field=by_field, off=nvml_is_off(view))


def without_loading(rows: pl.DataFrame) -> pl.DataFrame:
    """`sampler_state`, in order of time, without what it says before NVML is loaded: unless nothing more was said."""
    more_said = pl.col("reason").shift(-1).over("node", "field").is_not_null()
    return rows.filter(~((pl.col("reason") == NVML_LOADING) & more_said))


def nvml_is_off(view: View) -> bool:
    """Whether the workload file switched the GPUs' sampling off."""
    value: object = view.run.manifest
    for key in ("workload", "monitor", "nvml"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value in ("off", False)


def starts_of_samplers(view: View) -> dict[int, list[int]]:
    """When each node's samplers began, since the run's origin; the first of a node is not in it."""
    starts: dict[int, list[int]] = {}
    for stream in sorted(view.run.streams, key=lambda s: s.attempt):
        clock = stream.header.get("clock")
        began = clock.get("monotonic_ns") if isinstance(clock, Mapping) else None
        if stream.scope == "node" and stream.attempt and isinstance(began, int):
            starts.setdefault(stream.number, []).append(view.since_origin(began, node=stream.number))
    return starts


def not_measured(view: View) -> tuple[NotMeasured, ...]:
    """Stretches in which a field was not ok, by field and time."""
    rows = without_loading(on_axis(view, "sampler_state", "field")).filter(
        ~pl.col("field").is_in(_NO_FIELDS)
        & ~(pl.col("field").str.starts_with("process.") & pl.col("reason").str.ends_with("has ended"))
    )
    rows = rows.with_columns(
        until_ns=pl.col("at_ns").shift(-1).over("node", "field"),
        again=(pl.struct("state", "reason") == pl.struct("state", "reason").shift(1)).over("node", "field"),
    )
    starts = starts_of_samplers(view)
    found: list[NotMeasured] = []
    for row in rows.iter_rows(named=True):
        said_again = any(0 <= row["at_ns"] - start < _SAID_AGAIN_NS for start in starts.get(row["node"], ()))
        if row["again"] and said_again and found and found[-1].field == row["field"][:200]:
            found[-1] = _stretch(row, since_ns=found[-1].since_ns, starts=starts)
        elif row["state"] != "ok":
            found.append(_stretch(row, since_ns=row["at_ns"], starts=starts))
    return _few(found)


def _stretch(row: Mapping[str, object], *, since_ns: int, starts: Mapping[int, list[int]]) -> NotMeasured:
    """One stretch. A sampler that was started again takes every field for ok until it says otherwise."""
    at_ns, until, node = int(str(row["at_ns"])), row["until_ns"], int(str(row["node"]))
    restart = next((start for start in starts.get(node, ()) if start > at_ns), None)
    ends = [end for end in (None if until is None else int(str(until)), restart) if end is not None]
    return NotMeasured(
        node=node,
        field=str(row["field"])[:200],
        state=str(row["state"])[:40],
        reason=str(row["reason"])[:300],
        since_ns=since_ns,
        until_ns=min(ends, default=None),
    )


def _few(found: list[NotMeasured]) -> tuple[NotMeasured, ...]:
    """Stretches of one field for one reason that are many become one, which says how many."""
    groups: dict[tuple[int, str, str, str], list[NotMeasured]] = {}
    for item in found:
        groups.setdefault((item.node, item.field, item.state, item.reason), []).append(item)
    out: list[NotMeasured] = []
    for (node, field, state, reason), items in groups.items():
        if len(items) <= _MOST_STRETCHES:
            out += items
            continue
        out.append(
            NotMeasured(
                node=node,
                field=field,
                state=state,
                reason=f"{reason} ({len(items):,} times)",
                since_ns=items[0].since_ns,
                until_ns=items[-1].until_ns,
            )
        )
    return tuple(sorted(out, key=lambda item: (item.node, item.field, item.since_ns)))


def sampler_gaps(view: View) -> tuple[SamplerGap, ...]:
    """Stretches in which a node was not sampled: no row of the host; without any of those, none of processes.

    A sampler that was started again leaves one however quick that was.
    """
    rows = next(
        (rows for name in ("host_samples", "process_samples") if (rows := on_axis(view, name)).height), pl.DataFrame()
    )
    if not rows.height:
        return ()
    marked = with_gaps_marked(rows.unique(["node", "at_ns"], keep="first", maintain_order=True))
    starts = starts_of_samplers(view)
    gaps = marked.filter(pl.col("gap_before") | _first_of_samplers(starts)).select("node", "at_ns", "step_ns")
    found = [
        SamplerGap(
            node=node,
            start_ns=at_ns - step_ns,
            end_ns=at_ns,
            reason=_why(view, starts.get(node, []), at_ns - step_ns, at_ns),
        )
        for node, at_ns, step_ns in gaps.head(_MOST_GAPS).iter_rows()
    ]
    return tuple(sorted([*found, *_ended_early(view, marked)], key=lambda gap: (gap.node, gap.start_ns)))


def _first_of_samplers(starts: dict[int, list[int]]) -> pl.Expr:
    """Whether a row is the first of a sampler that was started again."""
    begun = [
        (pl.col("node") == node) & pl.lit(start).is_between(pl.col("at_ns") - pl.col("step_ns"), pl.col("at_ns"))
        for node, listed in starts.items()
        for start in listed[:_MOST_GAPS]
    ]
    return pl.any_horizontal(begun).fill_null(value=False) if begun else pl.lit(value=False)


def _ended_early(view: View, samples: pl.DataFrame) -> list[SamplerGap]:
    """Nodes whose ranks went on with steps after the last sample."""
    last = samples.group_by("node").agg(pl.col("at_ns").last(), typical=pl.col("step_ns").median()).sort("node")
    ends: dict[int, int] = {}
    for rank, end_ns in view.steps.group_by("rank").agg(pl.col("end_ns").max()).iter_rows():
        node = view.node_of.get(rank, 0)
        ends[node] = max(ends.get(node, 0), view.since_origin(end_ns, rank=rank))
    return [
        SamplerGap(node=node, start_ns=at_ns, end_ns=ends[node], reason="the sampler ended before the ranks did")
        for node, at_ns, typical in last.iter_rows()
        if node in ends and ends[node] - at_ns > max(_EARLY_NS, GAP_PERIODS * (typical or 0))
    ]


def _why(view: View, starts: list[int], begin_ns: int, end_ns: int) -> str:
    numbers = [number for number, start in enumerate(starts) if begin_ns < start <= end_ns]
    if not numbers:
        return "the sampler did not run: it was stopped, or got no CPU"
    told = _notes_on_restarts(view)
    if len(told) == len(starts):
        return told[numbers[0]]
    return "the sampler ended and was started again"


def _notes_on_restarts(view: View) -> list[str]:
    """What the launcher told of each restart, in order; its notes do not name the node."""
    notes = (view.run.outcome or {}).get("notes")
    listed = notes if isinstance(notes, list | tuple) else ()
    return [str(note)[:300] for note in listed if "sampler" in str(note) and "started again after" in str(note)]
