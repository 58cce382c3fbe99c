"""RLHF: iterations and their parts, generation, memory and communication by part, printed metrics."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis import rlhf_metrics
from agprof.analysis.rlhf import iteration_parts, iterations, part_intervals
from agprof.analysis.rlhf_metrics import Model, Setting, Times
from agprof.analysis.run import analyse
from agprof.analysis.view import View, prepare
from agprof.model.answers import RlhfAnswer
from agprof.model.tables import BY_NAME
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import MIB, MS, build_run

PART_NAMES = ["data", "generate", "score/actor", "score/reward", "train/actor", "train/critic", "ema", "retrieval"]


def rlhf_of(path: Path, **options: Any) -> RlhfAnswer:
    answer = analyse(read_run(build_run(path / "run", rlhf=True, jitter=0.0, **options))).rlhf
    assert answer is not None
    return answer


def part_of(answer: RlhfAnswer, name: str) -> Any:
    return next(part for part in answer.parts if part.name == name)


def metric_of(answer: RlhfAnswer, key: str) -> Any:
    return next(metric for metric in answer.metrics if metric.key == key)


def test_other_runs_have_no_such_answer(tmp_path: Path) -> None:
    assert analyse(read_run(build_run(tmp_path / "run"))).rlhf is None


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_iteration_is_divided_into_its_parts(tmp_path: Path, ranks: int) -> None:
    answer = rlhf_of(tmp_path, ranks=ranks, steps=14)
    assert answer.iterations == 14
    assert 8 <= answer.steady_iterations < 14
    assert [part.name for part in answer.parts] == [
        "data", "generate", "score/actor", "score/reference", "score/reward", "score/critic", "train/actor",
        "train/critic", "ema", "other",
    ]  # fmt: skip
    assert part_of(answer, "generate").ns_per_iteration == 60 * MS
    assert part_of(answer, "score/reward").ns_per_iteration == 3 * MS
    assert part_of(answer, "other").ns_per_iteration == MS
    assert part_of(answer, "generate").calls_per_iteration == 1
    assert sum(part.share for part in answer.parts) == pytest.approx(1)
    for rank in answer.ranks:
        assert sum(rank.parts_ns.values()) == pytest.approx(rank.iteration_ns)
    assert answer.sentence.startswith(f"An iteration takes {'136' if ranks == 1 else '142'} ms: generate 4")
    assert "train actor 2" in answer.sentence


def test_training_in_pieces_is_one_training(tmp_path: Path) -> None:
    whole = rlhf_of(tmp_path, ranks=1)
    pieces = analyse(read_run(build_run(tmp_path / "pieces", rlhf=True, jitter=0.0, ranks=1, rlhf_ranges=False))).rlhf
    assert pieces is not None
    assert [dataclasses.replace(part, memory_peak=whole.iteration_time) for part in pieces.parts] == [
        dataclasses.replace(part, memory_peak=whole.iteration_time) for part in whole.parts
    ]


def test_several_generations_are_one_iteration(tmp_path: Path) -> None:
    answer = rlhf_of(tmp_path, ranks=1, generations=3)
    assert answer.iterations == 12
    assert part_of(answer, "generate").calls_per_iteration == 3
    assert part_of(answer, "generate").ns_per_iteration == 180 * MS
    assert metric_of(answer, "batch").upstream.value == 12


def test_generation(tmp_path: Path) -> None:
    generation = rlhf_of(tmp_path).generation
    assert generation.tokens_per_second.value == pytest.approx(2 * 4 * 24 / 0.060)
    assert generation.latency_per_token.value == pytest.approx(60 * MS / 24)
    assert (generation.batch.value, generation.prompt_tokens.value, generation.new_tokens.value) == (4, 40, 24)


def test_actor_and_critic_are_apart_in_memory_and_communication(tmp_path: Path) -> None:
    answer = rlhf_of(tmp_path)
    actor, critic, score = (part_of(answer, name) for name in ("train/actor", "train/critic", "score/actor"))
    assert (actor.memory_peak.value, critic.memory_peak.value, score.memory_peak.value) == (
        1100 * MIB,
        950 * MIB,
        700 * MIB,
    )
    assert part_of(answer, "ema").memory_peak.reason
    for part in (actor, critic):
        assert part.collectives_per_iteration == 1
        assert part.communication_bytes_per_iteration == 4 * MIB
        assert 3 * MS <= part.communication_ns_per_iteration < 3.3 * MS
    assert (score.collectives_per_iteration, score.communication_ns_per_iteration) == (0, 0)


def test_both_columns_name_their_flaws(tmp_path: Path) -> None:
    answer = rlhf_of(tmp_path, ranks=1)
    assert [flaw.number for flaw in answer.flaws] == [1, 2, 3, 4]
    assert [flaw.applies for flaw in answer.flaws] == [False, False, True, True]
    e2e = metric_of(answer, "e2e_time")
    # upstream: what follows scoring (1 + 30 + 20 + 5 ms) and the generation; corrected: everything
    assert (e2e.upstream.value, e2e.corrected.value) == (pytest.approx(116e6), pytest.approx(136e6))
    assert e2e.flaws == (4,)
    assert metric_of(answer, "score_time").upstream.reason == "upstream prints nothing of this"
    assert metric_of(answer, "score_time").corrected.value == pytest.approx(18e6)
    bandwidth = metric_of(answer, "bandwidth")
    assert bandwidth.upstream.value == -1e9
    assert bandwidth.corrected.value == pytest.approx(100_000 * 2 / 2.5e-3)
    assert any("one PPO epoch" in note for note in answer.notes)


def test_settings_of_the_script_win(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", rlhf=True, ranks=1, jitter=0.0)
    manifest = json.loads((run / layout.MANIFEST).read_text())
    manifest["workload"]["args"] = {"ppo-epochs": 2, "answer-length": 48, "generation-batch": 8}
    (run / layout.MANIFEST).write_text(json.dumps(manifest))
    answer = analyse(read_run(run)).rlhf
    assert answer is not None
    assert metric_of(answer, "batch").upstream.value == 16
    assert metric_of(answer, "latency_per_token").upstream.value == pytest.approx(60e6 / 48)
    assert metric_of(answer, "latency_per_token").corrected.value == pytest.approx(60e6 / 24)


def test_a_run_without_a_steady_iteration_says_so(tmp_path: Path) -> None:
    answer = rlhf_of(tmp_path, steps=2, warmup_steps=2)
    assert answer.steady_iterations == 0
    assert answer.sentence.startswith("No iteration can be told")
    assert answer.metrics == ()
    assert answer.generation.tokens_per_second.reason == "no steady iteration"


# -- the tiling as a property --------------------------------------------------------------------------------------


@st.composite
def timelines(draw: st.DrawFn) -> list[tuple[str, str, int, int, int]]:
    """Spans of one rank, some nested in one another."""
    now, spans = 0, []
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.sampled_from([0, 0, 1, 7]))
        name, length = draw(st.sampled_from(PART_NAMES)), draw(st.integers(0, 20))
        spans.append(("range", name, now, now + length, 0))
        if length > 2 and draw(st.booleans()):
            spans.append(("range", draw(st.sampled_from(PART_NAMES)), now + 1, now + length - 1, 1))
        now += length
    return spans


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> View:
    return prepare(read_run(build_run(tmp_path_factory.mktemp("empty") / "run", ranks=1, steps=0)))


@settings(deadline=None, max_examples=150)
@given(timelines())
def test_parts_add_up_to_iterations_which_tile(empty: View, timeline: list[tuple[str, str, int, int, int]]) -> None:
    rows = [
        {"span": n, "step": 0, "micro_step": 0, "category": category, "name": name, "start_ns": start, "end_ns": end,
         "thread": 1, "depth": depth, "rank": 0}
        for n, (category, name, start, end, depth) in enumerate(timeline)
    ]  # fmt: skip
    spans = pl.DataFrame(rows, schema=empty.tables["spans"].schema)
    before = spans.clone()
    parts = part_intervals(spans)
    found = iterations(empty, parts)
    assert spans.equals(before)
    times = list(found.select("start_ns", "end_ns").iter_rows())
    assert all(end == begin for (_, end), (begin, _) in pairwise(times))
    named = iteration_parts(found, parts)
    assert (named["ns"] >= 0).all()
    sums = named.group_by("iteration").agg(pl.col("ns").sum()).sort("iteration")["ns"].to_list()
    assert sums == found["duration_ns"].to_list()
    if {"generate", "train/actor"} <= {name for _, name, start, end, depth in timeline if end > start and not depth}:
        last = max(start for _, name, start, end, d in timeline if name == "train/actor" and end > start and not d)
        first = min(start for _, name, start, end, d in timeline if name == "generate" and end > start and not d)
        assert bool(times) or last < first


def test_the_analysis_knows_the_tables_columns() -> None:
    assert [column.name for column in BY_NAME["generations"].columns][3:] == ["batch", "prompt_tokens", "new_tokens"]


# -- formulas, by hand ---------------------------------------------------------------------------------------------

ACTOR = Model(layers=2, hidden=4, vocab=32, params=1000, dtype="bfloat16", declared_dtype="bfloat16")
CRITIC = Model(layers=1, hidden=2, vocab=32, params=500, dtype="float32", declared_dtype="float32", checkpointing=True)
SETTING = Setting(
    ranks=2, generation_batch=4, generation_batches=1, ppo_epochs=1, prompt_tokens=6, answer_tokens=6,
    generated_tokens=6, unsupervised=False,
)  # fmt: skip
TIMES = Times(upstream_generate=2.0, upstream_train=1.0, generate=2.0, score=0.5, train=0.75, iteration=4.0)
# 24 B s L h^2 (1 + s/6h + V/16Lh), s = 12. Actor: 24*12*2*16 = 9216 a row, x (1 + 1/2 + 1/4) = 16128.
# Critic: 24*12*1*4 = 1152 a row, x (1 + 1 + 1) = 3456.
ACTOR_ROW, CRITIC_ROW = 16128, 3456


def test_flops_by_hand() -> None:
    assert rlhf_metrics.forward_flops(ACTOR, 1, 12) == ACTOR_ROW
    assert rlhf_metrics.forward_flops(CRITIC, 3, 12) == 3 * CRITIC_ROW
    assert rlhf_metrics.training_factor(ACTOR) == 3
    assert rlhf_metrics.training_factor(CRITIC) == 4
    assert rlhf_metrics.training_factor(dataclasses.replace(ACTOR, lora_dim=1)) == 3 - (1 - 0.5)


def test_upstream_by_hand() -> None:
    found = rlhf_metrics.upstream(SETTING, TIMES, ACTOR, CRITIC)
    train = 8 * (3 * ACTOR_ROW + 4 * CRITIC_ROW)
    generate = 8 * ACTOR_ROW
    assert found == {
        "batch": 8, "e2e_time": 3.0, "samples_per_s": 8 / 3, "generate_time": 2.0, "latency_per_token": 2 / 6,
        "train_time": 1.0, "bandwidth": -1e9, "generate_flops": generate / 4, "train_flops": train / 2,
        "e2e_flops": (train + generate) / 6,
    }  # fmt: skip


def test_an_unsupervised_set_makes_upstreams_batch_two() -> None:
    setting = dataclasses.replace(SETTING, unsupervised=True, generation_batches=3, ppo_epochs=5)
    assert rlhf_metrics.upstream_batch(setting) == 2
    assert rlhf_metrics.upstream_batch(dataclasses.replace(setting, unsupervised=False)) == 4 * 3 * 5 * 2


def test_corrected_by_hand() -> None:
    setting = dataclasses.replace(SETTING, unsupervised=True)
    found = rlhf_metrics.corrected(setting, TIMES, ACTOR, CRITIC)
    train, score = 4 * (2 * 3 * ACTOR_ROW + 4 * CRITIC_ROW), 4 * (2 * ACTOR_ROW + 2 * CRITIC_ROW)
    generate = 4 * ACTOR_ROW
    assert found == {
        "batch": 8, "e2e_time": 4.0, "samples_per_s": 2.0, "generate_time": 2.0, "latency_per_token": 2 / 6,
        "score_time": 0.5, "train_time": 0.75, "bandwidth": pytest.approx(1000 * 2 / (2 / 6)),
        "generate_flops": generate / 2, "score_flops": score / 0.5, "train_flops": train / 0.75,
        "e2e_flops": (generate + score + train) / 4,
    }  # fmt: skip


def test_what_needs_a_model_is_left_out_without_it() -> None:
    assert not {"e2e_flops", "bandwidth"} & rlhf_metrics.upstream(SETTING, TIMES, None, None).keys()
    assert "generate_flops" in rlhf_metrics.corrected(SETTING, TIMES, ACTOR, None)
    assert "train_flops" not in rlhf_metrics.corrected(SETTING, TIMES, ACTOR, None)
