"""The answer about compute: every figure from its definition in docs/compute.md, or None with a reason."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.run import analyse
from agprof.model.answers import RunAnswers
from agprof.model.compute_answers import ComputeAnswer, Utilisation
from agprof.model.figure import Kpi
from agprof.model.tables import BY_NAME
from agprof.store import layout
from agprof.store.reader import Run, read_run, schema
from synthetic import (
    CEILING_BYTES_PER_SECOND,
    CEILING_FLOPS_PER_SECOND,
    MODULE_LEAVES,
    Spec,
    build_run,
    rank_header,
    row,
    write_stream,
)

FORWARD, BACKWARD, AGAIN = (2 * sum(leaf[at] for leaf in MODULE_LEAVES.values()) for at in (3, 4, 5))
"""Of the synthetic run's profile step: two micro-steps."""


ADDED_UP = ("forward_flops", "backward_flops", "recomputed_flops", "modelled_flops", "forward_ns", "backward_ns")


def answers_of(path: Path, **options: Any) -> RunAnswers:
    return analyse(read_run(build_run(path / "run", **options)))


def compute_of(path: Path, **options: Any) -> ComputeAnswer:
    return answers_of(path, **options).compute


def with_facts(run: Run, **facts: Any) -> Run:
    """The run with facts of rank 0 changed; None: taken away. `__` stands for a dot."""
    frame = run.tables["facts"]
    for name, value in facts.items():
        key = name.replace("__", ".")
        frame = frame.filter(pl.col("key") != key)
        if value is not None:
            told = {"rank": 0, "time_ns": 2**62, "key": key, "value": json.dumps(value)}
            frame = pl.concat([frame, pl.DataFrame([told], schema=frame.schema)])
    return dataclasses.replace(run, tables={**run.tables, "facts": frame})


def share(answer: ComputeAnswer, key: str) -> Utilisation:
    return next(each for each in answer.utilisation if each.key == key)


def kpi(answers: RunAnswers, key: str) -> Kpi:
    return next(each for each in answers.kpis if each.key == key)


def seconds(answers: RunAnswers) -> float:
    assert answers.time.step_time.value is not None
    return answers.time.step_time.value / 1e9


# -- FLOPs three ways ----------------------------------------------------------------------------------------------


def test_three_ways_stand_side_by_side(tmp_path: Path) -> None:
    answer = compute_of(tmp_path)
    counted, modelled, deepspeed = answer.ways
    assert [way.way for way in answer.ways] == ["counted", "modelled", "deepspeed"]
    assert [way.used for way in answer.ways] == [True, False, False]
    assert [way.scope for way in answer.ways] == ["step", "step", "micro-step"]
    assert (counted.forward.value, counted.backward.value) == pytest.approx((FORWARD, BACKWARD))
    assert counted.recomputed.value == pytest.approx(AGAIN)
    assert counted.ratio_to_counted == 1
    assert modelled.backward.value == pytest.approx(1.01 * BACKWARD)
    assert deepspeed.forward.value == 6e9
    assert deepspeed.backward.value == 12e9
    assert deepspeed.ratio_to_counted == pytest.approx(18 / 9.4)
    for way in answer.ways:
        assert way.forward.value is not None
        assert way.backward.value is not None
        assert way.total.value == pytest.approx(way.forward.value + way.backward.value)
        if way.scope == "step":
            assert counted.total.value
            assert way.ratio_to_counted == pytest.approx(way.total.value / counted.total.value)


def test_what_deepspeed_gets_wrong_on_this_run_is_said(tmp_path: Path) -> None:
    note = compute_of(tmp_path).ways[2].note
    assert "It takes backward as 2 x forward; counted, backward is 0.567 x forward: 81 % of the parameters are" in note
    assert "leaves out the 400 MFLOP that a step computes again" in note
    assert "covers the first of 2 micro-steps alone" in note
    assert "ZeRO-3" not in note
    run = with_facts(read_run(tmp_path / "run"), compute__deepspeed_forward_flops=12e9, deepspeed__zero_stage=3)
    assert (
        "Its forward is 2.00 x the counted one (under ZeRO-3 it counts linear layers twice)"
        in analyse(run).compute.ways[2].note
    )


