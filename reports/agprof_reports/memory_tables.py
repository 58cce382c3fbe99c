"""The tables of the section on memory."""

from collections.abc import Sequence

from agprof.model.format import DASH
from agprof.model.memory_answers import AllocationRow, MemoryAccount, MemoryPart, Prediction, ZeroRow
from agprof_reports.charts.memory_parts import PARTS, colour_of, word_of
from agprof_reports.columns import Field, table
from agprof_reports.data import Cell, Table
from agprof_reports.text import clean, with_unit

ALLOCATION_ROWS = 60
NAME, STACK = 160, 1_200
"""Longest names and stacks of a table with many of them, in characters."""


def accounts(key: str, rows: Sequence[MemoryAccount]) -> Table:
    """One row per rank and moment; parts as columns, those that nobody has left out."""
    fields: list[Field[MemoryAccount]] = [
        Field(label="rank", get=lambda a: a.rank, unit="1"),
        Field(label="moment", get=lambda a: a.at),
        Field(label="space", get=lambda a: a.space),
        Field(label="step", get=lambda a: a.step, unit="1"),
        Field(label="total", get=lambda a: a.total, unit="bytes", source=rows[0].total.source if rows else "measured"),
    ]
    there = {colour_of(part.part) for row in rows for part in row.parts if part.bytes}
    for name in PARTS:
        if name in there and name != "unexplained":
            fields.append(Field(label=PARTS[name], get=lambda a, name=name: _held(a, name), unit="bytes"))  # type: ignore[misc]
    fields += [
        Field(label="unexplained", get=lambda a: a.unexplained_bytes, unit="bytes", source="modelled"),
        Field(label="of the total", get=_unexplained_share, unit="ratio", source="modelled"),
        Field(label="held by", get=lambda a: clean(a.held_by.replace("`", ""), NAME), code=True, fold=True),
    ]
    return table(key, "Memory account of every rank and moment", rows, fields)


def _held(account: MemoryAccount, name: str) -> float | None:
    """None where the account has no such part: not measured is not 0."""
    held = [part.bytes for part in account.parts if colour_of(part.part) == name]
    return sum(held) if held else None


def _unexplained_share(account: MemoryAccount) -> float | None:
    return account.unexplained_bytes / account.total.value if account.total.value else None


def parts(key: str, rows: Sequence[MemoryAccount]) -> Table:
    """Every part of the given accounts, its details below it, beside its formula."""
    lines: list[tuple[MemoryAccount, MemoryPart, str, float]] = []
    for item in rows:
        for part in item.parts:
            lines.append((item, part, "", part.bytes))
            lines.extend((item, part, detail, size) for detail, size in part.details)
    several = len(rows) > 1
    by_formula: list[Field[tuple[MemoryAccount, MemoryPart, str, float]]] = [
        Field(label="by formula", get=lambda r: None if r[2] else r[1].formula_bytes, unit="bytes", source="modelled"),
        Field(label="measured / formula", get=_of_formula, unit="", source="modelled"),
    ]
    if all(part.formula_bytes is None for item in rows for part in item.parts):
        by_formula = []
    fields: list[Field[tuple[MemoryAccount, MemoryPart, str, float]]] = [
        Field(label="part", get=lambda r: f"\u00a0\u00a0{clean(r[2], NAME)}" if r[2] else word_of(r[1].part)),
        Field(label="size", get=lambda r: r[3], unit="bytes"),
        Field(label="share", get=lambda r: None if r[2] else r[1].share, unit="ratio", source="modelled"),
        *by_formula,
        Field(label="source", get=lambda r: "" if r[2] else r[1].source),
        Field(label="how", get=lambda r: "" if r[2] else clean(r[1].method, STACK), fold=True),
    ]
    if several:
        fields = [
            Field(label="rank", get=lambda r: r[0].rank, unit="1"),
            Field(label="moment", get=lambda r: r[0].at),
            Field(label="space", get=lambda r: r[0].space),
            *fields,
        ]
    return table(key, "Parts of the account", lines, fields)


def _of_formula(row: tuple[MemoryAccount, MemoryPart, str, float]) -> float | None:
    part = row[1]
    return None if row[2] or not part.formula_bytes else part.bytes / part.formula_bytes


