"""`monitor:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.load import LoadedWorkload, parse_workload
from agprof.config.monitor import LOOPBACK, MonitorSection, PrometheusSection
from agprof.config.schema import json_schema
from agprof.errors import ConfigError


def _parse(text: str, *sets: str) -> LoadedWorkload:
    return parse_workload(f"name: job\nmodule: a.b\n{text}", Path("/nowhere"), sets)


def _load(text: str, *sets: str) -> MonitorSection:
    return _parse(text, *sets).workload.monitor


@pytest.mark.parametrize("written", ["off", '"off"', "'off'", "false"])
def test_nvml_is_switched_off(written: str) -> None:
    assert _load(f"monitor: {{nvml: {written}}}").nvml == "off"
    assert _load("", f"monitor.nvml={written}").nvml == "off"


def test_nvml_is_asked_unless_it_is_switched_off() -> None:
    assert _load("").nvml == _load("monitor: {nvml: auto}").nvml == _load("monitor: {nvml: true}").nvml == "auto"


def test_tiers() -> None:
    assert _load("").periods_s() == (0.2, 1.0, 5.0)
    assert _load("monitor: {fast_period_s: 0.1, period_s: 0.5, slow_period_s: 60}").periods_s() == (0.1, 0.5, 60)
    assert _load("monitor: {period_s: 0.05}").periods_s() == (0.05, 0.05, 5.0)
    assert _load("", "monitor.period_s=30").periods_s() == (0.2, 30, 30)


def test_a_period_that_is_not_taken_as_it_stands_is_noted() -> None:
    assert _parse("monitor: {period_s: 30}").notes == ()
    assert _parse("monitor: {period_s: 2, fast_period_s: 5}").notes == (
        "monitor.fast_period_s is 5 and monitor.period_s 2: both tiers take 2 s",
    )
    assert _parse("monitor: {period_s: 2, slow_period_s: 0.5}").notes == (
        "monitor.slow_period_s is 0.5 and monitor.period_s 2: both tiers take 2 s",
    )


def test_prometheus_is_a_port_on_the_loopback_or_a_mapping() -> None:
    assert _load("").prometheus is None
    assert _load("monitor: {prometheus: 9109}").prometheus == PrometheusSection(port=9109, host=LOOPBACK)
    assert _load("", "monitor.prometheus=9109").prometheus == PrometheusSection(port=9109)
    both = PrometheusSection(port=9109, host="0.0.0.0")
    assert _load("monitor: {prometheus: {port: 9109, host: 0.0.0.0}}").prometheus == both
    assert _load("", "monitor.prometheus.port=9109", "monitor.prometheus.host=0.0.0.0").prometheus == both
    assert _load("monitor: {prometheus: 9109}", "monitor.prometheus=null").prometheus is None
    assert _load("monitor: {prometheus: false}").prometheus is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("monitor: {fast_period: 1}", "did you mean 'monitor.fast_period_s'?"),
        ("monitor: {slow_periods: 1}", "did you mean 'monitor.slow_period_s'?"),
        ("monitor: {fast_period_s: 0.01}", "key 'monitor.fast_period_s': must be at least 0.05, not 0.01"),
        ("monitor: {slow_period_s: 61}", "key 'monitor.slow_period_s': must be at most 60"),
        ("monitor: {nvml: no}", "key 'monitor.nvml': must be 'auto' or 'off', not the text 'no'"),
        ("monitor: {promteus: 9109}", "did you mean 'monitor.prometheus'?"),
        ("monitor: {prometheus: 0}", "key 'monitor.prometheus': must be at least 1, not 0"),
        ("monitor: {prometheus: 70000}", "key 'monitor.prometheus': must be at most 65535, not 70000"),
        ("monitor: {prometheus: true}", "must be a port or a mapping of options, as in `prometheus: 9109`"),
        ("monitor: {prometheus: on}", "must be a port or a mapping of options, as in `prometheus: 9109`"),
        ("monitor: {prometheus: {prt: 1}}", "did you mean 'monitor.prometheus.port'?"),
        ("monitor: {prometheus: {host: h}}", "key 'monitor.prometheus.port': is required"),
        ("monitor: {prometheus: {port: 1, host: ''}}", "monitor.prometheus.host"),
    ],
)
def test_what_is_wrong_is_said(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        _load(text)
    assert rule in str(error.value)


def test_the_schema_takes_a_port_and_a_mapping() -> None:
    definitions = json_schema()["$defs"]
    ways = definitions["MonitorSection"]["properties"]["prometheus"]["anyOf"]
    assert {"type": "integer", "minimum": 1, "maximum": 65535} in ways
    assert {"$ref": "#/$defs/PrometheusSection"} in ways
    assert definitions["PrometheusSection"]["required"] == ["port"]
    assert all(option["description"] for option in definitions["PrometheusSection"]["properties"].values())