def test_a_full_training_of_one_micro_step_gives_deepspeed_nothing_to_get_wrong(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", micro_steps=1))
    operations = run.tables["operations"].with_columns(
        flops=pl.when(in_pass="forward", kind="matmul")
        .then(6e9)
        .when(in_pass="backward", kind="matmul")
        .then(12e9)
        .otherwise(0.0)
    )
    run = dataclasses.replace(run, tables={**run.tables, "operations": operations})
    run = with_facts(run, compute__first_micro_step_forward_flops=None, compute__first_micro_step_backward_flops=None)
    deepspeed = analyse(run).compute.ways[2]
    assert deepspeed.ratio_to_counted == 1  # the one micro-step is the step
    assert deepspeed.note == ""
    assert "DeepSpeed" not in analyse(run).compute.sentence


def test_without_deepspeeds_figure_its_row_says_why(tmp_path: Path) -> None:
    run = with_facts(
        read_run(build_run(tmp_path / "run")),
        compute__deepspeed_forward_flops=None,
        framework="ddp",
        deepspeed__version=None,
    )
    deepspeed = analyse(run).compute.ways[2]
    assert (deepspeed.total.value, deepspeed.total.reason) == (None, "DeepSpeed is not used in this run")
    assert (deepspeed.ratio_to_counted, deepspeed.note) == (None, "")


def test_of_several_micro_steps_only_the_same_one_is_compared(tmp_path: Path) -> None:
    run = with_facts(read_run(build_run(tmp_path / "run")), compute__first_micro_step_forward_flops=None)
    assert analyse(run).compute.ways[2].ratio_to_counted is None


def test_flops_outside_of_modules_count_and_those_of_the_update_do_not(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run"))
    outside = {"rank": 0, "step": 4, "in_pass": "outside", "kind": "matmul", "calls": 1, "flops": 3e9}
    frame = run.tables["operations"]
    more = pl.concat([frame, pl.DataFrame([outside], schema=frame.schema)])
    run = with_facts(dataclasses.replace(run, tables={**run.tables, "operations": more}), compute__update_flops=2e9)
    counted = analyse(run).compute.ways[0]
    assert counted.forward.value == pytest.approx(FORWARD + 1e9)
    assert "5.1 % of them were in no module's call" in counted.note


def test_what_the_shapes_say_is_used_where_nothing_was_counted(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run"))
    nothing = [pl.lit(None, pl.Float64).alias(f"{name}_flops") for name in ("forward", "backward", "recomputed")]
    tables = {
        **run.tables,
        "modules": run.tables["modules"].with_columns(nothing),
        "operations": run.tables["operations"].clear(),
    }
    answer = analyse(dataclasses.replace(run, tables=tables)).compute
    assert [way.used for way in answer.ways] == [False, True, False]
    assert answer.flops_per_step.source == "modelled"
    assert answer.flops_per_step.value == pytest.approx(FORWARD + 1.01 * BACKWARD)


def test_per_step_per_micro_step_and_executed(tmp_path: Path) -> None:
    answers = answers_of(tmp_path)
    answer = answers.compute
    assert answer.flops_per_step.value == pytest.approx(FORWARD + BACKWARD)
    assert answer.executed_flops_per_step.value == pytest.approx(FORWARD + BACKWARD + AGAIN)
    assert answer.forward_flops_per_micro_step.value == pytest.approx(FORWARD / 2)
    assert answer.flops_per_second.value == pytest.approx((FORWARD + BACKWARD) / seconds(answers))
    assert answer.flops_per_second.low < answer.flops_per_second.value < answer.flops_per_second.high  # type: ignore[operator]
    assert answer.dtype == "float32"


def test_that_steps_differ_is_said_with_the_figure(tmp_path: Path) -> None:
    even = compute_of(tmp_path / "even", steps=24).flops_per_step.method
    assert "two kinds" not in even
    assert "tokens of the median" not in even
    both = compute_of(tmp_path / "both", steps=24, bimodal=True).flops_per_step.method
    assert "steps come in two kinds, of " in both
    run = read_run(tmp_path / "even" / "run")
    steps = run.tables["steps"].with_columns(tokens=pl.when(pl.col("step") == 4).then(1536).otherwise(pl.col("tokens")))
    answer = analyse(dataclasses.replace(run, tables={**run.tables, "steps": steps})).compute
    assert "the counted step had 1.50 x the tokens of the median one" in answer.flops_per_step.method


# -- utilisation ---------------------------------------------------------------------------------------------------


def test_every_convention_is_there_and_says_what_it_counts(tmp_path: Path) -> None:
    answer = compute_of(tmp_path, gpus=2)
    assert [each.key for each in answer.utilisation] == ["mfu_full", "mfu_causal", "mfu_palm", "hfu"]
    assert "PaLM's convention" in share(answer, "mfu_full").convention
    assert "Megatron-LM's convention" in share(answer, "mfu_causal").convention
    assert "6 N + 12 L H Q T" in share(answer, "mfu_palm").convention


def test_shares_of_the_data_sheet_and_of_what_was_measured(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, gpus=2, ceiling=True)
    answer = answers.compute
    rate = (FORWARD + BACKWARD) / seconds(answers)
    full, causal, hfu = (share(answer, key) for key in ("mfu_full", "mfu_causal", "hfu"))
    assert answer.dtype == "bfloat16"
    assert full.of_datasheet.value == pytest.approx(rate / 989.4e12)
    assert full.of_achievable.value == pytest.approx(rate / (2 * CEILING_FLOPS_PER_SECOND))
    # a tenth of the FLOPs is causal attention
    assert causal.of_datasheet.value == pytest.approx(0.95 * rate / 989.4e12)
    assert hfu.of_datasheet.value == pytest.approx((FORWARD + BACKWARD + AGAIN) / seconds(answers) / 989.4e12)
    assert answer.peak_hint == ""
    assert "132 SM x 4096 FLOP x 1.83 GHz" in full.of_datasheet.method
    assert "agprof peak on 2026-09-21" in full.of_achievable.method
    assert kpi(answers, "mfu").figure == full.of_datasheet
    assert kpi(answers, "mfu").note == "of the data sheet's peak, bfloat16"
    assert "of the data sheet's peak in bfloat16 (MFU, attention counted full)" in answer.sentence


@pytest.mark.parametrize("name", ["NVIDIA A100X", "NVIDIA H100 SomethingNew", "Frobnicator 9000", ""])
def test_an_unknown_device_gives_no_mfu_and_a_hint_how_to_set_it(tmp_path: Path, name: str) -> None:
    run = with_facts(read_run(build_run(tmp_path / "run", gpus=2)), device__name=name)
    answers = analyse(run)
    for each in answers.compute.utilisation:
        assert each.of_datasheet.value is None
        assert each.of_achievable.value is None
    assert "peak: {tflops: {bf16: ...}}" in answers.compute.peak_hint
    assert "run `agprof peak` once" in answers.compute.peak_hint
    assert name in answers.compute.peak_hint
    card = kpi(answers, "mfu")
    assert card.figure.value is None
    assert "peak: {tflops:" in str(card.figure.reason)
    assert not answers.compute.ceilings


def declared(run: Run, **peak: Any) -> Run:
    workload = {**run.manifest["workload"], "peak": peak}
    return dataclasses.replace(run, manifest={**run.manifest, "workload": workload})


def test_the_workload_file_gives_the_peak_of_an_unknown_device(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2, device_name="Frobnicator 9000"))
    run = declared(run, tflops={"bf16": 100.0, "fp32": None}, bandwidth_gb_per_s=500.0, source="its sheet")
    answers = analyse(run)
    full = share(answers.compute, "mfu_full").of_datasheet
    assert full.value == pytest.approx((FORWARD + BACKWARD) / seconds(answers) / 100e12)
    (ceiling,) = answers.compute.ceilings
    assert (ceiling.kind, ceiling.flops_per_second, ceiling.bytes_per_second) == ("declared", 100e12, 500e9)
    assert ceiling.source == "`peak.tflops.bf16` of the workload file: its sheet"


def test_the_workload_file_stands_before_the_table(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2))
    answer = analyse(declared(run, tflops={"bf16": 800.0})).compute
    declared_one, sheet = answer.ceilings
    assert (declared_one.kind, declared_one.flops_per_second) == ("declared", 800e12)
    assert declared_one.bytes_per_second == sheet.bytes_per_second == 4800e9
    assert share(answer, "mfu_full").of_datasheet.value == pytest.approx(
        answer.flops_per_second.value / 800e12  # type: ignore[operator]
    )
    # of the memory alone: the table's rate stays
    answer = analyse(declared(run, bandwidth_gb_per_s=4000.0)).compute
    assert answer.ceilings[0].flops_per_second == 989.4e12
    assert answer.ceilings[0].bytes_per_second == 4e12


def test_float32_is_held_against_tf32_only_where_the_run_allowed_it(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2))
    operations = run.tables["operations"].with_columns(dtype=pl.lit("float32"))
    run = dataclasses.replace(run, tables={**run.tables, "operations": operations})
    strict = analyse(with_facts(run, torch__allow_tf32__matmul=False)).compute
    loose = analyse(with_facts(run, torch__allow_tf32__matmul=True)).compute
    assert [ceiling.flops_per_second for ceiling in strict.ceilings] == pytest.approx([66.9e12])
    assert [ceiling.flops_per_second for ceiling in loose.ceilings] == pytest.approx([494.7e12])
    assert "as TF32, which the run allowed" in loose.ceilings[0].source


