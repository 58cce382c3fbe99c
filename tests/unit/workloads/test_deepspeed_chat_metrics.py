"""Both columns of the printed speeds against numbers worked out by hand."""

import pytest

from agprof_workloads.deepspeed_chat import metrics
from agprof_workloads.deepspeed_chat.metrics import Iteration, Setup, Shape, SupervisedStep, Work

# h = 2, L = 3, V = 96: with s = 12, 1 + s/6h + V/16Lh = 1 + 1 + 1 = 3, and 24 s L h^2 = 24 * 12 * 3 * 4 = 3456
SHAPE = Shape(layers=3, hidden=2, vocabulary=96, parameters=1000)
PASS = 3456 * 3


def test_a_pass() -> None:
    assert metrics.pass_flops(SHAPE, rows=1, length=12, factor=1) == PASS
    assert metrics.pass_flops(SHAPE, rows=5, length=12, factor=3) == 15 * PASS


def test_passes_per_training_step() -> None:
    assert metrics.training_factor(64) == 3
    assert metrics.training_factor(64, checkpointing=True) == 4
    assert metrics.training_factor(64, lora_rank=8) == 3 - (1 - 16 / 64)
    assert metrics.training_factor(64, checkpointing=True, lora_rank=16) == 3.5


def test_stages_1_and_2() -> None:
    step = SupervisedStep(shape=SHAPE, factor=3, rows=4, length=12, ranks=2, host_s=0.5, s=0.8)
    upstream, corrected = metrics.supervised_upstream(step), metrics.supervised_corrected(step)
    # 4 * 3 * 10368 = 124416 FLOPs on each of two ranks
    assert upstream["tflops"] * 1e12 == pytest.approx(124_416 / 0.5 / 2)
    assert upstream["samples_per_s"] == 8
    assert corrected["tflops"] * 1e12 == pytest.approx(124_416 / 0.8)
    assert corrected["samples_per_s"] == 10


def setup(**changes: object) -> Setup:
    usual = {
        "actor": SHAPE,
        "critic": Shape(layers=3, hidden=2, vocabulary=0, parameters=500),
        "actor_factor": 3,
        "critic_factor": 4,
        "ranks": 2,
        "generation_batch": 4,
        "generation_batches": 3,
        "ppo_epochs": 1,
        "prompt_length": 7,
        "answer_length": 5,
        "unsupervised": False,
        "dtype": "fp32",
    }
    return Setup(**(usual | changes))  # type: ignore[arg-type]


MEASURED = Iteration(
    host_train_s=2.0,
    host_last_generate_s=0.5,
    phases={
        "data": 0.1,
        "generate": 2.0,
        "score/actor": 0.2,
        "score/reference": 0.2,
        "score/reward": 0.05,
        "score/critic": 0.05,
        "train/actor": 1.5,
        "train/critic": 1.0,
        "ema": 0.1,
    },
    s=8.0,
    generated=(Work(4, 12), Work(4, 12), Work(2, 12)),
    trained=(Work(4, 12), Work(4, 12), Work(2, 12)),
    unsupervised=(),
    answer_tokens=40,
)
# the critic without a vocabulary: 1 + 1 + 0 = 2
CRITIC_PASS = 3456 * 2


def test_stage_3_as_printed_upstream() -> None:
    column = metrics.ppo_upstream(setup(), MEASURED)
    # batch 4 * 3 * 1 * 2 = 24; 24 * (3 * 10368 + 4 * 6912) = 1410048
    train = 24 * (3 * PASS + 4 * CRITIC_PASS)
    assert train == 1_410_048
    assert column["train_tflops"] * 1e12 == pytest.approx(train / (2.0 * 2))
    # generation: 4 * 2 sequences
    assert column["generate_tflops"] * 1e12 == pytest.approx(8 * PASS / (0.5 * 2))
    # 2.0 + 3 * 0.5, without the scoring
    assert column["e2e_s"] == 3.5
    assert column["e2e_tflops"] * 1e12 == pytest.approx((train + 3 * 8 * PASS) / (3.5 * 2))
    assert column["latency_per_token_s"] == 0.1
    assert column["bandwidth_gb_per_s"] * 1e9 == pytest.approx(1000 * 4 / 0.1)
    assert column["samples_per_s"] == pytest.approx(24 / 3.5)


