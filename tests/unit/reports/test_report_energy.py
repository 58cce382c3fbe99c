"""The section on energy as data."""

from dataclasses import replace

import pytest

from agprof_reports.page import build
from sample_answers import sample_answers
from sample_energy_answers import SHORT, energy_answer, unpriced_energy
from sample_figures import figure
from sample_gpu_answers import gpu_answers


def energy_of(energy):
    page = build(replace(sample_answers(), energy=energy))
    return next(section for section in page.sections if section.key == "energy")


def table_of(section, key):
    return next(table for table in section.tables if table.key == key)


def column_of(table, label):
    index = [column.label for column in table.columns].index(label)
    return [row[index] for row in table.rows]


def test_it_stands_after_gpu_and_host_and_only_when_something_was_measured():
    keys = [section.key for section in build(gpu_answers(2)).sections]
    assert keys[keys.index("system") + 1] == "energy"
    assert "energy" not in [section.key for section in build(sample_answers()).sections]


def test_figures_carry_interval_and_method():
    cards = {card.key: card for card in energy_of(energy_answer()).cards}
    assert (cards["energy_run"].shown.number, cards["energy_run"].shown.unit) == ("102", "kJ")
    assert cards["energy_run"].shown.interval == "[101, 104], n = 8"
    assert "energy counter" in cards["energy_run"].shown.tip
    assert (cards["energy_step"].shown.number, cards["energy_step"].shown.unit) == ("1.93", "kJ")
    assert cards["energy_cost"].shown.unit == "EUR"
    assert cards["energy_cost"].shown.source == "declared"
    assert cards["energy_co2"].shown.unit == "g"


def test_what_was_not_given_has_its_reason_and_no_figure():
    section = energy_of(unpriced_energy())
    cards = {card.key: card for card in section.cards}
    assert cards["energy_cost"].shown.number == "–"
    assert cards["energy_cost"].shown.reason == "no price is given: set energy.price_per_kwh"
    assert cards["energy_co2"].shown.reason == "no intensity is given: set energy.co2_g_per_kwh"
    assert cards["energy_step"].shown.reason == "no steady step"
    assert not [line for _, line in section.lines if "declared" in line]
    assert [table.key for table in section.tables] == ["table-energy-gpus"]


def test_price_and_intensity_are_told_as_declared_with_their_source():
    lines = [line for _, line in energy_of(energy_answer()).lines]
    assert any("0.30 EUR" in line and "contract of 2026" in line for line in lines)


def test_each_gpu_says_how_it_was_measured():
    section = energy_of(energy_answer(8))
    table = table_of(section, "table-energy-gpus")
    assert column_of(table, "method") == ["counter"] * 6 + ["counter and integral", "integral of instant power"]
    assert [cell.mark for cell in column_of(table, "resets")] == [""] * 6 + ["watch", ""]
    assert [column_of(table, label)[0] for label in ("from", "to")] == ["12.6", "13.0"]
    marks = [mark for mark, _ in section.lines]
    assert marks.count("watch") == 2


def test_a_gpu_that_no_rank_uses_is_listed_and_not_summed():
    energy = energy_answer(2)
    rows = (energy.gpus[0], replace(energy.gpus[1], in_run=False))
    table = table_of(energy_of(replace(energy, gpus=rows)), "table-energy-gpus")
    assert column_of(table, "in the sums") == ["yes", "no: no rank uses it"]


def test_groups_of_phases_too_short_have_no_figure_and_say_why():
    table = table_of(energy_of(energy_answer()), "table-energy-phases")
    assert column_of(table, "why not") == [SHORT, "", SHORT]
    assert [getattr(cell, "text", cell) for cell in column_of(table, "energy")] == ["–", "92.2", "–"]
    assert column_of(table, "left out") == ["1.40", "0", "2.10"]


@pytest.mark.parametrize("joules", [None, 5_400.0])
def test_cpu_packages_are_a_table_or_a_line(joules):
    energy = energy_answer(1)
    host = ((0, figure(joules, "J", n=100)),) if joules else energy.host
    section = energy_of(replace(energy, host=host))
    keys = [table.key for table in section.tables]
    told = [line for _, line in section.lines if line.startswith("CPU packages")]
    if joules:
        assert column_of(table_of(section, "table-energy-hosts"), "energy")[0].text == "5.40"
        assert told == []
    else:
        assert "table-energy-hosts" not in keys
        assert told == ["CPU packages and memory are not in it: RAPL can be read by root only."]