def test_float32_convolutions_have_their_own_switch_for_tf32(tmp_path: Path) -> None:
    """torch allows TF32 for convolutions unless told otherwise, for matrix products only where told."""
    run = read_run(build_run(tmp_path / "run", gpus=2))
    convolutions = run.tables["operations"].with_columns(
        dtype=pl.lit("float32"), kind=pl.col("kind").replace("matmul", "convolution")
    )
    run = dataclasses.replace(run, tables={**run.tables, "operations": convolutions})
    for matmul, convolution, tflops in ((False, True, 494.7), (True, False, 66.9)):
        facts = {"torch__allow_tf32__matmul": matmul, "torch__allow_tf32__convolution": convolution}
        answer = analyse(with_facts(run, **facts)).compute
        assert [ceiling.flops_per_second for ceiling in answer.ceilings] == pytest.approx([tflops * 1e12])
        assert share(answer, "mfu_full").of_datasheet.value == pytest.approx(
            answer.flops_per_second.value / (tflops * 1e12)  # type: ignore[operator]
        )


def test_a_type_that_the_device_has_no_unit_for_is_said(tmp_path: Path) -> None:
    answer = compute_of(tmp_path, gpus=1, device_name="Tesla V100-SXM2-32GB")
    assert share(answer, "mfu_full").of_datasheet.reason == (
        "the data sheet of V100 SXM2 has no rate for bfloat16: give the figure of its data sheet in the workload file: "
        "`peak: {tflops: {bf16: ...}}`"
    )


