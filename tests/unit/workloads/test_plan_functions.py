"""The model functions of the bundled workloads keep the protocol of docs/plan.md."""

from typing import Any

import pytest
import torch

from agprof.config.bundled import bundled_workloads
from agprof.config.load import load_workload
from agprof.instruments.plan_function import FunctionError, Planned, call, find_function

NAMES = [name for name, _ in bundled_workloads() if load_workload(name).workload.plan is not None]


def planned(name: str, sets: tuple[str, ...] = (), **asked: Any) -> Planned:
    workload = load_workload(name, sets).workload
    assert workload.plan is not None
    function = find_function(workload.plan.model)
    return call(function, workload.arguments(), {"device": "cpu", "ranks": 2, **asked}, torch)


def test_these_workloads_can_be_planned() -> None:
    assert {"anomalygpt", "anomalygpt/small", "anomalygpt/full", "gpt2", "gpt2/small", "bert"} <= set(NAMES)


@pytest.mark.parametrize("name", ["anomalygpt", "gpt2", "bert"])
def test_what_is_asked_for_is_given(name: str) -> None:
    written = planned(name)
    assert {"micro_batch", "sequence_length", "checkpointing"} <= written.can_change
    assert written.job.micro_batch is not None
    assert written.job.sequence_length is not None
    assert sum(kind.per_step for kind in written.kinds) == written.job.accumulation
    twice = planned(name, micro_batch=2 * written.job.micro_batch)
    assert twice.job.micro_batch == 2 * written.job.micro_batch
    longer = planned(name, sequence_length=2 * written.job.sequence_length)
    assert longer.job.sequence_length == 2 * written.job.sequence_length
    assert planned(name, checkpointing=True).job.checkpointing is True


def trained(plan: Planned) -> int:
    return sum(p.numel() for p in plan.module.parameters() if p.requires_grad)


def test_lora_can_be_had_and_left_out() -> None:
    assert trained(planned("gpt2", lora=True)) == 4096
    assert trained(planned("gpt2", lora=False)) == 173_824
    assert trained(planned("anomalygpt", lora=True)) > trained(planned("anomalygpt", lora=False))


def test_anomalygpt_at_full_size_is_the_papers() -> None:
    plan = planned("anomalygpt/full", device="cuda")
    assert trained(plan) == 112_663_480
    assert sum(p.numel() for p in plan.module.parameters()) == pytest.approx(8.1e9, rel=0.002)
    assert (plan.job.zero_stage, plan.job.offload_optimizer, plan.job.dtype) == (2, True, "float16")
    kinds = {kind.name: kind for kind in plan.kinds}
    assert [kind.per_step for kind in plan.kinds] == [2, 2, 4]
    assert kinds["inspection with memory bank"].by_chance == kinds["inspection without memory bank"].by_chance != ""
    assert kinds["instruction"].by_chance == ""
    assert planned("anomalygpt/full").job.dtype == "float32", "a CPU has no fp16"


def test_what_can_not_be_had_is_refused_in_one_sentence() -> None:
    with pytest.raises(FunctionError, match=r"raised ValueError: conversations of \S+ tokens"):
        planned("anomalygpt", sequence_length=20)
    with pytest.raises(FunctionError, match=r"raised ValueError: --preset small has 1024 positions"):
        planned("gpt2/small", sequence_length=4096)
