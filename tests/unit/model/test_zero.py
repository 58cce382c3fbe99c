"""The formulas of model states against the papers' own figures, against each other, and DeepSpeed's estimators."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.model.zero import (
    MODEL_STATES,
    PARTS,
    STAGES,
    ModelStates,
    held_memory,
    highest,
    paper_memory,
    with_stage,
    zero_memory,
)
from agprof.model.zero_estimators import estimate_zero2, estimate_zero3

GB = 1e9
PAPER = ModelStates(trainable=7_500_000_000, ranks=64)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_paper_s_figure_1(stage: int, gigabytes: float) -> None:
    assert round(paper_memory(replace(PAPER, stage=stage)).total / GB, 1) == gigabytes


@pytest.mark.parametrize(
    ("params", "ranks", "column"),
    [  # table 1 of the paper: (DP, stage 1, stage 2, stage 3) in GB
        (7.5e9, 1, (120, 120, 120, 120)),
        (7.5e9, 4, (120, 52.5, 41.3, 30)),
        (128e9, 1024, (2048, 514, 257, 2)),
        (1e12, 64, (16000, 4187, 2218, 250)),
    ],
)
def test_the_paper_s_table_1(params: float, ranks: int, column: tuple[float, ...]) -> None:
    for stage, expected in zip(STAGES, column, strict=True):
        total = paper_memory(ModelStates(trainable=int(params), ranks=ranks, stage=stage)).total / GB
        assert total == pytest.approx(expected, rel=0.006), stage


def test_offload_leaves_the_parameters_on_the_device() -> None:
    """ZeRO-Offload, figure 3: 2 psi on the device; gradients and the optimizer's 12 on the host, divided."""
    states = ModelStates(trainable=1000, ranks=4, stage=2, offload_optimizer=True)
    paper = paper_memory(states)
    assert paper.device == 2 * 1000
    assert paper.host == (2 + 12) * 1000 / 4


def test_frozen_parameters_are_divided_in_stage_3_only() -> None:
    states = ModelStates(trainable=100, frozen=10_000, ranks=2)
    for stage in (0, 1, 2):
        assert paper_memory(replace(states, stage=stage)).parameters.total == 2 * 10_100
        assert held_memory(replace(states, stage=stage)).parameters.total == 2 * 10_100
    assert paper_memory(replace(states, stage=3)).parameters.total == 10_100
    assert held_memory(replace(states, stage=3)).parameters.total == 10_100


def test_mixed_precision_holds_what_deepspeed_s_estimator_counts() -> None:
    """2 psi + 18 psi / N: in the update the fp32 gradient stands beside the 16-bit one."""
    states = ModelStates(trainable=64_000, ranks=8, stage=2)
    update = held_memory(states, "update")
    assert update.device == estimate_zero2(64_000, ranks_per_node=8).device
    assert update.host == 0
    # the paper leaves the fp32 gradient out: 4 psi / N less
    assert update.device - paper_memory(states).device == 4 * 64_000 / 8


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp32_training_keeps_a_second_copy_of_its_partition(stage: int) -> None:
    states = ModelStates(trainable=1000, ranks=2, stage=stage, parameter_bytes=4)
    held = held_memory(states)
    assert held.master_weights.device == 4 * 1000 / 2
    assert held.optimizer_states.device == 8 * 1000 / 2
    assert paper_memory(states).master_weights.total == 0
    assert any("twice" in note for note in held.notes)


def test_stage_0_in_fp32_has_no_master_weights_and_offload_moves_nothing() -> None:
    states = ModelStates(trainable=1000, ranks=2, parameter_bytes=4)
    offload = replace(states, offload_optimizer=True)
    for moment in ("standing", "backward", "update"):
        plain = held_memory(states, moment)
        assert plain.master_weights.total == 0
        assert plain.host == 0
        assert held_memory(offload, moment).device == plain.device
        assert held_memory(offload, moment).host == 0
    assert held_memory(states).gradients.total == 0
    assert held_memory(states, "backward").gradients.total == 4 * 1000


def test_offload_in_stage_2_keeps_an_fp32_gradient_and_a_copy_on_the_host() -> None:
    states = ModelStates(trainable=1000, ranks=2, stage=2, offload_optimizer=True, parameter_bytes=2)
    held = held_memory(states)
    assert held.gradients.device == 0
    assert held.gradients.host == 4 * 500
    assert held.buffers.host == 2 * 500
    assert held_memory(replace(states, accumulates=True)).gradients.host == (4 + 2) * 500
    assert held_memory(replace(states, accumulates=True, owned=600)).gradients.host == 4 * 500 + 2 * 600
    first = replace(states, stage=1, accumulates=True, owned=600)
    assert held_memory(first).gradients.host == 4 * 500
    assert held_memory(first, "backward").gradients.device == 2 * 1000


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_buckets_are_allocated_whole_however_large(stage: int) -> None:
    """setup_buckets: torch.empty(int(self.reduce_bucket_size))."""
    states = ModelStates(trainable=1000, ranks=2, stage=stage, bucket=1_000_000_000)
    assert held_memory(states, "backward").buckets.device == 2 * 1_000_000_000
    twice = held_memory(replace(states, overlap_comm=True), "backward").buckets.device
    assert twice == (2 if stage < 3 else 1) * 2 * 1_000_000_000


