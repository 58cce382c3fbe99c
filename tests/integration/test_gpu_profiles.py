"""From NVML to the report, for five kinds of GPU on one and eight GPUs: the figures of the scenario come out.

Twice: on a clock that the test sets, so that a minute takes a moment and every figure has a closed form; and by the
command as a user gives it, in the time that passes.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.run import analyse
from agprof.exporters.report_json import decode, encode
from agprof.model.answers import RunAnswers
from agprof.model.figure import Figure
from agprof.model.tables import SCHEMA_VERSION
from agprof.store import layout
from agprof.store.packed_writer import PackedStreamWriter
from agprof.store.reader import read_run
from agprof_reports.run import LIMIT_BYTES, render
from fakes.nvml.build import FakeNvml
from nvml_rig import rig_of
from nvml_scenario import GPM_METRICS, MIB, PROFILES, SECOND_NS, Profile, Scenario, inherited, uuid_of
from synthetic import BOOT_NS, EPOCH_NS, rank_header, row, write_stream

SECONDS = 60
RESET_S = 23.7
"""When GPU 0's energy counter begins anew."""
KIB = 1024
PACKED = 1e-6
"""Floats are kept to 20 bits in a node's stream."""


@dataclass(frozen=True)
class Known:
    """What one GPU does, from the beginning to the end."""

    profile: Profile
    gpu: int

    @property
    def power_mw(self) -> int:
        return self.profile.power_limit_w * 500 + 1_000 * self.gpu

    @property
    def utilization_percent(self) -> int:
        return 60 + self.gpu

    @property
    def memory_used_mib(self) -> int:
        return 1_000 * (self.gpu + 3)

    @property
    def temperature_c(self) -> int:
        return 50 + self.gpu

    @property
    def sm_clock_mhz(self) -> int:
        return self.profile.sm_clock_mhz - 15 * self.gpu

    @property
    def gpm_percent(self) -> dict[str, int]:
        return {name: 20 + 7 * place + self.gpu for place, name in enumerate(GPM_METRICS.values())}

    pcie_bytes_per_s = 1_500_000_000
    nvlink_kib_per_s = 20_000_000
    throttled_ns_per_s = 125_000_000

    def told(self, scenario: Scenario) -> None:
        profile, gpu = self.profile, self.gpu
        scenario.at(
            0, gpu, power_instant_mw=self.power_mw, power_usage_mw=self.power_mw,
            utilization_percent=self.utilization_percent, memory_used_bytes=self.memory_used_mib * MIB,
            temperature_c=self.temperature_c, sm_clock_mhz=self.sm_clock_mhz, event_reasons=0,
        )  # fmt: skip
        if profile.power_average:
            scenario.at(0, gpu, power_average_mw=self.power_mw)
        if profile.gpm:
            numbers = {name: number for number, name in GPM_METRICS.items()}
            scenario.at(0, gpu, **{f"gpm_{numbers[name]}": value for name, value in self.gpm_percent.items()})
        growing = {197: self.pcie_bytes_per_s, 198: self.pcie_bytes_per_s, 74: self.throttled_ns_per_s}
        if profile.nvlinks:
            growing |= {138: self.nvlink_kib_per_s, 139: self.nvlink_kib_per_s}
        for number, per_s in growing.items():
            scenario.grow(0, gpu, **{f"field_{number}": per_s})


def scenario_of(profile: Profile, gpus: int) -> tuple[Scenario, list[Known]]:
    scenario = Scenario(profile, gpus=gpus)
    known = [Known(profile, gpu) for gpu in range(gpus)]
    for each in known:
        each.told(scenario)
    return scenario, known


# --- on a clock that the test sets


def record(run: Path, fake: FakeNvml, scenario: Scenario, devices: list[str] | None = None) -> None:
    """A run of a minute: what the sampler's GPU parts wrote, and ranks that step once a second.

    `devices`: UUID of each rank's device; not given: one rank per GPU.
    """
    devices = [uuid_of(gpu) for gpu in range(scenario.gpus)] if devices is None else devices
    for folder in (layout.NODES, layout.RANKS):
        (run / folder).mkdir(parents=True)
    record_node(run, fake, scenario, 0, SECONDS)
    for rank, uuid in enumerate(devices):
        write_stream(layout.rank_stream(run, rank), rank_header(rank, len(devices)), rank_rows(uuid))
    manifest = {"ranks": len(devices), "workload": {"profile": {"warmup_steps": 2}}}
    (run / layout.MANIFEST).write_text(json.dumps(manifest))


