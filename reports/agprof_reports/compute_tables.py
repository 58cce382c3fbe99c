"""The tables of the section on compute."""

from collections.abc import Sequence

from agprof.model.compute_answers import Ceiling, FlopsWay, ModuleRow, OperationRow, RooflinePoint, Utilisation
from agprof.model.format import DASH
from agprof_reports.columns import Field, table
from agprof_reports.data import Table
from agprof_reports.text import clean

_PATH, _NAME = 300, 120
"""Longest names of a table with many of them, in characters."""
_RATE = "FLOPs of all passes over their device time"
_KINDS = {"datasheet": "data sheet", "declared": "declared", "measured": "measured"}


def executed(row: ModuleRow) -> float:
    """FLOPs of all passes, descendants included."""
    return sum(flops or 0.0 for flops in (row.forward_flops, row.backward_flops, row.recomputed_flops))


def device_ns(row: ModuleRow) -> int | None:
    """Device time of all passes; None when no pass was timed."""
    known = [ns for ns in (row.forward_ns, row.backward_ns, row.recomputed_ns) if ns is not None]
    return sum(known) if known else None


def ways(rows: Sequence[FlopsWay]) -> Table:
    return table(
        "table-flops-ways",
        "FLOPs three ways, one rank",
        rows,
        [
            Field(label="way", get=lambda r: r.label),
            Field(label="covers", get=lambda r: r.scope),
            Field(label="forward", get=lambda r: r.forward, unit="FLOP"),
            Field(label="backward", get=lambda r: r.backward, unit="FLOP"),
            Field(label="recomputed", get=lambda r: r.recomputed, unit="FLOP", tip="not in the total"),
            Field(label="total", get=lambda r: r.total, unit="FLOP", tip="forward and backward"),
            Field(label="of counted", get=lambda r: r.ratio_to_counted, unit="", source="modelled", tip="same scope"),
            Field(label="used", get=lambda r: "for FLOP/s and MFU" if r.used else ""),
            Field(label="note", get=lambda r: r.note),
        ],
    )


def utilisation(rows: Sequence[Utilisation]) -> Table:
    return table(
        "table-utilisation",
        "Utilisation per rank",
        rows,
        [
            Field(label="figure", get=lambda r: r.label),
            Field(label="of the data sheet", get=lambda r: r.of_datasheet, unit="ratio", source="modelled"),
            Field(
                label="of what was achieved",
                get=lambda r: r.of_achievable,
                unit="ratio",
                source="modelled",
                tip="by agprof peak on this device",
            ),
            Field(label="convention", get=lambda r: r.convention),
        ],
    )


def ceilings(rows: Sequence[Ceiling]) -> Table:
    return table(
        "table-ceilings",
        "Ceilings of the device",
        rows,
        [
            Field(label="kind", get=lambda r: _KINDS.get(r.kind, r.kind)),
            Field(label="type", get=lambda r: r.dtype or DASH, code=True),
            Field(label="FLOP/s", get=lambda r: r.flops_per_second, unit="FLOP/s"),
            Field(label="memory bandwidth", get=lambda r: r.bytes_per_second, unit="bytes/s"),
            Field(label="from", get=lambda r: r.source.replace("`", "")),
        ],
    )


def operations(rows: Sequence[OperationRow]) -> Table:
    return table(
        "table-operations",
        "Operations of the profile step, one rank",
        rows,
        [
            Field(label="pass", get=lambda r: r.in_pass),
            Field(label="kind", get=lambda r: clean(r.kind, _NAME)),
            Field(label="type", get=lambda r: clean(r.dtype or DASH, _NAME), code=True),
            Field(label="calls", get=lambda r: r.calls, unit="1", source="counted"),
            Field(label="FLOPs", get=lambda r: r.flops, unit="FLOP", source="counted"),
            Field(label="share of FLOPs", get=lambda r: r.flops_share, unit="ratio", source="counted"),
            Field(label="time", get=lambda r: r.duration_ns, unit="ns", source="measured", tip="on the device"),
            Field(label="rate", get=lambda r: r.flops_per_second, unit="FLOP/s", source="modelled", tip=_RATE),
            Field(label="of the data sheet", get=lambda r: r.of_datasheet, unit="ratio", source="modelled"),
            Field(label="of what was achieved", get=lambda r: r.of_achievable, unit="ratio", source="modelled"),
        ],
    )