def test_stage_3_holds_its_gradients_partition_always_and_small_parameters_whole() -> None:
    states = ModelStates(trainable=1000, frozen=3000, ranks=4, stage=3, parameter_bytes=2)
    assert held_memory(states).gradients.device == 2 * 250
    assert held_memory(states).parameters.device == 2 * 1000
    assert held_memory(replace(states, persistent=100)).parameters.device == 2 * (1000 + 100)
    # below the reuse distance nothing that was gathered is let go of inside a step
    assert held_memory(states, "backward").parameters.device == 2 * (1000 + 4000)
    assert held_memory(replace(states, gathered=50), "backward").parameters.device == 2 * (1000 + 50)
    alone = replace(states, ranks=1)
    assert held_memory(alone, "backward").parameters.device == 2 * 4000


def test_stage_3_with_both_offloads_leaves_what_is_gathered_on_the_device() -> None:
    states = ModelStates(
        trainable=1000, ranks=2, stage=3, offload_optimizer=True, offload_param=True, persistent=10, parameter_bytes=2
    )
    held = held_memory(states)
    assert held.device == 2 * 10
    assert held.parameters.host == 2 * 500
    assert held.gradients.host == (2 + 4) * 500
    assert held.master_weights.host + held.optimizer_states.host == 12 * 500


def test_bf16_with_fp32_accumulation_in_stage_1_keeps_all_gradients() -> None:
    states = ModelStates(trainable=1000, ranks=4, stage=1, accumulation_bytes=4)
    assert held_memory(states).gradients.device == 4 * 1000
    assert held_memory(states, "backward").gradients.device == (4 + 2) * 1000


def test_ddp_keeps_its_buckets_and_the_optimizer_s_states_in_the_parameters_type() -> None:
    states = ModelStates(trainable=100, frozen=50, ranks=2, framework="ddp", parameter_bytes=4)
    held = held_memory(states, "backward")
    assert (held.parameters.device, held.gradients.device, held.buckets.device) == (600, 400, 400)
    assert held.optimizer_states.device == 800
    assert held.master_weights.device == 0


def test_fsdp2_shards_everything() -> None:
    states = ModelStates(trainable=100, frozen=60, ranks=4, framework="fsdp2", parameter_bytes=4)
    held = held_memory(states, "update")
    assert (held.parameters.device, held.gradients.device, held.optimizer_states.device) == (160, 100, 200)


counts = st.integers(min_value=0, max_value=10**12)


@given(counts, counts, st.integers(1, 4096), st.sampled_from(STAGES), st.booleans(), st.booleans())
def test_invariants(trainable: int, frozen: int, ranks: int, stage: int, offload: bool, params: bool) -> None:
    states = ModelStates(trainable=trainable, frozen=frozen, ranks=ranks)
    there = with_stage(states, stage, offload_optimizer=offload, offload_param=params)
    top = highest(there)
    for moment in ("standing", "backward", "update"):
        held = zero_memory(there, moment)
        assert held.total == pytest.approx(sum(held.part(name).total for name in PARTS))
        for name in PARTS:
            assert 0 <= held.part(name).device <= top.part(name).device
            assert 0 <= held.part(name).host <= top.part(name).host
    # a higher stage never holds more, by the paper
    if stage:
        below = paper_memory(with_stage(states, stage - 1))
        assert paper_memory(with_stage(states, stage)).total <= below.total * (1 + 1e-12)
    # offload moves, it does not remove
    moved, kept = paper_memory(there), paper_memory(with_stage(states, stage))
    assert moved.total == pytest.approx(kept.total)
    assert sum(moved.part(name).total for name in MODEL_STATES) == pytest.approx(moved.total)


def test_a_part_that_is_not_known_is_no_attribute() -> None:
    with pytest.raises(KeyError):
        held_memory(PAPER).part("notes")


SIZES = [(124_439_808, 38_597_376), (7_000_000_000, 131_072_000), (1, 1)]


@pytest.mark.parametrize(("params", "layer"), SIZES)
@pytest.mark.parametrize(("ranks_per_node", "nodes"), [(1, 1), (2, 1), (8, 1), (8, 4)])
@pytest.mark.parametrize("offload", [False, True])
def test_estimators_are_deepspeed_s_own(
    params: int, layer: int, ranks_per_node: int, nodes: int, offload: bool
) -> None:
    zero2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2").estimate_zero2_model_states_mem_needs
    zero3 = pytest.importorskip("deepspeed.runtime.zero.stage3").estimate_zero3_model_states_mem_needs
    host, device = zero2(params, num_gpus_per_node=ranks_per_node, num_nodes=nodes, cpu_offload=offload)
    ours = estimate_zero2(params, ranks_per_node=ranks_per_node, nodes=nodes, offload_optimizer=offload)
    assert (ours.host, ours.device) == (host, device)
    for offload_param in (False, True):
        for zero_init in (False, True):
            host, device, _ = zero3(
                params, layer, ranks_per_node, nodes, cpu_offload=offload, cpu_offload_params=offload_param,
                zero_init=zero_init,
            )  # fmt: skip
            ours = estimate_zero3(
                params, layer, ranks_per_node=ranks_per_node, nodes=nodes, offload_optimizer=offload,
                offload_param=offload_param, zero_init=zero_init,
            )  # fmt: skip
            assert (ours.host, ours.device) == (host, device)
