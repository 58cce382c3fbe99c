"""What the section on quality says of the nodes' clocks."""

from collections.abc import Iterator

from agprof.analysis.clocks import answer
from agprof.analysis.view import View


def clock_problems(view: View) -> Iterator[str]:
    """Clocks that can't be reconciled, or that some collective contradicts."""
    clocks = answer(view.clocks, view.origin_ns)
    if clocks is not None and (clocks.state == "refused" or clocks.conflicts):
        yield clocks.sentence


def clock_notes(view: View) -> Iterator[str]:
    """How the nodes' times were put on one axis, where it is not clear from pings; wall clocks that were set."""
    fitted = view.clocks
    if fitted.state != "refused":
        by_wall = [one.node for one in fitted.nodes if one.uncertainty_ns is None]
        if by_wall:
            yield (
                "The nodes' clocks are put on one axis by their wall clocks, which is as good as their NTP: "
                "durations are exact, times between nodes may be off by milliseconds."
            )
        for one in fitted.nodes:
            if len(one.lines) > 1:
                yield (
                    f"The rate of node {one.node}'s clock changed while the run went on; it is followed by "
                    f"{len(one.lines):,} lines one after another."
                )
    for one in fitted.nodes:
        if one.steps:
            yield (
                f"The wall clock of node {one.node} was set {one.steps:,} time{'s' * (one.steps > 1)} while the run "
                "went on. The run's own times do not depend on it; wall times of what was written before and after do."
            )
