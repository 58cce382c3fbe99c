"""The table of GPUs: one row each, figures over the steady steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agprof.model.figure import Figure, Source
from agprof.model.format import DASH
from agprof.model.system_answers import GpuRow
from agprof_reports.columns import Field, table
from agprof_reports.data import Cell, Table
from agprof_reports.figures import tip
from agprof_reports.system_tables import MOST_RANKS, NAME, node_fields
from agprof_reports.text import clean, with_unit

_WATCH = 0.01
"""Share of the time from which on clocks that were held down by heat are marked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """A column of figures; left out where no GPU has any."""

    label: str
    get: Callable[[GpuRow], Figure]
    tip: str = ""
    whole: Callable[[GpuRow], Figure] | None = None
    """`61.0 GiB of 79.6 GiB`: sorted and copied by the part."""
    mark: str = ""
    """Before values from `mark_from` on."""
    mark_from: float = 0.0
    source: Source = "measured"

    def field(self, rows: Sequence[GpuRow]) -> Field[GpuRow]:
        unit = self.get(rows[0]).unit
        if self.whole is None and not self.mark:
            return Field(label=self.label, get=self.get, unit=unit, source=self.source, tip=self.tip)
        base = "" if unit == "1" else unit
        return Field(label=self.label, get=self._cell, unit="", base_unit=base, source=self.source, tip=self.tip)

    def _cell(self, row: GpuRow) -> Cell:
        figure = self.get(row)
        if figure.value is None:
            return Cell(DASH, tip(figure))
        most = self.whole(row) if self.whole is not None else None
        of = f" of {with_unit(most.value, most.unit)}" if most is not None and most.value is not None else ""
        mark = self.mark if figure.value >= self.mark_from else ""
        return Cell(f"{with_unit(figure.value, figure.unit)}{of}", tip(figure), mark, figure.value)


_MEASURES = (
    _Measure(label="utilisation", get=lambda r: r.utilization, tip="share of time in which a kernel ran"),
    _Measure(label="SM activity", get=lambda r: r.sm, tip="GPM: share of SMs with work"),
    _Measure(label="tensor cores", get=lambda r: r.tensor, tip="GPM: share of their cycles"),
    _Measure(label="DRAM bandwidth", get=lambda r: r.dram, tip="GPM: share of the theoretical"),
    _Measure(label="memory peak", get=lambda r: r.memory_peak, whole=lambda r: r.memory_total),
    _Measure(label="power", get=lambda r: r.power, whole=lambda r: r.power_limit, tip="of its limit"),
    _Measure(label="highest temperature", get=lambda r: r.temperature_max),
    _Measure(label="SM clock", get=lambda r: r.sm_clock, whole=lambda r: r.sm_clock_max, tip="of its maximum"),
    _Measure(label="held down by power", get=lambda r: r.throttled_power, tip="share of the time"),
    _Measure(
        label="held down by heat",
        get=lambda r: r.throttled_thermal,
        tip="share of the time",
        mark="watch",
        mark_from=_WATCH,
    ),
    _Measure(label="energy", get=lambda r: r.energy, tip="over the whole run"),
    _Measure(label="PCIe", get=lambda r: r.pcie, tip="sent and received together"),
    _Measure(label="NVLink", get=lambda r: r.nvlink, tip="sent and received together"),
    _Measure(
        label="ECC errors",
        get=lambda r: r.ecc_uncorrected,
        tip="uncorrected, in this run",
        mark="bad",
        mark_from=1.0,
        source="counted",
    ),
)


def gpus(rows: Sequence[GpuRow], over: str) -> Table:
    """`over`: what the figures are of. Columns that no GPU has anything in are told below instead."""
    there = [measure for measure in _MEASURES if any(measure.get(row).value is not None for row in rows)]
    models = {_model(row) for row in rows}
    fields: list[Field[GpuRow]] = [*node_fields(rows), Field(label="GPU", get=lambda r: r.gpu, unit="1")]
    if len(models) > 1:
        fields.append(Field(label="name", get=_model))
    if any(row.ranks for row in rows):
        fields.append(Field(label="ranks", get=_ranks))
    fields += [measure.field(rows) for measure in there]
    fields += [
        Field(label="XIDs", get=_xids, unit="", source="counted", tip="in this run"),
        Field(label="UUID", get=lambda r: clean(r.uuid or DASH, NAME), code=True),
    ]
    name = f", {models.pop()}" if len(models) == 1 else ""
    return table("table-gpus", f"GPUs over {over}{name}", rows, fields, _absent(rows))


def _model(row: GpuRow) -> str:
    return clean((row.name or "name not known") + (", MIG" if row.mig else ""), NAME)


def _ranks(row: GpuRow) -> str:
    more = f" and {len(row.ranks) - MOST_RANKS:,} more" if len(row.ranks) > MOST_RANKS else ""
    return ", ".join(map(str, row.ranks[:MOST_RANKS])) + more or DASH


def _xids(row: GpuRow) -> Cell:
    return Cell(f"{row.xids:,}", mark="bad" if row.xids else "", value=float(row.xids))


def _absent(rows: Sequence[GpuRow]) -> str:
    """`Not measured: SM activity, tensor cores (GPM needs Hopper or later); ECC errors (this GPU has no ECC).`"""
    by_reason: dict[str, list[str]] = {}
    for measure in _MEASURES:
        figures = [measure.get(row) for row in rows]
        if all(figure.value is None for figure in figures):
            reasons = dict.fromkeys(figure.reason or "no reason was recorded" for figure in figures)
            by_reason.setdefault(clean(" or ".join(list(reasons)[:3]), 240), []).append(measure.label)
    told = "; ".join(f"{', '.join(labels)} ({reason})" for reason, labels in by_reason.items())
    return f"Not measured: {told}." if told else ""