def test_a_cpu_is_held_against_its_own_machine_with_as_many_threads(tmp_path: Path) -> None:
    answers = answers_of(tmp_path / "a", ceiling=True)
    full = share(answers.compute, "mfu_full")
    assert full.of_datasheet.value is None
    assert full.of_achievable.value == pytest.approx((FORWARD + BACKWARD) / seconds(answers) / CEILING_FLOPS_PER_SECOND)
    assert answers.compute.peak_hint == ""
    assert kpi(answers, "mfu").figure == full.of_achievable
    assert kpi(answers, "mfu").note == "of the measured ceiling, float32"
    assert "1 thread, one process alone" in full.of_achievable.method
    run = read_run(tmp_path / "a" / "run")
    busy = dataclasses.replace(run, ceilings=tuple(dataclasses.replace(one, cpu_share=0.59) for one in run.ceilings))
    assert "got 59 % of its cores' time" in share(analyse(busy).compute, "mfu_full").of_achievable.method
    run = with_facts(read_run(tmp_path / "a" / "run"), omp_num_threads=4)
    other = analyse(run).compute
    assert share(other, "mfu_full").of_achievable.value is None
    assert "run `agprof peak --threads 4` once" in other.peak_hint


def test_a_ceiling_below_the_run_is_said(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", ceiling=True))
    (ceiling,) = run.ceilings
    product = dataclasses.replace(ceiling.products[0], flops_per_second=1e9)
    run = dataclasses.replace(run, ceilings=(dataclasses.replace(ceiling, products=(product,)),))
    full = share(analyse(run).compute, "mfu_full").of_achievable
    assert full.value is not None
    assert full.value > 1
    assert "above 1: the ceiling is too low" in full.method


def test_causal_attention_is_halved_only_where_it_is_known(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2))
    unknown = share(analyse(with_facts(run, compute__causal_attention_flops=None)).compute, "mfu_causal").of_datasheet
    assert (unknown.value, unknown.reason) == (None, "which attention is causal was not recorded")
    unclear = share(analyse(with_facts(run, compute__causal_attention_flops="null")).compute, "mfu_causal").of_datasheet
    assert unclear.value is None
    assert "its mask is an ordinary tensor" in str(unclear.reason)
    encoder = analyse(with_facts(run, compute__causal_attention_flops=0)).compute
    assert share(encoder, "mfu_causal").of_datasheet.value == share(encoder, "mfu_full").of_datasheet.value


