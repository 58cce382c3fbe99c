"""DeepSpeed: its engine already has this package's interface, but for names."""

import shutil
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from agprof_workloads.frameworks.training import Recipe, Training


class DeepSpeedTraining(Training):
    """An engine that `deepspeed.initialize` returned."""

    def __init__(self, engine: Any) -> None:
        self.module = engine
        self.engine = engine
        self.accumulation = engine.gradient_accumulation_steps()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self) -> bool:
        self.engine.step()
        update: bool = self.engine.global_steps != self.steps
        self.micro_steps, self.steps = self.engine.micro_steps, self.engine.global_steps
        return update

    def learning_rate(self) -> float:
        return float(self.engine.get_lr()[0])


def start(
    model: nn.Module, recipe: Recipe, zero_stage: int, ranks: int, *, offload: bool = False, dtype: str = "fp32"
) -> DeepSpeedTraining:
    """An engine around the recipe's own optimizer, so that only the distribution differs between frameworks.

    `offload` keeps the optimizer's states and the fp32 copies in the host's memory; `dtype` is fp32 or bf16.
    """
    import deepspeed

    if recipe.schedule is not None:
        raise ValueError("a schedule of the learning rate belongs in DeepSpeed's own configuration")
    optimizer = recipe.make_optimizer(model)
    zero: dict[str, Any] = {"stage": zero_stage}
    config = {
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "train_batch_size": recipe.micro_batch * recipe.accumulation * ranks,
        "zero_optimization": zero,
        "gradient_clipping": recipe.clip_norm or 0.0,
        "steps_per_print": 10**9,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        # without its own Adam DeepSpeed offloads any optimizer, slower, when told that this is meant
        if native_ops_buildable():
            optimizer = cpu_adam(optimizer)
        else:
            config["zero_force_ds_cpu_optimizer"] = False
    if dtype == "bf16":
        config["bf16"] = {"enabled": True}
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=cast(Any, optimizer), config=config, dist_init_required=False
    )
    return DeepSpeedTraining(engine)


def cpu_adam(optimizer: Optimizer) -> Optimizer:
    """DeepSpeed's Adam for the CPU with an AdamW's groups and settings. Raises ValueError for another optimizer."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    if not isinstance(optimizer, AdamW):
        raise ValueError(f"--offload wants AdamW, not {type(optimizer).__name__}")
    kept = ("params", "lr", "betas", "eps", "weight_decay")
    return cast(Optimizer, DeepSpeedCPUAdam([{key: group[key] for key in kept} for group in optimizer.param_groups]))


def native_ops_buildable() -> bool:
    """Whether DeepSpeed can compile, or load, its C++ operators: even loading built ones asks for ninja."""
    return shutil.which("ninja") is not None and any(shutil.which(name) for name in ("c++", "g++"))