def record_node(run: Path, fake: FakeNvml, scenario: Scenario, from_s: int, until_s: int, attempt: int = 0) -> None:
    """The node's stream of one sampler: its GPU parts, from one second of the scenario to another."""
    with rig_of(fake, scenario, run, start_ns=BOOT_NS) as rig:
        for fifth in range(from_s * 5, until_s * 5 + 1):
            rig.sample(fifth / 5, "fast")
            if fifth % 5 == 0:
                rig.sample(fifth / 5, "medium")
            if fifth % 25 == 0:
                rig.sample(fifth / 5, "slow")
        rows = rig.written()
    header = {
        "kind": "node", "node": 0, "host": "node-a", "pid": 1, "schema_version": SCHEMA_VERSION,
        "agprof_version": "0.1.0", "clock": {"realtime_ns": EPOCH_NS, "monotonic_ns": BOOT_NS, "boottime_ns": BOOT_NS},
    }  # fmt: skip
    writer = PackedStreamWriter(layout.node_stream(run, 0, attempt), header)
    for table, values in rows.items():
        for value in values:
            writer.append(table, value)
    writer.close("clean")


def rank_rows(uuid: str) -> dict[str, list[tuple[Any, ...]]]:
    steps, spans = [], []
    for step in range(SECONDS):
        start_ns = BOOT_NS + step * SECOND_NS
        times = {"start_ns": start_ns, "end_ns": start_ns + SECOND_NS}
        steps.append(row("steps", step=step, micro_steps=1, samples=4, tokens=4096, profiled=False, **times))
        place = {"span": step, "step": step, "micro_step": 0, "thread": 1, "depth": 0}
        spans.append(row("spans", category="phase", name="forward", **place, **times))
    told = {"device.type": "cuda", "device.uuid": uuid}
    facts = [row("facts", time_ns=BOOT_NS, key=key, value=json.dumps(value)) for key, value in told.items()]
    return {"steps": steps, "spans": spans, "facts": facts}


COMBINATIONS = [(name, gpus) for name in PROFILES for gpus in (1, 8)]


def combinations(*fast: tuple[str, int]) -> list[Any]:
    """All of them; those that are not named run in CI only."""
    return [
        pytest.param(*each, marks=() if each in fast else pytest.mark.slow, id=f"{each[0]} x {each[1]}")
        for each in COMBINATIONS
    ]


def value(figure: Figure, unit: str) -> float:
    assert figure.unit == unit
    assert figure.value is not None, figure.reason
    assert figure.reason is None
    return figure.value


def assert_figures(answers: RunAnswers, known: list[Known]) -> None:
    """What does not depend on how long was sampled."""
    assert [row.gpu for row in answers.system.gpus] == [each.gpu for each in known]
    for found, each in zip(answers.system.gpus, known, strict=True):
        profile = each.profile
        assert (found.name, found.uuid, found.mig, found.xids) == (profile.name, uuid_of(each.gpu), False, 0)
        assert value(found.utilization, "ratio") == pytest.approx(each.utilization_percent / 100, rel=PACKED)
        assert value(found.memory_peak, "bytes") == each.memory_used_mib * MIB
        assert value(found.memory_total, "bytes") == profile.total_mib * MIB
        assert value(found.power, "W") == pytest.approx(each.power_mw / 1000, rel=1e-12)
        assert value(found.power_limit, "W") == profile.power_limit_w
        assert value(found.temperature_max, "°C") == each.temperature_c
        assert value(found.sm_clock, "Hz") == each.sm_clock_mhz * 1e6
        assert value(found.sm_clock_max, "Hz") == profile.sm_clock_mhz * 1e6
        assert value(found.ecc_uncorrected, "1") == 0
        for name, figure in (("sm", found.sm), ("tensor", found.tensor), ("dram", found.dram)):
            if profile.gpm:
                assert value(figure, "ratio") == pytest.approx(each.gpm_percent[name] / 100, rel=PACKED)
            else:
                assert figure.value is None
                assert figure.reason


