"""The tables of a run's page. One unit per numeric column, chosen by its largest value and named in its head."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Generic, TypeVar

from agprof.model.answers import (
    CollectiveRow,
    Curve,
    Figure,
    ModuleRow,
    RangeRow,
    RankMemory,
    RankPhases,
    RankRow,
    RlhfAnswer,
    RlhfPart,
    RlhfRank,
    Source,
    StepRow,
    UnseenRow,
)
from agprof.model.format import DASH
from agprof_reports.data import Cell, Column, Table
from agprof_reports.figures import cell, tip
from agprof_reports.text import digits, rounded, scale, with_unit

T = TypeVar("T")
Value = str | int | float | Figure | Cell | None
_MIXABLE = ("ns", "bytes", "bytes/s", "FLOP", "FLOP/s")
_TOO_SMALL = 0.001
"""Share of a column's unit below which a value is not worth printing in it."""
STEP_ROWS = 1_000
"""Most rows of the table of steps."""
MODULE_ROWS = 1_500


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field(Generic[T]):
    """A column before its unit is chosen: `unit` None is text, otherwise a base unit."""

    label: str
    get: Callable[[T], Value]
    unit: str | None = None
    source: Source | None = None
    tip: str = ""
    code: bool = False


def _table(key: str, caption: str, items: Sequence[T], fields: Sequence[_Field[T]], note: str = "") -> Table:
    columns, filled = [], []
    for field in fields:
        values = [field.get(item) for item in items]
        if field.unit is None:
            columns.append(Column(label=field.label, numeric=False, tip=field.tip, code=field.code))
            filled.append(
                [value if isinstance(value, Cell) else "" if value is None else str(value) for value in values]
            )
            continue
        numbers = [_number(value) for value in values]
        divisor, unit = scale(numbers, field.unit)
        if field.unit in _MIXABLE and any(y is not None and 0 < abs(y) < divisor * _TOO_SMALL for y in numbers):
            columns.append(Column(label=field.label, unit="", base_unit=field.unit, source=field.source, tip=field.tip))
            filled.append([_mixed(value, number, field.unit) for value, number in zip(values, numbers, strict=True)])
            continue
        columns.append(Column(label=field.label, unit=unit, source=field.source, tip=field.tip))
        filled.append([_cell(value, divisor, exact=field.unit == "1") for value in values])
    rows = tuple(zip(*filled, strict=True)) if items else ()
    return Table(key=key, caption=caption, columns=tuple(columns), rows=rows, note=note)


def _number(value: Value) -> float | None:
    if isinstance(value, Figure):
        return value.value
    return float(value) if isinstance(value, int | float) else None


def _mixed(value: Value, number: float | None, unit: str) -> Cell:
    """A cell with a unit of its own, for columns whose values are too far apart for one."""
    return Cell(with_unit(number, unit), tip(value) if isinstance(value, Figure) else "", value=number)


def _cell(value: Value, divisor: float, *, exact: bool) -> str | Cell:
    if isinstance(value, Figure):
        return cell(value, divisor)
    if isinstance(value, str | Cell):
        return value
    if value is None:
        return DASH
    return digits(value / divisor) if exact else rounded(value / divisor)