def stage(row: ZeroRow) -> str:
    moved = {
        (True, True): " + offload of all",
        (True, False): " + offload",
        (False, True): " + offload of params",
    }
    return f"ZeRO-{row.stage}{moved.get((row.offload_optimizer, row.offload_param), '')}"


def zero(rows: Sequence[ZeroRow]) -> Table:
    return table(
        "table-memory-zero",
        "By formula under each ZeRO stage, per rank",
        rows,
        [
            Field(label="stage", get=stage),
            Field(label="here", get=lambda r: "this run" if r.is_this_run else ""),
            Field(label="parameters", get=lambda r: r.parameters, unit="bytes", source="modelled"),
            Field(
                label="gradients", get=lambda r: r.gradients, unit="bytes", source="modelled", tip="highest in a step"
            ),
            Field(label="master weights", get=lambda r: r.master_weights, unit="bytes", source="modelled"),
            Field(label="optimizer states", get=lambda r: r.optimizer_states, unit="bytes", source="modelled"),
            Field(label="on the device", get=lambda r: r.device_total, unit="bytes", source="modelled"),
            Field(label="on the host", get=lambda r: r.host_total, unit="bytes", source="modelled"),
            Field(
                label="DeepSpeed says, device",
                get=lambda r: r.deepspeed_device,
                unit="bytes",
                source="modelled",
                tip="its own estimator, which knows stages 2 and 3 only",
            ),
            Field(label="DeepSpeed says, host", get=lambda r: r.deepspeed_host, unit="bytes", source="modelled"),
            Field(label="formula", get=lambda r: clean(r.method, STACK), fold=True),
        ],
    )


def allocations(key: str, caption: str, rows: Sequence[AllocationRow]) -> Table:
    kept = sorted(rows, key=lambda row: (-row.bytes, row.rank))[:ALLOCATION_ROWS]
    note = f"The {len(kept)} largest of {len(rows):,}; report.json has all." if len(kept) < len(rows) else ""
    ranks = {row.rank for row in rows}
    if len(ranks) == 1:
        caption = f"{caption}, rank {min(ranks)}"
    fields: list[Field[AllocationRow]] = [
        Field(label="size", get=lambda r: r.bytes, unit="bytes", source="measured"),
        Field(label="part", get=lambda r: clean(word_of(r.part), NAME)),
        Field(label="shape", get=lambda r: clean(r.shape, NAME), code=True),
        Field(label="type", get=lambda r: clean(r.dtype, NAME), code=True),
        Field(label="made by", get=lambda r: clean(r.operation, NAME) or DASH, code=True),
        Field(label="module", get=lambda r: clean(r.module, NAME) or DASH, code=True, fold=True),
        Field(label="in", get=lambda r: clean(r.phase, NAME) or DASH),
        Field(label="stack, innermost first", get=_stack, code=True, fold=True),
    ]
    if len(ranks) > 1:
        fields.insert(0, Field(label="rank", get=lambda r: r.rank, unit="1"))
    return table(key, caption, kept, fields, note)


def _stack(row: AllocationRow) -> str:
    """Files by their last two names: report.json has the whole paths."""
    frames = ["/".join(frame.split("/")[-2:]) for frame in reversed(row.stack)]
    return clean("\n".join(frames), STACK) or DASH


def predictions(rows: Sequence[Prediction]) -> Table:
    """Figures of different units: each cell carries its own."""
    return table(
        "table-predictions",
        "What agprof plan says, beside what the run measured",
        rows,
        [
            Field(label="figure", get=lambda r: r.label),
            Field(label="planned", get=lambda r: _own_unit(r.predicted, r.unit), unit="", source="modelled"),
            Field(label="measured", get=lambda r: _own_unit(r.measured, r.unit), unit="", source="measured"),
            Field(label="planned / measured", get=lambda r: r.ratio, unit="", source="modelled"),
            Field(label="note", get=lambda r: r.note),
        ],
    )


def _own_unit(value: float | None, unit: str) -> Cell:
    return Cell(with_unit(value, unit), value=value)
