"""Rows of gpu_samples from one batched query per GPU and tick, each value with a state of its own."""

from typing import Any

import pytest

from agprof.sampler.nvml_counters import REFRESH_NS
from agprof.sampler.nvml_device import Nature
from agprof.sampler.nvml_traffic import pcie_most_bytes_per_s
from nvml_stand_in import ALL_LINKS, NOT_SUPPORTED, UINT, ULONGLONG, VALUES, Rig, StandIn, none_of

RATES = {
    "pcie_sent_bytes_per_s", "pcie_received_bytes_per_s", "nvlink_sent_bytes_per_s", "nvlink_received_bytes_per_s",
    "throttled_power_ns", "throttled_thermal_ns", "throttled_other_ns",
}  # fmt: skip
MOVED = {"memory_used_bytes", "temperature_c"}
ALWAYS = {(186, 0), (83, 0), (197, 0), (198, 0), (138, ALL_LINKS), (139, ALL_LINKS)} | {
    (number, 0) for number in (74, 77, 271, 75, 269, 270, 76, 79)
}


def rows(nvml: StandIn, count: int = 2, seconds: float = 0.2) -> list[dict[str, Any]]:
    rig = Rig(nvml)
    return [rig.fast(seconds)[0] for _ in range(count)]


def test_the_first_sample_has_no_rates_and_the_second_has_all() -> None:
    first, second = rows(StandIn())
    assert none_of(first) == RATES | MOVED
    assert none_of(second) == MOVED | {"power_average_mw"}
    measured = {name: second[name] for name in second if name not in {"time_ns", *RATES, *none_of(second)}}
    assert measured == {
        "gpu": 0, "utilization_ratio": 0.75, "memory_busy_ratio": 0.0, "power_mw": 333_000, "power_kind": "instant",
        "energy_mj": 5_000, "sm_clock_mhz": 1_755, "memory_clock_mhz": 2_600, "clock_event_reasons": 4,
    }  # fmt: skip


def test_one_query_per_gpu_and_tick_and_the_average_once_per_second() -> None:
    nvml = StandIn(gpus=2)
    rig = Rig(nvml)
    for tick in range(1, 11):
        averages = [row["power_average_mw"] for row in rig.fast(0.2)]
        assert len(nvml.batches) == 2 * tick
        asked = [set(batch) for batch in nvml.batches[-2:]]
        with_average = tick in (1, 6)
        assert asked == [ALWAYS | ({(185, 0)} if with_average else set())] * 2
        assert averages == [320_000 if with_average else None] * 2
    assert not any("PcieThroughput" in call for call in nvml.calls)


@pytest.mark.parametrize("field", sorted(VALUES, key=str))
def test_a_field_that_is_not_supported_leaves_the_batch_and_takes_no_other_with_it(field: tuple[int, int]) -> None:
    nvml = StandIn()
    nvml.values[field] = NOT_SUPPORTED
    rig = Rig(nvml)
    rig.fast(0.2)
    nvml.batches.clear()
    alone = {
        185: {"power_average_mw"},
        197: {"pcie_sent_bytes_per_s"},
        198: {"pcie_received_bytes_per_s"},
        138: {"nvlink_sent_bytes_per_s"},
        139: {"nvlink_received_bytes_per_s"},
    }
    # Some have another source; and of the throttle counters the others still tell.
    for _ in range(10):
        (row,) = rig.fast(0.2)
        assert none_of(row) - {"power_average_mw"} == MOVED | alone.get(field[0], set()) - {"power_average_mw"}
    assert all(field not in batch for batch in nvml.batches)
    states = [state for _, state in rig.states() if state != "ok"]
    assert states == ["unsupported"] * (1 if field[0] in alone else 0)


def test_throttle_counters_that_are_all_missing_are_none_and_said_once() -> None:
    nvml = StandIn()
    for number in (75, 269, 270):
        nvml.values[number, 0] = NOT_SUPPORTED
    rig = Rig(nvml)
    for _ in range(5):
        (row,) = rig.fast(0.2)
    assert none_of(row) & RATES == {"throttled_thermal_ns"}
    assert [state for state in rig.states() if state[0] == "gpu.0.throttled_thermal"] == [
        ("gpu.0.throttled_thermal", "unsupported")
    ]


