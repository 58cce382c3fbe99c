"""Fault table, F8: NVML can't be initialised, a GPU or the whole library is lost and comes back."""

from pathlib import Path

import pytest

from busy_gpu import all_none, busy, run_session
from nvml_rig import RigMaker
from nvml_scenario import H100, SECOND_NS, Scenario

# --- initialisation fails


@pytest.mark.parametrize(
    "code",
    ["NVML_ERROR_DRIVER_NOT_LOADED", "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "NVML_ERROR_UNKNOWN",
     "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_INSUFFICIENT_RESOURCES", "NVML_ERROR_GPU_NOT_FOUND"],
)  # fmt: skip
def test_where_initialising_fails_no_row_is_written_until_it_succeeds(rig: RigMaker, tmp_path: Path, code: str) -> None:
    scenario = busy()
    scenario.fail("nvmlInitWithFlags", code, until_s=30)
    with rig(scenario, log=tmp_path / "log") as found:
        for time_s in range(100):
            found.sample(time_s)
        tried = [float(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines() if "Init" in line]
        # 1 s after the failure, then 2, 4, 8, 16, 32: the seconds on which a sample was due.
        assert tried == [0, 1, 3, 7, 15, 31]
        assert [state for state, _ in found.said("gpu")] == ["retry", "ok"]
        assert "can't be initialised" in found.said("gpu")[0][1]
        for table in ("gpu_samples", "gpu_states", "gpu_health"):
            assert next(row["time_ns"] for row in found.rows(table)) == 31 * SECOND_NS
        assert found.last("gpu_samples")["power_mw"] == 612_345


def test_a_machine_that_counts_no_gpu_has_no_rows(rig: RigMaker) -> None:
    with rig(Scenario(H100, gpus=0)) as found:
        run_session(found)
        assert found.tables() == []


# --- a GPU or the library is lost, and comes back


@pytest.mark.parametrize("code", ["NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNKNOWN"])
def test_a_gpu_that_is_lost_has_gaps_and_the_others_go_on(rig: RigMaker, code: str) -> None:
    scenario = busy(gpus=2)
    scenario.lost(1, from_s=5, until_s=9, code=code)
    with rig(scenario) as found:
        for tenth in range(0, 200, 5):
            found.sample(tenth / 10)
        for row in found.rows("gpu_samples", gpu=0)[1:]:
            assert row["power_mw"] == 612_345
            assert row["pcie_sent_bytes_per_s"] == 3e9
        lost = found.rows("gpu_samples", gpu=1)
        gone = [row["time_ns"] / SECOND_NS for row in lost if all_none(row)]
        # Tried again 1, 3 and 7 s after it was lost.
        assert gone == [time_s / 2 for time_s in range(10, 24)]
        back = [row for row in lost if row["time_ns"] >= 12 * SECOND_NS]
        assert back[0]["power_mw"] == 612_345
        assert back[0]["pcie_sent_bytes_per_s"] is None  # over the gap it is not known
        assert [row["pcie_sent_bytes_per_s"] for row in back[1:]] == [3e9] * (len(back) - 1)
        assert [all_none(row) for row in found.rows("gpu_states", gpu=1)] == [all_none(row) for row in lost]
        assert [row["time_ns"] for row in found.rows("gpu_health", gpu=1)] == [
            row["time_ns"] for row in lost if not all_none(row)
        ]
        assert [state for state, _ in found.said("gpu.1")] == ["retry", "ok"]
        assert not found.said("gpu")
        assert len(found.rows("gpus", gpu=1)) == 1


@pytest.mark.parametrize("code", ["NVML_ERROR_UNKNOWN", "NVML_ERROR_UNINITIALIZED", "NVML_ERROR_DRIVER_NOT_LOADED",
                                  "NVML_ERROR_LIB_RM_VERSION_MISMATCH", "NVML_ERROR_GPU_IS_LOST"])  # fmt: skip
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_library_that_is_lost_is_initialised_again(rig: RigMaker, gpus: int, code: str) -> None:
    scenario = busy(gpus=gpus)
    scenario.gone(5, until_s=9, code=code)
    with rig(scenario) as found:
        for tenth in range(0, 200, 5):
            found.sample(tenth / 10)
        for gpu in range(gpus):
            rows = found.rows("gpu_samples", gpu=gpu)
            gaps = [row["time_ns"] / SECOND_NS for row in rows if all_none(row)]
            assert gaps == [time_s / 2 for time_s in range(10, 24)]
            assert len(rows) == 40
            assert {row["power_mw"] for row in rows if not all_none(row)} == {612_345}
            back = rows[24:]
            assert [row["pcie_sent_bytes_per_s"] for row in back] == [None] + [3e9] * (len(back) - 1)
            assert [row["energy_mj"] for row in back] == [
                5_000_000 + 612_345 * row["time_ns"] // SECOND_NS for row in back
            ]
            assert len(found.rows("gpus", gpu=gpu)) == 1
        assert [state for state, _ in found.said("gpu")] == ["retry", "ok"]
        assert "lost" in found.said("gpu")[0][1]