def modules(rows: Sequence[ModuleRow], most: int) -> Table:
    note = ""
    if len(rows) > most:
        note = f"The {most:,} largest of {len(rows):,} modules; report.json has all."
        largest = sorted(rows, key=lambda r: (-executed(r), -(device_ns(r) or 0)))[:most]
        keep = {id(row) for row in largest}
        rows = [row for row in rows if id(row) in keep]
    roots = len({row.root for row in rows}) > 1
    again = any(row.recomputed_flops or row.recomputed_calls for row in rows)
    flops: list[Field[ModuleRow]] = [
        Field(label="forward", get=lambda r: r.forward_flops, unit="FLOP", source="counted"),
        Field(label="backward", get=lambda r: r.backward_flops, unit="FLOP", source="counted"),
    ]
    times: list[Field[ModuleRow]] = [
        Field(label="in forward", get=lambda r: r.forward_ns, unit="ns", source="measured"),
        Field(label="in backward", get=lambda r: r.backward_ns, unit="ns", source="measured"),
    ]
    calls: list[Field[ModuleRow]] = [Field(label="calls", get=lambda r: r.calls, unit="1", source="counted")]
    if again:
        tip = "executed again in backward, by activation checkpointing or inside an attention kernel"
        flops.append(
            Field(label="recomputed", get=lambda r: r.recomputed_flops, unit="FLOP", source="counted", tip=tip)
        )
        times.append(Field(label="in recomputation", get=lambda r: r.recomputed_ns, unit="ns", source="measured"))
        calls.append(Field(label="again", get=lambda r: r.recomputed_calls, unit="1", source="counted", tip=tip))
    fields: list[Field[ModuleRow]] = [
        Field(label="module", get=_indented, code=True),
        Field(label="type", get=lambda r: clean(r.type, _NAME), code=True),
        *calls,
        Field(
            label="device time", get=device_ns, unit="ns", source="measured", tip="of all passes, descendants included"
        ),
        *times,
        Field(label="share of time", get=lambda r: r.time_share, unit="ratio", source="measured"),
        *flops,
        Field(label="share of FLOPs", get=lambda r: r.flops_share, unit="ratio", source="counted"),
        Field(label="rate", get=lambda r: r.flops_per_second, unit="FLOP/s", source="modelled", tip=_RATE),
        Field(
            label="of the ceiling",
            get=lambda r: r.of_ceiling,
            unit="ratio",
            source="modelled",
            tip="measured where there is one, else the data sheet's",
        ),
        Field(label="FLOP per byte", get=lambda r: r.intensity, unit="", source="modelled"),
        Field(label="parameters", get=lambda r: r.params, unit="1", source="counted"),
        Field(label="trainable", get=lambda r: r.trainable_params, unit="1", source="counted"),
    ]
    if roots:
        fields.insert(0, Field(label="model", get=lambda r: r.root, unit="1", tip="number of the root module"))
    return table(
        "table-modules", "Modules in the profile step, descendants included, over its micro-steps", rows, fields, note
    )


def _indented(row: ModuleRow) -> str:
    return "\u00a0\u00a0" * min(row.depth, 12) + (clean(row.path, _PATH) or "(whole model)")


def roofline(rows: Sequence[RooflinePoint]) -> Table:
    return table(
        "table-roofline",
        "Groups of modules against the roof",
        rows,
        [
            Field(label="modules", get=lambda r: clean(r.label, _PATH), code=True),
            Field(label="how many", get=lambda r: r.modules, unit="1", source="counted"),
            Field(label="pass", get=lambda r: r.in_pass),
            Field(label="FLOPs", get=lambda r: r.flops, unit="FLOP", source="counted"),
            Field(
                label="moved", get=lambda r: r.bytes, unit="bytes", source="modelled", tip="operands and results once"
            ),
            Field(label="FLOP per byte", get=lambda r: r.intensity, unit="", source="modelled"),
            Field(label="time", get=lambda r: r.duration_ns, unit="ns", source="measured", tip="on the device"),
            Field(label="rate", get=lambda r: r.flops_per_second, unit="FLOP/s", source="modelled", tip=_RATE),
            Field(label="roof", get=lambda r: r.roof_flops_per_second, unit="FLOP/s", source="modelled"),
            Field(label="of the roof", get=of_roof, unit="ratio", source="modelled"),
            Field(label="bound by", get=lambda r: r.bound_by),
        ],
    )


def of_roof(point: RooflinePoint) -> float | None:
    if point.flops_per_second is None or not point.roof_flops_per_second:
        return None
    return point.flops_per_second / point.roof_flops_per_second
