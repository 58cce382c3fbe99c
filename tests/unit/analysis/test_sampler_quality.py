"""What the quality section says of the sampler."""

import polars as pl
import pytest

from agprof.analysis.run import analyse
from agprof.analysis.sampler_quality import sampler_cpu, tier_shares
from agprof.model.answers import Quality
from agprof.model.tables import NVML_LOADING
from synthetic_system import SECOND, SystemRun


def quality(system: SystemRun) -> Quality:
    return analyse(system.run()).quality


def account(system: SystemRun, at_s: float, cpu_s: float, shares: str = "", node: int = 0) -> SystemRun:
    return system.add(
        "sampler_state", at_s=at_s, node=node, field="self", state="ok", reason=shares,
        self_cpu_ns=int(cpu_s * SECOND), self_rss_bytes=1,
    )  # fmt: skip


def test_its_cost_goes_on_after_a_restart() -> None:
    system = SystemRun(gpus=0)
    for at_s, cpu_s in ((0, 0.1), (10, 0.2), (20, 0.3), (30, 0.1), (40, 0.2)):
        account(system, at_s, cpu_s)
    figure = sampler_cpu(system.view().tables["sampler_state"])
    # 0.1 s in each of three stretches of 10 s; the one with the restart is left out
    assert figure.value == pytest.approx(0.01)
    assert sampler_cpu(SystemRun().view().tables["sampler_state"]).value is None


def test_its_cost_is_told_by_tier() -> None:
    system = SystemRun(gpus=0)
    account(account(system, 0, 0.0), 10, 0.1, "host.medium 0.20 %, gpu.fast 0.30 % of a core")
    account(system, 20, 0.2, "host.medium 0.40 %, gpu.fast 0.50 % of a core")
    account(system, 20, 0.2, "<script> 9 %, nonsense", node=1)
    shares = tier_shares(system.view().tables["sampler_state"])
    assert shares == {0: {"gpu.fast": pytest.approx(0.004), "host.medium": pytest.approx(0.003)}}
    note = "The sampler of node 0 took of one core, by thread and tier: gpu.fast 0.40 %, host.medium 0.30 %."
    assert note in quality(system).notes


def test_restarts_slowed_tiers_and_remarks_are_notes() -> None:
    system = SystemRun().restart(30)
    system.outcome = {"notes": ["the sampler was killed (SIGKILL) and was started again after 1.0 s: a gap"]}
    system.add("sampler_state", at_s=9, field="tier.fast", state="slowed", reason="the period is 0.4 s from here on")
    system.add("sampler_state", at_s=9, field="gpu.0.pcie_sent", state="ok", reason="a counter of 32 bits")
    notes = quality(system).notes
    assert "The sampler of node 0 was started again once; what it counts began anew there." in notes
    assert "tier.fast: slowed (the period is 0.4 s from here on)." in notes
    assert "gpu.0.pcie_sent: a counter of 32 bits." in notes
    assert any("killed (SIGKILL)" in note for note in notes)


def test_what_many_gpus_lack_is_one_note() -> None:
    system = SystemRun(gpus=8)
    for gpu in range(8):
        system.add("sampler_state", field=f"gpu.{gpu}.activity", state="unsupported", reason="no GPM")
    told = [note for note in quality(system).notes if "no GPM" in note]
    assert len(told) == 1
    assert told[0].startswith("gpu.0.activity, gpu.1.activity, ")


def test_what_came_back_is_not_told_as_lost() -> None:
    system = SystemRun(gpus=2)
    for gpu in range(2):
        system.add("sampler_state", at_s=9, field=f"gpu.{gpu}", state="retry", reason="lost")
    system.add("sampler_state", at_s=19, field="gpu.1", state="ok", reason="")
    notes = [note for note in quality(system).notes if "lost" in note]
    assert notes == ["gpu.0: retry (lost).", "gpu.1: retry (lost); read again later."]


def test_loading_nvml_is_no_note_where_more_was_said() -> None:
    system = SystemRun(gpus=0).add("sampler_state", field="gpu", state="retry", reason=NVML_LOADING)
    assert any(NVML_LOADING in note for note in quality(system).notes)
    system.add("sampler_state", at_s=0.1, field="gpu", state="unsupported", reason="no library")
    assert [note for note in quality(system).notes if note.startswith("gpu")] == ["gpu: unsupported (no library)."]


def test_gaps_of_each_node_are_problems() -> None:
    system = SystemRun(gpus=0, ranks=1, nodes=2, seconds=60)
    system.frames["host_samples"] = system.frames["host_samples"].filter(
        (pl.col("node") == 0) | ~(pl.col("time_ns") // SECOND % 30).is_between(10, 15)
    )
    assert "The sampler of node 1 has 2 gaps, the longest 7.00 s." in quality(system).problems
