"""`energy:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.energy import EnergySection
from agprof.config.load import parse_workload
from agprof.config.schema import json_schema
from agprof.errors import ConfigError


def _load(text: str, *sets: str) -> EnergySection:
    return parse_workload(f"name: job\nmodule: a.b\n{text}", Path("/nowhere"), sets).workload.energy


def test_nothing_has_a_price_until_one_is_given() -> None:
    section = _load("")
    assert section == _load("energy:") == EnergySection()
    assert (section.price_per_kwh, section.price_per_gpu_hour, section.co2_g_per_kwh, section.pue) == (None,) * 4


def test_prices_of_ones_own() -> None:
    section = _load(
        'energy: {price_per_kwh: 0.31, price_per_gpu_hour: 2, currency: USD, co2_g_per_kwh: 380, pue: 1.2, source: "c"}'
    )
    assert (section.price_per_kwh, section.price_per_gpu_hour, section.currency) == (0.31, 2, "USD")
    assert (section.co2_g_per_kwh, section.pue, section.source) == (380, 1.2, "c")
    assert _load("", "energy.price_per_kwh=0.31").price_per_kwh == 0.31


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("energy: {price_per_kw: 1}", "did you mean 'energy.price_per_kwh'?"),
        ("energy: {co2: 1}", "key 'energy.co2': unknown key"),
        ("energy: {price_per_kwh: -1}", "key 'energy.price_per_kwh': must be at least 0.0, not -1"),
        ("energy: {price_per_kwh: .inf}", "energy.price_per_kwh"),
        ("energy: {price_per_kwh: cheap}", "key 'energy.price_per_kwh': must be a number"),
        ("energy: {co2_g_per_kwh: 50000}", "key 'energy.co2_g_per_kwh': must be at most 5000"),
        ("energy: {pue: 0.5}", "key 'energy.pue': must be at least 1.0, not 0.5"),
        ("energy: {currency: ''}", "energy.currency"),
        ("energy: 0.31", "key 'energy': must be a mapping"),
        ("enrgy: {pue: 1}", "did you mean 'energy'?"),
    ],
)
def test_what_is_wrong_is_said(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        _load(text)
    assert rule in str(error.value)


def test_the_schema_describes_every_figure() -> None:
    section = json_schema()["$defs"]["EnergySection"]
    assert set(section["properties"]) == set(EnergySection.model_fields)
    assert all(figure["description"] for figure in section["properties"].values())
