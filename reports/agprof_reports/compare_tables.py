"""Tables of the comparison page: configuration that differs, what moved, scaling, forecast, gates."""

from collections.abc import Sequence

from agprof.model.compare_answers import (
    CompareAnswer,
    ConfigurationRow,
    ForecastRow,
    GateRow,
    MovedRow,
    ScalingPoint,
    Weight,
)
from agprof.model.figure import Figure
from agprof.model.format import DASH, format_interval
from agprof_reports.charts.waterfall import signed
from agprof_reports.columns import Field, table
from agprof_reports.compare_kpis import signed_percent
from agprof_reports.data import Cell, Table
from agprof_reports.figures import tip
from agprof_reports.text import with_unit

WEIGHTS: tuple[Weight, ...] = ("breaks", "matters", "expected", "harmless")
_MARKS: dict[Weight, str] = {"breaks": "bad", "matters": "watch"}
_MOST_MOVED = 200
_MOST_KEYS = 400


def configuration(rows: Sequence[ConfigurationRow], labels: Sequence[str], key: str, caption: str) -> Table:
    """By weight; a column per side."""
    ordered = sorted(rows, key=lambda row: (WEIGHTS.index(row.weight), row.key))
    fields: list[Field[ConfigurationRow]] = [
        Field(label="key", get=lambda row: row.key, code=True),
        Field(label="weight", get=lambda row: Cell(row.weight, mark=_MARKS.get(row.weight, ""))),
    ]
    for side, name in enumerate(labels):
        fields.append(
            Field(
                label=name,
                get=lambda row, side=side: DASH if row.values[side] is None else row.values[side],  # type: ignore[misc]
                code=True,
            )
        )
    fields.append(Field(label="why", get=lambda row: row.why))
    note = "" if len(ordered) <= _MOST_KEYS else f"The first {_MOST_KEYS:,} of {len(ordered):,}; compare.json has all."
    return table(key, caption, ordered[:_MOST_KEYS], fields, note)


def moved(rows: Sequence[MovedRow], labels: Sequence[str], key: str, caption: str) -> Table:
    """Largest change first. Units may differ between rows, so each cell has its own."""
    ordered = sorted(rows, key=lambda row: -abs(row.change))
    kept = ordered[:_MOST_MOVED]

    def amount(value: float | None, unit: str) -> Cell:
        return Cell(DASH if value is None else with_unit(value, unit), value=value)

    fields: list[Field[MovedRow]] = [
        Field(label="kind", get=lambda row: row.kind),
        Field(label="name", get=lambda row: row.name, code=True, fold=True),
        Field(label="baseline", get=lambda row: amount(row.baseline, row.unit), unit=""),
        Field(label="candidate", get=lambda row: amount(row.candidate, row.unit), unit=""),
        Field(label="change", get=lambda row: Cell(signed(row.change, row.unit), value=row.change), unit=""),
        Field(label="relative", get=_relative, unit=""),
    ]
    if len({row.side for row in rows}) > 1:
        fields.insert(0, Field(label="side", get=lambda row: labels[row.side]))
    note = "" if len(kept) == len(ordered) else f"The {len(kept):,} largest of {len(ordered):,}; compare.json has all."
    return table(key, caption, kept, fields, note, filter_by="kind")


def _relative(row: MovedRow) -> Cell:
    if not row.baseline:
        return Cell("new" if row.candidate else DASH)
    if row.candidate is None:
        return Cell("gone")
    ratio = row.change / row.baseline
    return Cell(signed_percent(ratio), value=ratio)


def scaling(points: Sequence[ScalingPoint], labels: Sequence[str]) -> Table:
    ordered = sorted(points, key=lambda point: (point.ranks, point.side))
    fields: list[Field[ScalingPoint]] = [
        Field(label="side", get=lambda p: labels[p.side]),
        Field(label="ranks", get=lambda p: p.ranks, unit="1"),
        Field(label="nodes", get=lambda p: p.nodes, unit="1"),
    ]
    if points:
        first = points[0]
        fields += [
            Field(label="throughput", get=lambda p: p.throughput, unit=first.throughput.unit),
            Field(label="efficiency", get=lambda p: p.efficiency, unit="ratio"),
            Field(label="step", get=lambda p: p.step_time, unit="ns"),
            Field(label="exposed communication", get=lambda p: p.exposed, unit=first.exposed.unit),
            Field(label="energy per token", get=lambda p: p.energy_per_token, unit=first.energy_per_token.unit),
            Field(label="cost", get=lambda p: p.cost, unit=first.cost.unit),
        ]
    return table("table-scaling", "Figures by number of ranks", ordered, fields)


def forecast(rows: Sequence[ForecastRow]) -> Table:
    return table(
        "table-forecast",
        "Predicted step time, and measured where a side has the setup",
        rows,
        [
            Field(label="setup", get=lambda row: row.label),
            Field(label="ranks", get=lambda row: row.ranks, unit="1"),
            Field(label="nodes", get=lambda row: row.nodes, unit="1"),
            Field(label="link", get=lambda row: row.link),
            Field(
                label="predicted", get=lambda row: _figure(row.predicted), unit="", base_unit="ns", source="modelled"
            ),
            Field(label="interval", get=lambda row: format_interval(row.predicted)),
            Field(label="measured", get=lambda row: _figure(row.measured), unit="", base_unit="ns", source="measured"),
            Field(label="off by", get=_off_by, unit="", tip="predicted against measured"),
        ],
    )


def _figure(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell(DASH)
    return Cell(with_unit(figure.value, figure.unit), tip(figure), value=figure.value)


def _off_by(row: ForecastRow) -> Cell:
    if row.measured is None or not row.measured.value or row.predicted.value is None:
        return Cell(DASH)
    ratio = row.predicted.value / row.measured.value - 1
    return Cell(signed_percent(ratio), value=ratio)


def gates(rows: Sequence[GateRow]) -> Table:
    states = {True: ("good", "passes"), False: ("bad", "does not pass"), None: ("watch", "not measured")}
    return table(
        "table-gates",
        "Gates",
        rows,
        [
            Field(label="condition", get=lambda row: row.condition, code=True),
            Field(label="result", get=lambda row: Cell(states[row.passed][1], mark=states[row.passed][0])),
            Field(label="found", get=lambda row: row.found),
        ],
    )


def labels_of(answer: CompareAnswer) -> tuple[str, ...]:
    return tuple(side.label for side in answer.sides)
