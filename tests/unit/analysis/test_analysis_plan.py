"""From counted micro-steps to a plan, its table, and the comparison with a run."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.plan import CONTEXT_BYTES, make_plan, needed_bytes
from agprof.analysis.plan_memory import peak_memory, with_job
from agprof.analysis.plan_predictions import nearest_mix, predict
from agprof.analysis.plan_run import plan_of_run
from agprof.errors import ConfigError
from agprof.model.figure import Figure
from agprof.model.memory_answers import MemoryAccount, MemoryPart
from agprof.model.plan_answers import ModelSize
from agprof.model.plan_json import plan_from_dict, plan_to_dict
from agprof.model.plan_measure import Job, MeasuredKind, Scenario
from sample_answers import sample_answers

MILLION = 1_000_000
JOB = Job(
    framework="deepspeed", ranks=4, zero_stage=2, offload_optimizer=False, offload_param=False, accumulation=2,
    dtype="bfloat16", optimizer="adamw", optimizer_kernel="fused", bucket_elements=1000, micro_batch=1,
    sequence_length=128, checkpointing=False, lora=False,
)  # fmt: skip


def size(trainable: int = 100 * MILLION, frozen: int = 0, dtype: str = "bfloat16") -> ModelSize:
    total = trainable + frozen
    return ModelSize(
        params=total, trainable_params=trainable, frozen_params=frozen, by_dtype=((dtype, total, trainable),),
        buffer_bytes=0, largest_layer_params=MILLION,
    )  # fmt: skip


def kind(name: str = "text", per_step: float = 2, forward: float = 10e12, **changes: Any) -> MeasuredKind:
    values: dict[str, Any] = {
        "name": name, "per_step": per_step, "by_chance": "", "forward_flops": forward, "backward_flops": 2 * forward,
        "recomputed_flops": 0.0, "activation_bytes": 5 * MILLION, "activation_and_gradient_bytes": 205 * MILLION,
        "input_bytes": 0, "peak_at": "backward in layers.1",
    }  # fmt: skip
    return MeasuredKind(**(values | changes))


def scenario(**changes: Any) -> Scenario:
    values: dict[str, Any] = {
        "varied": "as written", "label": "as written", "job": JOB, "size": size(), "update_copies": 3 * MILLION,
        "small_params": 0, "kinds": (kind(),), "seconds": 1.0,
    }  # fmt: skip
    return Scenario(**(values | changes))


def device_bytes(given_: Scenario, **job: Any) -> float:
    return peak_memory(with_job(given_, **job), "gpu").total("device")


# -- closed forms ----------------------------------------------------------------------------------------------------


def test_plain_training_in_fp32_is_16_bytes_per_parameter_and_the_activations() -> None:
    plain = scenario(size=size(dtype="float32"), job=replace(JOB, framework="plain", zero_stage=0, dtype="float32"))
    assert device_bytes(plain) == 16 * 100 * MILLION + 5 * MILLION


def test_without_accumulation_gradients_and_activations_peak_as_they_were_counted_together() -> None:
    plain = scenario(size=size(dtype="float32"), job=replace(JOB, framework="plain", zero_stage=0, accumulation=1))
    # 4 + 8 bytes of parameters and states; in the update the gradients are there whole, and that is higher
    assert device_bytes(plain) == 16 * 100 * MILLION
    large = replace(plain, kinds=(kind(activation_bytes=2000 * MILLION, activation_and_gradient_bytes=2100 * MILLION),))
    assert device_bytes(large) == 12 * 100 * MILLION + 2100 * MILLION


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_zero_2_in_16_bits_in_backward(ranks: int) -> None:
    large = scenario(kinds=(kind(activation_bytes=5000 * MILLION),))
    shard = 100 * MILLION / ranks
    # whole 16-bit parameters; the rank's share of 16-bit gradients, fp32 weights and two moments; the bucket
    expected = 2 * 100 * MILLION + (2 + 4 + 8) * shard + 2 * 1000 + 5000 * MILLION
    assert device_bytes(large, ranks=ranks) == expected


def test_frozen_parameters_have_neither_gradients_nor_states() -> None:
    frozen = scenario(size=size(trainable=MILLION, frozen=99 * MILLION), kinds=(kind(activation_bytes=900 * MILLION),))
    assert device_bytes(frozen, ranks=1) == 2 * 100 * MILLION + 14 * MILLION + 2 * 1000 + 900 * MILLION


def test_the_flat_copy_of_a_bucket_when_there_are_hardly_any_activations() -> None:
    small = scenario(kinds=(kind(activation_bytes=4),), job=replace(JOB, bucket_elements=500 * MILLION))
    parts = {(part.part, part.method): part.bytes for part in peak_memory(small, "gpu").parts}
    assert parts["buckets", "the flat copy of a bucket that is reduced"] == 2 * 100 * MILLION


def test_torch_optimizers_make_copies_and_fused_ones_do_not() -> None:
    plain = replace(JOB, framework="plain", zero_stage=0, dtype="float32")
    fused = scenario(size=size(dtype="float32"), job=plain, kinds=(kind(activation_bytes=4),))
    torchs = with_job(fused, optimizer_kernel="torch")
    assert device_bytes(fused) == 16 * 100 * MILLION + 4  # the end of backward, which is no lower than the update
    assert peak_memory(torchs, "gpu").total("device") == 20 * 100 * MILLION, "all roots at once"
    assert peak_memory(torchs, "cpu").total("device") == 16 * 100 * MILLION + 3 * 4 * MILLION, "one tensor at a time"
    assert peak_memory(with_job(torchs, framework="fsdp2", ranks=4), "cpu").total("device") == (
        (16 * 100 * MILLION + 3 * 4 * MILLION) / 4
    ), "a shard of it"


def test_sgd_keeps_nothing() -> None:
    plain = replace(JOB, framework="plain", zero_stage=0, dtype="float32", optimizer="sgd")
    assert device_bytes(scenario(size=size(dtype="float32"), job=plain)) == 8 * 100 * MILLION + 5 * MILLION


# -- what must hold whatever the numbers are -------------------------------------------------------------------------

COUNTS = st.integers(min_value=2_000 * MILLION, max_value=100_000 * MILLION)
RANKS = st.integers(min_value=2, max_value=1024)


@given(trainable=COUNTS, ranks=RANKS, accumulation=st.integers(1, 64))
def test_a_higher_stage_never_needs_more_device_memory(trainable: int, ranks: int, accumulation: int) -> None:
    """In 16 bits, of models above the billion elements that stage 3 leaves whole, with a small bucket."""
    job = replace(JOB, ranks=ranks, accumulation=accumulation)
    large = scenario(size=size(trainable), job=job)
    by_stage = [device_bytes(large, zero_stage=stage) for stage in range(4)]
    slack = 2 * 2 * 1000  # the bucket and its flat copy, which stage 0 does not have
    assert all(higher <= lower + slack for lower, higher in pairwise(by_stage))


def test_of_a_small_model_zero_needs_more_because_its_bucket_is_made_whole() -> None:
    tiny = scenario(size=size(MILLION), job=replace(JOB, bucket_elements=500 * MILLION))
    assert device_bytes(tiny, zero_stage=2) > device_bytes(tiny, zero_stage=0) + 2 * 490 * MILLION


@given(trainable=COUNTS, ranks=RANKS, stage=st.integers(1, 3))
def test_offload_and_more_ranks_never_need_more_device_memory(trainable: int, ranks: int, stage: int) -> None:
    large = scenario(size=size(trainable), job=replace(JOB, ranks=ranks))
    without = device_bytes(large, zero_stage=stage)
    assert device_bytes(large, zero_stage=stage, offload_optimizer=True) <= without
    assert device_bytes(large, zero_stage=stage, ranks=2 * ranks) <= without


@given(
    stage=st.integers(0, 3),
    framework=st.sampled_from(["deepspeed", "ddp", "fsdp2", "plain"]),
    smaller=st.integers(0, 10**12),
    more=st.integers(0, 10**12),
)
def test_more_activations_never_need_less(stage: int, framework: str, smaller: int, more: int) -> None:
    job = replace(JOB, framework=framework, zero_stage=stage)
    low, high = (
        device_bytes(
            scenario(job=job, kinds=(kind(activation_bytes=value, activation_and_gradient_bytes=value + MILLION),))
        )
        for value in (smaller, smaller + more)
    )
    assert low <= high


@given(stage=st.integers(0, 3), offload=st.booleans(), accumulation=st.integers(1, 3))
def test_a_row_is_the_sum_of_its_parts(stage: int, offload: bool, accumulation: int) -> None:
    job = replace(JOB, zero_stage=stage, offload_optimizer=offload, accumulation=accumulation)
    row = make_plan("job", [scenario(job=job)], device="gpu").as_written
    assert row.device_bytes == sum(part.bytes for part in row.parts if part.space == "device")
    assert row.host_bytes == sum(part.bytes for part in row.parts if part.space == "host")
    assert all(part.bytes >= 0 for part in row.parts)


# -- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_the_stages_offload_and_each_variant() -> None:
    variant = scenario(varied="micro_batch", label="micro-batch 2", job=replace(JOB, micro_batch=2))
    plan = make_plan("job", [scenario(), variant], device="gpu", notes=["a note"])
    labels = [row.label for row in plan.rows]
    assert labels[:4] == ["ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert labels[4:7] == [
        "ZeRO-2 + offload",
        "ZeRO-3 + offload",
        "ZeRO-3 + offload of all",
    ]
    assert labels[7:] == ["micro-batch 2"]
    assert plan.rows[2].device_bytes == plan.as_written.device_bytes
    assert all(row.host_bytes > 0 for row in plan.rows[4:7])
    assert plan.notes == ("a note",)
    assert plan.as_written.forward_flops == 2 * 10e12
    assert "100,000,000 parameters" in plan.sentence


@pytest.mark.parametrize(("gigabytes", "fits"), [(1, (24, 40, 80, 141)), (30, (40, 80, 141)), (140, ()), (133, (141,))])
def test_a_gpu_fits_with_its_margin(gigabytes: float, fits: tuple[int, ...]) -> None:
    job = replace(JOB, framework="plain", zero_stage=0)
    held = device_bytes(scenario(job=job, kinds=(kind(activation_bytes=0),)))
    large = scenario(job=job, kinds=(kind(activation_bytes=int(gigabytes * 1e9 - held)),))
    row = make_plan("job", [large], device="gpu").as_written
    assert row.device_bytes == pytest.approx(gigabytes * 1e9, abs=1)
    assert row.fits_gb == fits
    assert needed_bytes(0) == CONTEXT_BYTES


# -- plan.json -------------------------------------------------------------------------------------------------------


def test_a_plan_survives_json() -> None:
    plan = make_plan("job", [scenario()], device="gpu")
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("version",), 2, "version 2 is not 1"),
        (("workload",), 3, "plan.workload: 3 is not of type str"),
        (("ranks",), True, "plan.ranks: True is not of type int"),
        (("rows",), "x", "plan.rows: must be a list"),
        (("rows",), [None] * 10_001, "at most 10000 items"),
        (("basis",), "guess", "'guess' is not one of meta, run"),
        (("as_written", "device_bytes"), 10**400, "plan.as_written.device_bytes"),
        (("as_written", "device_bytes"), float("nan"), "is no finite number"),
        (("model",), {}, "plan.model: has no "),
        (("model", "by_dtype"), [["float32", 1]], "has 2 items instead of 3"),
        (("as_written", "fits_gb"), [{}], "plan.as_written.fits_gb[0]: {} is not of type int"),
        (("sentence",), ["<script>"], "is not of type str"),
    ],
)
def test_a_file_of_somebody_else_is_refused_with_its_place(path: tuple[str, ...], value: Any, said: str) -> None:
    plan = plan_to_dict(make_plan("job", [scenario()], device="gpu"))
    target = plan
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        plan_from_dict(plan)
    assert said in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", [None, 3, "plan", [], {}, {"version": "1"}])
def test_what_is_no_plan_at_all(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        plan_from_dict(value)


# -- beside a run ----------------------------------------------------------------------------------------------------


def test_the_mix_that_chance_gave_is_the_nearest_one() -> None:
    coin = {"by_chance": "coin", "per_step": 2.0}
    kinds = make_plan(
        "job",
        [
            scenario(
                kinds=(
                    kind("heads", forward=1.0, **coin),
                    kind("tails", forward=10.0, **coin),
                    kind("always", per_step=4, forward=100.0),
                )
            )
        ],
        device="cpu",
    ).micro_steps
    for tails in range(5):
        measured = 3 * ((4 - tails) * 1.0 + tails * 10.0 + 4 * 100.0)
        assert nearest_mix(kinds, measured * 1.001) == (4 - tails, tails, 4)
    assert nearest_mix(kinds[2:], 1.0) is None


def account(total: float, **parts: float) -> MemoryAccount:
    rows = tuple(
        MemoryPart(
            part=name, bytes=amount, share=None, source="measured", method="", details=(), formula_bytes=None
        )
        for name, amount in parts.items()
    )  # fmt: skip
    figure = Figure(value=total, unit="bytes", source="measured", n=1)
    return MemoryAccount(
        rank=0, step=4, at="peak", space="host", total=figure, parts=rows,
        unexplained_bytes=total - sum(parts.values()), held_by="",
    )  # fmt: skip


def test_prediction_and_measurement_stand_side_by_side() -> None:
    plan = make_plan("job", [scenario(kinds=(kind(activation_bytes=900 * MILLION),))], device="cpu")
    planned = plan.as_written.device_bytes
    held = account(planned / 2, activations=450 * MILLION, temporary=450 * MILLION, inputs=4.0)
    held = replace(held, parts=(*held.parts[:2], replace(held.parts[2], details=(("dataset", 4.0),))))
    rows = {row.label: row for row in predict(plan, None, [held])}
    assert rows["memory at the peak"].ratio == pytest.approx(2.0)
    assert rows["memory at the peak"].note.endswith("; 4 B of it are the data set")
    assert rows["memory at the peak, data set apart"].measured == planned / 2 - 4
    assert rows["activations and temporary tensors at the peak"].ratio == 1.0
    assert rows["parameters at the peak"].measured is None
    assert rows["parameters at the peak"].ratio is None
    assert predict(plan, None, []) == ()


# -- from a run alone ------------------------------------------------------------------------------------------------


def run_answers(params: float | None = 1000.0, peak: bool = True) -> Any:
    answers = sample_answers()
    figure = Figure(value=params, unit="1", source="counted", n=1, reason=None if params else "not seen")
    held = account(10_000.0, parameters=4000.0, activations=3000.0, buckets=2000.0, inputs=500.0)
    return replace(
        answers,
        compute=replace(answers.compute, params=figure, trainable_params=figure),
        memory=replace(answers.memory, accounts=(held,) if peak else ()),
    )


def test_without_a_model_function_the_runs_own_account_is_the_plan() -> None:
    answers = run_answers()
    plan = plan_of_run("job", answers)
    assert plan.basis == "run"
    assert plan.as_written.device_bytes == 9500.0, "all measured parts"
    assert len(plan.rows) == len(answers.memory.zero) > 0
    for row, formula in zip(plan.rows, answers.memory.zero, strict=True):
        assert row.device_bytes == formula.device_total + 3500.0, "activations and inputs as measured, no buckets"
        assert row.host_bytes == formula.host_total
    assert "can't be varied" in plan.notes[0]
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan
    assert predict(plan, answers.compute, answers.memory.accounts) == (), "it would be compared with itself"


@pytest.mark.parametrize("answers", [run_answers(params=None), run_answers(peak=False)])
def test_a_run_that_measured_too_little_gives_no_plan(answers: Any) -> None:
    with pytest.raises(ConfigError, match=r"plan: \{model: package\.module:function\}"):
        plan_of_run("job", answers)
