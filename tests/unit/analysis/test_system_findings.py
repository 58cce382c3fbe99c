"""Findings on GPUs and host: each is found with its figures where it is, and not where its evidence is missing."""

from pathlib import Path

import polars as pl
import pytest

from agprof.analysis.run import analyse
from agprof.model.answers import Finding, RunAnswers
from agprof.store.reader import read_run
from synthetic import build_run
from synthetic_system import GIB, SECOND, SystemRun

EVERY = pl.lit(value=True)
END = 1000


def answers(system: SystemRun) -> RunAnswers:
    return analyse(system.run())


def found(system: SystemRun) -> dict[str, Finding]:
    return {finding.key: finding for finding in answers(system).findings}


def only(system: SystemRun, key: str) -> Finding:
    """The one finding, complete."""
    findings = found(system)
    assert set(findings) == {key}
    finding = findings[key]
    for text in (finding.title, finding.evidence, finding.change, finding.check):
        assert text
        assert "None" not in text
    assert finding.evidence.endswith(".")
    return finding


def saving_of(finding: Finding) -> float:
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.source == "modelled"
    assert "at most" in finding.saving_ns_per_step.method
    return finding.saving_ns_per_step.value or 0.0


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_run_with_nothing_wrong_has_no_finding(gpus: int) -> None:
    assert found(SystemRun(gpus=gpus)) == {}


def test_without_a_sampler_there_is_none_either() -> None:
    system = SystemRun()
    system.empty(*[name for name, frame in system.frames.items() if "node" in frame.columns])
    assert found(system) == {}


# --- clocks


def capped(gpus: int = 2, share: float = 0.5, clock: int = 1520) -> SystemRun:
    """In the steady 58 s, that share of the samples is held down for power."""
    system = SystemRun(gpus=gpus)
    return system.between(
        "gpu_samples", 2, 2 + 58 * share, clock_event_reasons=0x4, sm_clock_mhz=clock, power_mw=699_000,
        throttled_power_ns=SECOND // 5,
    )  # fmt: skip


def test_power_capped_says_share_clock_and_what_is_lost() -> None:
    finding = only(capped(), "gpu-power-capped")
    assert finding.title == "The power limit holds all 2 GPUs down 50 % of the time"
    assert "its SM clock is 1.52 GHz then and 1.90 GHz otherwise" in finding.evidence
    assert "of 700 W" in finding.evidence
    assert "counters of time" in finding.evidence
    assert "is the maker's" in finding.change
    # half of the time x a fifth of the clock x a step of 1 s
    assert saving_of(finding) == pytest.approx(0.1e9, rel=0.01)
    assert finding.confidence == "modelled"


def test_a_limit_below_the_makers_is_named_with_the_command() -> None:
    system = capped(gpus=1).where("gpu_states", EVERY, power_limit_mw=500_000)
    assert "nvidia-smi -i 0 -pl 700" in only(system, "gpu-power-capped").change


def test_power_capped_without_counters_goes_by_samples() -> None:
    finding = only(capped().where("gpu_samples", EVERY, throttled_power_ns=None), "gpu-power-capped")
    assert "samples of the driver's reasons" in finding.evidence


def test_power_capped_all_the_time_is_held_against_the_highest_clock() -> None:
    finding = only(capped(share=1.1, clock=1485), "gpu-power-capped")
    assert "1.98 GHz otherwise" in finding.evidence
    assert saving_of(finding) == pytest.approx(0.25e9, rel=0.02)


@pytest.mark.parametrize("system", [capped(share=0.03), capped(clock=1899), capped(share=0.5, clock=1900)])
def test_a_cap_that_is_rare_or_costs_no_clock_is_no_finding(system: SystemRun) -> None:
    assert found(system) == {}


def test_one_of_many_is_named() -> None:
    system = SystemRun(gpus=8).between(
        "gpu_samples", 2, 22, gpu=5, clock_event_reasons=4, throttled_power_ns=SECOND // 5, sm_clock_mhz=1_500
    )
    assert only(system, "gpu-power-capped").title == "The power limit holds GPU 5 down 34 % of the time"


