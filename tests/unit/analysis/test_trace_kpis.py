"""The cards of device traces agree with the parts that the report draws."""

import dataclasses

import pytest

from agprof.analysis.trace_kpis import device_kpis
from sample_trace_answers import sample_trace


def test_shares_are_those_of_the_steps():
    trace = sample_trace()
    rows = trace.steps or trace.windows
    window = sum(row.window_ns for row in rows)
    values = {kpi.key: kpi.figure.value for kpi in device_kpis(trace)}
    assert values == {
        "device_compute_share": pytest.approx(sum(row.compute_ns for row in rows) / window),
        "exposed_communication_share": pytest.approx(sum(row.exposed_communication_ns for row in rows) / window),
        "device_idle_share": pytest.approx(sum(row.idle_ns for row in rows) / window),
    }


def test_without_a_device_there_are_none():
    assert device_kpis(None) == ()
    assert device_kpis(dataclasses.replace(sample_trace(), windows=(), steps=(), has_device=False)) == ()