PALM = {
    "model__params": 1_000_000,
    "model__trainable_params": 1_000_000,
    "model__embedding_params": 200_000,
    "model__config": {"layers": 4, "heads": 8, "hidden": 512},
}


def test_palms_formula(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2))
    answers = analyse(with_facts(run, **PALM))
    tokens, length = 1024, 128  # of two micro-steps with 4 samples each
    flops = tokens * (6 * 800_000 + 12 * 4 * 8 * 64 * length)
    palm = share(answers.compute, "mfu_palm").of_datasheet
    assert palm.value == pytest.approx(flops / seconds(answers) / 989.4e12)
    assert palm.source == "modelled"
    wide = with_facts(run, **{**PALM, "model__config": {"layers": 4, "heads": 8, "hidden": 512, "head_dim": 128}})
    flops = tokens * (6 * 800_000 + 12 * 4 * 8 * 128 * length)
    assert share(analyse(wide).compute, "mfu_palm").of_datasheet.value == pytest.approx(
        flops / seconds(answers) / 989.4e12
    )


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"model__trainable_params": 10_000}, "99 % of them are frozen"),
        ({"model__config": None}, "no Hugging Face config"),
        ({"model__config": {"layers": 4}}, "tells no layers and heads"),
        ({"model__config": {"layers": "<b>", "heads": -1}}, "tells no layers and heads"),
        ({"model__params": None}, "the model was not seen"),
    ],
)
def test_palms_formula_is_not_used_where_it_does_not_hold(tmp_path: Path, facts: dict[str, Any], reason: str) -> None:
    run = with_facts(read_run(build_run(tmp_path / "run", gpus=2)), **{**PALM, **facts})
    palm = share(analyse(run).compute, "mfu_palm").of_datasheet
    assert palm.value is None
    assert reason in str(palm.reason)


def test_palms_formula_needs_tokens_and_samples(tmp_path: Path) -> None:
    run = with_facts(read_run(build_run(tmp_path / "run", gpus=2, tokens=False)), **PALM)
    assert "agprof.step(tokens=..., samples=...)" in str(share(analyse(run).compute, "mfu_palm").of_datasheet.reason)