def assert_report(html: str, profile: Profile, gpus: int) -> None:
    assert len(html.encode()) <= LIMIT_BYTES
    assert profile.name in html
    assert f"{profile.power_limit_w} W" in html.replace("\u202f", " ").replace("\u00a0", " ")
    for gpu in range(gpus):
        assert f"GPU {gpu}" in html.replace("\u00a0", " ")


@pytest.mark.parametrize(("name", "gpus"), combinations(*COMBINATIONS))
def test_a_minute_of_known_figures(fake_nvml: FakeNvml, tmp_path: Path, name: str, gpus: int) -> None:
    profile = PROFILES[name]
    scenario, known = scenario_of(profile, gpus)
    scenario.at(RESET_S, 0, energy_mj=0)
    scenario.integral(RESET_S, 0, energy_mj="power_instant_mw")
    record(tmp_path, fake_nvml, scenario)
    answers = decode(encode(analyse(read_run(tmp_path))))

    assert_figures(answers, known)
    mapping = [(found.rank, found.gpu, found.by) for found in answers.system.mapping]
    assert mapping == [(gpu, gpu, "uuid") for gpu in range(gpus)]
    for found, each in zip(answers.system.gpus, known, strict=True):
        assert found.ranks == (each.gpu,)
        assert value(found.pcie, "bytes/s") == pytest.approx(2 * each.pcie_bytes_per_s, rel=PACKED)
        if profile.nvlinks:
            assert value(found.nvlink, "bytes/s") == pytest.approx(2 * each.nvlink_kib_per_s * KIB, rel=PACKED)
        else:
            assert found.nvlink.value is None
        assert value(found.throttled_power, "ratio") == pytest.approx(each.throttled_ns_per_s / SECOND_NS, rel=1e-3)
        assert value(found.throttled_thermal, "ratio") == 0

    energy = answers.energy
    assert energy is not None
    watts = [each.power_mw / 1000 for each in known]
    for told, power_w in zip(energy.gpus, watts, strict=True):
        assert value(told.run, "J") == pytest.approx(power_w * SECONDS, rel=1e-3)
        assert value(told.mean_power, "W") == pytest.approx(power_w, rel=1e-3)
        assert told.in_run
    assert [told.resets for told in energy.gpus] == [1, *[0] * (gpus - 1)]
    assert value(energy.run, "J") == pytest.approx(sum(watts) * SECONDS, rel=1e-3)
    assert value(energy.per_step, "J") == pytest.approx(sum(watts), rel=1e-3)
    assert value(energy.kwh, "kWh") == pytest.approx(sum(watts) * SECONDS / 3.6e6, rel=1e-3)
    assert value(energy.per_token, "J") == pytest.approx(sum(watts) / (4096 * gpus), rel=1e-3)

    missing = {entry.field.split(".", 2)[2] for entry in answers.system.not_measured if entry.field.startswith("gpu.")}
    expected = set()
    if not profile.gpm:
        expected.add("activity")
    if not profile.power_average:
        expected.add("power_average")
    if not profile.nvlinks:
        expected |= {"nvlink_sent", "nvlink_received"}
    if not profile.memory_temperature:
        expected.add("memory_temperature")
    if not profile.row_remapping:
        expected.add("remapped_rows")
    assert missing == expected
    assert_report(render(answers).decode(), profile, gpus)


# --- by the command, in the time that passes


@pytest.mark.parametrize(("name", "gpus"), combinations(("H100", 8)))
def test_agprof_monitor_on_these_gpus(fake_nvml: FakeNvml, tmp_path: Path, name: str, gpus: int) -> None:
    profile = PROFILES[name]
    scenario, known = scenario_of(profile, gpus)
    runs = tmp_path / "runs"
    command = ["-m", "agprof", "monitor", "--out", str(runs), "--", "sleep", "2"]
    environment = inherited(scenario.environment(tmp_path, fake_nvml.build()))
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (run,) = runs.iterdir()
    answers = decode((run / "report.json").read_bytes())
    assert_figures(answers, known)
    for found in answers.system.gpus:
        # The fake counts by its own clock, a little after the sampler looked at its own.
        assert value(found.pcie, "bytes/s") == pytest.approx(2 * Known.pcie_bytes_per_s, rel=0.2)
    assert not [entry for entry in answers.system.not_measured if entry.field in ("gpu.sampling", "host", "processes")]
    assert_report((run / "report.html").read_text(), profile, gpus)


# --- split, hostile, lost