def test_a_field_that_fails_for_a_while_is_left_out_with_a_back_off() -> None:
    nvml = StandIn()
    nvml.values[186, 0] = "NVML_ERROR_TIMEOUT"
    rig = Rig(nvml)
    kinds = [rig.fast()[0]["power_kind"] for _ in range(8)]
    assert kinds == ["average_1s"] * 8
    assert sum((186, 0) in batch for batch in nvml.batches) == 4  # after 0, 1, 3 and 7 s
    nvml.values[186, 0] = VALUES[186, 0]
    assert rig.fast(60)[0]["power_kind"] == "instant"


def test_a_value_that_the_driver_passes_over_is_neither_0_nor_the_one_before() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    rig.fast(0.2)
    nvml.values[138, ALL_LINKS] = None
    (row,) = rig.fast(0.2)
    assert row["nvlink_sent_bytes_per_s"] is None
    assert row["nvlink_received_bytes_per_s"] == 0.0
    assert "NVML_ERROR_UNKNOWN" in rig.reason("gpu.0.nvlink_sent")


@pytest.mark.parametrize("answer", [(UINT, 2**32 - 1), (99, 5)])
def test_a_value_that_is_not_available_or_of_an_unknown_type_is_none(answer: tuple[int, int]) -> None:
    nvml = StandIn()
    nvml.values[185, 0] = answer
    assert rows(nvml)[0]["power_average_mw"] is None


@pytest.mark.parametrize(("kind", "number"), [(0, 333_000.4), (1, 333_000), (2, 333_000), (4, 333_000), (5, 333_000)])
def test_the_type_of_a_value_decides_how_it_is_read(kind: int, number: float) -> None:
    nvml = StandIn()
    nvml.values[186, 0] = (kind, number)
    assert rows(nvml)[0]["power_mw"] == 333_000


@pytest.mark.parametrize(
    ("capability", "kind"),
    [((7, 5), "instant"), ((8, 0), "instant"), ((8, 6), "average_1s"), ((9, 0), "average_1s"), ((10, 0), "average_1s")],
)
def test_power_without_the_instant_field_means_what_the_architecture_says(
    capability: tuple[int, int], kind: str
) -> None:
    nvml = StandIn(capability=capability)
    nvml.values[186, 0] = nvml.values[83, 0] = NOT_SUPPORTED
    row = rows(nvml)[0]
    assert (row["power_mw"], row["power_kind"], row["energy_mj"]) == (222_000, kind, 6_000)


def test_power_of_an_unknown_architecture_has_no_kind() -> None:
    nvml = StandIn()
    nvml.values[186, 0] = NOT_SUPPORTED
    nvml.faults["nvmlDeviceGetCudaComputeCapability", 0] = NOT_SUPPORTED
    row = rows(nvml)[0]
    assert (row["power_mw"], row["power_kind"]) == (222_000, None)


def test_no_power_has_no_kind_and_a_reason() -> None:
    nvml = StandIn()
    nvml.values[186, 0] = NOT_SUPPORTED
    nvml.faults["nvmlDeviceGetPowerUsage", 0] = NOT_SUPPORTED
    rig = Rig(nvml)
    (row,) = rig.fast()
    assert (row["power_mw"], row["power_kind"]) == (None, None)
    assert ("gpu.0.power", "unsupported") in rig.states()


@pytest.mark.parametrize(("kind", "bits"), [(UINT, 32), (ULONGLONG, 64)])
def test_bytes_over_pcie_through_a_wrap(kind: int, bits: int) -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    sent, rates = 2**bits - 500_000_000, []
    for _ in range(10):
        nvml.values[197, 0] = (kind, sent % 2**bits)
        rates.append(rig.fast(0.2)[0]["pcie_sent_bytes_per_s"])
        sent += 200_000_000
    assert rates == [None] + [1e9] * 9
    # 63 GB/s for 0.2 s are more than 32 bits hold, and less than 64 do.
    assert (("gpu.0.pcie_sent", "ok") in rig.states()) == (bits == 32)