def test_stage_3_corrected() -> None:
    column = metrics.ppo_corrected(setup(), MEASURED)
    # ten sequences on this rank, as many on the other
    assert column["train_tflops"] * 1e12 == pytest.approx(10 * (3 * PASS + 4 * CRITIC_PASS) / 2.5)
    assert column["generate_tflops"] * 1e12 == pytest.approx(10 * PASS / 2.0)
    score = 10 * (2 * PASS + 2 * CRITIC_PASS)
    assert column["score_tflops"] * 1e12 == pytest.approx(score / 0.5)
    work = 10 * (4 * PASS + 4 * CRITIC_PASS) + score
    assert column["e2e_tflops"] * 1e12 == pytest.approx(work / 8.0)
    # 3 x 5 tokens one after another in 2 s
    assert column["latency_per_token_s"] == pytest.approx(2 / 15)
    assert column["bandwidth_gb_per_s"] * 1e9 == pytest.approx(1000 * 4 / (2 / 15))
    assert column["samples_per_s"] == pytest.approx(20 / 8.0)
    assert column["generated_tokens_per_s"] == pytest.approx(80 / 2.0)
    assert (column["generate_s"], column["score_s"], column["train_s"], column["e2e_s"]) == (2.0, 0.5, 2.5, 8.0)


def test_an_unsupervised_set_makes_upstreams_batch_two() -> None:
    with_set = setup(unsupervised=True)
    assert metrics.upstream_batch(setup()) == 24
    assert metrics.upstream_batch(with_set) == 2
    upstream = metrics.ppo_upstream(with_set, MEASURED)
    assert upstream["train_tflops"] * 1e12 == pytest.approx(2 * (3 * PASS + 4 * CRITIC_PASS) / 4)
    assert upstream["samples_per_s"] == pytest.approx(2 / 3.5)


def test_corrected_counts_the_unsupervised_passes() -> None:
    phases = dict(MEASURED.phases) | {"train/unsupervised": 0.5}
    measured = Iteration(
        host_train_s=2.0,
        host_last_generate_s=0.5,
        phases=phases,
        s=8.0,
        generated=MEASURED.generated,
        trained=MEASURED.trained,
        unsupervised=(Work(4, 12),),
        answer_tokens=40,
    )
    column = metrics.ppo_corrected(setup(unsupervised=True), measured)
    assert column["train_s"] == 3.0
    assert column["train_tflops"] * 1e12 == pytest.approx((10 * (3 * PASS + 4 * CRITIC_PASS) + 4 * 3 * PASS) / 3.0)


def test_bandwidth_by_precision() -> None:
    bf16, fp16 = setup(dtype="bf16"), setup(dtype="fp16")
    assert metrics.ppo_upstream(bf16, MEASURED)["bandwidth_gb_per_s"] == -1
    assert metrics.ppo_upstream(fp16, MEASURED)["bandwidth_gb_per_s"] * 1e9 == pytest.approx(2000 / 0.1)
    assert metrics.ppo_corrected(bf16, MEASURED)["bandwidth_gb_per_s"] * 1e9 == pytest.approx(2000 / (2 / 15))


def test_smoothed_reward_begins_with_the_first() -> None:
    assert metrics.moving_reward(None, 4.0) == 4.0
    assert metrics.moving_reward(4.0, 14.0) == pytest.approx(5.0)


def test_table_has_both_columns_and_a_dash() -> None:
    lines = metrics.table({"a": 1.0}, {"a": 2.0, "b": 3.0})
    assert [line.split() for line in lines] == [
        ["as", "printed", "upstream", "corrected"],
        ["a", "1", "2"],
        ["b", "-", "3"],
    ]


def test_columns_are_averaged() -> None:
    assert metrics.mean([{"a": 1.0}, {"a": 3.0}]) == {"a": 2.0}
    assert metrics.mean([]) == {}


def test_the_four_flaws_are_named() -> None:
    assert len(metrics.FLAWS) == 4
