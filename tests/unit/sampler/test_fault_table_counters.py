"""Fault table, F8: counters that run round or begin anew give exact rates or a gap; old drivers give what they have."""

import pytest

from busy_gpu import KIB, PCIE_BYTES_PER_S, THROTTLED_NS_PER_S, busy, rows_of, run_session
from fakes.nvml.build import R450, R470, R525
from nvml_rig import RigMaker, Row

# --- counters


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("number", [197, 198, 138, 139])
def test_a_rate_is_exact_where_its_counter_runs_round(rig: RigMaker, number: int, bits: int) -> None:
    per_s = 3_000_000_000 if bits == 64 else 1_000_000_000
    scenario = busy()
    scenario.at(0, 0, **{f"field_{number}": 2**bits - per_s})
    scenario.grow(0, 0, **{f"field_{number}": per_s})
    scenario.wrap(0, f"field_{number}", bits)
    scenario.type(f"field_{number}", "u32" if bits == 32 else "u64")
    column = {197: "pcie_sent", 198: "pcie_received", 138: "nvlink_sent", 139: "nvlink_received"}[number]
    unit = 1 if number in PCIE_BYTES_PER_S else KIB
    with rig(scenario) as found:
        for fifth in range(51):
            found.sample(fifth / 5, "fast")
        rates = found.values("gpu_samples", f"{column}_bytes_per_s")
    # 10 s: at 32 bits it runs round three times. (Four readings a round at least.)
    assert rates == [None] + [per_s * unit] * 50


@pytest.mark.parametrize("number", THROTTLED_NS_PER_S)
def test_throttled_time_is_exact_where_its_counter_runs_round(rig: RigMaker, number: int) -> None:
    scenario = busy()
    scenario.at(0, 0, **{f"field_{number}": 2**64 - 500_000_000})
    scenario.grow(0, 0, **{f"field_{number}": 900_000_000})
    column = {74: "power", 77: "power", 271: "power", 75: "thermal", 269: "thermal", 270: "thermal"}.get(
        number, "other"
    )
    with rig(scenario) as found:
        for fifth in range(10):
            found.sample(fifth / 5, "fast")
        assert found.values("gpu_samples", f"throttled_{column}_ns") == [None] + [180_000_000] * 9


@pytest.mark.parametrize("number", [197, 138, 74])
def test_a_counter_that_begins_anew_has_a_gap_there_and_no_wrong_value(rig: RigMaker, number: int) -> None:
    per_s = {197: 3_000_000_000, 138: 50_000_000, 74: 250_000_000}[number]
    scenario = busy()
    for time_s, value in ((0, 2**50), (0.9, 0)):
        scenario.at(time_s, 0, **{f"field_{number}": value})
        scenario.grow(time_s, 0, **{f"field_{number}": per_s})
    column = {197: "pcie_sent_bytes_per_s", 138: "nvlink_sent_bytes_per_s", 74: "throttled_power_ns"}[number]
    expected = {197: 3e9, 138: 50e6 * KIB, 74: 50_000_000}[number]
    with rig(scenario) as found:
        for fifth in range(8):
            found.sample(fifth / 5, "fast")
        assert found.values("gpu_samples", column) == [None, *[expected] * 4, None, expected, expected]


def test_a_counter_that_is_narrower_than_its_type_has_a_gap_where_it_runs_round(rig: RigMaker) -> None:
    """A step back that no link could make forwards: what the driver does not say is not made up."""
    scenario = busy()
    scenario.at(0, 0, field_197=2**32 - 2_700_000_000)
    scenario.grow(0, 0, field_197=3_000_000_000)
    scenario.wrap(0, "field_197", 32)
    with rig(scenario) as found:
        for fifth in range(8):
            found.sample(fifth / 5, "fast")
        assert found.values("gpu_samples", "pcie_sent_bytes_per_s") == [None, *[3e9] * 4, None, 3e9, 3e9]


def test_energy_is_the_counter_through_a_reset(rig: RigMaker) -> None:
    scenario = busy()
    scenario.at(0.9, 0, energy_mj=0)
    scenario.integral(0.9, 0, energy_mj="power_instant_mw")
    with rig(scenario) as found:
        for fifth in range(8):
            found.sample(fifth / 5, "fast")
        before = [5_000_000 + 612_345 * fifth // 5 for fifth in range(5)]
        assert found.values("gpu_samples", "energy_mj") == before + [612_345 * tenth // 10 for tenth in (1, 3, 5)]


# --- old drivers


MEMORY = ("memory_used_bytes", "memory_reserved_bytes", "memory_total_bytes")
REMAPPED = ("remapped_rows_corrected", "remapped_rows_uncorrected", "remap_pending", "remap_failed")


@pytest.mark.parametrize(
    ("without", "missing"),
    [(R525, {}), (R470, {"gpu_states": MEMORY}), (R450, {"gpu_states": MEMORY, "gpu_health": REMAPPED})],
    ids=["R525", "R470", "R450"],
)
def test_a_driver_without_the_newer_calls_gives_all_that_it_has(
    rig: RigMaker, healthy: dict[str, list[Row]], without: tuple[str, ...], missing: dict[str, tuple[str, ...]]
) -> None:
    with rig(busy(), without=without) as found:
        run_session(found)
        rows = rows_of(found)
    assert rows["gpu_samples"] == healthy["gpu_samples"]
    for table in ("gpu_states", "gpu_health"):
        assert rows[table] == [{**row, **dict.fromkeys(missing.get(table, ()))} for row in healthy[table]]
    assert ("gpu_activity" in rows) is (without is R525)
    assert ("gpu_processes" in rows) is (without is not R450)
    assert rows["gpus"][0]["architecture"] == (None if without is R450 else "hopper")
