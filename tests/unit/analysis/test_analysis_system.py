"""GPU and host from the sampler's tables, on rows whose answers are known in closed form."""

from dataclasses import replace
from itertools import pairwise

import polars as pl
import pytest

from agprof.analysis.system import analyse_system
from agprof.analysis.system_curves import LEAST_POINTS, MOST_POINTS
from agprof.analysis.system_samples import steady_window
from agprof.model.figure import Curve, Figure
from agprof.model.system_answers import COMPUTES_ON_CPU, GpuMapping, GpuRow, SystemAnswer
from agprof.model.tables import BY_NAME
from synthetic_system import (
    BOOT_NS,
    GIB,
    HOST_MEMORY_USED,
    LIMIT_MW,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER_MW,
    SECOND,
    SM_CLOCK_MHZ,
    TEMPERATURE_C,
    UTILIZATION,
    SystemRun,
    uuid_of,
)

END_S = 1000


def answer(system: SystemRun) -> SystemAnswer:
    return analyse_system(system.view())


def curve(found: SystemAnswer, label: str) -> Curve:
    return next(curve for curve in found.curves if curve.label == label)


def gpu(found: SystemAnswer, number: int = 0) -> GpuRow:
    return next(row for row in found.gpus if row.gpu == number)


def test_each_figure_of_a_gpu_in_closed_form() -> None:
    row = gpu(answer(SystemRun()), 1)
    assert (row.name, row.uuid, row.ranks, row.mig, row.xids) == ("NVIDIA H100", uuid_of(0, 1), (1,), False, 0)
    assert row.utilization.value == pytest.approx(UTILIZATION)
    assert (row.sm.value, row.tensor.value, row.dram.value) == pytest.approx((0.7, 0.4, 0.5))
    assert (row.memory_peak.value, row.memory_total.value) == (MEMORY_USED, MEMORY_TOTAL)
    assert (row.power.value, row.power_limit.value) == pytest.approx((POWER_MW / 1e3, LIMIT_MW / 1e3))
    assert row.temperature_max.value == TEMPERATURE_C
    assert (row.sm_clock.value, row.sm_clock_max.value) == pytest.approx((1.9e9, 1.98e9))
    assert (row.throttled_power.value, row.throttled_thermal.value) == (0, 0)
    assert (row.pcie.value, row.nvlink.value) == pytest.approx((3e9, 2.5e11))
    assert row.ecc_uncorrected.value == 0
    # 58 of 60 steps are steady: 58 s with a sample at both ends
    assert row.utilization.n == 58 * 5 + 1
    assert "186" not in row.power.method
    assert "at the instant" in row.power.method


def test_figures_are_of_the_steady_window_and_peaks_of_the_whole_run() -> None:
    system = SystemRun().between("gpu_samples", 0, 2, power_mw=1, utilization_ratio=0.0)
    system.between("gpu_states", 0, 1, memory_used_bytes=79 * GIB, temperature_c=99)
    row = gpu(answer(system))
    assert row.power.value == pytest.approx(POWER_MW / 1e3)
    assert row.utilization.value == pytest.approx(UTILIZATION)
    assert (row.memory_peak.value, row.temperature_max.value) == (79 * GIB, 99)
    whole = answer(SystemRun(steps=False, seconds=10).between("gpu_samples", 0, 5, power_mw=100_000))
    assert gpu(whole).power.value == pytest.approx((25 * 100 + 26 * POWER_MW / 1e3) / 51)
    assert whole.sentence.startswith("Over the whole run ")


def test_a_mean_over_activity_is_weighted_by_its_periods() -> None:
    system = SystemRun(gpus=1).between("gpu_activity", 10, 11, sm_ratio=0.0, period_ns=59 * SECOND)
    # 59 readings in the steady window: 58 of 1 s at 0.7, one of 59 s at 0
    assert gpu(answer(system)).sm.value == pytest.approx(0.7 * 58 / (58 + 59))


def test_a_mean_over_samples_is_over_time_where_the_sampler_slowed_down() -> None:
    system = SystemRun(gpus=1, seconds=60).between("gpu_samples", 30, END_S, power_mw=100_000)
    frame = system.frames["gpu_samples"]
    second = (pl.col("time_ns") - BOOT_NS) // SECOND
    whole = (pl.col("time_ns") - BOOT_NS) % SECOND == 0
    system.frames["gpu_samples"] = frame.filter((second < 30) | whole)
    # of the steady 58 s 28 at POWER_MW, five samples each, and 30 at 100 W, one each
    assert gpu(answer(system)).power.value == pytest.approx((28 * POWER_MW / 1e3 + 30 * 100) / 58, rel=0.01)


