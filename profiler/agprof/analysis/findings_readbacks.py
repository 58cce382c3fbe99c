"""The finding on values that the host reads back from the device in every micro-step."""

import polars as pl

from agprof.analysis.evidence import Evidence
from agprof.model.answers import Finding

FEW_PER_MICRO_STEP = 2
"""Reading a loss and a norm is not worth a word."""
_MOST_NAMED = 5
_WORDS = {"item": "one value", "copy": "a tensor", "size": "a size"}


def readbacks(evidence: Evidence) -> Finding | None:
    """The job's own code reads values back several times per micro-step."""
    view = evidence.view
    table = view.tables["readbacks"]
    own = table.filter(pl.col("package").is_null() & (pl.col("place") != ""))
    micro_steps = _micro_steps(evidence)
    calls = int(own["calls"].sum())
    if not micro_steps or calls / micro_steps <= FEW_PER_MICRO_STEP:
        return None
    on_device = view.fact("device.type") == "cuda"
    rate = f"{calls / micro_steps:.3g}"
    return Finding(
        key="readbacks",
        title=f"The host reads values back from tensors {rate} times per micro-step"
        + ("" if on_device else ", which a GPU would be waited for"),
        evidence=f"{calls} times in the profiled step ({micro_steps} micro-steps): {_places(own)}.{_packages(table)}"
        + (" Each time the host waits until the device has done all it was given." if on_device else ""),
        section="time",
        saving_ns_per_step=None,
        confidence="measured" if on_device else "rule of thumb",
        change="Keep losses and metrics as tensors (`.detach()`) and read them once per step, as one "
        "(`torch.stack(..).tolist()`); make targets and masks on the device instead of by `.cpu()`.",
        check="the table of read-backs loses these places"
        + (", and the device's idle time falls." if on_device else "; on a GPU its idle time falls."),
    )


def _micro_steps(evidence: Evidence) -> int:
    """Of the profiled step, on the rank that looked at it."""
    table, steps = evidence.view.tables["readbacks"], evidence.view.tables["steps"]
    if not table.height:
        return 0
    rank, step = table["rank"][0], table["step"][0]
    found = steps.filter((pl.col("rank") == rank) & (pl.col("step") == step))["micro_steps"]
    return int(found[0]) if found.len() else 0


def _places(rows: pl.DataFrame) -> str:
    ordered = rows.sort("calls", "place", "kind", descending=[True, False, False]).select("place", "kind", "calls")
    words = [f"{place[:160]} ({calls} x {_WORDS.get(kind, kind)})" for place, kind, calls in ordered.iter_rows()]
    more = f" and {len(words) - _MOST_NAMED} places more" if len(words) > _MOST_NAMED else ""
    return ", ".join(words[:_MOST_NAMED]) + more


def _packages(table: pl.DataFrame) -> str:
    installed = table.drop_nulls("package").group_by("package").agg(pl.col("calls").sum()).sort("package")
    words = [f"{package[:60]} {calls}" for package, calls in installed.iter_rows()]
    return f" Installed packages do it as well: {', '.join(words[:_MOST_NAMED])}." if words else ""