# -- tokens --------------------------------------------------------------------------------------------------------


def test_tokens_with_and_without_padding(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ranks=4)
    every, unpadded = answers.compute.tokens_per_second, answers.compute.tokens_per_second_without_padding
    assert every.value == pytest.approx(4 * 2 * 512 / seconds(answers), rel=0.01)
    assert unpadded.value is not None
    assert unpadded.value / every.value == pytest.approx(400 / 512)
    assert kpi(answers, "tokens_per_s").figure == every
    assert kpi(answers, "tokens_per_s").note == "all ranks; 22 % of them padding"


# -- modules, operations, roofline ---------------------------------------------------------------------------------


def test_parts_of_the_tree_sum_to_their_parents_and_trees_to_one(tmp_path: Path) -> None:
    rows = compute_of(tmp_path).modules
    assert [row.path for row in rows] == [
        "", "vision", "text", "llm", "llm.layers", "llm.layers.0", "llm.layers.0.attn", "llm.layers.0.mlp",
        "llm.layers.1", "llm.layers.1.attn", "llm.layers.1.mlp",
    ]  # fmt: skip
    for parent in rows:
        parts = [row for row in rows if row.parent == parent.path]
        for name in (*ADDED_UP, "flops_share", "time_share"):
            if parts:
                assert sum(getattr(row, name) for row in parts) == pytest.approx(getattr(parent, name)), name
    assert rows[0].flops_share == pytest.approx(1)
    assert rows[0].time_share == pytest.approx(1)


def test_rates_of_modules_are_quotients(tmp_path: Path) -> None:
    answer = compute_of(tmp_path, ceiling=True)
    for each in answer.modules:
        flops = each.forward_flops + each.backward_flops + each.recomputed_flops  # type: ignore[operator]
        duration_ns = each.forward_ns + each.backward_ns + each.recomputed_ns  # type: ignore[operator]
        assert each.flops_per_second == pytest.approx(flops / duration_ns * 1e9)
        assert each.of_ceiling == pytest.approx(flops / duration_ns * 1e9 / CEILING_FLOPS_PER_SECOND)
        assert each.intensity == pytest.approx(50)


def test_operations_share_the_executed_flops(tmp_path: Path) -> None:
    answer = compute_of(tmp_path, ceiling=True)
    assert sum(each.flops_share or 0 for each in answer.operations) == pytest.approx(1)
    assert sum(each.flops for each in answer.operations) == pytest.approx(answer.executed_flops_per_step.value)
    assert [each.flops for each in answer.operations] == sorted((e.flops for e in answer.operations), reverse=True)
    first = answer.operations[0]
    assert (first.in_pass, first.kind, first.flops) == ("forward", "matmul", 0.9 * FORWARD)
    assert first.flops_per_second == pytest.approx(60e9, rel=1e-6)
    assert first.of_achievable == pytest.approx(60e9 / CEILING_FLOPS_PER_SECOND, rel=1e-6)
    assert first.of_datasheet is None
    other = next(each for each in answer.operations if each.kind == "other")
    assert (other.flops_share, other.flops_per_second) == (0, None)


def test_the_type_really_used_is_that_of_most_flops(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2))
    operations = run.tables["operations"].with_columns(
        dtype=pl.when(pl.col("kind") == "matmul").then(pl.lit("float16")).otherwise(pl.lit("float32"))
    )
    answer = analyse(dataclasses.replace(run, tables={**run.tables, "operations": operations})).compute
    assert answer.dtype == "float16"
    assert {ceiling.dtype for ceiling in answer.ceilings} == {"float16", "float32"}
    assert "90 % of the FLOPs are of that type" in share(answer, "mfu_full").of_datasheet.method
    assert "in float16" in answer.sentence


