"""A GPU that is split into MIG instances."""

import pytest

from nvml_stand_in import GIB, NOT_SUPPORTED, Rig, StandIn, gap


def split(instances: dict[int, str]) -> StandIn:
    nvml = StandIn(gpus=2)
    nvml.mig, nvml.instances = 1, instances
    nvml.faults["nvmlDeviceGetUtilizationRates", None] = NOT_SUPPORTED
    return nvml


def test_instances_have_numbers_of_their_own_and_name_their_gpu() -> None:
    rig = Rig(split({0: "a", 3: "b"}))
    rig.sample("medium")
    rows = rig.table("gpus")
    assert [(row["gpu"], row["mig_parent"], row["mig_enabled"]) for row in rows] == [
        (0, None, True), (1000, 0, None), (1003, 0, None), (1, None, True), (2000, 1, None), (2003, 1, None),
    ]  # fmt: skip
    assert [row["memory_total_bytes"] for row in rows[:3]] == [80 * GIB, 10 * GIB, 10 * GIB]
    assert [row["power_limit_mw"] for row in rows[:3]] == [650_000, None, None]


def test_power_is_the_gpus_and_memory_each_instances() -> None:
    rig = Rig(split({0: "a"}))
    samples = rig.fast()
    assert [(row["gpu"], row["power_mw"], row["utilization_ratio"]) for row in samples] == [
        (0, 333_000, None),
        (1, 333_000, None),
    ]
    states = rig.sample("medium")["gpu_states"]
    assert [(row["gpu"], row["memory_total_bytes"], row["temperature_c"]) for row in states] == [
        (0, 80 * GIB, 61), (1000, 10 * GIB, None), (1, 80 * GIB, 61), (2000, 10 * GIB, None),
    ]  # fmt: skip


@pytest.mark.parametrize("error", ["NVML_ERROR_NO_PERMISSION", "NVML_ERROR_INVALID_ARGUMENT"])
def test_an_instance_that_may_not_be_seen_is_left_out_with_a_reason(error: str) -> None:
    rig = Rig(split({0: error, 1: "b"}))
    assert [row["gpu"] for row in rig.sample("medium")["gpu_states"]] == [0, 1001, 1, 2001]
    assert [state for state in rig.states() if state[0].endswith(".mig")] == [
        ("gpu.0.mig", "unsupported"),
        ("gpu.1.mig", "unsupported"),
    ]


def test_a_gpu_that_is_lost_while_split_is_a_gap_and_comes_back_split() -> None:
    nvml = split({0: "a"})
    rig = Rig(nvml)
    rig.sample("medium")
    nvml.faults["*", 1] = "NVML_ERROR_GPU_IS_LOST"
    rows = rig.sample("medium")["gpu_states"]
    assert [(row["gpu"], gap(row)) for row in rows] == [(0, False), (1000, False), (1, True)]
    del nvml.faults["*", 1]
    assert [row["gpu"] for row in rig.sample("medium", 60)["gpu_states"]] == [0, 1000, 1, 2000]


def test_a_gpu_that_is_not_split_has_no_instances() -> None:
    nvml = StandIn()
    nvml.instances = {0: "a"}
    rig = Rig(nvml)
    rig.sample("medium")
    assert [(row["gpu"], row["mig_enabled"]) for row in rig.table("gpus")] == [(0, False)]
    assert "nvmlDeviceGetMigDeviceHandleByIndex" not in nvml.calls
