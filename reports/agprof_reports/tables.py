"""The tables of a run's page. One unit per numeric column, chosen by its largest value and named in its head."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from agprof.model.answers import (
    CollectiveRow,
    RangeRow,
    RankPhases,
    RankRow,
    RlhfAnswer,
    RlhfPart,
    RlhfRank,
    StepRow,
    UnseenRow,
)
from agprof.model.figure import Curve
from agprof.model.memory_answers import RankMemory
from agprof_reports.columns import Field, evenly, table
from agprof_reports.data import Cell, Most, Table
from agprof_reports.text import clean

_CURVE = 120
"""Longest name of a curve, in characters."""


def phases(ranks: Sequence[RankPhases], names: Sequence[str]) -> Table:
    fields: list[Field[RankPhases]] = [
        Field(label="rank", get=lambda r: r.rank, unit="1"),
        Field(label="steps", get=lambda r: r.steps, unit="1", source="counted"),
        Field(label="step", get=lambda r: r.step_ns, unit="ns", source="measured", tip="mean of the steady steps"),
    ]
    for name in names:
        fields.append(
            Field(label=name, get=lambda r, name=name: r.parts_ns.get(name), unit="ns", source="measured")  # type: ignore[misc]
        )
    return table("table-phases", "Mean time per steady step and phase, per rank", ranks, fields)


@dataclass(frozen=True, slots=True)
class StepGroup:
    """One optimizer step over its ranks."""

    step: int
    rows: tuple[StepRow, ...]

    @property
    def slowest(self) -> StepRow:
        return max(self.rows, key=lambda row: (row.duration_ns, -row.rank))

    @property
    def kind(self) -> str:
        kinds = {row.kind for row in self.rows}
        return next(kind for kind in ("profiled", "warm-up", "incomplete", "steady") if kind in kinds)

    @property
    def loss(self) -> float | None:
        losses = [row.loss for row in self.rows if row.loss is not None]
        return fmean(losses) if losses else None


def group_steps(rows: Iterable[StepRow]) -> tuple[StepGroup, ...]:
    by_step: dict[int, list[StepRow]] = defaultdict(list)
    for row in rows:
        by_step[row.step].append(row)
    return tuple(StepGroup(step, tuple(by_step[step])) for step in sorted(by_step))


def steps(groups: Sequence[StepGroup], names: Sequence[str], most: int) -> Table:
    kept, note = evenly(groups, most)
    fields: list[Field[StepGroup]] = [
        Field(label="step", get=lambda g: g.step, unit="1"),
        Field(label="kind", get=lambda g: g.kind),
        Field(label="begin", get=lambda g: g.slowest.start_ns / 1e9, unit="s", tip="since the run's first step"),
        Field(label="slowest rank", get=lambda g: g.slowest.rank, unit="1"),
        Field(label="its time", get=lambda g: g.slowest.duration_ns, unit="ns", source="measured"),
        Field(label="median rank", get=lambda g: median(r.duration_ns for r in g.rows), unit="ns", source="measured"),
    ]
    for name in names:
        fields.append(
            Field(
                label=name,
                get=lambda g, name=name: g.slowest.parts_ns.get(name),  # type: ignore[misc]
                unit="ns",
                source="measured",
                tip="of the slowest rank",
            )
        )
    fields.append(Field(label="loss", get=lambda g: g.loss, unit="", source="measured", tip="mean over the ranks"))
    return table("table-steps", "Steps; parts are those of the slowest rank", kept, fields, note)


def ranges(rows: Sequence[RangeRow]) -> Table:
    return table(
        "table-ranges",
        "Your own ranges, means per rank and steady step, children included",
        rows,
        [
            Field(label="range", get=lambda r: r.name, code=True),
            Field(label="calls per step", get=lambda r: r.calls_per_step, unit="1", source="counted"),
            Field(label="time per step", get=lambda r: r.ns_per_step, unit="ns", source="measured"),
            Field(label="share of the step", get=lambda r: r.share, unit="ratio", source="measured"),
        ],
    )


def rlhf_parts(parts: Sequence[RlhfPart]) -> Table:
    return table(
        "table-rlhf-parts",
        "Parts of an iteration, means per rank and steady iteration",
        parts,
        [
            Field(label="part", get=lambda p: p.name, code=True),
            Field(label="calls", get=lambda p: p.calls_per_iteration or None, unit="1", source="counted"),
            Field(label="time", get=lambda p: p.ns_per_iteration, unit="ns", source="measured"),
            Field(label="share", get=lambda p: p.share, unit="ratio", source="measured"),
            Field(label="memory peak", get=lambda p: p.memory_peak, unit="bytes"),
            Field(label="collectives", get=lambda p: p.collectives_per_iteration, unit="1", source="counted"),
            Field(label="their size", get=lambda p: p.communication_bytes_per_iteration, unit="bytes"),
            Field(
                label="standing in them",
                get=lambda p: p.communication_ns_per_iteration,
                unit="ns",
                source="measured",
                tip="time in which the caller stood in collectives that were issued in the part",
            ),
        ],
    )


def rlhf_ranks(found: RlhfAnswer) -> Table:
    fields: list[Field[RlhfRank]] = [
        Field(label="rank", get=lambda r: r.rank, unit="1"),
        Field(label="iterations", get=lambda r: r.iterations, unit="1", source="counted"),
        Field(label="iteration", get=lambda r: r.iteration_ns, unit="ns", source="measured"),
    ]
    for part in found.parts:
        fields.append(
            Field(label=part.name, get=lambda r, name=part.name: r.parts_ns.get(name), unit="ns", source="measured")  # type: ignore[misc]
        )
    return table("table-rlhf", "Mean time per steady iteration and part, per rank", found.ranks, fields)


def collectives(rows: Sequence[CollectiveRow]) -> Table:
    return table(
        "table-collectives",
        "Collectives by kind, group and size, means per rank and steady step",
        rows,
        [
            Field(label="operation", get=lambda r: r.op, code=True),
            Field(label="group", get=lambda r: r.group, code=True),
            Field(label="ranks", get=lambda r: r.group_size or None, unit="1"),
            Field(label="type", get=lambda r: r.dtype or "–", code=True),
            Field(label="issued in", get=lambda r: r.caller),
            Field(label="calls", get=lambda r: r.calls_per_step, unit="1", source="counted"),
            Field(label="size of a call", get=lambda r: r.bytes_per_call, unit="bytes", source="counted"),
            Field(label="size", get=lambda r: r.bytes_per_step, unit="bytes", source="counted", tip="per step"),
            Field(
                label="exposed",
                get=lambda r: r.exposed_ns_per_step,
                unit="ns",
                source="measured",
                tip="time in which the caller stood in it",
            ),
            Field(
                label="total",
                get=lambda r: r.total_ns_per_step,
                unit="ns",
                source="measured",
                tip="entry to completion",
            ),
            Field(label="share of the step", get=lambda r: r.share, unit="ratio", source="measured", tip="exposed"),
            Field(label="algorithm bandwidth", get=lambda r: r.algorithm_bandwidth, unit="bytes/s", source="measured"),
            Field(label="bus bandwidth", get=lambda r: r.bus_bandwidth, unit="bytes/s", source="modelled"),
        ],
    )


def unseen(rows: Sequence[UnseenRow]) -> Table:
    return table(
        "table-unseen",
        "Collectives that torch's flight recorder saw and the taps did not",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="group", get=lambda r: r.group, code=True),
            Field(label="operation", get=lambda r: r.op, code=True),
            Field(label="recorded", get=lambda r: r.recorded, unit="1", source="counted"),
            Field(label="seen", get=lambda r: r.seen, unit="1", source="counted"),
            Field(label="unseen", get=lambda r: max(r.recorded - r.seen, 0), unit="1", source="counted"),
            Field(label="ledger", get=lambda r: "complete" if r.complete else "older entries were dropped"),
        ],
    )


def memory_peaks(rows: Sequence[RankMemory]) -> Table:
    return table(
        "table-memory-peaks",
        "Peak per rank",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="peak", get=lambda r: r.peak, unit="bytes", source="measured"),
            Field(label="at", get=lambda r: r.peak_at),
            Field(
                label="standing",
                get=lambda r: r.standing_bytes,
                unit="bytes",
                source="measured",
                tip="median at the end of steady steps",
            ),
        ],
    )


def curves(key: str, caption: str, items: Sequence[Curve]) -> Table:
    def known(curve: Curve) -> list[float]:
        return [y for y in curve.y if y is not None]

    def holes(curve: Curve) -> int:
        """Stretches without a value between values; a rate has none at its first sample, which is no gap."""
        read = [y is not None for y in curve.y]
        return max(0, sum(now and not before for before, now in pairwise([False, *read])) - 1)

    unit = items[0].unit if items else "1"
    return table(
        key,
        caption,
        items,
        [
            Field(label="curve", get=lambda c: clean(c.label, _CURVE)),
            Field(label="points", get=lambda c: len(known(c)), unit="1", source="counted"),
            Field(label="gaps", get=holes, unit="1", source="counted"),
            Field(label="lowest", get=lambda c: min(known(c), default=None), unit=unit, source="measured"),
            Field(label="median", get=lambda c: median(known(c)) if known(c) else None, unit=unit, source="measured"),
            Field(label="highest", get=lambda c: max(known(c), default=None), unit=unit, source="measured"),
        ],
    )


def ranks(rows: Sequence[RankRow]) -> Table:
    return table(
        "table-ranks",
        "Ranks",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="host", get=lambda r: r.host, code=True),
            Field(label="process", get=lambda r: None if r.pid is None else str(r.pid), code=True),
            Field(label="device", get=lambda r: r.device),
            Field(label="steps", get=lambda r: r.steps, unit="1", source="counted"),
            Field(label="step time", get=lambda r: r.step_time, unit="ns", source="measured"),
            Field(label="ended", get=_end),
            Field(label="last step", get=lambda r: r.last_step if _ran(r) or r.steps else None, unit="1"),
            Field(label="last phase", get=lambda r: r.last_phase),
            Field(label="instruments' faults", get=lambda r: r.faults if _ran(r) else None, unit="1", source="counted"),
        ],
    )


def _ran(row: RankRow) -> bool:
    """Under agprof, as against a rank that is known from an imported trace."""
    return row.ended != "imported"


def _end(row: RankRow) -> Cell:
    return Cell(row.ended, mark="good" if row.ended == "clean" else "bad" if _ran(row) else "")


def own_work(totals: Sequence[tuple[int, float, float]]) -> Table:
    """Rank, its own work and its wait in collectives, means in ns per step."""
    return table(
        "table-own-work",
        "Own work and exposed communication per rank, means per steady step",
        totals,
        [
            Field(label="rank", get=lambda r: r[0], unit="1"),
            Field(label="own work", get=lambda r: r[1], unit="ns", source="measured"),
            Field(label="exposed communication", get=lambda r: r[2], unit="ns", source="measured"),
        ],
    )


def pairs(key: str, caption: str, items: Sequence[tuple[str, str]], heads: tuple[str, str], *, code: bool) -> Table:
    return table(
        key,
        caption,
        items,
        [
            Field(label=heads[0], get=lambda p: p[0], code=code),
            Field(label=heads[1], get=lambda p: p[1], code=code),
        ],
    )


def spans(totals: Sequence[tuple[int, str, str, int, int, int]]) -> Table:
    """Rank, lane, name, count, sum and longest, in ns, over the window."""
    kept, note = evenly(sorted(totals, key=lambda r: (r[0], -r[4])), Most().steps)
    return table(
        "table-timeline",
        "The same summed by rank, lane and name",
        kept,
        [
            Field(label="rank", get=lambda r: r[0], unit="1"),
            Field(label="lane", get=lambda r: r[1]),
            Field(label="name", get=lambda r: r[2], code=True),
            Field(label="times", get=lambda r: r[3], unit="1", source="counted"),
            Field(label="sum", get=lambda r: r[4], unit="ns", source="measured"),
            Field(label="longest", get=lambda r: r[5], unit="ns", source="measured"),
        ],
        note,
    )
