"""What nsys did to a run that ran under it, in sentences."""

from collections.abc import Iterator
from statistics import median

import polars as pl

from agprof.analysis.view import View
from agprof.model.format import format_value


def nsys_notes(view: View) -> Iterator[str]:
    """The captured steps, what beginning and ending the capture took, and captured steps against the others."""
    absent = {facts["nsys.absent"] for facts in view.facts.values() if "nsys.absent" in facts}
    for reason in sorted(map(str, absent)):
        yield f"A rank ran under nsys, and its steps are not in the report: {reason}."
    window = view.fact("nsys.steps")
    if not (isinstance(window, list) and len(window) == 2 and all(isinstance(step, int) for step in window)):
        return
    first, last = window
    costs = [_highest(view, "nsys.begin_cost_ns"), _highest(view, "nsys.end_cost_ns")]
    told = [
        f"{word} of the capture took {format_value(cost, 'ns')}"
        for word, cost in zip(("the begin", "the end"), costs, strict=True)
        if cost is not None
    ]
    yield f"nsys captured steps {first} to {last}{'; ' if told else ''}{', '.join(told)}{_compared(view, first, last)}."


def _compared(view: View, first: int, last: int) -> str:
    steady = view.slowest.filter(pl.col("kind") == "steady")
    inside = pl.col("step").is_between(first, last)
    captured = steady.filter(inside)["duration_ns"].to_list()
    others = steady.filter(~inside)["duration_ns"].to_list()
    if not captured or not others:
        return ""
    a, b = format_value(median(captured), "ns"), format_value(median(others), "ns")
    return f"; captured steps took {a}, the {len(others)} others {b} (medians)"


def _highest(view: View, key: str) -> int | None:
    values = [facts[key] for facts in view.facts.values() if isinstance(facts.get(key), int)]
    return max(values, default=None)
