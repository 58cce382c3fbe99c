"""A scenario of which no value is 0, so that one shown as 0 was not read, and a session of the sampler on it."""

from nvml_rig import Rig, Row
from nvml_scenario import GPM_METRICS, H100, MIB, Scenario

KIB = 1024
PCIE_BYTES_PER_S = {197: 3_000_000_000, 198: 7_000_000_000}
NVLINK_KIB_PER_S = {138: 50_000_000, 139: 40_000_000}
THROTTLED_NS_PER_S = {74: 250_000_000, 77: 1_000_000, 271: 2_000_000, 75: 125_000_000, 269: 3_000_000, 270: 4_000_000,
                      76: 62_500_000, 79: 5_000_000}  # fmt: skip
TIMES_S = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Of the fast tier; medium and slow sample at the first, the sixth and the last."""


def busy(gpus: int = 1, without: tuple[str, ...] = ()) -> Scenario:
    """A GPU of which no value is 0, so that one that is shown as 0 was not read."""
    scenario = Scenario(H100, gpus=gpus, without=without)

    def at(**fields: float) -> None:
        scenario.at(0, "*", **{name: value for name, value in fields.items() if name not in without})

    at(
        utilization_percent=97, memory_utilization_percent=41, power_instant_mw=612_345, power_usage_mw=598_000,
        power_average_mw=601_000, sm_clock_mhz=1755, memory_clock_mhz=2619, event_reasons=4, temperature_c=63,
        memory_temperature_c=71, memory_used_bytes=61_440 * MIB, ecc_corrected=12, ecc_uncorrected=1,
        remapped_corrected=2, remapped_uncorrected=1, remap_pending=1, remap_failed=1,
        **{f"gpm_{number}": 11 * (place + 1) for place, number in enumerate(GPM_METRICS)}, gpm_20=800, gpm_21=900,
    )  # fmt: skip
    if "energy_mj" not in without:
        scenario.at(0, "*", energy_mj=5_000_000)
        scenario.integral(0, "*", energy_mj="power_instant_mw")
    growing = {**PCIE_BYTES_PER_S, **NVLINK_KIB_PER_S, **THROTTLED_NS_PER_S}
    for number, per_s in growing.items():
        if f"field_{number}" not in without:
            scenario.at(0, "*", **{f"field_{number}": 1_000_000})
            scenario.grow(0, "*", **{f"field_{number}": per_s})
    for gpu in range(gpus):
        scenario.process(gpu, 4_000_000_000 + gpu, 60_000 * MIB)
    return scenario


def run_session(rig: Rig) -> None:
    for number, time_s in enumerate(TIMES_S):
        rig.sample(time_s, "fast")
        if number in (0, 5, 6):
            rig.sample(time_s, "medium", "slow")


def rows_of(rig: Rig) -> dict[str, list[Row]]:
    """Everything that was written but `sampler_state`."""
    return {table: rig.rows(table) for table in rig.tables()}


def all_none(row: Row) -> bool:
    """Whether this is a row of a gap."""
    return all(value is None for name, value in row.items() if name not in ("time_ns", "gpu"))
