"""What the formulas of model states ask of a DeepSpeed engine and of the model."""

import json
from types import SimpleNamespace

import torch

from agprof.instruments.facts import record_model
from agprof.instruments.zero_facts import zero_facts


def engine(stage: int, **changes: object) -> SimpleNamespace:
    model = torch.nn.Linear(4, 3)
    for parameter in model.parameters():
        parameter.ds_numel, parameter.ds_persist = parameter.numel(), parameter.dim() == 1
    usual = {
        "module": model,
        "optimizer": SimpleNamespace(params_in_partition=[[model.weight]] if stage in (1, 2) else None),
        "_config": SimpleNamespace(zero_config=SimpleNamespace(offload_param=None)),
        "dp_world_size": 2,
        "zero_optimization_stage": lambda: stage,
        "get_data_types": lambda: (torch.bfloat16, torch.float32),
        "zero_reduce_bucket_size": lambda: 50_000,
        "zero_overlap_comm": lambda: False,
    }
    return SimpleNamespace(**(usual | changes))


def test_facts_of_stage_2() -> None:
    assert zero_facts(engine(2)) == {
        "offload_param": False,
        "dtype": "bfloat16",
        "grad_accum_dtype": "float32",
        "data_parallel_size": 2,
        "reduce_bucket_size": 50_000,
        "overlap_comm": False,
        "owned_params": 12,
    }


def test_stage_3_says_what_stays_whole() -> None:
    facts = zero_facts(engine(3))
    assert facts["persistent_params"] == 3
    assert "owned_params" not in facts


def test_what_another_version_lacks_is_left_out() -> None:
    facts = zero_facts(SimpleNamespace(dp_world_size=4))
    assert facts == {"data_parallel_size": 4}


def test_sizes_of_a_model_by_element_type() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2, bias=False).to(torch.bfloat16))
    model[1].weight.requires_grad_(False)
    facts: dict[str, object] = {}
    recorder = SimpleNamespace(fact=lambda key, value: facts.update({key: json.loads(json.dumps(value))}))
    record_model(recorder, model, 0)  # type: ignore[arg-type]
    assert facts["model.params_by_dtype"] == {"float32": [15, 15], "bfloat16": [6, 0]}
    assert facts["model.largest_layer_params"] == 15
    assert (facts["model.params"], facts["model.trainable_params"]) == (21, 15)