def test_thermally_throttled_says_how_hot() -> None:
    system = SystemRun(gpus=4).between(
        "gpu_samples", 10, 39, gpu=2, clock_event_reasons=0x20, throttled_thermal_ns=SECOND // 5, sm_clock_mhz=950
    )
    system.between("gpu_states", 10, 39, gpu=2, temperature_c=91)
    finding = only(system, "gpu-thermal")
    assert finding.title == "Heat holds GPU 2 down 50 % of the time"
    assert "it reaches 91 °C" in finding.evidence
    assert saving_of(finding) == pytest.approx(0.25e9, rel=0.02)


def test_heat_without_throttling_is_no_finding() -> None:
    assert found(SystemRun().where("gpu_states", EVERY, temperature_c=91)) == {}


def test_the_hardwares_brake_is_told_by_its_reason() -> None:
    system = SystemRun(gpus=1).between("gpu_samples", 30, 40, clock_event_reasons=0x88, sm_clock_mhz=600)
    finding = only(system, "gpu-hardware-slowdown")
    assert "hardware power brake, hardware slowdown" in finding.evidence
    assert "600 MHz then" in finding.evidence
    one_sample = SystemRun(gpus=1).between("gpu_samples", 30, 30.2, clock_event_reasons=0x8)
    assert found(one_sample) == {}


def test_a_gpu_slower_than_its_peers_is_named() -> None:
    system = SystemRun(gpus=4).between("gpu_samples", 0, END, gpu=1, sm_clock_mhz=1_520)
    finding = only(system, "gpu-slow-clock")
    assert finding.title == "GPU 1 runs at a clock 20 % lower than its peers"
    assert "1.52 GHz, that of 3 other GPUs of its kind 1.90 GHz" in finding.evidence
    assert saving_of(finding) == pytest.approx(0.2e9)


@pytest.mark.parametrize(
    "system",
    [
        SystemRun(gpus=1).where("gpu_samples", EVERY, sm_clock_mhz=500),
        SystemRun(gpus=4).between("gpu_samples", 0, END, gpu=1, sm_clock_mhz=1_850),
        SystemRun(gpus=4).between("gpu_samples", 0, END, gpu=1, sm_clock_mhz=300, utilization_ratio=0.01),
        SystemRun(gpus=4)
        .where("gpus", pl.col("gpu") == 1, name="L40S")
        .between("gpu_samples", 0, END, gpu=1, sm_clock_mhz=1_000),
    ],
    ids=["alone", "by 3 %", "idle", "another kind"],
)
def test_what_is_no_slower_peer(system: SystemRun) -> None:
    assert found(system) == {}


# --- memory and faults of GPUs


def test_a_full_gpu_is_told_with_its_live_tensors() -> None:
    system = SystemRun().between("gpu_states", 30, 31, gpu=1, memory_used_bytes=78 * GIB)
    assert only(system, "gpu-memory-full").title == "The memory of GPU 1 is 97 % full"
    system.add("memory", rank=1, at_s=30, step=30, micro_step=0, at="step.end", allocated_bytes=40 * GIB)
    finding = only(system, "gpu-memory-full")
    assert "of it 40.0 GiB were live tensors" in finding.evidence
    assert "expandable_segments" in finding.change
    system.add("memory", rank=1, at_s=31, step=31, micro_step=0, at="step.end", allocated_bytes=77 * GIB)
    assert "micro-batch" in only(system, "gpu-memory-full").change


def test_a_gpu_below_95_per_cent_or_of_nobody_is_no_finding() -> None:
    assert found(SystemRun().where("gpu_states", EVERY, memory_used_bytes=76 * GIB)) == {}
    unused = SystemRun(gpus=2, ranks=1).where("gpu_states", pl.col("gpu") == 1, memory_used_bytes=80 * GIB)
    assert found(unused) == {}


def tenant(system: SystemRun, owner: str, used: int | None = 8 * GIB) -> SystemRun:
    for at_s in (30, 35):
        system.add(
            "gpu_processes",
            at_s=at_s,
            gpu=1,
            pid=77,
            kind="compute",
            used_bytes=used,
            owner=owner,
            name="serve<script>",
        )
    return system


