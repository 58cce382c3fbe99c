"""GPUs from a stand-in for NVML: loading, initialising, losing and finding them again, and what they are."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pynvml
import pytest

from agprof.sampler import nvml as nvml_module
from agprof.sampler.nvml import load_nvml
from agprof.sampler.nvml_errors import DEVICE_LOST, LIBRARY_LOST, MEANINGS, UNKNOWN, UNSUPPORTED, NoNvmlError
from agprof.sampler.nvml_identity import ARCHITECTURES, numa_node
from nvml_stand_in import GIB, NVMLError, Rig, StandIn, gap, none_of

TIERS = ("fast", "medium", "slow")


def test_a_gpu_is_described_once() -> None:
    rig = Rig(StandIn())
    for tier in (*TIERS, *TIERS):
        rig.sample(tier)
    assert rig.table("gpus") == [{
        "gpu": 0, "uuid": "GPU-1", "pci_bus_id": "00000000:01:00.0", "name": "NVIDIA H100",
        "memory_total_bytes": 80 * GIB, "power_limit_mw": 650_000, "driver_version": "610.57",
        "architecture": "hopper", "compute_capability": "9.0", "mig_parent": None, "mig_enabled": False,
        "power_limit_default_mw": 700_000, "sm_clock_max_mhz": 1_980, "memory_clock_max_mhz": 2_619,
        "nvlinks": 17, "pcie": "gen 5 x16", "numa_node": None,
    }]  # fmt: skip


def test_what_a_gpu_does_not_tell_about_itself_is_none() -> None:
    nvml = StandIn()
    told = {"nvmlDeviceGetHandleByIndex", "nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetUUID"}
    for call in nvml._answers():
        if call not in told:
            nvml.faults[call, None] = "NVML_ERROR_NOT_SUPPORTED"
    nvml.links = 0
    rig = Rig(nvml)
    rig.sample()
    (row,) = rig.table("gpus")
    assert none_of(row) == set(row) - {"gpu", "uuid"}


@pytest.mark.parametrize("call", ["nvmlDeviceGetUUID", "nvmlDeviceGetNvLinkState", "nvmlDeviceGetMigMode"])
def test_what_a_gpu_could_not_tell_for_a_moment_is_asked_again(call: str) -> None:
    nvml = StandIn()
    nvml.faults[call, 0] = "NVML_ERROR_TIMEOUT"
    rig = Rig(nvml)
    rig.fast(0.2)
    columns = {
        "nvmlDeviceGetUUID": "uuid",
        "nvmlDeviceGetNvLinkState": "nvlinks",
        "nvmlDeviceGetMigMode": "mig_enabled",
    }
    assert none_of(rig.table("gpus")[0]) == {columns[call], "mig_parent", "numa_node"}
    assert rig.states() == [("gpu.0.identity", "retry")]
    nvml.faults.clear()
    assert not gap(rig.fast(0.2)[0])
    rig.fast(1)
    assert none_of(rig.table("gpus")[-1]) == {"mig_parent", "numa_node"}
    assert [state for state in rig.states() if "identity" in state[0]][1:] == [("gpu.0.identity", "ok")]
    rig.fast(60)
    assert len(rig.table("gpus")) == 2


@pytest.mark.parametrize(
    ("bus_id", "node"),
    [
        ("00000000:01:00.0", 1),
        ("0000:01:00.0", 1),
        ("00000000:AF:00.0", 0),
        ("00000000:02:00.0", None),
        ("../../../etc", None),
        (None, None),
    ],
)
def test_the_numa_node_is_the_hosts(bus_id: str | None, node: int | None, tmp_path: Path) -> None:
    for folder, text in (("0000:01:00.0", "1\n"), ("0000:af:00.0", "0\n"), ("0000:02:00.0", "-1\n")):
        path = tmp_path / "bus/pci/devices" / folder
        path.mkdir(parents=True)
        (path / "numa_node").write_text(text)
    assert numa_node(bus_id, tmp_path) == node


def test_each_tier_writes_its_tables() -> None:
    rig = Rig(StandIn(gpus=2))
    rig.sample("fast")
    assert {table: len(rows) for table, rows in rig.sample("fast", 0.2).items() if table != "sampler_state"} == {
        "gpu_samples": 2
    }
    rig.sample("medium")
    assert {table: len(rows) for table, rows in rig.sample("medium").items()} == {"gpu_states": 2, "gpu_activity": 2}
    assert {table: len(rows) for table, rows in rig.sample("slow").items()} == {"gpu_health": 2}


def test_states_and_health() -> None:
    rig = Rig(StandIn())
    (state,) = rig.sample("medium")["gpu_states"]
    assert list(state.values())[1:] == [0, 7 * GIB, GIB, 80 * GIB, 61, 70, 650_000]
    (health,) = rig.sample("slow")["gpu_health"]
    assert list(health.values())[1:] == [0, 5, 1, 1, 2, True, False]
    assert rig.states() == []


@pytest.mark.parametrize(
    ("call", "columns"),
    [
        ("nvmlDeviceGetMemoryInfo", {"memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes"}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"power_limit_mw"}),
        ("nvmlDeviceGetFieldValues", {"memory_temperature_c"}),
    ],
)
def test_a_state_that_is_not_supported_is_none(call: str, columns: set[str]) -> None:
    # Memory: GPUs that share the host's.
    nvml = StandIn()
    nvml.faults[call, 0] = "NVML_ERROR_NOT_SUPPORTED"
    rig = Rig(nvml)
    (row,) = rig.sample("medium")["gpu_states"]
    assert none_of(row) == columns
    count = nvml.calls.count(call)
    (row,) = rig.sample("medium", 100)["gpu_states"]
    assert none_of(row) == columns
    assert nvml.calls.count(call) == count


def test_a_memory_without_a_sensor_has_no_temperature_of_0() -> None:
    nvml = StandIn()
    nvml.values[82, 0] = (1, 0)
    rig = Rig(nvml)
    assert none_of(rig.sample("medium")["gpu_states"][0]) == {"memory_temperature_c"}
    assert rig.states() == [("gpu.0.memory_temperature", "unsupported")]


def test_old_drivers_are_asked_by_the_old_names() -> None:
    nvml = StandIn()
    for call in ("TemperatureV", "CurrentClocksEventReasons", "FieldValues"):
        nvml.faults[f"nvmlDeviceGet{call}", None] = "NVML_ERROR_FUNCTION_NOT_FOUND"
    rig = Rig(nvml)
    (row,) = rig.fast()
    assert row["clock_event_reasons"] == 8
    assert (row["power_mw"], row["power_kind"], row["energy_mj"]) == (222_000, "average_1s", 6_000)
    assert rig.sample("medium")["gpu_states"][0]["temperature_c"] == 60


@pytest.mark.parametrize("error", ["NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNKNOWN"])
def test_one_lost_gpu_is_a_gap_and_the_others_go_on(error: str) -> None:
    nvml = StandIn(gpus=3)
    rig = Rig(nvml)
    rig.fast()
    nvml.faults["*", 1] = error
    for _ in range(3):
        assert [gap(row) for row in rig.fast()] == [False, True, False]
    assert [gap(row) for row in rig.sample("medium")["gpu_states"]] == [False, True, False]
    assert [row["gpu"] for row in rig.sample("slow")["gpu_health"]] == [0, 2]
    assert "nvmlShutdown" not in nvml.calls
    nvml.faults.clear()
    assert [gap(row) for row in rig.fast(60)] == [False, False, False]
    assert [state for state in rig.states() if state[0] == "gpu.1"] == [("gpu.1", "retry"), ("gpu.1", "ok")]
    assert len(rig.table("gpus")) == 3


def test_an_unknown_error_of_one_call_does_not_lose_the_gpu() -> None:
    nvml = StandIn()
    nvml.faults["nvmlDeviceGetUtilizationRates", 0] = UNKNOWN
    rig = Rig(nvml)
    (row,) = rig.fast()
    assert row["power_mw"] == 333_000
    assert row["utilization_ratio"] is None
    assert rig.states() == [("gpu.0.utilization", "retry")]
    assert rig.reason("gpu.0.utilization").startswith("nvmlDeviceGetUtilizationRates: unknown error")


def test_a_gpu_that_is_lost_between_two_calls_has_one_row() -> None:
    nvml = StandIn(gpus=2)
    rig = Rig(nvml)
    rig.sample("medium")
    nvml.faults["nvmlGpmSampleGet", 1] = "NVML_ERROR_GPU_IS_LOST"
    rows = rig.sample("medium")["gpu_states"]
    assert [(row["gpu"], gap(row)) for row in rows] == [(0, False), (1, True)]


def test_a_gpu_that_is_lost_from_the_start_does_not_hide_the_others() -> None:
    nvml = StandIn(gpus=2)
    nvml.faults["nvmlDeviceGetHandleByIndex", 0] = "NVML_ERROR_GPU_IS_LOST"
    assert [gap(row) for row in Rig(nvml).fast()] == [True, False]


def test_a_gpu_that_was_lost_has_no_rates_over_the_gap() -> None:
    nvml = StandIn(gpus=2)
    rig = Rig(nvml)
    rig.fast()
    rig.fast(0.2)
    nvml.faults["*", 1] = "NVML_ERROR_GPU_IS_LOST"
    rig.fast(0.2)
    nvml.faults.clear()
    assert rig.fast(0.9)[1]["utilization_ratio"] is None  # not due before 1 s
    row = rig.fast(0.2)[1]
    assert row["utilization_ratio"] == 0.75
    assert row["nvlink_sent_bytes_per_s"] is None


@pytest.mark.parametrize(
    "error", ["NVML_ERROR_UNKNOWN", "NVML_ERROR_UNINITIALIZED", "NVML_ERROR_LIB_RM_VERSION_MISMATCH"]
)
def test_nvml_that_goes_away_leaves_gaps_and_comes_back(error: str) -> None:
    nvml = StandIn(gpus=2)
    rig = Rig(nvml)
    rig.fast()
    nvml.faults["*", None] = error
    for _ in range(10):
        assert [gap(row) for row in rig.fast()] == [True, True]
        assert [gap(row) for row in rig.sample("medium", 0)["gpu_states"]] == [True, True]
        assert "gpu_health" not in rig.sample("slow", 0)
    assert nvml.calls.count("nvmlInit") <= 6
    assert rig.gpus.losses >= 1
    nvml.faults.clear()
    assert [gap(row) for row in rig.fast(120)] == [False, False]
    assert ("gpu", "retry") in rig.states()
    assert rig.states().count(("gpu", "ok")) == 1
    rig.gpus.close()
    assert nvml.calls[-1] == "nvmlShutdown"


def test_a_driver_that_was_replaced_is_told() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    rig.fast()
    nvml.faults["*", None] = "NVML_ERROR_LIB_RM_VERSION_MISMATCH"
    rig.fast()
    nvml.faults.clear()
    answers = nvml._answers()
    nvml._answers = lambda: answers | {"nvmlSystemGetDriverVersion": lambda: "620.01"}  # type: ignore[method-assign]
    rig.fast(60)
    assert [row["driver_version"] for row in rig.table("gpus")] == ["610.57", "620.01"]


def test_an_init_that_fails_is_tried_again() -> None:
    nvml = StandIn()
    nvml.faults["nvmlInit", None] = "NVML_ERROR_DRIVER_NOT_LOADED"
    rig = Rig(nvml)
    assert rig.fast() == []
    assert rig.reason("gpu") == (
        "NVML can't be initialised: nvmlInit: the driver is not loaded (NVML_ERROR_DRIVER_NOT_LOADED)"
    )
    nvml.faults.clear()
    assert len(rig.fast(2)) == 1
    assert rig.states() == [("gpu", "retry"), ("gpu", "ok")]


def test_the_time_of_opening_is_on_no_budget() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    answers = nvml._answers()

    def init() -> None:
        rig.now += 3_000_000_000

    nvml._answers = lambda: answers | {"nvmlInit": init}  # type: ignore[method-assign]
    assert rig.gpus.fast.sample(rig.now) == 3_000_000_000
    assert rig.gpus.fast.sample(rig.now) == 0


def test_no_nvml_is_said_once_and_gives_no_rows() -> None:
    rig = Rig(None, "no library")
    for tier in TIERS:
        assert set(rig.sample(tier)) <= {"sampler_state"}
    assert [(row["field"], row["state"], row["reason"]) for row in rig.table("sampler_state")] == [
        ("gpu", "unsupported", "no library")
    ]
    assert rig.gpus.call is None
    rig.gpus.close()


def test_a_driver_without_a_gpu_is_said() -> None:
    rig = Rig(StandIn(gpus=0))
    for tier in TIERS:
        rig.sample(tier)
    assert rig.states() == [("gpu", "unsupported")]


def test_the_call_in_progress_can_be_seen_from_outside() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    seen: list[Any] = []
    check = nvml.check
    nvml.check = lambda call, handle=None: (seen.append((call, rig.gpus.call)), check(call, handle))[1]  # type: ignore[method-assign]
    for tier in TIERS:
        rig.sample(tier)
    assert {call for call, _ in seen} >= {"nvmlInit", "nvmlDeviceGetFieldValues", "nvmlGpmSampleGet"}
    assert all(noted is not None and noted[0] == call for call, noted in seen)
    assert rig.gpus.call is None


def test_close_calls_nothing_while_another_thread_is_in_a_call() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    rig.fast()
    rig.gpus._nvml.call = ("nvmlDeviceGetFieldValues", rig.now)  # type: ignore[union-attr]
    rig.gpus.close()
    assert "nvmlShutdown" not in nvml.calls


@pytest.mark.parametrize("nth", range(120))
def test_the_nth_call_may_fail_in_any_way(nth: int) -> None:
    """Whatever fails, when it is over all is measured again, and nothing was taken for 0."""
    for error in ("NVML_ERROR_TIMEOUT", "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_UNINITIALIZED", UNKNOWN):
        nvml = StandIn(gpus=2)
        rig = Rig(nvml)
        check = nvml.check

        def failing(
            call: str, handle: Any = None, nvml: StandIn = nvml, check: Any = check, error: str = error
        ) -> None:
            if len(nvml.calls) == nth and call != "nvmlShutdown":
                nvml.calls.append(call)
                raise NVMLError(getattr(pynvml, error))
            check(call, handle)

        nvml.check = failing  # type: ignore[method-assign]
        for tier in (*TIERS, *TIERS):
            rig.sample(tier, 0.2)
        rig.fast(61)
        rows = [*rig.fast(1), *rig.sample("medium", 1)["gpu_states"]]
        assert not any(gap(row) for row in rows)
        measured = [row for row in rig.table("gpu_states") if row["memory_total_bytes"] is not None]
        assert all(row["memory_total_bytes"] == 80 * GIB for row in measured)
        assert all(row["power_mw"] in (None, 333_000, 222_000) for row in rig.table("gpu_samples"))


def test_an_unexpected_call_would_fail_these_tests() -> None:
    with pytest.raises(AssertionError, match="unexpected call nvmlDeviceGetPcieThroughput"):
        getattr(StandIn(), "nvmlDeviceGetPcieThroughput")  # noqa: B009


def test_a_missing_library_and_a_foreign_module_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_module, "LIBRARY", "libno-such-thing.so.1")
    with pytest.raises(NoNvmlError, match="does not load"):
        load_nvml()
    monkeypatch.setattr(nvml_module.ctypes, "CDLL", lambda name: None)
    foreign = ModuleType("pynvml")
    foreign.__file__ = "/somewhere/pynvml/__init__.py"
    monkeypatch.setitem(sys.modules, "pynvml", foreign)
    with pytest.raises(NoNvmlError, match=r"/somewhere/pynvml/__init__\.py is not that of nvidia-ml-py"):
        load_nvml()


def test_a_reason_says_which_call_and_why() -> None:
    nvml = StandIn()
    nvml.faults["nvmlDeviceGetMemoryInfo", 0] = "NVML_ERROR_FUNCTION_NOT_FOUND"
    nvml.values[82, 0] = "NVML_ERROR_NO_PERMISSION"
    rig = Rig(nvml)
    rig.sample("medium")
    assert rig.reason("gpu.0.memory") == (
        "nvmlDeviceGetMemoryInfo: the driver (or nvidia-ml-py) is older than this call (NVML_ERROR_FUNCTION_NOT_FOUND)"
    )
    assert rig.reason("gpu.0.memory_temperature") == (
        "field 82: not permitted to this user or container (NVML_ERROR_NO_PERMISSION)"
    )


def test_the_official_binding_has_all_that_the_stand_in_has() -> None:
    assert hasattr(pynvml, "_nvmlGetFunctionPointer")
    for name in (*StandIn()._answers(), "nvmlEventSetWait_v2"):
        assert hasattr(pynvml, name), name
    for name in (*UNSUPPORTED, *LIBRARY_LOST, *DEVICE_LOST, *MEANINGS, UNKNOWN):
        assert hasattr(pynvml, name), name
    for number, name in ARCHITECTURES.items():
        assert getattr(pynvml, f"NVML_DEVICE_ARCH_{name.upper()}") == number
