"""DeepSpeed: its engine already has this package's interface, but for names."""

from typing import Any, cast

from torch import Tensor, nn

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


def start(model: nn.Module, recipe: Recipe, zero_stage: int, ranks: int) -> DeepSpeedTraining:
    """An engine in fp32 around the recipe's own optimizer, so that only the distribution differs between frameworks."""
    import deepspeed

    if recipe.schedule is not None:
        raise ValueError("a schedule of the learning rate belongs in DeepSpeed's own configuration")
    config = {
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "train_batch_size": recipe.micro_batch * recipe.accumulation * ranks,
        "zero_optimization": {"stage": zero_stage},
        "gradient_clipping": recipe.clip_norm or 0.0,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=cast(Any, recipe.make_optimizer(model)), config=config, dist_init_required=False
    )
    return DeepSpeedTraining(engine)