def test_other_tenants_are_named() -> None:
    finding = only(tenant(SystemRun(), "other"), "gpu-other-tenants")
    assert finding.title == "Another process is on the run's GPUs"
    assert "serve<script> (pid 77) on GPU 1 with 8.00 GiB" in finding.evidence


def test_where_nobody_knows_the_runs_gpus_tenants_are_told_as_the_nodes() -> None:
    finding = only(tenant(SystemRun(), "other").empty("facts"), "gpu-other-tenants")
    assert finding.title == "Another process is on the nodes' GPUs; which of these the run uses is not known"
    assert finding.confidence == "rule of thumb"


@pytest.mark.parametrize(
    "system",
    [
        tenant(SystemRun(), "rank"),
        tenant(SystemRun(), "child"),
        tenant(SystemRun(), "not visible"),
        tenant(SystemRun(), "other", 4 * 2**20),
        tenant(SystemRun(gpus=2, ranks=1), "other"),
    ],
    ids=["a rank", "its child", "not visible", "a display's few MiB", "on a GPU of nobody"],
)
def test_who_is_no_other_tenant(system: SystemRun) -> None:
    assert "gpu-other-tenants" not in found(system)


def test_memory_errors_that_came_in_the_run() -> None:
    finding = only(SystemRun().between("gpu_health", 30, END, ecc_uncorrected=2), "gpu-memory-errors")
    assert finding.evidence.startswith("GPU 0: 2 uncorrected ECC errors; GPU 1: 2 ")
    pending = only(SystemRun(gpus=1).between("gpu_health", 30, END, remap_pending=True), "gpu-memory-errors")
    assert "waits for its replacement" in pending.evidence
    assert "gpu-reset" in pending.change
    failed = only(SystemRun(gpus=1).where("gpu_health", EVERY, remap_failed=True), "gpu-memory-errors")
    assert "replaced: it has no spare row" in failed.change


def test_errors_of_before_the_run_and_corrected_ones_are_no_finding() -> None:
    system = SystemRun().where("gpu_health", EVERY, ecc_uncorrected=9)
    assert found(system.between("gpu_health", 30, END, ecc_corrected=99_999)) == {}


def test_errors_of_a_gpu_that_no_rank_uses_say_so() -> None:
    system = SystemRun(gpus=4, ranks=2).add("gpu_events", at_s=30, gpu=3, kind="xid", code=79)
    system.between("gpu_health", 30, END, gpu=3, ecc_uncorrected=2)
    told = found(system)
    for key in ("gpu-xid", "gpu-memory-errors"):
        assert told[key].evidence.endswith(" No rank of this run uses it.")
    assert "Do not trust" not in told["gpu-memory-errors"].change
    system.add("gpu_events", at_s=31, gpu=0, kind="xid", code=13)
    assert "No rank" not in found(system)["gpu-xid"].evidence


def test_xids_are_told_worst_first() -> None:
    system = SystemRun()
    for code, gpu in ((45, 0), (31, 0), (79, 1), (79, 1)):
        system.add("gpu_events", at_s=30, gpu=gpu, kind="xid", code=code)
    finding = only(system, "gpu-xid")
    assert finding.title == "The GPU driver reported XIDs 79, 31, 45"
    assert finding.evidence.startswith("XID 79 2 times on GPU 1: The GPU has fallen off the bus")
    assert "dmesg" in finding.change


def test_the_end_of_a_killed_program_is_no_finding_and_an_unknown_number_is() -> None:
    assert found(SystemRun().add("gpu_events", at_s=30, gpu=0, kind="xid", code=45)) == {}
    unknown = SystemRun().add("gpu_events", at_s=30, gpu=None, kind="xid", code=999)
    assert "not in agprof's table" in only(unknown, "gpu-xid").evidence
    assert found(SystemRun().add("gpu_events", at_s=30, gpu=0, kind="recovery", code=1)) == {}


# --- host


def test_a_full_host_says_who_holds_it() -> None:
    system = SystemRun().between("host_samples", 30, 31, memory_used_bytes=500 * GIB)
    finding = only(system, "host-memory-full")
    assert finding.title == "The host's memory is 98 % full"
    assert "500 GiB of 512 GiB" in finding.evidence
    assert "the ranks' resident sets are 20.0 GiB, their workers 20.0 GiB" in finding.evidence
    assert found(SystemRun().where("host_samples", EVERY, memory_used_bytes=480 * GIB)) == {}


