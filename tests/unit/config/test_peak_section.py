"""`peak:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.load import parse_workload
from agprof.config.peak import PeakSection
from agprof.config.schema import json_schema
from agprof.errors import ConfigError


def _load(text: str, sets: tuple[str, ...] = ()) -> PeakSection:
    return parse_workload(f"name: job\nmodule: a.b\n{text}", Path("/nowhere"), sets).workload.peak


def test_a_peak_of_ones_own() -> None:
    peak = _load('peak: {tflops: {bf16: 989.4, fp32: 67}, bandwidth_gb_per_s: 3350, source: "sheet of 2023"}')
    assert (peak.tflops.bf16, peak.tflops.fp16, peak.tflops.tf32, peak.tflops.fp32) == (989.4, None, None, 67)
    assert (peak.bandwidth_gb_per_s, peak.source) == (3350, "sheet of 2023")


def test_nothing_given_is_nothing_known() -> None:
    assert _load("") == _load("peak:") == _load("peak: {tflops: }") == PeakSection()
    assert _load("").tflops.bf16 is None


def test_an_option_sets_one_figure() -> None:
    assert _load("", ("peak.tflops.bf16=312",)).tflops.bf16 == 312
    assert _load("peak: {tflops: {bf16: 1}}", ("peak.bandwidth_gb_per_s=2039",)).tflops.bf16 == 1


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("peak: {tflops: {bf16: 0}}", "key 'peak.tflops.bf16': must be greater than 0.0, not 0"),
        ("peak: {tflops: {bf16: 989.4e12}}", "key 'peak.tflops.bf16': must be at most 100000"),
        ("peak: {tflops: {bf16: fast}}", "key 'peak.tflops.bf16': must be a number"),
        ("peak: {tflops: {bf16: .inf}}", "peak.tflops.bf16"),
        ("peak: {tflops: {bfloat16: 1}}", "key 'peak.tflops.bfloat16': unknown key"),
        ("peak: {tflops: {b16: 1}}", "did you mean 'peak.tflops.bf16'?"),
        ("peak: {tflops: 989}", "key 'peak.tflops': must be a mapping"),
        ("peak: {bandwidth_gb_per_s: -1}", "key 'peak.bandwidth_gb_per_s': must be greater than 0.0, not -1"),
        ("peak: 989", "key 'peak': must be a mapping"),
        ("peak: {bandwith_gb_per_s: 1}", "did you mean 'peak.bandwidth_gb_per_s'?"),
        ('peak: {source: "\\e[31m"}', "key 'peak.source': holds the control character"),
    ],
)
def test_what_is_wrong_is_said(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        _load(text)
    assert rule in str(error.value)


def test_the_schema_describes_every_figure() -> None:
    section = json_schema()["$defs"]["TflopsSection"]
    assert set(section["properties"]) == {"bf16", "fp16", "tf32", "fp32"}
    assert all(figure["description"] for figure in section["properties"].values())
    assert section["additionalProperties"] is False
