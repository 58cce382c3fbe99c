"""The finding on what ranks print."""

from agprof.analysis.evidence import Evidence
from agprof.model.answers import Finding
from agprof.model.format import format_value

MANY_LINES = 2.0
"""Per step and rank: a line on the progress, and one of somebody else's."""


def much_output(evidence: Evidence) -> Finding | None:
    """A rank prints several lines per step."""
    worst: tuple[float, float, int, str] | None = None
    printing = 0
    for rank in evidence.view.ranks:
        facts = evidence.view.facts.get(rank, {})
        steps, lines, size = (facts.get(f"output.{name}") for name in ("steps", "lines", "bytes"))
        if not isinstance(steps, int) or not isinstance(lines, int) or not isinstance(size, int) or steps < 1:
            continue
        if lines / steps <= MANY_LINES:
            continue
        printing += 1
        if worst is None or lines / steps > worst[0]:
            worst = lines / steps, size / steps, rank, str(facts.get("output.example") or "")
    if worst is None:
        return None
    lines, size, rank, example = worst
    return Finding(
        key="much-output",
        title=f"{'A rank prints' if printing == 1 else f'{printing} ranks print'} {lines:.3g} lines a step"
        + ("" if printing == 1 else ", or near it"),
        evidence=f"Rank {rank} writes {format_value(size, 'bytes')} a step to its log"
        + (f", most of it like `{example[:100]}`." if example else "."),
        section="time",
        saving_ns_per_step=None,
        confidence="rule of thumb",
        change="Print on rank 0 only, once per step or less; take prints per sample out of the model's forward.",
        check="the rank's log grows by a line a step.",
    )