def test_the_throttled_share_is_the_counters_time_over_the_samples_time() -> None:
    system = SystemRun(gpus=1).between("gpu_samples", 2, 61, throttled_power_ns=50_000_000)
    share = gpu(answer(system)).throttled_power
    assert share.value == pytest.approx(0.25)
    assert share.source == "counted"
    assert "counters of time" in share.method


def test_time_across_a_gap_counts_where_the_counter_was_read_across_it() -> None:
    system = SystemRun(gpus=1).drop("gpu_samples", 20, 30)
    # The first sample behind the gap tells of the whole of it.
    system.where("gpu_samples", pl.col("time_ns") == BOOT_NS + 30 * SECOND, throttled_power_ns=10 * SECOND)
    assert gpu(answer(system)).throttled_power.value == pytest.approx(10 / 58, rel=0.01)
    restarted = system.where(
        "gpu_samples", pl.col("time_ns") == BOOT_NS + 30 * SECOND, throttled_power_ns=pl.lit(None, dtype=pl.Int64)
    )
    assert gpu(answer(restarted)).throttled_power.value == 0


def test_without_counters_the_share_of_samples_is_taken_and_said() -> None:
    system = SystemRun(gpus=1).where(
        "gpu_samples", pl.lit(value=True), throttled_power_ns=None, throttled_thermal_ns=None
    )
    system.between("gpu_samples", 30, 61, clock_event_reasons=0x4).between(
        "gpu_samples", 50, 61, clock_event_reasons=0x41
    )
    row = gpu(answer(system))
    assert row.throttled_power.value == pytest.approx(20 * 5 / (58 * 5 + 1))
    assert row.throttled_thermal.value == pytest.approx((10 * 5 + 1) / (58 * 5 + 1))
    assert "share of samples" in row.throttled_power.method
    assert row.throttled_power.source == "measured"


def test_a_share_is_never_over_one() -> None:
    system = SystemRun(gpus=1).where("gpu_samples", pl.lit(value=True), throttled_power_ns=5 * SECOND)
    assert gpu(answer(system)).throttled_power.value == 1


@pytest.mark.parametrize(
    ("table", "column", "field", "name", "reason"),
    [
        ("gpu_samples", "power_mw", "gpu.0.power", "power", "not supported by NVML"),
        ("gpu_samples", "utilization_ratio", "gpu.0.utilization", "utilization", "MIG is on"),
        ("gpu_samples", "clock_event_reasons", "gpu.0.throttled_thermal", "throttled_thermal", "no such field"),
        ("gpu_samples", "nvlink_sent_bytes_per_s", "gpu.0.nvlink_sent", "nvlink", "no NVLink"),
        ("gpu_states", "temperature_c", "gpu.0", "temperature_max", "GPU is lost"),
        ("gpu_activity", "tensor_ratio", "gpu.0.activity", "tensor", "GPM needs Hopper"),
        ("gpu_health", "ecc_uncorrected", "gpu", "ecc_uncorrected", "no permission"),
    ],
)
def test_what_was_not_measured_says_why(table: str, column: str, field: str, name: str, reason: str) -> None:
    system = SystemRun()
    everywhere = pl.lit(value=True)
    system.where(table, everywhere, **{column: None})
    if name.startswith("throttled"):
        system.where(table, everywhere, throttled_thermal_ns=None)
    system.add("sampler_state", field=field, state="unsupported", reason=reason)
    figure: Figure = getattr(gpu(answer(system)), name)
    assert (figure.value, figure.reason) == (None, reason)
    other: Figure = getattr(gpu(answer(system), 1), name)
    assert other.reason is not None


def test_reasons_without_a_row_of_the_sampler() -> None:
    old = SystemRun(gpus=1).empty("gpu_activity")
    old.frames["gpus"] = old.frames["gpus"].with_columns(architecture=pl.lit("ampere"))
    assert gpu(answer(old)).sm.reason == "no GPM before Hopper"
    off = SystemRun(gpus=1).empty("gpu_samples", "gpu_states")
    off.manifest["workload"]["monitor"] = {"nvml": "off"}
    assert gpu(answer(off)).power.reason == "switched off with monitor.nvml: off"


