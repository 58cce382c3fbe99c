"""Hand-made answers on the clocks of several nodes."""

import random
from dataclasses import replace

from agprof.analysis.clock_words import sentence
from agprof.model.clock_answers import ClockAnswer, ClockConflict, ClockPoint, NodeClock
from sample_figures import figure, missing

US, HOUR_NS = 1_000, 3_600_000_000_000


def clock_answer(nodes: int = 2, minutes: int = 12) -> ClockAnswer:
    """Node 0 is the reference; node 1 is two hours ahead and drifts by 200 ppm."""
    random_ = random.Random(nodes)
    found = tuple(_node(node, minutes, random_) for node in range(nodes))
    return _told(ClockAnswer(sentence="", state="reconciled", reference=0, nodes=found, checked=3_120, conflicts=()), 0)


def _node(node: int, minutes: int, random_: random.Random) -> NodeClock:
    exact = figure(0, "ns", source="declared", low=0, high=0, method="the reference itself")
    if node == 0:
        return NodeClock(
            node=0, host="node-a", method="pings", offset=exact, drift=replace(exact, unit="ratio"), uncertainty_ns=0,
            points=(), wall_clock_steps=0,
        )  # fmt: skip
    half = [round(40 * US * 1.5 ** random_.uniform(0, 6)) for _ in range(minutes)]
    points = tuple(
        ClockPoint(
            time_ns=(minute * 60 - 4) * 10**9, residual_ns=round(u * random_.uniform(-0.7, 0.7)), uncertainty_ns=u
        )
        for minute, u in enumerate(half)
    )
    offset = -2 * HOUR_NS * node
    return NodeClock(
        node=node,
        host=f"node-{'abcdefgh'[node % 8]}",
        method="pings",
        offset=figure(
            offset, "ns", n=minutes, low=offset - 38 * US, high=offset + 38 * US, method="line through pings"
        ),
        drift=figure(-2e-4, "ratio", n=minutes, low=-2.0005e-4, high=-1.9995e-4, method="line through pings"),
        uncertainty_ns=52 * US,
        points=points,
        wall_clock_steps=node - 1,
    )


def wall_clock_answer() -> ClockAnswer:
    """No pings: wall clocks."""
    base = clock_answer()
    node = replace(
        base.nodes[1], method="wall clocks", uncertainty_ns=None, points=(),
        drift=missing("ratio", "one reading of the wall clocks tells no drift"),
    )  # fmt: skip
    return _told(replace(base, state="doubtful", nodes=(base.nodes[0], node)), 0)


def refused_answer(name: str = "all_reduce") -> ClockAnswer:
    """The collectives contradict the clocks."""
    conflicts = tuple(
        ClockConflict(op=name, group="default_pg", step=step, early_rank=3, late_rank=0, by_ns=(9 - step) * 10**9)
        for step in range(8)
    )
    return _told(replace(clock_answer(), state="refused", conflicts=conflicts), 2_870)


def _told(found: ClockAnswer, contradicted: int) -> ClockAnswer:
    words = sentence(found.state, found.reference, found.nodes, found.checked, contradicted, found.conflicts, [])
    return replace(found, sentence=words)