def test_bytes_over_nvlink_are_counted_in_kib_for_all_links() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    for kib in (10, 10 + 1000):
        nvml.values[138, ALL_LINKS] = (ULONGLONG, kib)
        nvml.values[139, ALL_LINKS] = (ULONGLONG, 2 * kib)
        (row,) = rig.fast(0.2)
    assert (row["nvlink_sent_bytes_per_s"], row["nvlink_received_bytes_per_s"]) == (
        5 * 1000 * 1024,
        2 * 5 * 1000 * 1024,
    )


@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_nvlink_5_is_asked_by_its_own_fields_in_bytes(capability: tuple[int, int]) -> None:
    nvml = StandIn(capability=capability)
    nvml.values[138, ALL_LINKS] = nvml.values[139, ALL_LINKS] = NOT_SUPPORTED
    rig = Rig(nvml)
    for sent in (0, 100, 200, 300):
        nvml.values[202, ALL_LINKS] = (ULONGLONG, sent)
        nvml.values[204, ALL_LINKS] = (ULONGLONG, 2 * sent)
        (row,) = rig.fast(0.2)
    assert (row["nvlink_sent_bytes_per_s"], row["nvlink_received_bytes_per_s"]) == (500.0, 1000.0)
    assert ("gpu.0.nvlink_sent", "unsupported") not in rig.states()


def test_throttled_time_is_that_of_the_longest_cause_of_its_kind() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    rig.fast(0.2)
    growth = {74: 100, 77: 30, 271: 7, 75: 50, 269: 50, 270: 20, 76: 1, 79: 3}
    for number, grown in growth.items():
        nvml.values[number, 0] = (ULONGLONG, grown * 1_000_000)
    (row,) = rig.fast(0.2)
    assert [row[f"throttled_{cause}_ns"] for cause in ("power", "thermal", "other")] == [
        100_000_000,
        50_000_000,
        3_000_000,
    ]
    nvml.values[271, 0] = "NVML_ERROR_TIMEOUT"
    (row,) = rig.fast(0.2)
    assert none_of(row) & RATES == {"throttled_power_ns"}


def test_a_counter_that_the_driver_reset_has_one_gap() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    found = []
    for value in (10**15, 10**15 + 1024, 5, 5 + 2048):
        nvml.values[138, ALL_LINKS] = (ULONGLONG, value)
        found.append(rig.fast(1)[0]["nvlink_sent_bytes_per_s"])
    assert found == [None, 1024 * 1024, None, 2048 * 1024]


def test_energy_is_the_counter_as_it_is() -> None:
    nvml = StandIn()
    rig = Rig(nvml)
    found = []
    for value in (10**12, 10**12 + 1, 3):
        nvml.values[83, 0] = (ULONGLONG, value)
        found.append(rig.fast()[0]["energy_mj"])
    assert found == [10**12, 10**12 + 1, 3]


def test_the_fastest_link_bounds_what_pcie_can_carry() -> None:
    assert pcie_most_bytes_per_s(Nature(pcie=(3, 8))) == pytest.approx(7.88e9)
    assert pcie_most_bytes_per_s(Nature()) == pcie_most_bytes_per_s(Nature(pcie=(6, 16)))
    assert REFRESH_NS == 500_000_000


FIELDS = {
    "nvmlDeviceGetUtilizationRates": {"utilization_ratio", "memory_busy_ratio"},
    "nvmlDeviceGetClockInfo": {"sm_clock_mhz", "memory_clock_mhz"},
}


@pytest.mark.parametrize("call", FIELDS)
@pytest.mark.parametrize("error", [NOT_SUPPORTED, "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_DEPRECATED"])
def test_a_call_that_is_not_supported_is_never_made_again(call: str, error: str) -> None:
    nvml = StandIn()
    nvml.faults[call, 0] = error
    rig = Rig(nvml)
    rig.fast(0.2)
    count = nvml.calls.count(call)
    (row,) = rig.fast(0.2)
    assert none_of(row) == MOVED | FIELDS[call] | {"power_average_mw"}
    rig.fast(100)
    assert nvml.calls.count(call) == count
    assert {state for field, state in rig.states() if "pcie" not in field} == {"unsupported"}