def test_repeated_blocks_are_one_group_each_way(tmp_path: Path) -> None:
    answer = compute_of(tmp_path, ceiling=True)
    points = {(point.label, point.in_pass): point for point in answer.roofline}
    assert {label for label, _ in points} == {"vision", "text", "llm.layers.*.attn", "llm.layers.*.mlp"}
    assert ("vision", "backward") not in points
    mlp = points["llm.layers.*.mlp", "forward"]
    assert (mlp.modules, mlp.flops, mlp.bytes, mlp.intensity) == (2, 4e9, pytest.approx(8e7), pytest.approx(50))
    assert mlp.duration_ns == 8_000_000
    assert mlp.flops_per_second == pytest.approx(4e9 / 8e-3)
    # the ridge is at 8e11 / 2e10 = 40 FLOP a byte
    assert (mlp.bound_by, mlp.roof_flops_per_second) == ("compute", CEILING_FLOPS_PER_SECOND)


def test_below_the_ridge_the_memory_bounds(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", ceiling=True))
    modules = run.tables["modules"].with_columns(pl.col("forward_bytes", "backward_bytes") * 10)
    answer = analyse(dataclasses.replace(run, tables={**run.tables, "modules": modules})).compute
    for point in answer.roofline:
        assert point.bound_by == "memory"
        assert point.roof_flops_per_second == pytest.approx(5 * CEILING_BYTES_PER_SECOND)
    (ceiling,) = run.ceilings
    run = dataclasses.replace(run, ceilings=(dataclasses.replace(ceiling, bandwidth=None),))
    assert {point.bound_by for point in analyse(run).compute.roofline} == {"unknown"}


WORDS = st.sampled_from(["layers", "0", "1", "2", "mlp", "attn", "experts", "head"])


@st.composite
def trees(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Module trees of one or two roots whose nodes may do work of their own."""
    rows: list[dict[str, Any]] = []
    for root in range(draw(st.integers(1, 2))):
        paths = {""}
        for words in draw(st.lists(st.lists(WORDS, min_size=1, max_size=5), max_size=8)):
            paths |= {".".join(words[: length + 1]) for length in range(len(words))}
        own = {path: draw(st.tuples(*[st.integers(0, 10**12)] * 2)) for path in paths}
        for order, path in enumerate(sorted(paths)):
            inside = [p for p in paths if not path or p == path or p.startswith(f"{path}.")]
            flops = [float(sum(own[p][at] for p in inside)) for at in (0, 1)]
            values = {
                "rank": 0, "step": 4, "root": root, "path": path, "parent": path.rpartition(".")[0] if path else None,
                "depth": path.count(".") + 1 if path else 0, "type": "Module", "order": order, "params": 1,
                "trainable_params": 1, "forward_flops": flops[0], "backward_flops": flops[1],
                "recomputed_flops": 0.0, "forward_bytes": flops[0] / 8, "backward_bytes": flops[1] / 4,
            }  # fmt: skip
            rows.append(values)
    return rows


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(build_run(tmp_path_factory.mktemp("run") / "run"))


@settings(max_examples=60, deadline=None)
@given(trees())
def test_every_flop_is_in_one_group_of_the_roofline(plain_run: Run, rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, schema=schema(BY_NAME["modules"]))
    tables = {**plain_run.tables, "modules": frame, "operations": plain_run.tables["operations"].clear()}
    answer = analyse(dataclasses.replace(plain_run, tables=tables)).compute
    for name in ("forward", "backward"):
        points = [point for point in answer.roofline if point.in_pass == name]
        roots = [row for row in rows if row["parent"] is None]
        assert sum(point.flops for point in points) == pytest.approx(sum(row[f"{name}_flops"] for row in roots))
        assert sum(point.bytes for point in points) == pytest.approx(sum(row[f"{name}_bytes"] for row in roots))
        assert len({point.label for point in points}) == len(points)
    roots_only = [row for row in answer.modules if row.parent is None]
    if answer.flops_per_step.value:
        assert sum(row.flops_share or 0 for row in roots_only) == pytest.approx(1)


def test_several_models_of_a_run_keep_their_modules_apart(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run"))
    one = run.tables["modules"]
    frame = pl.concat([one.with_columns(root=pl.lit(number, pl.Int64)) for number in range(4)])
    answer = analyse(dataclasses.replace(run, tables={**run.tables, "modules": frame})).compute
    roots = [row for row in answer.modules if row.parent is None]
    assert [row.root for row in roots] == [0, 1, 2, 3]
    assert [row.flops_share for row in roots] == [pytest.approx(0.25)] * 4
    assert {point.label for point in answer.roofline} >= {f"Model {root}: llm.layers.*.mlp" for root in range(4)}
    assert "the formula is of one model, and a step runs 4" in str(share(answer, "mfu_palm").of_datasheet.reason)


# -- runs that lack something --------------------------------------------------------------------------------------


def test_a_run_of_an_older_agprof_has_an_answer(tmp_path: Path) -> None:
    """Rows of `modules` had other columns, `steps` one less, and there were no operations."""
    run = build_run(tmp_path / "run", counted=False, profile_step=None)
    header = rank_header(2, 3)
    old = [(4, "", None, 0, "Model", 0, 10, 5, 1e9, 1000, 1)]
    steps = [tuple(row("steps", step=4, start_ns=1, end_ns=2, micro_steps=1, profiled=True)[:-1])]
    write_stream(layout.rank_stream(run, 2), header, {"modules": old, "steps": steps})
    answers = analyse(read_run(run))
    assert answers.compute.modules == ()
    assert answers.compute.roofline == ()
    assert answers.compute.flops_per_step.value is None
    assert all(way.total.value is None and way.total.reason for way in answers.compute.ways)
    assert any("modules" in problem for problem in answers.quality.problems)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"profile_step": None}, "`profile.profile_step` is null"),
        ({"profile_step": 40, "counted": False}, "the run ended before its profile step 40 did"),
        ({"counted": False}, "FLOPs were not counted"),
        ({"bare": True, "counted": False}, "FLOPs were not counted"),
        ({"steps": 0}, "the run ended before its profile step 4 did"),
    ],
)
def test_why_nothing_was_counted_is_said(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    answer = compute_of(tmp_path, **options)
    assert reason in str(answer.flops_per_step.reason)
    assert reason in str(share(answer, "mfu_full").of_datasheet.reason)
    assert reason in answer.sentence
    assert answer.peak_hint


def test_a_model_that_can_not_be_counted_says_so_itself(tmp_path: Path) -> None:
    run = with_facts(
        read_run(build_run(tmp_path / "run", counted=False)), compute__profiler_absent="the model is compiled"
    )
    assert analyse(run).compute.flops_per_step.reason == "the model is compiled"


def test_without_steady_steps_there_are_flops_and_no_rate(tmp_path: Path) -> None:
    answer = compute_of(tmp_path, steps=6, warmup_steps=6)
    assert answer.flops_per_step.value == pytest.approx(FORWARD + BACKWARD)
    assert answer.flops_per_second.value is None
    assert "no FLOP/s: " in answer.sentence
    assert share(answer, "mfu_full").of_datasheet.value is None


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e300])
def test_figures_that_can_not_be_are_none(tmp_path: Path, value: float) -> None:
    run = read_run(build_run(tmp_path / "run", ceiling=True))
    floats = [name for name, dtype in run.tables["modules"].schema.items() if dtype == pl.Float64]
    tables = {
        **run.tables,
        "modules": run.tables["modules"].with_columns([pl.lit(value).alias(name) for name in floats]),
        "operations": run.tables["operations"].with_columns(flops=pl.lit(value)),
    }
    answer = analyse(dataclasses.replace(run, tables=tables)).compute
    assert answer.roofline == ()
    assert all(each.flops_share is None and each.flops_per_second is None for each in answer.modules)
    assert all(each.flops == 0 for each in answer.operations)


def test_the_spec_of_the_synthetic_run_is_what_these_tests_take_it_for() -> None:
    assert Spec().micro_steps == 2
