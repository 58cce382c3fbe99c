"""Findings on frozen modules that say again what they have said: inputs seen before, twice at once, as copies."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from agprof.analysis.evidence import Evidence, saving
from agprof.model.answers import Finding
from agprof.model.figure import Figure
from agprof.model.format import percent

MIN_SHARE = 0.01
"""Of the step's FLOPs that could go: less is not worth a word."""
MIN_REPEATED = 0.1
"""Of a module's calls: a data set's second epoch brings single inputs again."""
_MOST_NAMED = 3
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A frozen module that was looked at."""

    path: str
    calls: int
    steps: int
    before: float
    """Share of its calls whose inputs an earlier micro-step had given."""
    at_once: float
    """Share of its calls whose inputs an earlier call in the same micro-step had."""
    copies: float
    """Share of the items in its batches that are copies of others in the same batch."""
    flops_share: float
    """Its forward FLOPs over all executed in the profiled step."""
    ns_per_step: float | None

    @property
    def name(self) -> str:
        return self.path[-_LONGEST_NAME:] or "the whole model"


def repeated_inputs(evidence: Evidence) -> Finding | None:
    """A frozen module is given, step after step, what it was given before."""
    found = _worth(evidence, lambda row: row.before)
    if not found:
        return None
    top = found[0]
    return Finding(
        key="repeated-inputs",
        title=(
            f"The frozen {top.name} gets inputs it has seen before in {percent(top.before)} of its calls; "
            f"it is {percent(top.flops_share)} of the step's FLOPs"
        ),
        evidence=(
            f"{round(top.before * top.calls)} of its {top.calls} calls in {top.steps} steps had tensor inputs equal to "
            f"those of an earlier micro-step (64-bit checksums), and it has no parameter that is trained."
            f"{_others(found, lambda row: row.before)}"
        ),
        section="compute",
        saving_ns_per_step=_saving(evidence, found, lambda row: row.before, "share of repeated calls"),
        confidence="measured" if top.ns_per_step is not None else "modelled",
        change=f"Keep what {top.name} says for inputs it has seen (a dict by class, sentence or file name), or encode "
        "them all once before training.",
        check="its calls in the table of modules fall, and the FLOPs of a step with them.",
    )


def repeated_at_once(evidence: Evidence) -> Finding | None:
    """A frozen module is given the same inputs twice within a micro-step."""
    found = _worth(evidence, lambda row: row.at_once)
    if not found:
        return None
    top = found[0]
    return Finding(
        key="repeated-at-once",
        title=f"The frozen {top.name} is given the same inputs twice in one micro-step",
        evidence=(
            f"{round(top.at_once * top.calls)} of its {top.calls} calls in {top.steps} steps had tensor inputs equal "
            f"to those of an earlier call of the same micro-step (64-bit checksums); it is {percent(top.flops_share)} "
            f"of the step's FLOPs.{_others(found, lambda row: row.at_once)}"
        ),
        section="compute",
        saving_ns_per_step=_saving(evidence, found, lambda row: row.at_once, "share of calls repeated at once"),
        confidence="measured" if top.ns_per_step is not None else "modelled",
        change=f"Hand on the output of {top.name} within the micro-step instead of calling it again.",
        check="its calls in the table of modules fall.",
    )


def copied_items(evidence: Evidence) -> Finding | None:
    """A frozen module is given a batch in which items are copies of others."""
    found = _worth(evidence, lambda row: row.copies)
    if not found:
        return None
    top = found[0]
    return Finding(
        key="copied-items",
        title=f"{percent(top.copies)} of the items given to the frozen {top.name} are copies of others in their batch",
        evidence=(
            f"In the profiled step, by 64-bit checksums of each item; it is {percent(top.flops_share)} of the step's "
            f"FLOPs.{_others(found, lambda row: row.copies)}"
        ),
        section="compute",
        saving_ns_per_step=_saving(evidence, found, lambda row: row.copies, "share of copied items"),
        confidence="measured" if top.ns_per_step is not None else "modelled",
        change=f"Give {top.name} each different item once and pick its outputs by index (by a dict of names).",
        check="the FLOPs of its module fall by that share.",
    )


Share = Callable[[Frozen], float]


def _worth(evidence: Evidence, share: Share) -> list[Frozen]:
    """Modules of which FLOPs could go, most first."""
    rows = [
        row
        for row in frozen_modules(evidence)
        if share(row) >= MIN_REPEATED and share(row) * row.flops_share >= MIN_SHARE
    ]
    return sorted(rows, key=lambda row: (-share(row) * row.flops_share, row.path))


def _others(found: list[Frozen], share: Share) -> str:
    words = [f"{row.name} ({percent(share(row))}, {percent(row.flops_share)} of the FLOPs)" for row in found[1:]]
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return f" Likewise {', '.join(words[:_MOST_NAMED])}{more}." if words else ""


def _saving(evidence: Evidence, found: list[Frozen], share: Share, what: str) -> Figure:
    """Of modules whose time is known by that; else by their share of the FLOPs."""
    ns = 0.0
    for row in found:
        spent = row.ns_per_step if row.ns_per_step is not None else row.flops_share * evidence.mean_ns
        ns += share(row) * spent
    known = all(row.ns_per_step is not None for row in found)
    how = "the modules' time a step" if known else "the modules' share of the step's FLOPs x the mean step"
    return saving(ns, sum(row.calls for row in found), f"{what} x {how}", measured=known)


def frozen_modules(evidence: Evidence) -> tuple[Frozen, ...]:
    """What table `repeats` says, with the FLOPs of table `modules`; those without FLOPs are left out."""
    modules = evidence.view.tables["modules"]
    passes = ("forward_flops", "backward_flops", "recomputed_flops")
    executed = sum(float(modules.filter(pl.col("parent").is_null())[name].sum() or 0) for name in passes)
    if not executed:
        return ()
    flops = {
        (root, path): value
        for root, path, value in modules.select("root", "path", "forward_flops").iter_rows()
        if value is not None
    }
    found = []
    for row in evidence.view.tables["repeats"].iter_rows(named=True):
        calls, steps = row["calls"], row["last_step"] - row["first_step"] + 1
        share = flops.get((row["root"], row["path"]), 0.0) / executed
        if calls <= 0 or steps <= 0 or not share:
            continue
        at_once, per_call = row["repeated_at_once"] or 0, row["forward_ns_per_call"]
        found.append(
            Frozen(
                path=row["path"],
                calls=calls,
                steps=steps,
                before=max(0, row["repeated_calls"] - at_once) / calls,
                at_once=at_once / calls,
                copies=row["repeated_items_share"] or 0.0,
                flops_share=share,
                ns_per_step=per_call * calls / steps if per_call is not None else None,
            )
        )
    return tuple(found)