def limited(used: int = 98, **columns: object) -> SystemRun:
    return SystemRun().where(
        "host_samples", EVERY, cgroup_memory_limit_bytes=100 * GIB, cgroup_memory_bytes=used * GIB, **columns
    )


def test_a_cgroup_at_its_limit_by_its_processes() -> None:
    system = limited().where("process_samples", EVERY, rss_bytes=22 * GIB)
    finding = only(system, "cgroup-memory-full")
    assert finding.title == "The container's memory is nearly full"
    assert "98.0 GiB of 100 GiB (98 %)" in finding.evidence
    assert "cgroup-memory-full" in found(limited(memory_pressure_ratio=0.02))


def test_page_cache_at_the_limit_is_no_finding() -> None:
    assert found(limited()) == {}
    assert found(limited(90).where("process_samples", EVERY, rss_bytes=22 * GIB)) == {}


def test_processes_killed_for_want_of_memory() -> None:
    system = limited(60).where("host_samples", EVERY, cgroup_oom_kills=3)
    assert found(system) == {}
    finding = only(system.between("host_samples", 40, END, cgroup_oom_kills=5), "cgroup-memory-full")
    assert finding.title == "Processes were killed for want of memory"
    assert "killed 2 processes" in finding.evidence


def test_swapping_by_what_is_read_back() -> None:
    system = SystemRun().between("host_samples", 2, 31, swap_in_bytes_per_s=10e6, swap_used_bytes=3 * GIB)
    finding = only(system, "swapping")
    assert "4.92 MB/s are read back from swap" in finding.evidence
    assert "up to 3.00 GiB lie in swap" in finding.evidence
    assert found(SystemRun().where("host_samples", EVERY, swap_used_bytes=3 * GIB)) == {}
    assert found(SystemRun().where("host_samples", EVERY, swap_in_bytes_per_s=1e5)) == {}


def test_swap_that_grows_in_recordings_without_rates() -> None:
    system = SystemRun().where("host_samples", EVERY, swap_in_bytes_per_s=None, swap_out_bytes_per_s=None)
    assert found(system) == {}
    finding = only(system.between("host_samples", 30, END, swap_used_bytes=GIB), "swapping")
    assert "swap in use grows by 1.00 GiB" in finding.evidence


def test_memory_pressure() -> None:
    finding = only(
        SystemRun().where("host_samples", EVERY, memory_pressure_ratio=0.2, memory_stall_ratio=0.05), "memory-pressure"
    )
    assert finding.title == "Tasks wait for memory 20 % of the time"
    assert saving_of(finding) == pytest.approx(0.05e9)
    without = only(SystemRun().where("host_samples", EVERY, memory_pressure_ratio=0.06), "memory-pressure")
    assert without.saving_ns_per_step is None
    assert found(SystemRun().where("host_samples", EVERY, memory_pressure_ratio=0.01)) == {}


def test_a_cpu_quota_that_is_used_up() -> None:
    system = SystemRun().where("host_samples", EVERY, cgroup_throttled_ratio=0.3, cgroup_cpu_limit_cores=8.0)
    assert only(system, "cpu-quota").title == "The container's CPU quota of 8 cores is used up 30 % of the time"
    assert found(SystemRun().where("host_samples", EVERY, cgroup_throttled_ratio=0.04)) == {}


def test_a_rank_that_waits_for_a_cpu() -> None:
    rank = (pl.col("rank") == 1) & (pl.col("role") == "rank")
    finding = only(SystemRun().where("process_samples", rank, cpu_wait_ratio=0.25), "cpu-wait")
    assert finding.title == "Rank 1 waits for a CPU 25 % of the time"
    assert saving_of(finding) == pytest.approx(0.25e9)
    assert found(SystemRun().where("process_samples", rank, cpu_wait_ratio=0.05)) == {}


