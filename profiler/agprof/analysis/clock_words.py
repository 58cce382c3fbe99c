"""What is said of the clocks, in one or two sentences."""

from collections.abc import Sequence

from agprof.model.clock_answers import ClockConflict, ClockState, NodeClock
from agprof.model.format import format_value

APART = "Times of different nodes are not compared: each node's times begin with its own first step"


def sentence(
    state: ClockState,
    reference: int | None,
    nodes: Sequence[NodeClock],
    checked: int,
    contradicted: int,
    conflicts: Sequence[ClockConflict],
    jumps: Sequence[tuple[int, int]],
) -> str:
    """`jumps`: node and ns."""
    agree = _agreement(checked, contradicted, conflicts)
    if state == "refused":
        if jumps:
            node, ns = jumps[0]
            why = f"the clock of node {node} jumped by {_amount(abs(ns))} against that of node {reference}"
        else:
            why = agree
        return f"The nodes' clocks can't be brought onto one axis: {why}. {APART}."
    others = [one for one in nodes if one.node != reference]
    pinged = [one for one in others if one.uncertainty_ns is not None]
    by_wall = [one for one in others if one.uncertainty_ns is None]
    words = f"Times are on the clock of node {reference}"
    if pinged:
        most = max(one.uncertainty_ns or 0 for one in pinged)
        bursts = sum(len(one.points) for one in pinged)
        words += f", by {bursts:,} burst{'s' * (bursts != 1)} of pings to within ±{_amount(most)}"
    if by_wall:
        named = "all nodes" if not pinged else _nodes([one.node for one in by_wall])
        words += f"{';' if pinged else ','} {named} by their wall clocks, whose error is not known"
    return f"{words}. {agree[:1].upper()}{agree[1:]}."


def _agreement(checked: int, contradicted: int, conflicts: Sequence[ClockConflict]) -> str:
    if not checked:
        return "no collective over several nodes could be held against it"
    if not contradicted:
        return f"{checked:,} collective{'s agree' if checked != 1 else ' agrees'} with it"
    by = f" (by up to {_amount(conflicts[0].by_ns)})" if conflicts else ""
    many = f"in {contradicted:,} of {checked:,} collectives over several nodes"
    return f"{many} a rank left before the last one had entered{by}"


def _nodes(nodes: Sequence[int]) -> str:
    shown = ", ".join(map(str, nodes[:8])) + (" ..." if len(nodes) > 8 else "")
    return f"node{'s' * (len(nodes) > 1)} {shown}"


def _amount(ns: float) -> str:
    return format_value(ns, "ns")
