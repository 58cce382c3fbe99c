"""The original's DeepSpeed JSON for our parameters, and what has to be taken out of it for today's DeepSpeed."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agprof_workloads.anomalygpt.switches import Switches
from agprof_workloads.frameworks.training import Recipe, warmup_decay

Config = dict[str, Any]

BUCKET_ELEMENTS = 50_000
PEAK_LEARNING_RATE = 1e-3
OPTIMIZER_LEARNING_RATE = 1e-4
"""The lower rate that a fork of the original meant to train with. The scheduler overrides it."""
MIN_WARMUP_STEPS = 10
WARMUP_SHARE = 0.1
ADAM_PARAMETERS = ("lr", "betas", "eps", "weight_decay")
PRECISIONS = ("fp16", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run decides; everything else is the original's, with its habits or, by ``switches``, without."""

    micro_batch: int
    accumulation: int
    ranks: int
    zero_stage: int
    offload: bool
    dtype: str
    schedule_steps: int
    native_ops: bool
    trained_parameters: int | None = None
    """Needed by the switch ``large_buckets`` only."""
    switches: Switches = field(default_factory=Switches)


def original() -> Config:
    """The published configuration, with its mistakes: ``opt_level`` is no DeepSpeed key, nor is bf16's ``enable``.

    Later commits lowered the optimizer's rate, which changed nothing: the scheduler sets it.
    """
    return {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 8,
        "steps_per_print": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu"},
            "contiguous_gradients": True,
            "allgather_partitions": True,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "reduce_bucket_size": BUCKET_ELEMENTS,
        },
        "fp16": {"enabled": True, "opt_level": "O2", "min_loss_scale": 1},
        "bf16": {"enable": True},
        "optimizer": {
            "type": "Adam",
            "params": {"lr": OPTIMIZER_LEARNING_RATE, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-3},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0,
                "warmup_max_lr": PEAK_LEARNING_RATE,
                "warmup_num_steps": MIN_WARMUP_STEPS,
                "total_num_steps": 10_000,
            },
        },
        "activation_checkpointing": {"partition_activations": True, "cpu_checkpointing": True},
    }


def read(path: Path) -> Config:
    config = json.loads(path.read_text())
    if not isinstance(config, dict):
        raise ValueError(f"--deepspeed-config {path}: must hold a JSON object")
    return config


def prepared(config: Config, setup: Setup) -> tuple[Config, list[str]]:
    """The configuration to hand to DeepSpeed, and one line on each thing that had to be changed to be accepted."""
    config, said = accepted(config)
    config["train_micro_batch_size_per_gpu"] = setup.micro_batch
    config["gradient_accumulation_steps"] = setup.accumulation
    config["train_batch_size"] = setup.micro_batch * setup.accumulation * setup.ranks
    # the training loop prints a line per step itself
    config["steps_per_print"] = 10**9

    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = setup.zero_stage
    if setup.switches.large_buckets and setup.trained_parameters:
        zero["allgather_bucket_size"] = zero["reduce_bucket_size"] = max(BUCKET_ELEMENTS, setup.trained_parameters)
    if setup.switches.drop_inert_block:
        config.pop("activation_checkpointing", None)
    zero.pop("offload_optimizer", None)
    if setup.offload:
        zero["offload_optimizer"] = {"device": "cpu"}

    for precision in PRECISIONS:
        block = config.pop(precision, {})
        if setup.dtype == precision:
            config[precision] = block | {"enabled": True}

    parameters = config["optimizer"].setdefault("params", {})
    if not setup.native_ops:
        parameters["torch_adam"] = True
    if config.get("scheduler", {}).get("type") == "WarmupDecayLR":
        schedule = config["scheduler"]["params"]
        schedule["total_num_steps"] = setup.schedule_steps
        schedule["warmup_num_steps"] = max(MIN_WARMUP_STEPS, int(WARMUP_SHARE * setup.schedule_steps))
        if setup.switches.matched_lr and "warmup_max_lr" in schedule:
            parameters["lr"] = schedule["warmup_max_lr"]
        if parameters.get("lr") != schedule.get("warmup_max_lr"):
            said.append(
                f"optimizer.lr {parameters.get('lr')} has no effect: "
                f"the scheduler's warmup_max_lr {schedule.get('warmup_max_lr')} sets the learning rate"
            )
    return config, said


