"""The section on energy: what the run used, per step, sample and token, how that was measured, and what it costs."""

from agprof.model.energy_answers import EnergyAnswer, GpuEnergy, PhaseEnergy
from agprof.model.format import DASH
from agprof_reports.columns import Field, table
from agprof_reports.data import Cell, Section, Table
from agprof_reports.figures import cards
from agprof_reports.system_tables import node_fields
from agprof_reports.text import clean

KEY, TITLE = "energy", "Energy"
_NAME = 120
_IDLE = "lowest mean over a second before the first step; told, not subtracted"


def section(found: EnergyAnswer) -> Section:
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence,
        lines=_lines(found),
        cards=cards(
            ("energy_run", "energy of the run", found.run, clean(found.scope, _NAME)),
            ("energy_kwh", "in kilowatt-hours", found.kwh, ""),
            ("energy_steady", "steady steps", found.steady, ""),
            ("energy_step", "per step", found.per_step, ""),
            ("energy_sample", "per sample", found.per_sample, ""),
            ("energy_token", "per token", found.per_token, ""),
            ("energy_tokens", "tokens for a joule", found.tokens_per_joule, ""),
            ("energy_cost", "cost of it", found.cost, "at the price given"),
            ("energy_co2", "CO₂ of it", found.co2, "at the intensity given"),
        ),
        tables=tuple(
            held
            for held in (
                _phases(found) if found.phases else None,
                _gpus(found) if found.gpus else None,
                _hosts(found) if found.host else None,
            )
            if held is not None
        ),
    )


def _lines(found: EnergyAnswer) -> tuple[tuple[str, str], ...]:
    lines: list[tuple[str, str]] = []
    methods = {row.method for row in found.gpus if row.in_run and row.method}
    if len(methods) > 1:
        lines.append(("watch", "Not all GPUs were measured in the same way: see the table."))
    if resets := sum(row.resets for row in found.gpus):
        times = "once" if resets == 1 else f"{resets:,} times"
        lines.append(("watch", f"A counter began anew {times} within the run: see resets in the table of GPUs."))
    unread = {figure.reason or "not measured" for _, figure in found.host if figure.value is None}
    if unread:
        lines.append(("", f"CPU packages and memory are not in it: {clean(', '.join(sorted(unread)[:4]), 300)}."))
    if found.declared:
        lines.append(("", f"Price and intensity as declared: {found.declared}"))
    return tuple(lines)


def _phases(found: EnergyAnswer) -> Table:
    fields: list[Field[PhaseEnergy]] = [
        Field(label="phase", get=lambda p: clean(p.phase, _NAME)),
        Field(label="counted", get=lambda p: p.duration_ns, unit="ns", source="measured"),
        Field(label="left out", get=lambda p: p.left_out_ns, unit="ns", tip="stretches shorter than 5 s"),
        Field(label="energy", get=lambda p: p.energy, unit="J", source="measured"),
        Field(label="mean power", get=lambda p: p.mean_power, unit="W", source="measured"),
        Field(label="why not", get=lambda p: clean(p.energy.reason or "", 200) if p.energy.value is None else ""),
    ]
    if all(phase.energy.value is not None for phase in found.phases):
        fields.pop()
    note = "Stretches shorter than 5 s are beneath what the sensors can tell."
    return table("table-energy-phases", "Energy by group of phases", found.phases, fields, note)


def _gpus(found: EnergyAnswer) -> Table:
    models = {row.name for row in found.gpus}
    fields: list[Field[GpuEnergy]] = [*node_fields(found.gpus), Field(label="GPU", get=lambda r: r.gpu, unit="1")]
    if len(models) > 1:
        fields.append(Field(label="name", get=lambda r: clean(r.name or DASH, _NAME)))
    fields += [
        Field(label="run", get=lambda r: r.run, unit="J", source="measured"),
        Field(label="from", get=lambda r: r.run.low, unit="J", tip="lower end of the run's interval"),
        Field(label="to", get=lambda r: r.run.high, unit="J", tip="upper end"),
        Field(label="steady steps", get=lambda r: r.steady, unit="J", source="measured"),
        Field(label="mean power", get=lambda r: r.mean_power, unit="W", source="measured"),
        Field(label="idle", get=lambda r: r.idle_power, unit="W", source="measured", tip=_IDLE),
        Field(label="method", get=lambda r: r.method or DASH),
        Field(label="resets", get=_resets, unit="", source="counted", tip="the counter began anew"),
        Field(label="in the sums", get=lambda r: "yes" if r.in_run else "no: no rank uses it"),
    ]
    return table("table-energy-gpus", "Energy of each GPU", found.gpus, fields)


def _resets(row: GpuEnergy) -> Cell:
    return Cell(f"{row.resets:,}", mark="watch" if row.resets else "", value=float(row.resets))


def _hosts(found: EnergyAnswer) -> Table | None:
    """None where no package was read: a line says so once."""
    if all(figure.value is None for _, figure in found.host):
        return None
    return table(
        "table-energy-hosts",
        "Energy of CPU packages and memory over the run, RAPL",
        found.host,
        [
            Field(label="node", get=lambda r: r[0], unit="1"),
            Field(label="energy", get=lambda r: r[1], unit="J", source="measured"),
        ],
    )
