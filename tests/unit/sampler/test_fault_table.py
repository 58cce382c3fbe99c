"""The fault table: what goes wrong under the sampler, and what its rows say then. The rule of all rows: what could not
be read is None with a reason in `sampler_state`, everything else goes on, and no 0 stands for a value.

    row   fault                                              tested in
    F4    the sampler is killed, stopped, crashes, hangs     test_fault_sampler.py, test_fault_sampler_job.py
    F8    NVML: a field or call is not supported             here
          a value that is none in the shape of a number      here
          init fails, a GPU or the library is lost           test_fault_table_loss.py
          energy begins anew, counters wrap or begin anew    test_fault_table_counters.py
          a driver without the newer calls                   test_fault_table_counters.py
          a call that hangs 60 s; each XID once              test_fault_table_threads.py
          the n-th call fails, for every n                   test_fault_table_each_call.py
          no library, a look-alike that exits, a hung call
          when the job ends, all in the real process         test_fault_table_process.py
          GPUs numbered anew after one was lost              test_gpu_profiles.py
    F9    container: pids of the host, no permissions, MIG,
          CUDA_VISIBLE_DEVICES in every form                 test_fault_gpu_mapping.py, test_nvml_mig.py,
                                                             test_nvml_processes.py
    F11   fork, spawn, execv, daemons, descriptors           test_fault_forks.py, test_fault_dataloaders.py

The sampler's GPU parts run in this process on the fake NVML, on a clock that the test sets.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from busy_gpu import KIB, busy, rows_of, run_session
from nvml_rig import RigMaker, Row
from nvml_scenario import GPM_METRICS, H100, MIB, Scenario

# --- the whole of it, without a fault: closed forms


def test_without_a_fault_every_column_has_its_value(rig: RigMaker) -> None:
    with rig(busy()) as found:
        run_session(found)
        sample, state = found.last("gpu_samples"), found.last("gpu_states")
        assert sample == {
            "time_ns": 1_200_000_000, "gpu": 0, "utilization_ratio": 0.97, "memory_busy_ratio": 0.41,
            "memory_used_bytes": None, "power_mw": 612_345, "power_kind": "instant",
            "energy_mj": 5_000_000 + 612_345 * 12 // 10, "sm_clock_mhz": 1755, "memory_clock_mhz": 2619,
            "temperature_c": None, "clock_event_reasons": 4, "power_average_mw": sample["power_average_mw"],
            "pcie_sent_bytes_per_s": 3e9, "pcie_received_bytes_per_s": 7e9,
            "nvlink_sent_bytes_per_s": 50e6 * KIB, "nvlink_received_bytes_per_s": 40e6 * KIB,
            "throttled_power_ns": 50_000_000, "throttled_thermal_ns": 25_000_000, "throttled_other_ns": 12_500_000,
        }  # fmt: skip
        assert set(found.values("gpu_samples", "power_average_mw")) <= {601_000, None}
        assert state == {
            "time_ns": 1_200_000_000, "gpu": 0, "memory_used_bytes": 61_440 * MIB,
            "memory_reserved_bytes": H100.reserved_mib * MIB, "memory_total_bytes": H100.total_mib * MIB,
            "temperature_c": 63, "memory_temperature_c": 71, "power_limit_mw": 700_000,
        }  # fmt: skip
        activity = found.last("gpu_activity")
        ratios = [activity[f"{name}_ratio"] for name in GPM_METRICS.values()]
        assert ratios == pytest.approx([0.11 * place for place in range(1, 8)], rel=1e-12)
        assert activity["period_ns"] == 200_000_000
        health = found.last("gpu_health")
        assert list(health.values())[2:] == [12, 1, 2, 1, True, True]
        (process,) = found.rows("gpu_processes", time_ns=0)
        assert (process["pid"], process["kind"], process["used_bytes"]) == (4_000_000_000, "compute", 60_000 * MIB)
        (gpu,) = found.rows("gpus")
        assert (gpu["name"], gpu["memory_total_bytes"], gpu["power_limit_mw"]) == (
            H100.name,
            H100.total_mib * MIB,
            700_000,
        )
        assert (gpu["sm_clock_max_mhz"], gpu["nvlinks"], gpu["architecture"]) == (1980, 18, "hopper")
        assert not found.rows("sampler_state")


# --- not supported, field by field


def not_given(*fields: str) -> Callable[[], Scenario]:
    return lambda: busy(without=fields)


def refused(call: str) -> Callable[[], Scenario]:
    def scenario() -> Scenario:
        made = busy()
        made.fail(call, "NVML_ERROR_NOT_SUPPORTED")
        return made

    return scenario


def fields_refused(*numbers: int) -> Callable[[], Scenario]:
    def scenario() -> Scenario:
        made = busy()
        for number in numbers:
            made.fail_field(number, "NVML_ERROR_NOT_SUPPORTED")
        return made

    return scenario


ALL_OF_SAMPLES_BY_FIELDS = (
    "power_average_mw", "pcie_sent_bytes_per_s", "pcie_received_bytes_per_s", "nvlink_sent_bytes_per_s",
    "nvlink_received_bytes_per_s", "throttled_power_ns", "throttled_thermal_ns", "throttled_other_ns",
)  # fmt: skip
# What is missing -> (table, columns that are None then, the field of sampler_state that says so).
NOT_SUPPORTED: dict[str, tuple[Callable[[], Scenario], str, tuple[str, ...], str]] = {
    "nvmlDeviceGetUtilizationRates":
        (not_given("utilization_percent"), "gpu_samples", ("utilization_ratio", "memory_busy_ratio"), "utilization"),
    "power of every kind": (not_given("power_instant_mw", "power_usage_mw", "energy_mj"), "gpu_samples",
                            ("power_mw", "power_kind", "energy_mj"), "power"),
    "energy of every kind": (not_given("energy_mj"), "gpu_samples", ("energy_mj",), "energy"),
    "field 185": (not_given("power_average_mw"), "gpu_samples", ("power_average_mw",), "power_average"),
    "nvmlDeviceGetClockInfo":
        (refused("nvmlDeviceGetClockInfo"), "gpu_samples", ("sm_clock_mhz", "memory_clock_mhz"), "memory_clock"),
    "SM clock": (not_given("sm_clock_mhz"), "gpu_samples", ("sm_clock_mhz",), "sm_clock"),
    "memory clock": (not_given("memory_clock_mhz"), "gpu_samples", ("memory_clock_mhz",), "memory_clock"),
    "event reasons": (not_given("event_reasons"), "gpu_samples", ("clock_event_reasons",), "clock_event_reasons"),
    "field 197": (fields_refused(197), "gpu_samples", ("pcie_sent_bytes_per_s",), "pcie_sent"),
    "field 198": (fields_refused(198), "gpu_samples", ("pcie_received_bytes_per_s",), "pcie_received"),
    "field 138": (fields_refused(138), "gpu_samples", ("nvlink_sent_bytes_per_s",), "nvlink_sent"),
    "field 139": (fields_refused(139), "gpu_samples", ("nvlink_received_bytes_per_s",), "nvlink_received"),
    "fields 74, 77, 271": (fields_refused(74, 77, 271), "gpu_samples", ("throttled_power_ns",), "throttled_power"),
    "fields 75, 269, 270":
        (fields_refused(75, 269, 270), "gpu_samples", ("throttled_thermal_ns",), "throttled_thermal"),
    "fields 76, 79": (fields_refused(76, 79), "gpu_samples", ("throttled_other_ns",), "throttled_other"),
    "nvmlDeviceGetMemoryInfo_v2":
        (not_given("memory_used_bytes"), "gpu_states",
         ("memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes"), "memory"),
    "temperature": (not_given("temperature_c"), "gpu_states", ("temperature_c",), "temperature"),
    "field 82": (not_given("memory_temperature_c"), "gpu_states", ("memory_temperature_c",), "memory_temperature"),
    "nvmlDeviceGetEnforcedPowerLimit":
        (refused("nvmlDeviceGetEnforcedPowerLimit"), "gpu_states", ("power_limit_mw",), "power_limit"),
    "corrected ECC": (not_given("ecc_corrected"), "gpu_health", ("ecc_corrected",), "ecc_corrected"),
    "uncorrected ECC": (not_given("ecc_uncorrected"), "gpu_health", ("ecc_uncorrected",), "ecc_uncorrected"),
    "nvmlDeviceGetTotalEccErrors":
        (refused("nvmlDeviceGetTotalEccErrors"), "gpu_health", ("ecc_corrected", "ecc_uncorrected"), "ecc_corrected"),
    "nvmlDeviceGetRemappedRows":
        (refused("nvmlDeviceGetRemappedRows"), "gpu_health",
         ("remapped_rows_corrected", "remapped_rows_uncorrected", "remap_pending", "remap_failed"), "remapped_rows"),
    "nvmlDeviceGetFieldValues":
        (refused("nvmlDeviceGetFieldValues"), "gpu_samples", ALL_OF_SAMPLES_BY_FIELDS, "pcie_sent"),
    **{
        f"GPM metric {number}": (not_given(f"gpm_{number}"), "gpu_activity", (f"{name}_ratio",), f"activity.{name}")
        for number, name in GPM_METRICS.items()
    },
    "GPM metric 20": (not_given("gpm_20"), "gpu_activity", ("pcie_sent_bytes_per_s",), "activity.pcie_sent"),
    "GPM metric 21": (not_given("gpm_21"), "gpu_activity", ("pcie_received_bytes_per_s",), "activity.pcie_received"),
}  # fmt: skip
# These have another way: what the fallback gives.
FALLBACKS: dict[str, tuple[Callable[[], Scenario], dict[str, Any]]] = {
    "field 186": (fields_refused(186), {"power_mw": 598_000, "power_kind": "average_1s"}),
    "field 83": (fields_refused(83), {}),
    "nvmlDeviceGetTotalEnergyConsumption": (refused("nvmlDeviceGetTotalEnergyConsumption"), {}),
    "nvmlDeviceGetPowerUsage": (refused("nvmlDeviceGetPowerUsage"), {}),
    "nvmlDeviceGetTemperatureV": (refused("nvmlDeviceGetTemperatureV"), {}),
    "nvmlDeviceGetTemperature": (refused("nvmlDeviceGetTemperature"), {}),
    "nvmlDeviceGetCurrentClocksEventReasons": (refused("nvmlDeviceGetCurrentClocksEventReasons"), {}),
    "nvmlDeviceGetCurrentClocksThrottleReasons": (refused("nvmlDeviceGetCurrentClocksThrottleReasons"), {}),
    "field 74": (fields_refused(74), {"throttled_power_ns": 400_000}),
    "field 75": (fields_refused(75), {"throttled_thermal_ns": 800_000}),
}
# Of `gpus`: what the call tells.
IDENTITY = {
    "nvmlDeviceGetUUID": ("uuid",),
    "nvmlDeviceGetPciInfo_v3": ("pci_bus_id", "numa_node"),
    "nvmlDeviceGetName": ("name",),
    "nvmlSystemGetDriverVersion": ("driver_version",),
    "nvmlDeviceGetArchitecture": ("architecture",),
    "nvmlDeviceGetCudaComputeCapability": ("compute_capability",),
    "nvmlDeviceGetMigMode": ("mig_enabled",),
    "nvmlDeviceGetPowerManagementDefaultLimit": ("power_limit_default_mw",),
    "nvmlDeviceGetMaxClockInfo": ("sm_clock_max_mhz", "memory_clock_max_mhz"),
    "nvmlDeviceGetNvLinkState": ("nvlinks",),
    "nvmlDeviceGetMaxPcieLinkGeneration": ("pcie",),
    "nvmlDeviceGetMaxPcieLinkWidth": ("pcie",),
}
# Nothing goes without these; or they only end things.
OTHER_CALLS = {
    "nvmlInitWithFlags", "nvmlShutdown", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2",
    "nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleGet", "nvmlGpmMetricsGet", "nvmlGpmSampleFree",
    "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3",
}  # fmt: skip


def assert_same_but(
    healthy: dict[str, list[Row]], found: dict[str, list[Row]], table: str, columns: tuple[str, ...]
) -> None:
    assert set(found) == set(healthy)
    for name, rows in found.items():
        assert len(rows) == len(healthy[name])
        for row, expected in zip(rows, healthy[name], strict=True):
            missing = columns if name == table else ()
            assert row == {**expected, **dict.fromkeys(missing)}


@pytest.mark.parametrize("missing", NOT_SUPPORTED)
def test_what_is_not_supported_is_none_with_a_reason_and_the_rest_stays(
    rig: RigMaker, healthy: dict[str, list[Row]], missing: str
) -> None:
    scenario, table, columns, field = NOT_SUPPORTED[missing]
    with rig(scenario()) as found:
        run_session(found)
        rows = rows_of(found)
        if missing == "nvmlDeviceGetEnforcedPowerLimit":
            assert [row.pop("power_limit_mw") for row in rows["gpus"]] == [None]
            healthy["gpus"][0].pop("power_limit_mw")
        if missing == "nvmlDeviceGetMemoryInfo_v2":
            assert [row.pop("memory_total_bytes") for row in rows["gpus"]] == [None]
            healthy["gpus"][0].pop("memory_total_bytes")
        if missing == "nvmlDeviceGetFieldValues":
            # Energy and power have calls of their own; the memory's temperature has not.
            assert [row.pop("memory_temperature_c") for row in rows["gpu_states"]] == [None] * 3
            for row in healthy["gpu_states"]:
                row.pop("memory_temperature_c")
            for row in healthy["gpu_samples"]:
                row |= {"power_mw": 598_000, "power_kind": "average_1s"}
        assert_same_but(healthy, rows, table, columns)
        ((state, reason),) = found.said(f"gpu.0.{field}")
        assert state == "unsupported"
        assert reason


@pytest.mark.parametrize("missing", FALLBACKS)
def test_what_has_another_way_goes_it(rig: RigMaker, healthy: dict[str, list[Row]], missing: str) -> None:
    scenario, given = FALLBACKS[missing]
    for row in healthy["gpu_samples"]:
        row |= {column: value for column, value in given.items() if row[column] is not None}
    with rig(scenario()) as found:
        run_session(found)
        assert rows_of(found) == healthy


@pytest.mark.parametrize("call", IDENTITY)
def test_what_a_gpu_does_not_tell_of_itself_is_none(rig: RigMaker, healthy: dict[str, list[Row]], call: str) -> None:
    with rig(refused(call)()) as found:
        run_session(found)
        assert_same_but(healthy, rows_of(found), "gpus", IDENTITY[call])


@pytest.mark.parametrize(
    "call", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleGet", "nvmlGpmMetricsGet"]
)
def test_without_gpm_only_the_activity_is_missing(rig: RigMaker, healthy: dict[str, list[Row]], call: str) -> None:
    with rig(refused(call)()) as found:
        run_session(found)
        del healthy["gpu_activity"]
        assert rows_of(found) == healthy
        states = [row for row in found.rows("sampler_state") if row["field"].startswith("gpu.0.activity")]
        assert [row["state"] for row in states] == ["unsupported"]


@pytest.mark.parametrize("kind", ["Compute", "Graphics"])
def test_without_processes_only_these_are_missing(rig: RigMaker, healthy: dict[str, list[Row]], kind: str) -> None:
    scenario = busy()
    for version in ("_v2", "_v3"):
        scenario.fail(f"nvmlDeviceGet{kind}RunningProcesses{version}", "NVML_ERROR_NO_PERMISSION")
    with rig(scenario) as found:
        run_session(found)
        if kind == "Compute":
            del healthy["gpu_processes"]
        assert rows_of(found) == healthy
        ((state, reason),) = found.said(f"gpu.0.processes.{kind.lower()}")
        assert (state, "NVML_ERROR_NO_PERMISSION" in reason) == ("unsupported", True)


def test_memory_of_a_process_that_nvml_does_not_tell_is_none(rig: RigMaker) -> None:
    scenario = Scenario(H100)
    scenario.process(0, 4_000_000_000, None)
    with rig(scenario) as found:
        found.sample(0)
        assert found.values("gpu_processes", "used_bytes") == [None]


def test_every_call_of_the_sampler_is_in_these_tables(rig: RigMaker, tmp_path: Path) -> None:
    with rig(busy(), log=tmp_path / "log") as found:
        run_session(found)
    called = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert called - set(NOT_SUPPORTED) - set(FALLBACKS) - set(IDENTITY) == OTHER_CALLS


def test_one_batch_per_gpu_and_tick(rig: RigMaker, tmp_path: Path) -> None:
    with rig(busy(gpus=8), log=tmp_path / "log") as found:
        found.sample(0, "fast")
        (tmp_path / "log").write_text("")
        found.sample(0.2, "fast")
        lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    for gpu in range(8):
        calls = [call for _, call, device, _ in lines if device == str(gpu)]
        assert calls.count("nvmlDeviceGetFieldValues") == 1
        assert len(calls) == 5  # utilization, the batch, two clocks, event reasons
    assert len(lines) == 8 * 5


# --- values that are none


@pytest.mark.parametrize(
    ("fields", "table", "columns", "field"),
    [
        ({"power_instant_mw": 2**32 - 1}, "gpu_samples", {"power_mw": 598_000, "power_kind": "average_1s"}, None),
        ({"power_average_mw": 2**32 - 1}, "gpu_samples", {"power_average_mw": None}, "power_average"),
        ({"field_197": 2**64 - 1}, "gpu_samples", {"pcie_sent_bytes_per_s": None}, "pcie_sent"),
        ({"memory_temperature_c": 0}, "gpu_states", {"memory_temperature_c": None}, "memory_temperature"),
        ({"gpm_5": 4e9}, "gpu_activity", {"tensor_ratio": None}, "activity.tensor"),
    ],
)
def test_not_available_in_the_shape_of_a_number_is_none(
    rig: RigMaker,
    healthy: dict[str, list[Row]],
    fields: dict[str, float],
    table: str,
    columns: dict[str, Any],
    field: str | None,
) -> None:
    scenario = busy()
    scenario.grow(0, "*", energy_mj=612_345)
    scenario.at(0, "*", **fields)
    for row in healthy[table]:
        row |= {column: value for column, value in columns.items() if row[column] is not None}
    with rig(scenario) as found:
        run_session(found)
        assert rows_of(found)[table] == healthy[table]
        if field is not None:
            ((state, reason),) = found.said(f"gpu.0.{field}")
            assert state in ("retry", "unsupported")
            assert reason
