"""The tables of the section on GPU and host."""

from collections.abc import Sequence
from typing import Any

from agprof.model.figure import Figure
from agprof.model.format import DASH
from agprof.model.system_answers import (
    GpuEvent,
    GpuMapping,
    GpuMemory,
    GpuTenant,
    InterfaceRow,
    NotMeasured,
    SamplerGap,
)
from agprof_reports.charts.marks import event_words
from agprof_reports.columns import Field, table
from agprof_reports.data import Cell, Table
from agprof_reports.tables import StepGroup
from agprof_reports.text import clean, with_unit

NAME, SENTENCE = 120, 600
"""Longest names and sentences of a cell, in characters."""
ROWS = 400
MOST_RANKS = 16
"""Of one GPU."""


def node_fields(rows: Sequence[Any]) -> list[Field[Any]]:
    """The column `node`, where there are several; `rows` hold every node."""
    return [Field(label="node", get=lambda r: r.node, unit="1")] if len({row.node for row in rows}) > 1 else []


def mapping(rows: Sequence[GpuMapping]) -> Table:
    fields: list[Field[GpuMapping]] = [
        Field(label="rank", get=lambda r: r.rank, unit="1"),
        *node_fields(rows),
        Field(
            label="GPU",
            get=lambda r: Cell(DASH if r.gpu is None else str(r.gpu), mark="watch" if r.gpu is None else ""),
        ),
        Field(label="known by", get=lambda r: r.by or DASH),
        Field(label="why not", get=lambda r: clean(r.reason or "", SENTENCE)),
    ]
    if all(row.gpu is not None for row in rows):
        fields.pop()
    return table("table-gpu-mapping", "Which rank uses which GPU", rows, fields)


def gpu_memory(accounts: Sequence[GpuMemory]) -> Table:
    return table(
        "table-gpu-memory-account",
        "Memory of each GPU at its fullest",
        accounts,
        [
            Field(label="node", get=lambda a: a.node, unit="1"),
            Field(label="GPU", get=lambda a: a.gpu, unit="1"),
            Field(label="in use", get=lambda a: a.used, unit="bytes", source="measured"),
            Field(label="allocators", get=_allocators, unit="bytes", source="measured", tip="reserved by the ranks'"),
            Field(label="beyond", get=_beyond, unit="bytes", source="modelled", tip="of the ranks' processes: context"),
            Field(label="other processes", get=lambda a: a.others, unit="bytes", source="measured"),
            Field(label="unexplained", get=lambda a: a.unexplained, unit="bytes", source="modelled"),
            Field(label="driver", get=lambda a: a.reserved, unit="bytes", source="measured", tip="its own reserve"),
            Field(label="total", get=lambda a: a.total, unit="bytes", source="measured"),
            Field(label="per rank", get=_per_rank),
        ],
    )


def _allocators(account: GpuMemory) -> float | Figure | None:
    return _sum([held for _, held, _ in account.ranks])


def _beyond(account: GpuMemory) -> float | Figure | None:
    return _sum([beyond for _, _, beyond in account.ranks])


def _sum(figures: Sequence[Figure]) -> float | Figure | None:
    """One of them when not all were measured: it has the reason."""
    known = [figure.value for figure in figures if figure.value is not None]
    if known and len(known) == len(figures):
        return sum(known)
    return next((figure for figure in figures if figure.value is None), None)


def _per_rank(account: GpuMemory) -> str:
    told = [
        f"{rank}: {with_unit(held.value, 'bytes')} + {with_unit(more.value, 'bytes')}"
        for rank, held, more in account.ranks
    ]
    return ", ".join(told[:MOST_RANKS]) or DASH


def tenants(rows: Sequence[GpuTenant]) -> Table:
    return table(
        "table-gpu-tenants",
        "Processes of others on the GPUs",
        rows[:ROWS],
        [
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="GPU", get=lambda r: r.gpu, unit="1"),
            Field(label="process", get=lambda r: str(r.pid), code=True),
            Field(label="whose", get=lambda r: r.owner),
            Field(label="name", get=lambda r: clean(r.name or DASH, NAME), code=True, fold=True),
            Field(label="most memory", get=lambda r: r.peak_bytes, unit="bytes", source="measured"),
            Field(label="first seen", get=lambda r: r.start_ns / 1e9, unit="s", tip="since the run's first step"),
            Field(label="last seen", get=lambda r: r.end_ns / 1e9, unit="s", tip="since the run's first step"),
        ],
        _cut(rows),
    )


def events(rows: Sequence[GpuEvent], groups: Sequence[StepGroup]) -> Table:
    return table(
        "table-gpu-events",
        "What the driver reported",
        rows[:ROWS],
        [
            Field(label="at", get=lambda r: r.time_ns / 1e9, unit="s", tip="since the run's first step"),
            Field(label="step", get=lambda r: step_at(groups, r.time_ns), unit="1"),
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="GPU", get=lambda r: r.gpu, unit="1"),
            Field(label="event", get=lambda r: Cell(clean(event_words(r), NAME), mark="bad")),
            Field(label="what it means", get=lambda r: clean(r.meaning, SENTENCE)),
        ],
        _cut(rows),
    )


def step_at(groups: Sequence[StepGroup], time_ns: int) -> int | None:
    """The step of the lowest rank in which the moment lies."""
    for group in groups:
        row = min(group.rows, key=lambda row: row.rank)
        if row.start_ns <= time_ns < row.start_ns + row.duration_ns:
            return group.step
    return None


def interfaces(rows: Sequence[InterfaceRow], over: str) -> Table:
    return table(
        "table-interfaces",
        f"Network interfaces over {over}",
        rows[:ROWS],
        [
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="interface", get=lambda r: clean(r.interface, NAME), code=True),
            Field(label="kind", get=lambda r: clean(r.kind, NAME)),
            Field(label="sent", get=lambda r: r.sent, unit="bytes/s", source="measured"),
            Field(label="received", get=lambda r: r.received, unit="bytes/s", source="measured"),
            Field(label="speed", get=lambda r: r.speed, unit="bytes/s", source="declared"),
            Field(label="errors", get=lambda r: r.errors, unit="1", source="counted"),
        ],
        _cut(rows),
    )


def not_measured(rows: Sequence[NotMeasured]) -> Table:
    return table(
        "table-not-measured",
        "What could not be read, and why",
        rows[:ROWS],
        [
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="field", get=lambda r: clean(r.field, NAME), code=True),
            Field(label="state", get=lambda r: clean(r.state, NAME)),
            Field(label="from", get=lambda r: r.since_ns / 1e9, unit="s", tip="since the run's first step"),
            Field(label="until", get=_until),
            Field(label="reason", get=lambda r: clean(r.reason, SENTENCE)),
        ],
        _cut(rows),
    )


def _until(row: NotMeasured) -> str:
    return "the end" if row.until_ns is None else f"{row.until_ns / 1e9:,.1f} s"


def gaps(rows: Sequence[SamplerGap]) -> Table:
    return table(
        "table-sampler-gaps",
        "Stretches without samples",
        rows[:ROWS],
        [
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="from", get=lambda r: r.start_ns / 1e9, unit="s", tip="since the run's first step"),
            Field(label="length", get=lambda r: r.end_ns - r.start_ns, unit="ns"),
            Field(label="reason", get=lambda r: clean(r.reason, SENTENCE)),
        ],
        _cut(rows),
    )


def _cut(rows: Sequence[object]) -> str:
    return f"The first {ROWS} of {len(rows):,}; report.json has all." if len(rows) > ROWS else ""
