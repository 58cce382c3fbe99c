import dataclasses
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from agprof.analysis.evidence import find_straggler
from agprof.analysis.run import analyse
from agprof.analysis.summary import terminal_lines
from agprof.model.answers import RankPhases, RunAnswers
from agprof.store.reader import read_run
from synthetic import MIB, build_run

CALM: dict[str, Any] = {"collectives": 2, "transfer_ms": 1.0}


def answers_of(path: Path, **options: Any) -> RunAnswers:
    return analyse(read_run(build_run(path / "run", **options)))


def test_a_run_with_nothing_wrong_has_no_findings_and_says_so(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, **CALM)
    assert answers.findings == ()
    assert any("Nothing stands out" in text for text in answers.verdict.evidence)
    assert "nothing found to change" in terminal_lines(answers)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("exposed-communication", {}),
        ("small-messages", {"collectives": 200, "collective_bytes": 8000, "transfer_ms": 0.3}),
        ("straggler", {**CALM, "straggler": 1}),
        ("data-wait", {**CALM, "data_ms": 20}),
        ("other-large", {**CALM, "other_ms": 60}),
        ("bimodal-steps", {**CALM, "bimodal": True, "steps": 30}),
        ("unstable-steps", {"ranks": 1, "jitter": 4.0, "steps": 40}),
        ("long-warmup", {**CALM, "warmup": (200.0,)}),
        ("optimizer-offload", {**CALM, "gpus": 2, "offload": True}),
        ("oversubscribed-threads", {**CALM, "omp_threads": 8}),
        ("memory-growth", {**CALM, "leak_bytes": 4 * MIB}),
        ("rank-ended", {**CALM, "killed": 1}),
    ],
)
def test_each_fault_is_found_and_alone(key: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = {finding.key: finding for finding in answers_of(tmp_path, **options).findings}
    assert set(found) == {key}
    finding = found[key]
    for text in (finding.title, finding.evidence, finding.change, finding.check):
        assert text


def test_offload_on_a_cpu_is_no_finding(tmp_path: Path) -> None:
    assert answers_of(tmp_path, **CALM, offload=True).findings == ()


def test_findings_are_ordered_by_saving_with_a_dead_rank_first(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, killed=1, killed_at=10, data_ms=30, other_ms=90, omp_threads=8)
    assert [f.key for f in answers.findings] == [
        "rank-ended",
        "other-large",
        "data-wait",
        "exposed-communication",
        "oversubscribed-threads",
    ]


def test_small_messages_name_the_key_and_its_value(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, collectives=200, collective_bytes=8000, transfer_ms=0.3)
    (finding,) = answers.findings
    assert "zero_optimization.reduce_bucket_size (now 50,000)" in finding.change
    assert finding.saving_ns_per_step is not None
    # 201 calls of 0.3 ms, one of which stays
    assert finding.saving_ns_per_step.value == pytest.approx(200 * 0.3e6, rel=0.05)


def test_small_messages_of_ddp_name_its_key(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, collectives=200, collective_bytes=8000, transfer_ms=0.3, framework="ddp")
    assert "bucket_cap_mb" in answers.findings[0].change


def test_a_straggler_is_named_with_its_phase_and_what_it_costs(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ranks=4, straggler=2, jitter=0.0, **CALM)
    assert answers.verdict.bound_by == "straggler"
    assert "rank 2" in answers.verdict.headline
    assert "backward" in answers.verdict.headline
    finding = next(f for f in answers.findings if f.key == "straggler")
    assert finding.saving_ns_per_step is not None
    # half of forward 40, backward 60 and optimizer 20
    assert finding.saving_ns_per_step.value == pytest.approx(60e6, rel=0.02)


def test_a_rank_that_is_slow_by_turns_is_no_straggler(tmp_path: Path) -> None:
    steady = pl.DataFrame(
        {"rank": [0, 1] * 8, "step": [i // 2 for i in range(16)], "communication": [0] * 16,
         "duration_ns": [10, 9, 8, 9] * 4}
    )  # fmt: skip
    slow = {"data": 0.0, "forward": 80.0, "backward": 0.0, "communication": 0.0, "optimizer": 0.0, "other": 20.0}
    fast = {**slow, "forward": 50.0, "communication": 30.0}
    ranks = tuple(RankPhases(rank=i, steps=8, step_ns=100.0, parts_ns=p) for i, p in enumerate((slow, fast)))
    time = dataclasses.replace(answers_of(tmp_path, steps=0).time, ranks=ranks)
    assert find_straggler(time, steady) is None
    always = steady.with_columns(duration_ns=pl.Series([10, 9] * 8))
    found = find_straggler(time, always)
    assert found is not None
    assert (found.rank, found.lost_ns, found.phase) == (0, 30.0, "forward")


def test_bimodal_steps_name_the_phase(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, **CALM, bimodal=True, steps=30)
    assert "the forward pass" in answers.findings[0].evidence


def test_ranges_outside_phases_name_what_other_is(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, **CALM, other_ms=60)
    assert "No range of yours names it." in answers.findings[0].evidence


@pytest.mark.parametrize(
    ("options", "bound_by"),
    [
        ({}, "backward"),
        ({"data_ms": 50.0}, "data"),
        ({"forward_ms": 200.0}, "forward"),
        ({"optimizer_ms": 200.0}, "optimizer"),
        ({"other_ms": 200.0}, "other"),
        ({"collectives": 40}, "communication"),
        ({"steps": 0}, "unknown"),
    ],
)
def test_the_verdict_is_the_largest_part(options: dict[str, Any], bound_by: str, tmp_path: Path) -> None:
    verdict = answers_of(tmp_path, **options).verdict
    assert verdict.bound_by == bound_by
    assert verdict.headline.endswith(".")


def test_the_verdict_has_figures(tmp_path: Path) -> None:
    verdict = answers_of(tmp_path, collectives=40, jitter=0.0).verdict
    assert verdict.headline == (
        "Bound by exposed communication: 126 ms of 251 ms a step (50 %) stand in collectives, "
        "mostly 40 all-reduce calls a step of 4.00 MiB."
    )
    assert verdict.confidence_sentence.startswith("Measured over 9 steady steps of 2 of 2 ranks")


def test_few_steps_lower_the_confidence(tmp_path: Path) -> None:
    assert "first impression" in answers_of(tmp_path, steps=3).verdict.confidence_sentence
