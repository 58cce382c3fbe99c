import copy
import sys
import types
from pathlib import Path

import pytest
import torch

from agprof_workloads.anomalygpt import deepspeed_config
from agprof_workloads.anomalygpt.deepspeed_config import Setup, accepted, original, prepared, usable_dtype
from agprof_workloads.anomalygpt.switches import Switches
from agprof_workloads.frameworks.deepspeed import native_ops_buildable


def setup(**changes: object) -> Setup:
    usual = {
        "micro_batch": 1,
        "accumulation": 8,
        "ranks": 2,
        "zero_stage": 2,
        "offload": True,
        "dtype": "fp16",
        "schedule_steps": 22_681,
        "native_ops": True,
    }
    return Setup(**(usual | changes))


def test_the_originals_mistakes_are_removed_and_said() -> None:
    config, said = accepted(original())
    assert config["fp16"] == {"enabled": True, "min_loss_scale": 1}
    assert "bf16" not in config
    assert len(said) == 2
    assert "opt_level" in said[0]
    assert "'enable' is a typing error for 'enabled'" in said[1]


def test_fp16_and_bf16_together_keep_fp16_and_say_so() -> None:
    config, said = accepted({"fp16": {"enabled": True}, "bf16": {"enabled": True}})
    assert config == {"fp16": {"enabled": True}}
    assert len(said) == 1 and "together" in said[0]


def test_a_list_for_activation_checkpointing_is_removed_and_said() -> None:
    config, said = accepted({"activation_checkpointing": []})
    assert config == {}
    assert len(said) == 1 and "activation_checkpointing" in said[0]


def test_a_clean_configuration_passes_unchanged_and_unsaid() -> None:
    clean = {"zero_optimization": {"stage": 1}, "fp16": {"enabled": True}}
    assert accepted(clean) == (clean, [])


def test_the_given_configuration_is_not_changed() -> None:
    given = original()
    before = copy.deepcopy(given)
    prepared(given, setup())
    assert given == before


def test_the_runs_numbers_reach_the_configuration() -> None:
    config, _ = prepared(original(), setup())
    assert config["train_batch_size"] == 16
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["gradient_accumulation_steps"] == 8
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["zero_optimization"]["allgather_bucket_size"] == 50_000
    assert config["fp16"]["enabled"] is True
    assert config["scheduler"]["params"]["total_num_steps"] == 22_681
    assert config["scheduler"]["params"]["warmup_num_steps"] == 2_268
    assert "torch_adam" not in config["optimizer"]["params"]


def test_short_schedules_warm_up_for_ten_steps() -> None:
    config, _ = prepared(original(), setup(schedule_steps=40))
    assert config["scheduler"]["params"]["warmup_num_steps"] == 10


@pytest.mark.parametrize(("dtype", "present"), [("fp32", []), ("bf16", ["bf16"]), ("fp16", ["fp16"])])
def test_one_precision_at_most(dtype: str, present: list[str]) -> None:
    config, _ = prepared(original(), setup(dtype=dtype))
    assert [name for name in ("fp16", "bf16") if name in config] == present


def test_without_offload_and_native_ops() -> None:
    config, _ = prepared(original(), setup(offload=False, native_ops=False))
    assert "offload_optimizer" not in config["zero_optimization"]
    assert config["optimizer"]["params"]["torch_adam"] is True


def test_an_overridden_learning_rate_is_said() -> None:
    config, said = prepared(original(), setup())
    assert config["optimizer"]["params"]["lr"] == 1e-4
    assert any("optimizer.lr 0.0001 has no effect" in line for line in said)


def test_switches_mend_what_the_configuration_has_wrong() -> None:
    mended = Switches(large_buckets=True, drop_inert_block=True, matched_lr=True)
    config, said = prepared(original(), setup(switches=mended, trained_parameters=112_663_480))
    zero = config["zero_optimization"]
    assert zero["allgather_bucket_size"] == zero["reduce_bucket_size"] == 112_663_480
    assert "activation_checkpointing" not in config
    assert config["optimizer"]["params"]["lr"] == config["scheduler"]["params"]["warmup_max_lr"] == 1e-3
    assert not any("no effect" in line for line in said)


def test_fp16_becomes_fp32_on_a_cpu_and_stays_on_a_gpu() -> None:
    dtype, said = usable_dtype("fp16", torch.device("cpu"))
    assert dtype == "fp32" and len(said) == 1 and "fp16" in said[0]
    assert usable_dtype("fp16", torch.device("cuda", 0)) == ("fp16", [])
    assert usable_dtype("bf16", torch.device("cpu")) == ("bf16", [])


def test_deepspeed_takes_the_prepared_configuration() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    for dtype in ("fp32", "bf16", "fp16"):
        taken = DeepSpeedConfig(prepared(original(), setup(dtype=dtype, ranks=1))[0])
        assert taken.zero_config.stage == 2


def test_native_ops_need_ninja_and_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not native_ops_buildable()
    for name in ("ninja", "g++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert native_ops_buildable()


def test_the_shared_memory_operator_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.SimpleNamespace(build_shm_op=lambda: 1 / 0)
    monkeypatch.setitem(sys.modules, "deepspeed.comm.torch", stand_in)
    assert "not used" in deepspeed_config.without_native_ops()
    assert stand_in.build_shm_op() is None
