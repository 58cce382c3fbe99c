"""The faithful AnomalyGPT shows its habits (docs/anomalygpt.md) with plausible figures; its switches silence each."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agprof.store import layout

STEPS = 20
"""The profile step and eight more in which inputs are compared, and enough steady ones to tell kinds of steps apart."""
HABITS = {
    "repeated-inputs",
    "repeated-at-once",
    "copied-items",
    "bimodal-steps",
    "readbacks",
    "much-output",
    "tiny-buckets",
    "inert-checkpointing",
    "overridden-learning-rate",
}


def run(out: Path, *sets: str) -> dict[str, Any]:
    """The report of `agprof run anomalygpt` on two ranks. Step 7 is one with a memory bank."""
    usual = ("launch.ranks_per_node=2", f"args.steps={STEPS}", f"profile.total_steps={STEPS}", "profile.profile_step=7")
    words = [word for one in (*usual, *sets) for word in ("--set", one)]
    command = [sys.executable, "-m", "agprof", "run", "anomalygpt", "--plain", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = out.iterdir()
    report: dict[str, Any] = json.loads((folder / layout.REPORT_JSON).read_text())
    assert not [problem for problem in report["quality"]["problems"] if "fault" in problem]
    return report


def findings(report: dict[str, Any]) -> dict[str, Any]:
    return {finding["key"]: finding for finding in report["findings"]}


def of_the_job(found: dict[str, Any]) -> set[str]:
    """Keys of findings on what the job does. Two kinds of steps that no range tells apart are a busy machine's."""
    return {key for key, finding in found.items() if key != "bimodal-steps" or "memory_bank" in finding["title"]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("faithful"))


@pytest.fixture(scope="module")
def faithful(report: dict[str, Any]) -> dict[str, Any]:
    return findings(report)


def text_flops(report: dict[str, Any]) -> float:
    rows = report["compute"]["modules"]
    return sum(row["forward_flops"] or 0 for row in rows if row["path"] == "visual_encoder.modality_trunks.text")


def test_the_text_towers_flops_are_those_of_its_sentences(report: dict[str, Any]) -> None:
    images, sentences, tokens, blocks, width = 3, 24, 77, 2, 32
    per_token = blocks * (24 * width**2 + 4 * tokens * width)
    assert text_flops(report) == images * sentences * tokens * per_token


def test_every_habit_is_found(faithful: dict[str, Any]) -> None:
    assert set(faithful) >= HABITS


def share(text: str, before: str) -> float:
    """The percentage that stands before these words."""
    match = re.search(rf"([\d.]+) % {re.escape(before)}", text)
    assert match, text
    return float(match[1]) / 100


def test_the_recomputed_text_features_are_named_with_their_share(faithful: dict[str, Any]) -> None:
    finding = faithful["repeated-inputs"]
    assert "visual_encoder.modality_trunks.text" in finding["title"]
    # At full size 20 % of a micro-step with a bank, 28 % without; the tiny vision tower, with ten images
    # more in this step, is larger beside the text tower
    assert 0.08 < share(finding["title"], "of the step's FLOPs") < 0.2
    # 18 of 36 calls are about `object`, all but the first two seen before
    assert share(finding["title"], "of its calls") > 0.4
    assert finding["saving_ns_per_step"]["value"] > 0
    assert finding["saving_ns_per_step"]["source"] == "measured"


def test_half_of_a_pairs_sentences_are_copies(faithful: dict[str, Any]) -> None:
    evidence = faithful["copied-items"]["title"] + faithful["copied-items"]["evidence"]
    assert "visual_encoder.modality_trunks.text" in evidence
    # 24 of the 72 sentences; of the bank's eight images and the others' five, four
    assert "33 %" in evidence
    assert "visual_encoder.modality_trunks.vision" in evidence


def test_the_query_is_encoded_twice(faithful: dict[str, Any]) -> None:
    assert "visual_encoder.modality_trunks.vision" in faithful["repeated-at-once"]["title"]


def test_the_two_kinds_of_steps_are_told_by_the_memory_bank(faithful: dict[str, Any]) -> None:
    finding = faithful["bimodal-steps"]
    assert re.search(r"ms with `memory_bank`, [\d.]+ ms without$", finding["title"])
    assert 0.25 < share(finding["evidence"], "of") < 0.8


def test_readbacks_are_counted_by_place(faithful: dict[str, Any]) -> None:
    finding = faithful["readbacks"]
    # four values a micro-step, and four targets of one of the two
    assert "6 times per micro-step" in finding["title"]
    assert re.search(r"losses\.py:\d+ one_hot_by_the_host \(4 x a tensor\)", finding["evidence"])
    assert re.search(r"model\.py:\d+ AnomalyGPT\.forward \(4 x one value\)", finding["evidence"])
    assert len(re.findall(r"train\.py:\d+ Outcomes\.note \(2 x one value\)", finding["evidence"])) == 2


def test_the_deepspeed_json_is_read_against_what_happened(faithful: dict[str, Any]) -> None:
    buckets = faithful["tiny-buckets"]
    assert "reduce_bucket_size is 50,000 elements" in buckets["title"]
    # 66,360 elements in pieces of at most 50,000, on the borders of parameters, in two micro-steps
    assert "in 6 pieces a step" in buckets["title"]
    assert "3 reductions where 1 would do, in each of 2 micro-steps" in buckets["evidence"]
    assert "cpu_checkpointing, partition_activations" in faithful["inert-checkpointing"]["evidence"]
    rate = faithful["overridden-learning-rate"]
    assert rate["title"] == "optimizer.lr 0.0001 has no effect: the scheduler goes up to 0.001"
    # 20 of 120 steps of a logarithmic warm-up
    seen = float(re.search(r"in this run was ([\d.e-]+)\.", rate["evidence"])[1])  # type: ignore[index]
    assert 5e-4 < seen < 1e-3


def test_both_ranks_print_every_sample(faithful: dict[str, Any]) -> None:
    assert faithful["much-output"]["title"].startswith("2 ranks print")
    assert "texts:" in faithful["much-output"]["evidence"]


@pytest.mark.slow
def test_fixed_silences_them_all(tmp_path: Path) -> None:
    assert not of_the_job(findings(run(tmp_path, "args.fixed=true"))) & HABITS


FIRST = ("cache-text", "reuse-taps", "quiet", "large-buckets", "drop-inert-block", "matched-lr")
SECOND = ("encode-class-once", "steady-bank", "cache-bank", "focal-on-device", "read-per-step")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switches", "silenced", "left"),
    [
        (
            FIRST,
            {"repeated-at-once", "much-output", "tiny-buckets", "inert-checkpointing", "overridden-learning-rate"},
            {"bimodal-steps", "readbacks", "copied-items"},  # the bank's images, twice for a pair
        ),
        (
            SECOND,
            {"bimodal-steps", "copied-items", "readbacks"},
            # the query of half of the images is no call with the same inputs
            {"repeated-inputs", "much-output", "inert-checkpointing", "overridden-learning-rate"},
        ),
    ],
)
def test_a_switch_silences_what_it_mends_and_nothing_else(
    switches: tuple[str, ...], silenced: set[str], left: set[str], tmp_path: Path
) -> None:
    found = findings(run(tmp_path, f"args.fixed={json.dumps(','.join(switches))}"))
    assert not of_the_job(found) & silenced
    assert of_the_job(found) >= left
    if "cache-text" in switches:
        assert not any("trunks.text" in finding["title"] for finding in found.values())