def accepted(config: Config) -> tuple[Config, list[str]]:
    """A copy without what DeepSpeed 0.19 refuses, and one line on each removal."""
    config = copy.deepcopy(config)
    said = []
    if "opt_level" in config.get("fp16", {}):
        del config["fp16"]["opt_level"]
        said.append("fp16.opt_level removed: an Apex setting that DeepSpeed refuses, and never used")
    if "enable" in config.get("bf16", {}):
        del config["bf16"]
        said.append("bf16 removed: its key 'enable' is a typing error for 'enabled', which DeepSpeed used to pass over")
    if all(config.get(precision, {}).get("enabled") for precision in PRECISIONS):
        del config["bf16"]
        said.append("bf16 removed: DeepSpeed refuses fp16 and bf16 together, and fp16 is the one that had an effect")
    if not isinstance(config.get("activation_checkpointing", {}), dict):
        del config["activation_checkpointing"]
        said.append(
            "activation_checkpointing removed: DeepSpeed wants an object there, and the model never asks for it"
        )
    return config, said


def recipe(config: Config) -> Recipe:
    """The same training for a framework without a configuration of its own. Raises ValueError where it has no such."""
    for precision in PRECISIONS:
        if config.get(precision, {}).get("enabled"):
            raise ValueError(f"--dtype {precision} is DeepSpeed's; the other frameworks train this model in fp32 only")
    if "offload_optimizer" in config.get("zero_optimization", {}):
        raise ValueError("--offload is DeepSpeed's; leave it out with another --framework")
    kind = config["optimizer"]["type"]
    if kind not in ("Adam", "AdamW"):
        raise ValueError(f"optimizer {kind} is known to DeepSpeed only; choose Adam or AdamW for another --framework")
    # DeepSpeed's "Adam" is AdamW
    wanted = {key: value for key, value in config["optimizer"].get("params", {}).items() if key in ADAM_PARAMETERS}
    rate = float(wanted.get("lr", PEAK_LEARNING_RATE))
    factor = None
    if scheduler := config.get("scheduler"):
        schedule = scheduler.get("params", {})
        if scheduler["type"] != "WarmupDecayLR" or schedule.get("warmup_min_lr"):
            raise ValueError(
                f"scheduler {scheduler['type']} is known to DeepSpeed only; for another --framework choose "
                "WarmupDecayLR from a rate of 0"
            )
        rate = schedule["warmup_max_lr"]
        factor = warmup_decay(schedule["warmup_num_steps"], schedule["total_num_steps"])
    return Recipe(
        make_optimizer=lambda model: torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad], **{**wanted, "lr": rate}
        ),
        micro_batch=config["train_micro_batch_size_per_gpu"],
        accumulation=config["gradient_accumulation_steps"],
        clip_norm=config.get("gradient_clipping") or None,
        schedule=factor,
    )


def usable_dtype(wanted: str, device: torch.device) -> tuple[str, list[str]]:
    """The precision to train in; on a CPU, DeepSpeed refuses fp16."""
    if wanted == "fp16" and device.type == "cpu":
        return "fp32", ["fp16 is not available on this CPU: training in fp32"]
    return wanted, []


def without_native_ops() -> str:
    """Keep DeepSpeed from building its shared-memory operator when it sets up communication."""
    import sys

    import deepspeed  # noqa: F401

    # the attribute deepspeed.comm.torch is the torch package; only sys.modules has DeepSpeed's module of that name
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    sys.modules["deepspeed.comm.torch"].build_shm_op = nothing  # type: ignore[attr-defined]
    return "DeepSpeed's C++ operators are not used: torch's Adam instead of its own, no shared-memory operator"