def evenly(items: Sequence[T], limit: int) -> tuple[Sequence[T], str]:
    """Keep at most `limit` items at even distances, and say so."""
    if len(items) <= limit:
        return items, ""
    kept = [items[index * len(items) // limit] for index in range(limit)]
    return kept, f"{limit:,} of {len(items):,} rows, at even distances; report.json has all."


def phases(ranks: Sequence[RankPhases], names: Sequence[str]) -> Table:
    fields: list[_Field[RankPhases]] = [
        _Field(label="rank", get=lambda r: r.rank, unit="1"),
        _Field(label="steps", get=lambda r: r.steps, unit="1", source="counted"),
        _Field(label="step", get=lambda r: r.step_ns, unit="ns", source="measured", tip="mean of the steady steps"),
    ]
    for name in names:
        fields.append(
            _Field(label=name, get=lambda r, name=name: r.parts_ns.get(name), unit="ns", source="measured")  # type: ignore[misc]
        )
    return _table("table-phases", "Mean time per steady step and phase, per rank", ranks, fields)


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


def steps(groups: Sequence[StepGroup], names: Sequence[str]) -> Table:
    kept, note = evenly(groups, STEP_ROWS)
    fields: list[_Field[StepGroup]] = [
        _Field(label="step", get=lambda g: g.step, unit="1"),
        _Field(label="kind", get=lambda g: g.kind),
        _Field(label="begin", get=lambda g: g.slowest.start_ns / 1e9, unit="s", tip="since the run's first step"),
        _Field(label="slowest rank", get=lambda g: g.slowest.rank, unit="1"),
        _Field(label="its time", get=lambda g: g.slowest.duration_ns, unit="ns", source="measured"),
        _Field(label="median rank", get=lambda g: median(r.duration_ns for r in g.rows), unit="ns", source="measured"),
    ]
    for name in names:
        fields.append(
            _Field(
                label=name,
                get=lambda g, name=name: g.slowest.parts_ns.get(name),  # type: ignore[misc]
                unit="ns",
                source="measured",
                tip="of the slowest rank",
            )
        )
    fields.append(_Field(label="loss", get=lambda g: g.loss, unit="", source="measured", tip="mean over the ranks"))
    return _table("table-steps", "Steps; parts are those of the slowest rank", kept, fields, note)


def ranges(rows: Sequence[RangeRow]) -> Table:
    return _table(
        "table-ranges",
        "Your own ranges, means per rank and steady step, children included",
        rows,
        [
            _Field(label="range", get=lambda r: r.name, code=True),
            _Field(label="calls per step", get=lambda r: r.calls_per_step, unit="1", source="counted"),
            _Field(label="time per step", get=lambda r: r.ns_per_step, unit="ns", source="measured"),
            _Field(label="share of the step", get=lambda r: r.share, unit="ratio", source="measured"),
        ],
    )


def rlhf_parts(parts: Sequence[RlhfPart]) -> Table:
    return _table(
        "table-rlhf-parts",
        "Parts of an iteration, means per rank and steady iteration",
        parts,
        [
            _Field(label="part", get=lambda p: p.name, code=True),
            _Field(label="calls", get=lambda p: p.calls_per_iteration or None, unit="1", source="counted"),
            _Field(label="time", get=lambda p: p.ns_per_iteration, unit="ns", source="measured"),
            _Field(label="share", get=lambda p: p.share, unit="ratio", source="measured"),
            _Field(label="memory peak", get=lambda p: p.memory_peak, unit="bytes"),
            _Field(label="collectives", get=lambda p: p.collectives_per_iteration, unit="1", source="counted"),
            _Field(label="their size", get=lambda p: p.communication_bytes_per_iteration, unit="bytes"),
            _Field(
                label="standing in them",
                get=lambda p: p.communication_ns_per_iteration,
                unit="ns",
                source="measured",
                tip="time in which the caller stood in collectives that were issued in the part",
            ),
        ],
    )


def rlhf_ranks(found: RlhfAnswer) -> Table:
    fields: list[_Field[RlhfRank]] = [
        _Field(label="rank", get=lambda r: r.rank, unit="1"),
        _Field(label="iterations", get=lambda r: r.iterations, unit="1", source="counted"),
        _Field(label="iteration", get=lambda r: r.iteration_ns, unit="ns", source="measured"),
    ]
    for part in found.parts:
        fields.append(
            _Field(label=part.name, get=lambda r, name=part.name: r.parts_ns.get(name), unit="ns", source="measured")  # type: ignore[misc]
        )
    return _table("table-rlhf", "Mean time per steady iteration and part, per rank", found.ranks, fields)


def collectives(rows: Sequence[CollectiveRow]) -> Table:
    return _table(
        "table-collectives",
        "Collectives by kind, group and size, means per rank and steady step",
        rows,
        [
            _Field(label="operation", get=lambda r: r.op, code=True),
            _Field(label="group", get=lambda r: r.group, code=True),
            _Field(label="ranks", get=lambda r: r.group_size, unit="1"),
            _Field(label="type", get=lambda r: r.dtype or "–", code=True),
            _Field(label="issued in", get=lambda r: r.caller),
            _Field(label="calls", get=lambda r: r.calls_per_step, unit="1", source="counted"),
            _Field(label="size of a call", get=lambda r: r.bytes_per_call, unit="bytes", source="counted"),
            _Field(label="size", get=lambda r: r.bytes_per_step, unit="bytes", source="counted", tip="per step"),
            _Field(
                label="exposed",
                get=lambda r: r.exposed_ns_per_step,
                unit="ns",
                source="measured",
                tip="time in which the caller stood in it",
            ),
            _Field(
                label="total",
                get=lambda r: r.total_ns_per_step,
                unit="ns",
                source="measured",
                tip="entry to completion",
            ),
            _Field(label="share of the step", get=lambda r: r.share, unit="ratio", source="measured", tip="exposed"),
            _Field(label="algorithm bandwidth", get=lambda r: r.algorithm_bandwidth, unit="bytes/s", source="measured"),
            _Field(label="bus bandwidth", get=lambda r: r.bus_bandwidth, unit="bytes/s", source="modelled"),
        ],
    )


def unseen(rows: Sequence[UnseenRow]) -> Table:
    return _table(
        "table-unseen",
        "Collectives that torch's flight recorder saw and the taps did not",
        rows,
        [
            _Field(label="rank", get=lambda r: r.rank, unit="1"),
            _Field(label="group", get=lambda r: r.group, code=True),
            _Field(label="operation", get=lambda r: r.op, code=True),
            _Field(label="recorded", get=lambda r: r.recorded, unit="1", source="counted"),
            _Field(label="seen", get=lambda r: r.seen, unit="1", source="counted"),
            _Field(label="unseen", get=lambda r: max(r.recorded - r.seen, 0), unit="1", source="counted"),
            _Field(label="ledger", get=lambda r: "complete" if r.complete else "older entries were dropped"),
        ],
    )


def modules(rows: Sequence[ModuleRow]) -> Table:
    note = ""
    if len(rows) > MODULE_ROWS:
        note = f"The {MODULE_ROWS:,} largest of {len(rows):,} modules; report.json has all."
        largest = sorted(rows, key=lambda r: -(r.forward_flops or r.forward_ns or 0))[:MODULE_ROWS]
        keep = {id(row) for row in largest}
        rows = [row for row in rows if id(row) in keep]
    return _table(
        "table-modules",
        "Modules, one forward of one micro-step, descendants included",
        rows,
        [
            _Field(label="module", get=lambda r: "\u00a0\u00a0" * r.depth + (r.path or "(whole model)"), code=True),
            _Field(label="type", get=lambda r: r.type, code=True),
            _Field(label="calls", get=lambda r: r.calls, unit="1", source="counted"),
            _Field(label="forward", get=lambda r: r.forward_flops, unit="FLOP", source="counted"),
            _Field(label="share of FLOPs", get=lambda r: r.flops_share, unit="ratio", source="counted"),
            _Field(label="time", get=lambda r: r.forward_ns, unit="ns", source="measured", tip="under the profiler"),
            _Field(label="share of time", get=lambda r: r.time_share, unit="ratio", source="measured"),
            _Field(label="parameters", get=lambda r: r.params, unit="1", source="counted"),
            _Field(label="trainable", get=lambda r: r.trainable_params, unit="1", source="counted"),
        ],
        note,
    )


def memory_peaks(rows: Sequence[RankMemory]) -> Table:
    return _table(
        "table-memory-peaks",
        "Peak per rank",
        rows,
        [
            _Field(label="rank", get=lambda r: r.rank, unit="1"),
            _Field(label="peak", get=lambda r: r.peak, unit="bytes", source="measured"),
            _Field(label="at", get=lambda r: r.peak_at),
            _Field(
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

    unit = items[0].unit if items else "1"
    return _table(
        key,
        caption,
        items,
        [
            _Field(label="curve", get=lambda c: c.label),
            _Field(label="samples", get=lambda c: len(known(c)), unit="1", source="counted"),
            _Field(label="gaps", get=lambda c: len(c.y) - len(known(c)), unit="1", source="counted"),
            _Field(label="lowest", get=lambda c: min(known(c), default=None), unit=unit, source="measured"),
            _Field(label="median", get=lambda c: median(known(c)) if known(c) else None, unit=unit, source="measured"),
            _Field(label="highest", get=lambda c: max(known(c), default=None), unit=unit, source="measured"),
        ],
    )


def ranks(rows: Sequence[RankRow]) -> Table:
    return _table(
        "table-ranks",
        "Ranks",
        rows,
        [
            _Field(label="rank", get=lambda r: r.rank, unit="1"),
            _Field(label="node", get=lambda r: r.node, unit="1"),
            _Field(label="host", get=lambda r: r.host, code=True),
            _Field(label="process", get=lambda r: None if r.pid is None else str(r.pid), code=True),
            _Field(label="device", get=lambda r: r.device),
            _Field(label="steps", get=lambda r: r.steps, unit="1", source="counted"),
            _Field(label="step time", get=lambda r: r.step_time, unit="ns", source="measured"),
            _Field(label="ended", get=lambda r: Cell(r.ended, mark="good" if r.ended == "clean" else "bad")),
            _Field(label="last step", get=lambda r: r.last_step, unit="1"),
            _Field(label="last phase", get=lambda r: r.last_phase),
            _Field(label="instruments' faults", get=lambda r: r.faults, unit="1", source="counted"),
        ],
    )


def own_work(totals: Sequence[tuple[int, float, float]]) -> Table:
    """Rank, its own work and its wait in collectives, means in ns per step."""
    return _table(
        "table-own-work",
        "Own work and exposed communication per rank, means per steady step",
        totals,
        [
            _Field(label="rank", get=lambda r: r[0], unit="1"),
            _Field(label="own work", get=lambda r: r[1], unit="ns", source="measured"),
            _Field(label="exposed communication", get=lambda r: r[2], unit="ns", source="measured"),
        ],
    )


def pairs(key: str, caption: str, items: Sequence[tuple[str, str]], heads: tuple[str, str], *, code: bool) -> Table:
    return _table(
        key,
        caption,
        items,
        [
            _Field(label=heads[0], get=lambda p: p[0], code=code),
            _Field(label=heads[1], get=lambda p: p[1], code=code),
        ],
    )


def spans(totals: Sequence[tuple[int, str, str, int, int, int]]) -> Table:
    """Rank, lane, name, count, sum and longest, in ns, over the window."""
    kept, note = evenly(sorted(totals, key=lambda r: (r[0], -r[4])), STEP_ROWS)
    return _table(
        "table-timeline",
        "The same summed by rank, lane and name",
        kept,
        [
            _Field(label="rank", get=lambda r: r[0], unit="1"),
            _Field(label="lane", get=lambda r: r[1]),
            _Field(label="name", get=lambda r: r[2], code=True),
            _Field(label="times", get=lambda r: r[3], unit="1", source="counted"),
            _Field(label="sum", get=lambda r: r[4], unit="ns", source="measured"),
            _Field(label="longest", get=lambda r: r[5], unit="ns", source="measured"),
        ],
        note,
    )