def test_a_mig_instance_says_that_its_gpu_has_the_figure() -> None:
    system = SystemRun(gpus=1)
    system.add("gpus", gpu=1000, uuid="MIG-1", name="H100 MIG 1g.10gb", mig_parent=0, mig_enabled=True)
    row = gpu(answer(system), 1000)
    assert row.mig
    assert row.power.reason == "NVML tells it of the whole GPU only: GPU 0"


def test_errors_are_those_that_came_in_the_run() -> None:
    system = SystemRun(gpus=1).where("gpu_health", pl.lit(value=True), ecc_uncorrected=7)
    assert gpu(answer(system)).ecc_uncorrected.value == 0
    system.between("gpu_health", 30, 61, ecc_uncorrected=9)
    assert gpu(answer(system)).ecc_uncorrected.value == 2
    # The driver was loaded anew and began at 0: two more came after it.
    system.between("gpu_health", 40, 50, ecc_uncorrected=0).between("gpu_health", 50, 61, ecc_uncorrected=2)
    assert gpu(answer(system)).ecc_uncorrected.value == 4


def test_recordings_of_before_have_memory_and_temperature_in_gpu_samples() -> None:
    system = SystemRun(gpus=1).empty("gpu_states", "gpu_activity", "gpu_health", "network_samples", "core_samples")
    system.where("gpu_samples", pl.lit(value=True), memory_used_bytes=5 * GIB, temperature_c=44)
    found = answer(system)
    assert (gpu(found).memory_peak.value, gpu(found).temperature_max.value) == (5 * GIB, 44)
    assert set(curve(found, "GPU 0 memory").y) == {5 * GIB}
    assert set(curve(found, "GPU 0 temperature").y) == {44}
    assert curve(found, "GPU 0 power limit").y == (700, 700)
    assert curve(found, "GPU 0 memory total").y == (MEMORY_TOTAL, MEMORY_TOTAL)
    assert found.cores == found.interfaces == ()