def test_an_interface_that_loses_packets() -> None:
    finding = only(SystemRun().where("network_samples", EVERY, errors=5), "network-errors")
    assert finding.title == "Interface eth0 lost 305 packets"
    assert finding.confidence == "rule of thumb"
    assert found(SystemRun().between("network_samples", 30, 31, errors=50)) == {}
    quiet = SystemRun().where("network_samples", EVERY, errors=5, sent_bytes_per_s=10.0, received_bytes_per_s=10.0)
    assert found(quiet) == {}
    assert found(SystemRun().where("network_samples", EVERY, errors=5, kind="virtual")) == {}


# --- input


def waiting(loaders: int | None, each: float | None = None, **host: object) -> Finding:
    """Ranks that stand 0.3 s of a step in their data loader."""
    system = SystemRun(data_s=0.3, gpus=2)
    system.manifest["host"] = {"usable_cores": 16}
    busy = None if loaders is None or each is None else loaders * each
    worker = pl.col("role") == "worker"
    system.where("process_samples", worker, loaders=loaders, loader_cpu_cores=busy, processes=loaders or 0)
    if host:
        system.where("host_samples", EVERY, **host)
    return only(system, "data-wait")


def test_waiting_for_data_is_told_with_who_is_busy_meanwhile() -> None:
    finding = waiting(4, 0.975)
    assert finding.evidence == (
        "The ranks stand 300 ms of 1.00 s a step in the data loader; a rank has 4 DataLoader workers that use "
        "0.975 cores each; the host's CPU is 50 % busy; the GPUs run a kernel 90 % of the time."
    )
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == pytest.approx(0.3e9)


@pytest.mark.parametrize(
    ("loaders", "each", "host", "change"),
    [
        (0, None, {}, "give the DataLoader num_workers=7 with persistent_workers=True, pin_memory=True"),
        (4, 0.95, {}, "cores are free: raise num_workers above 4 up to 7"),
        (4, 0.95, {"cpu_ratio": 0.97}, "no core is free: make loading cheaper"),
        (8, 0.95, {}, "no core is free: make loading cheaper"),
        (4, 0.2, {"iowait_ratio": 0.3}, "wait for storage"),
        (4, 0.2, {}, "mostly idle: what is slow is handing over"),
        (4, 0.6, {}, "Raise num_workers"),
        (None, None, {}, "Raise num_workers"),
    ],
)
def test_the_change_goes_by_who_is_busy(
    loaders: int | None, each: float | None, host: dict[str, float], change: str
) -> None:
    assert change in waiting(loaders, each, **host).change


def test_workers_of_older_recordings_are_told_as_children(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", data_ms=20, collectives=2, transfer_ms=1.0))
    (finding,) = analyse(run).findings
    assert "up to 2 child processes a rank were seen" in finding.evidence


def test_two_kinds_of_steps_of_one_rank_wait_for_nobody() -> None:
    def kinds(ranks: int) -> str:
        system = SystemRun(gpus=0, ranks=ranks, seconds=40)
        long = pl.col("step") % 2 == 1
        system.frames["steps"] = system.frames["steps"].with_columns(
            end_ns=pl.when(long).then(pl.col("end_ns")).otherwise(pl.col("end_ns") - SECOND // 2)
        )
        spans = system.frames["spans"].filter(long).with_columns(
            category=pl.lit("range"), name=pl.lit("evaluate"), start_ns=pl.col("end_ns") - SECOND // 2,
            span=pl.col("span") + 10_000, depth=pl.lit(1, dtype=pl.Int64),
        )  # fmt: skip
        cut = system.frames["spans"].with_columns(
            end_ns=pl.when(long).then(pl.col("end_ns")).otherwise(pl.col("end_ns") - SECOND // 2)
        )
        system.frames["spans"] = pl.concat([cut, spans]).sort("rank", "span")
        return found(system)["bimodal-steps"].change

    assert kinds(1) == "Spread the work of `evaluate` evenly over steps, or make it rarer or cheaper."
    assert kinds(2).endswith("cheaper: ranks then wait less for one another.")


def test_names_from_outside_stay_short() -> None:
    system = tenant(SystemRun(), "other").where("gpu_processes", EVERY, name="<script>" * 100_000)
    finding = found(system)["gpu-other-tenants"]
    assert len(finding.evidence) < 1000
