"""Rows of gpu_activity from a stand-in's GPM counters."""

import math

import pynvml
import pytest

from agprof.sampler.nvml_gpm import PERCENT_METRICS, RATE_METRICS, rate, ratio
from nvml_stand_in import ACTIVITY, NOT_SUPPORTED, Rig, StandIn, none_of

RATIOS = {
    "sm_ratio": 0.8, "occupancy_ratio": 0.4, "tensor_ratio": 0.6, "dram_ratio": 0.5, "fp64_ratio": 0.0,
    "fp32_ratio": 0.1, "fp16_ratio": 0.05,
}  # fmt: skip


def test_activity_is_the_mean_between_two_readings() -> None:
    rig = Rig(StandIn())
    assert "gpu_activity" not in rig.sample("medium")
    (row,) = rig.sample("medium", 1.5)["gpu_activity"]
    assert row["period_ns"] == 1_500_000_000
    assert row["time_ns"] == rig.now
    assert {name: row[name] for name in RATIOS} == RATIOS
    assert (row["pcie_sent_bytes_per_s"], row["pcie_received_bytes_per_s"]) == (2**20, 2 * 2**20)
    assert rig.states() == []


def test_two_buffers_are_used_in_turn_and_freed_at_the_end() -> None:
    nvml = StandIn(gpus=2)
    rig = Rig(nvml)
    for _ in range(6):
        rig.sample("medium")  # the stand-in checks which of the two is the newer one
    assert nvml.buffers == 4
    rig.gpus.close()
    assert nvml.buffers == 0
    assert nvml.calls[-1] == "nvmlShutdown"


def test_buffers_are_freed_when_nvml_is_lost() -> None:
    nvml = StandIn(gpus=2)
    rig = Rig(nvml)
    rig.sample("medium")
    nvml.faults["nvmlDeviceGetMemoryInfo", None] = "NVML_ERROR_UNINITIALIZED"
    rig.sample("medium")
    assert nvml.buffers == 0


def test_readings_closer_than_100_ms_are_left_out() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    rig.sample("medium")
    assert "gpu_activity" not in rig.sample("medium", 0.05)
    assert rig.sample("medium", 0.06)["gpu_activity"][0]["period_ns"] == 110_000_000


@pytest.mark.parametrize("how", ["not supported", "no call"])
def test_a_gpu_without_these_counters_is_said_once_and_has_no_rows(how: str) -> None:
    nvml = StandIn(capability=(8, 0))
    nvml.gpm = False
    if how == "no call":
        nvml.faults["nvmlGpmQueryDeviceSupport", 0] = "NVML_ERROR_FUNCTION_NOT_FOUND"
    rig = Rig(nvml)
    for _ in range(4):
        assert "gpu_activity" not in rig.sample("medium")
    assert rig.states() == [("gpu.0.activity", "unsupported")]
    assert nvml.calls.count("nvmlGpmQueryDeviceSupport") == 1
    assert nvml.buffers == 0


def test_a_metric_that_fails_is_none_and_the_others_stay() -> None:
    nvml = StandIn()
    nvml.activity_codes[5] = pynvml.NVML_ERROR_NOT_SUPPORTED
    nvml.activity[10] = math.nan
    del nvml.activity[12]
    rig = Rig(nvml)
    rig.sample("medium")
    (row,) = rig.sample("medium")["gpu_activity"]
    assert none_of(row) == {"tensor_ratio", "dram_ratio", "fp32_ratio"}
    assert rig.states() == [
        ("gpu.0.activity.tensor", "unsupported"),
        ("gpu.0.activity.dram", "retry"),
        ("gpu.0.activity.fp32", "retry"),
    ]
    nvml.activity_codes.clear()
    nvml.activity = dict(ACTIVITY)
    assert none_of(rig.sample("medium")["gpu_activity"][0]) == set()


def test_a_reading_that_fails_starts_a_new_pair() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    rig.sample("medium")
    nvml.faults["nvmlGpmSampleGet", 0] = "NVML_ERROR_TIMEOUT"
    assert "gpu_activity" not in rig.sample("medium")
    nvml.faults.clear()
    assert "gpu_activity" not in rig.sample("medium")
    assert rig.sample("medium")["gpu_activity"][0]["period_ns"] == 1_000_000_000
    assert rig.states() == [("gpu.0.activity", "retry"), ("gpu.0.activity", "ok")]


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0.0, 0.0), (50.0, 0.5), (100.4, 1.0), (106.0, None), (-1.0, None), (math.nan, None), (None, None)],
)
def test_percent_becomes_a_ratio(percent: float | None, expected: float | None) -> None:
    assert ratio(percent) == expected


def test_mib_per_second_become_bytes() -> None:
    assert [rate(value) for value in (0.0, 2.0, math.inf, math.nan, -1.0, None)] == [
        0.0,
        2 * 2**20,
        None,
        None,
        None,
        None,
    ]


def test_the_numbers_of_the_metrics_are_nvmls() -> None:
    names = ("SM_UTIL", "SM_OCCUPANCY", "ANY_TENSOR_UTIL", "DRAM_BW_UTIL", "FP64_UTIL", "FP32_UTIL", "FP16_UTIL")
    assert tuple(getattr(pynvml, f"NVML_GPM_METRIC_{name}") for name in names) == PERCENT_METRICS
    assert RATE_METRICS == (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC)


def test_a_mig_instance_is_read_through_its_gpu() -> None:
    nvml = StandIn()
    nvml.mig, nvml.instances = 1, {0: "a", 2: "b"}
    rig = Rig(nvml)
    rig.sample("medium")
    rows = rig.sample("medium")["gpu_activity"]
    assert [row["gpu"] for row in rows] == [0, 1000, 1002]
    assert none_of(rows[0]) == set()
    assert none_of(rows[1]) == {"pcie_sent_bytes_per_s", "pcie_received_bytes_per_s"}
    assert rig.states() == []
    assert {handle for handle, _ in nvml.gpm_samples} == {0, (0, 3)}


def test_instances_without_these_counters_keep_the_gpus() -> None:
    nvml = StandIn()
    nvml.mig, nvml.instances = 1, {0: "a"}
    nvml.faults["nvmlGpmMigSampleGet", 0] = NOT_SUPPORTED
    rig = Rig(nvml)
    rig.sample("medium")
    assert [row["gpu"] for row in rig.sample("medium")["gpu_activity"]] == [0]
    assert rig.states() == [("gpu.1000.activity", "unsupported")]
