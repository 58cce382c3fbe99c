"""Fault table, F8: each call and each reading of a field fails, one after the other."""

from pathlib import Path
from typing import Any

import pytest

from busy_gpu import THROTTLED_NS_PER_S, TIMES_S, busy, run_session
from nvml_rig import Rig, RigMaker, Row

# --- each call fails, one after the other


def count_of_calls(rig: RigMaker, log: Path) -> int:
    with rig(busy(), log=log) as found:
        run_session(found)
        return len(log.read_text().splitlines())


def others(column: str, row: Row) -> tuple[Any, ...]:
    """Values that are right too: of another way to the same quantity, of another period."""
    if column in ("power_mw", "power_kind") and row["power_kind"] == "average_1s":
        return 598_000, "average_1s"
    if column == "power_average_mw":
        return (601_000,)  # it is read every 0.9 s, from another time on where the GPU was lost
    if column == "nvlinks":
        return (17,)  # one that fails above all others looks like one that is not there
    if column == "period_ns":
        return 200_000_000, 1_000_000_000, 1_200_000_000
    if column.startswith("throttled"):
        # Of those of its counters that are there, the one that grew most.
        return tuple(per_s // 5 for per_s in THROTTLED_NS_PER_S.values())
    return ()


def assert_nothing_is_made_up(
    found: Rig, healthy: dict[str, list[Row]], what: str, untold: tuple[str, ...] = ()
) -> None:
    """Each value is None or what it is without the fault; where one is None, `sampler_state` says something.

    `untold`: columns of which no reader could tell that they are wrong.
    """
    missing = False
    for table in set(found.tables()) | set(healthy):
        rows = found.rows(table)
        expected = {(row.get("time_ns"), row["gpu"]): row for row in healthy[table]}
        missing = missing or len(rows) < len(healthy[table])
        for row in rows:
            # A row at a time at which the healthy session has none (what a GPU is, told later) has the same values.
            right = expected.get((row.get("time_ns"), row["gpu"]), healthy[table][-1])
            for column, value in row.items():
                if value is None:
                    missing = missing or right[column] is not None
                elif isinstance(value, float):
                    assert value == pytest.approx(right[column], rel=1e-12), (what, table, column, row)
                elif column not in ("time_ns", *untold):
                    assert value in (right[column], *others(column, row)), (what, table, column, row)
    if missing and found.tables() != ["gpus"]:
        assert found.rows("sampler_state") or any(None in row.values() for row in found.rows("gpus")), what


FAILURES = [
    ("NVML_ERROR_NOT_SUPPORTED", 1),
    ("NVML_ERROR_NOT_SUPPORTED", -1),
    ("NVML_ERROR_UNKNOWN", 1),
    ("NVML_ERROR_GPU_IS_LOST", 1),
]
MORE_FAILURES = [
    ("NVML_ERROR_UNKNOWN", -1),
    ("NVML_ERROR_GPU_IS_LOST", -1),
    ("NVML_ERROR_UNINITIALIZED", 1),
    ("NVML_ERROR_UNINITIALIZED", -1),
    ("NVML_ERROR_TIMEOUT", 1),
    ("NVML_ERROR_TIMEOUT", -1),
    ("NVML_ERROR_NO_PERMISSION", 1),
    ("NVML_ERROR_NOT_FOUND", 1),
]


@pytest.mark.parametrize(
    ("code", "times"),
    [*FAILURES, *(pytest.param(*failure, marks=pytest.mark.slow) for failure in MORE_FAILURES)],
    ids=lambda value: {1: "once", -1: "from then on"}.get(value, value),
)
def test_whichever_call_fails_nothing_is_raised_and_nothing_made_up(
    rig: RigMaker, healthy: dict[str, list[Row]], tmp_path: Path, code: str, times: int
) -> None:
    calls = count_of_calls(rig, tmp_path / "log")
    assert calls > 100
    # A GPU on which all links from one number on are not supported looks like one that has so many.
    untold = ("nvlinks",) if times < 0 else ()
    for failing in range(calls):
        scenario = busy()
        scenario.fail("*", code, after=failing, times=times)
        with rig(scenario) as found:
            run_session(found)
            assert_nothing_is_made_up(found, healthy, f"call {failing}, {code}", untold)


@pytest.mark.parametrize("code", ["NVML_ERROR_UNKNOWN", "NVML_ERROR_GPU_IS_LOST"])
@pytest.mark.parametrize("number", [186, 185, 83, 82, 197, 198, 138, 139, *THROTTLED_NS_PER_S])
def test_whichever_reading_of_a_field_fails_nothing_is_made_up(
    rig: RigMaker, healthy: dict[str, list[Row]], number: int, code: str
) -> None:
    for failing in range(len(TIMES_S)):
        scenario = busy()
        scenario.fail_field(number, code, after=failing, times=1)
        with rig(scenario) as found:
            run_session(found)
            assert_nothing_is_made_up(found, healthy, f"field {number}, reading {failing}, {code}")