def test_a_rank_on_a_mig_instance_has_the_figures_of_the_instance(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    scenario, _ = scenario_of(PROFILES["H100"], 1)
    keys = [
        scenario.mig(0, slot, 20_096, "NVIDIA H100 80GB HBM3 MIG 2g.20gb", gpu_instance=3 + slot) for slot in (0, 1)
    ]
    for slot, key in enumerate(keys):
        scenario.at(0, key, memory_used_bytes=(7_000 + slot) * MIB, gpm_2=60 + slot, gpm_5=30 + slot, gpm_10=20 + slot)
    record(tmp_path, fake_nvml, scenario, devices=["MIG-0000a001-0000-5000-8000-000000000001"])
    answers = decode(encode(analyse(read_run(tmp_path))))
    (mapped,) = answers.system.mapping
    (mine,) = [found for found in answers.system.gpus if found.ranks == (0,)]
    assert mapped.gpu == mine.gpu
    assert mine.uuid == "MIG-0000a001-0000-5000-8000-000000000001"
    assert mine.mig
    assert value(mine.memory_peak, "bytes") == 7_001 * MIB
    assert value(mine.memory_total, "bytes") == 20_096 * MIB
    assert value(mine.sm, "ratio") == pytest.approx(0.61, rel=PACKED)
    assert value(mine.tensor, "ratio") == pytest.approx(0.31, rel=PACKED)
    # Of the whole GPU alone: none of it is shown as the instance's, and nothing as 0.
    for figure in (mine.utilization, mine.power, mine.temperature_max, mine.sm_clock, mine.pcie, mine.ecc_uncorrected):
        assert figure.value is None
        assert figure.reason
    (whole,) = [found for found in answers.system.gpus if found.gpu == 0]
    assert whole.utilization.value is None
    assert value(whole.power, "W") == Known(PROFILES["H100"], 0).power_mw / 1000
    assert b"MIG 2g.20gb" in render(answers)


def test_a_name_that_is_markup_is_shown_as_text(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    scenario, _ = scenario_of(PROFILES["T4"], 1)
    scenario.text(0, name=hostile)
    record(tmp_path, fake_nvml, scenario)
    html = render(analyse(read_run(tmp_path))).decode()
    assert hostile not in html
    assert "<img src=x" not in html
    assert "&lt;/script&gt;&lt;img" in html


def test_a_gpu_that_is_lost_for_a_while_is_a_gap_in_the_report_and_in_no_figure(
    fake_nvml: FakeNvml, tmp_path: Path
) -> None:
    scenario, known = scenario_of(PROFILES["H100"], 2)
    scenario.lost(1, from_s=20, until_s=30)
    record(tmp_path, fake_nvml, scenario)
    answers = decode(encode(analyse(read_run(tmp_path))))
    assert_figures(answers, known)
    (entry,) = [entry for entry in answers.system.not_measured if entry.field == "gpu.1"]
    # Tried again 1, 3, 7 and 15 s after it was lost.
    assert (entry.since_ns // SECOND_NS, (entry.until_ns or 0) // SECOND_NS) == (20, 35)
    (power,) = [curve for curve in answers.system.curves if curve.label == "GPU 1 power"]
    assert power.unit == "W"
    points = [(x_ns / SECOND_NS, y) for x_ns, y in zip(power.x_ns, power.y, strict=True)]
    assert {y for x, y in points if 20.2 < x < 34.8} <= {None}
    assert {y for x, y in points if x < 19.8 or x > 35.2} == {known[1].power_mw / 1000}
    assert None in power.y


def test_where_gpus_are_numbered_anew_no_rank_is_on_a_wrong_one(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    """GPU 0 fell off the bus, and a sampler that was started again found GPU 1 as number 0."""
    before, _ = scenario_of(PROFILES["H100"], 2)
    record(tmp_path, fake_nvml, before)
    after, _ = scenario_of(PROFILES["H100"], 1)
    after.text(0, uuid=uuid_of(1))
    record_node(tmp_path, fake_nvml, after, SECONDS, 2 * SECONDS, attempt=1)
    answers = analyse(read_run(tmp_path))
    assert [(found.rank, found.gpu) for found in answers.system.mapping] == [(0, None), (1, None)]
    for found in answers.system.mapping:
        assert f"GPU 0 was {uuid_of(0)}, then {uuid_of(1)}" in (found.reason or "")
    render(answers)
