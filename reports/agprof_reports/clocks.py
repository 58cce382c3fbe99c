"""The nodes' clocks: how their times came onto one axis, and how sure that is. Only of several nodes."""

from dataclasses import replace

from agprof.model.clock_answers import ClockAnswer, ClockConflict, NodeClock
from agprof.model.figure import Figure
from agprof_reports.charts.clocks import residuals
from agprof_reports.columns import Field, evenly, table
from agprof_reports.data import Section, Table
from agprof_reports.text import clean

KEY, TITLE = "clocks", "Clocks"
_NAME = 120
_MOST_NODES = 200
_LINES = {
    "reconciled": (),
    "doubtful": (("watch", "Compare times of different nodes with care: their order may be another one."),),
    "refused": (
        (
            "bad",
            "Each node is drawn from its own first step on. Durations are right; who came last is told within nodes.",
        ),
    ),
}


def section(found: ClockAnswer) -> Section:
    drawn = residuals(found.nodes) if found.state != "refused" else None
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence,
        lines=_LINES[found.state],
        charts=(drawn,) if drawn is not None else (),
        tables=(_nodes(found), *((_conflicts(found.conflicts),) if found.conflicts else ())),
    )


def _nodes(found: ClockAnswer) -> Table:
    fields: list[Field[NodeClock]] = [
        Field(label="node", get=lambda n: str(n.node)),
        Field(label="host", get=lambda n: clean(n.host or "", _NAME), code=True),
        Field(label="known by", get=lambda n: "it is the reference" if n.node == found.reference else n.method),
        Field(
            label="offset", get=lambda n: n.offset, unit="ns", source="measured",
            tip="reference minus this node, of the monotonic clocks, when the first step began",
        ),
        Field(
            label="drift", get=lambda n: _ppm(n.drift), unit="ppm", source="measured",
            tip="by which the reference's clock is faster",
        ),
        Field(
            label="uncertainty", get=lambda n: n.uncertainty_ns, unit="ns", source="measured",
            tip="times of this node are at most so far from those of the reference, anywhere in the run",
        ),
        Field(label="bursts", get=lambda n: len(n.points), unit="1", tip="of pings"),
        Field(
            label="wall clock set", get=lambda n: n.wall_clock_steps, unit="1",
            tip="times that the node's wall clock was moved by more than 1 ms; no time in this report depends on it",
        ),
    ]  # fmt: skip
    kept, note = evenly(found.nodes, _MOST_NODES)
    return table("table-clocks", "The nodes' clocks", kept, fields, note)


def _ppm(drift: Figure) -> Figure:
    def times(value: float | None) -> float | None:
        return None if value is None else value * 1e6

    return replace(drift, value=times(drift.value), low=times(drift.low), high=times(drift.high), unit="ppm")


def _conflicts(conflicts: tuple[ClockConflict, ...]) -> Table:
    fields: list[Field[ClockConflict]] = [
        Field(label="collective", get=lambda c: clean(c.op, _NAME), code=True),
        Field(label="group", get=lambda c: clean(c.group, _NAME), code=True),
        Field(label="step", get=lambda c: c.step, unit="1"),
        Field(label="left early", get=lambda c: f"rank {c.early_rank}"),
        Field(label="entered later", get=lambda c: f"rank {c.late_rank}"),
        Field(label="by", get=lambda c: c.by_ns, unit="ns", tip="beyond the uncertainty of both nodes' clocks"),
    ]
    caption = "Collectives that contradict the clocks: a rank left before another had entered"
    return table("table-clock-conflicts", caption, conflicts, fields)
