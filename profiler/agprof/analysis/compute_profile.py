"""The profile step as one rank wrote it: rows of `modules` and `operations`, and their sums."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from agprof.analysis.view import View

Row = Mapping[str, Any]

PASSES = ("forward", "backward", "recomputed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was counted in the profile step of one rank. FLOPs of the optimizer's update are in none of the sums."""

    step: int | None
    rank: int | None
    micro_steps: int | None
    modules: tuple[Row, ...]
    """Parents first, trees one after the other."""
    operations: tuple[Row, ...]
    forward: float | None
    """Outside of backward: modules' and what stands around them, as a loss."""
    backward: float | None
    recomputed: float | None
    modelled_forward: float | None
    modelled_backward: float | None
    attention: float | None
    outside_modules: float
    """Of forward and backward, what no module of `modules` has."""
    reason: str
    """Why there is nothing; empty when there is."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Facts of this rank, or of the lowest that has any."""

    @property
    def roots(self) -> tuple[Row, ...]:
        return tuple(row for row in self.modules if row["parent"] is None)

    @property
    def total(self) -> float | None:
        """Forward + backward, counted."""
        return None if self.forward is None or self.backward is None else self.forward + self.backward

    @property
    def executed(self) -> float | None:
        return None if self.total is None else self.total + (self.recomputed or 0.0)

    @property
    def modelled(self) -> float | None:
        forward, backward = self.modelled_forward, self.modelled_backward
        return None if forward is None or backward is None else forward + backward


MOST = 1e30
"""No step does as many FLOPs; sums and quotients of smaller figures stay finite."""


def finite(value: Any) -> float | None:
    """A number that can be counted with: 0 to MOST."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST
    return float(value) if good else None


def total_of(values: Iterable[Any]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [number for number in map(finite, values) if number is not None]
    return math.fsum(known) if known else None


def read_profile(view: View) -> Profile:
    """The first profiled step of the lowest rank that wrote one."""
    modules, operations = view.tables["modules"], view.tables["operations"]
    written = [frame.select("rank", "step") for frame in (modules, operations) if frame.height]
    facts = view.facts.get(min(view.facts, default=0), {})
    if not written:
        return _empty(_why_nothing(view), facts)
    rank, step = pl.concat(written).sort("rank", "step").row(0)
    facts = view.facts.get(rank, facts)
    tree = _rows(modules, rank, step, "root", "order").unique(["root", "path"], keep="first", maintain_order=True)
    kinds = _rows(operations, rank, step).to_dicts()
    rows = tuple(tree.to_dicts())
    roots = [row for row in rows if row["parent"] is None]
    of_modules = {name: total_of(row[f"{name}_flops"] for row in roots) for name in PASSES}
    of_operations = {name: _in_pass(kinds, name) for name in (*PASSES, "outside")}
    counted = {name: of_operations[name] if kinds else of_modules[name] for name in PASSES}
    if kinds:
        around = max(0.0, (of_operations["outside"] or 0.0) - (finite(facts.get("compute.update_flops")) or 0.0))
        counted["forward"] = (counted["forward"] or 0.0) + around
        counted = {name: flops or 0.0 for name, flops in counted.items()}
    seen = (of_modules["forward"] or 0.0) + (of_modules["backward"] or 0.0)
    return Profile(
        step=step,
        rank=rank,
        micro_steps=_micro_steps(view, rank, step),
        modules=rows,
        operations=tuple(kinds),
        forward=counted["forward"],
        backward=counted["backward"],
        recomputed=counted["recomputed"],
        modelled_forward=_modelled(facts, "forward", roots),
        modelled_backward=_modelled(facts, "backward", roots),
        attention=total_of(row["attention_flops"] for row in roots),
        outside_modules=max(0.0, (counted["forward"] or 0.0) + (counted["backward"] or 0.0) - seen),
        reason="" if counted["forward"] is not None else "the profile step's FLOPs were not counted",
        facts=facts,
    )


def _modelled(facts: Mapping[str, Any], which: str, roots: list[dict[str, Any]]) -> float | None:
    """Of all operations where the instrument tells it, else of the modules."""
    told = finite(facts.get(f"compute.modelled_{which}_flops"))
    return told if told is not None else total_of(row[f"modelled_{which}_flops"] for row in roots)


def _empty(reason: str, facts: Mapping[str, Any]) -> Profile:
    return Profile(
        step=None,
        rank=None,
        micro_steps=None,
        modules=(),
        operations=(),
        forward=None,
        backward=None,
        recomputed=None,
        modelled_forward=None,
        modelled_backward=None,
        attention=None,
        outside_modules=0.0,
        reason=reason,
        facts=facts,
    )


def _why_nothing(view: View) -> str:
    absent = view.fact("compute.profiler_absent")
    if isinstance(absent, str):
        return absent
    faults = view.tables["faults"].filter(pl.col("instrument").is_in(["flops", "profile step"]))
    if faults.height:
        return "the instrument that counts FLOPs failed (see data quality)"
    profile: Any = view.run.manifest
    for key in ("workload", "profile"):
        profile = profile.get(key) if isinstance(profile, Mapping) else None
    if isinstance(profile, Mapping):
        if profile.get("level") in {"off", "light"}:
            return f"FLOPs are counted with `profile.level: default`; it was {profile['level']}"
        if "profile_step" in profile and profile["profile_step"] is None:
            return "no step was profiled: `profile.profile_step` is null"
        step = profile.get("profile_step")
        if isinstance(step, int) and (not view.steps.height or view.steps["step"].max() < step):  # type: ignore[operator]
            return f"the run ended before its profile step {step} did (`profile.profile_step`)"
    return "FLOPs were not counted"


def _rows(frame: pl.DataFrame, rank: int, step: int, *order: str) -> pl.DataFrame:
    own = frame.filter((pl.col("rank") == rank) & (pl.col("step") == step))
    return own.sort(*order, maintain_order=True) if order else own


def _in_pass(rows: list[dict[str, Any]], name: str) -> float | None:
    return total_of(row["flops"] for row in rows if row["in_pass"] == name)


def _micro_steps(view: View, rank: int, step: int) -> int | None:
    own = view.steps.filter((pl.col("rank") == rank) & (pl.col("step") == step))["micro_steps"].to_list()
    return own[0] if own and own[0] > 0 else None