def test_curves_carry_owner_unit_and_values() -> None:
    found = answer(SystemRun(seconds=20))
    power = curve(found, "GPU 1 power")
    assert (power.gpu, power.node, power.rank, power.unit) == (1, 0, None, "W")
    assert power.x_ns == tuple(i * SECOND // 5 for i in range(101))
    assert set(power.y) == {600.0}
    assert set(curve(found, "GPU 0 SM clock").y) == {SM_CLOCK_MHZ * 1e6}
    assert set(curve(found, "host memory").y) == {HOST_MEMORY_USED}
    rank = curve(found, "rank 1 CPU")
    assert (rank.rank, rank.gpu, rank.unit) == (1, None, "cores")
    labels = [c.label for c in found.curves]
    assert len(labels) == len(set(labels))
    assert not any(label.startswith("interface") for label in labels)
    assert [c.label for c in found.cores] == ["core 0", "core 1", "core 2", "core 3"]
    assert found.decimation is None


def test_several_nodes_are_named() -> None:
    found = answer(SystemRun(seconds=10, nodes=2))
    assert {"node 0 GPU 0 power", "node 1 GPU 1 power", "node 1 host CPU", "rank 3 CPU"} <= {
        c.label for c in found.curves
    }
    assert [(row.node, row.gpu, row.ranks) for row in found.gpus] == [
        (0, 0, (0,)), (0, 1, (1,)), (1, 0, (2,)), (1, 1, (3,)),
    ]  # fmt: skip
    assert found.cores[-1].label == "node 1 core 3"


def test_the_command_of_monitor_has_curves_of_its_own() -> None:
    system = SystemRun(seconds=10, gpus=0, steps=False)
    system.frames["process_samples"] = system.frames["process_samples"].with_columns(rank=pl.lit(None, dtype=pl.Int64))
    found = answer(system)
    assert curve(found, "command CPU").rank is None
    assert set(curve(found, "command workers RSS").y) == {10 * GIB}


def test_interfaces_are_told_apart_where_more_than_one_carries_traffic() -> None:
    system = SystemRun(seconds=10)
    more = system.frames["network_samples"].with_columns(interface=pl.lit("ib0"), kind=pl.lit("infiniband"))
    more = more.with_columns(sent_bytes_per_s=pl.lit(5e9), errors=pl.lit(2, dtype=pl.Int64))
    quiet = more.with_columns(
        interface=pl.lit("veth1"), sent_bytes_per_s=pl.lit(0.0), received_bytes_per_s=pl.lit(0.0),
        speed_bits_per_s=pl.lit(None, dtype=pl.Int64), errors=pl.lit(0, dtype=pl.Int64),
    )  # fmt: skip
    system.frames["network_samples"] = pl.concat([system.frames["network_samples"], more, quiet])
    found = answer(system)
    assert set(curve(found, "interface ib0 sent").y) == {5e9}
    assert curve(found, "interface eth0 received").unit == "bytes/s"
    assert [row.interface for row in found.interfaces] == ["ib0", "eth0"]
    row = found.interfaces[0]
    assert (row.sent.value, row.received.value, row.speed.value) == (5e9, 2e6, 25e9 / 8)
    # the steady window of 8 s has 9 samples
    assert (row.errors.value, row.errors.n) == (18, 9)


def test_a_value_that_is_read_seldom_is_no_gap() -> None:
    seldom = (pl.col("time_ns") - BOOT_NS) % (5 * SECOND) == 0
    system = SystemRun(seconds=30, gpus=0, ranks=1).where("process_samples", seldom, pss_bytes=7 * GIB)
    pss = curve(answer(system), "rank 0 PSS")
    assert pss.y == (7 * GIB,) * 7


def test_numbers_that_are_none_are_missing() -> None:
    system = SystemRun(gpus=1).where("gpu_samples", pl.lit(value=True), utilization_ratio=float("nan"))
    system.where("host_samples", pl.lit(value=True), cpu_ratio=float("inf"))
    found = answer(system)
    assert gpu(found).utilization.value is None
    assert gpu(found).utilization.reason
    assert "host CPU" not in {c.label for c in found.curves}
    assert next(kpi for kpi in found.figures if kpi.key == "host_cpu").figure.value is None


def test_a_day_stays_small_and_a_spike_of_one_sample_is_seen() -> None:
    system = SystemRun(seconds=6 * 3600, gpus=8, step_s=60)
    at = BOOT_NS + 12_345 * SECOND
    system.where("gpu_samples", (pl.col("time_ns") == at) & (pl.col("gpu") == 5), power_mw=999_000, sm_clock_mhz=210)
    found = answer(system)
    power, clock = curve(found, "GPU 5 power"), curve(found, "GPU 5 SM clock")
    assert (12_345 * SECOND, 999.0) in zip(power.x_ns, power.y, strict=True)
    assert (12_345 * SECOND, 210e6) in zip(clock.x_ns, clock.y, strict=True)
    assert max(y for y in curve(found, "GPU 4 power").y if y is not None) == 600
    assert all(len(c.x_ns) <= MOST_POINTS for c in found.curves)
    assert sum(len(c.x_ns) for c in found.curves) <= 100_000
    assert found.decimation is not None
    assert "the lowest and the highest value of each" in found.decimation


def test_points_are_shared_by_all_curves_down_to_a_least() -> None:
    found = answer(SystemRun(seconds=900, gpus=2, nodes=64, step_s=100, cores=1, fast_s=1))
    longest = max(len(c.x_ns) for c in found.curves)
    assert longest == LEAST_POINTS or longest < LEAST_POINTS
    assert len(found.gpus) == 128


def test_curves_are_in_order_of_time_and_their_figures_in_bounds() -> None:
    found = answer(SystemRun(seconds=60).drop("gpu_samples", 20, 25))
    for shown in (*found.curves, *found.cores):
        assert all(a < b for a, b in pairwise(shown.x_ns)), shown.label
        if shown.unit == "ratio":
            assert all(0 <= y <= 1 for y in shown.y if y is not None)
    for row in found.gpus:
        for figure in (row.utilization, row.sm, row.tensor, row.dram, row.throttled_power, row.throttled_thermal):
            assert figure.value is not None
            assert 0 <= figure.value <= 1


def test_events_come_in_words() -> None:
    system = SystemRun().add("gpu_events", at_s=12, gpu=1, kind="xid", code=79)
    system.add("gpu_events", at_s=11, gpu=None, kind="xid", code=4711)
    found = answer(system)
    assert [(e.gpu, e.time_ns, e.code) for e in found.events] == [(None, 11 * SECOND, 4711), (1, 12 * SECOND, 79)]
    assert "fallen off the bus" in found.events[1].meaning
    assert "not in agprof's table" in found.events[0].meaning
    assert (gpu(found, 0).xids, gpu(found, 1).xids) == (0, 1)


def test_the_sentence_names_the_gpu_that_stands_idle() -> None:
    system = SystemRun(gpus=8).between("gpu_samples", 0, 61, gpu=3, utilization_ratio=0.02)
    found = answer(system)
    assert "GPU 3 runs a kernel 2.0 % of the time, the 7 others 90 %" in found.sentence
    kpi = next(kpi for kpi in found.figures if kpi.key == "gpu_utilization")
    assert (kpi.figure.low, kpi.figure.high) == pytest.approx((0.02, 0.9))
    assert "GPU 3 2.0 %" in kpi.note


def test_the_sentence_gives_the_range_of_several() -> None:
    system = SystemRun(gpus=4)
    for number, busy in enumerate((0.1, 0.3, 0.6, 0.9)):
        system.between("gpu_samples", 0, 61, gpu=number, utilization_ratio=busy)
    assert "from 10 % (GPU 0) to 90 % (GPU 3) of the time" in answer(system).sentence


def test_the_sentence_says_power_against_the_limit_and_what_holds_clocks_down() -> None:
    system = SystemRun(gpus=2).between("gpu_samples", 2, 61, throttled_power_ns=24_000_000)
    system.between("gpu_samples", 2, 61, gpu=1, throttled_thermal_ns=100_000_000)
    sentence = answer(system).sentence
    assert "draw 600 W of 700 W each" in sentence
    assert "are held down for power 12 % of the time" in sentence
    assert "GPU 1 is held down for heat 50 % of the time" in sentence
    one = answer(SystemRun(gpus=1).between("gpu_samples", 2, 61, throttled_power_ns=100_000_000)).sentence
    assert "the GPU runs a kernel 90 % of the time" in one
    assert "draws 600 W of 700 W, is held down for power 50 % of the time" in one


def test_gpus_that_no_rank_uses_do_not_count_in_the_sentence() -> None:
    system = SystemRun(gpus=4, ranks=2).where("gpu_samples", pl.col("gpu") >= 2, utilization_ratio=0.0)
    assert "the 2 GPUs run a kernel 90 % of the time" in answer(system).sentence


def test_ranks_on_the_cpu_have_no_figure_of_a_gpu() -> None:
    system = SystemRun(gpus=2)
    mapping = [GpuMapping(rank=rank, node=0, gpu=None, by=None, reason=COMPUTES_ON_CPU) for rank in range(2)]
    found = analyse_system(system.view(), mapping)
    assert len(found.gpus) == 2
    assert not [kpi.key for kpi in found.figures if kpi.key.startswith("gpu_")]
    assert "GPU" not in found.sentence
    assert "the host's CPU is" in found.sentence


def test_ranks_without_children_say_so() -> None:
    system = SystemRun()
    system.frames["process_samples"] = system.frames["process_samples"].filter(pl.col("role") == "rank")
    workers = next(kpi for kpi in answer(system).figures if kpi.key == "worker_cpu")
    assert workers.figure.value is None
    assert workers.figure.reason == "no rank had a child process in the steady steps"


def test_a_mean_over_two_kinds_of_power_names_both() -> None:
    system = SystemRun(gpus=3).where("gpu_samples", pl.col("gpu") == 1, power_kind="average_1s")
    power = next(kpi for kpi in answer(system).figures if kpi.key == "gpu_power")
    kinds = "NVML power at the instant or NVML power averaged over 1 s by the driver"
    assert power.figure.method == f"{kinds}; mean over 3 GPUs, lowest to highest GPU"


def test_without_samples_there_are_no_answers_and_no_zeros() -> None:
    system = SystemRun(gpus=1).empty(*[name for name, table in BY_NAME.items() if table.scope == "node"])
    found = answer(system)
    assert found == replace(
        found, curves=(), gpus=(), throttles=(), events=(), interfaces=(), cores=(), not_measured=(), gaps=()
    )
    assert found.sentence.startswith("No sampler ran")
    assert {(kpi.figure.value, kpi.figure.reason) for kpi in found.figures} == {(None, "no sampler ran")}


def test_the_steady_window_is_that_of_all_ranks() -> None:
    window = steady_window(SystemRun(seconds=60).view())
    assert (window.start_ns, window.end_ns, window.steady) == (2 * SECOND, 60 * SECOND, True)
    assert not steady_window(SystemRun(seconds=60, steps=False).view()).steady
