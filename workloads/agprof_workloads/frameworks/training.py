"""What the frameworks have in common: the recipe they are given and the object they give back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained, whatever the framework."""

    make_optimizer: Callable[[nn.Module], Optimizer]
    """Called once, with the model as the framework left it: FSDP2 replaces the parameters."""
    micro_batch: int
    accumulation: int
    clip_norm: float | None = None
    """Largest norm of all gradients together."""
    schedule: Callable[[int], float] | None = None
    """Factor on the learning rate of update k, the first being 0; None: constant."""


class Training(ABC):
    """A model and its optimizer on all ranks. A micro-step is `forward`, `backward`, `step`, in this order."""

    module: nn.Module
    """What `forward` calls; calling it directly without gradients evaluates."""
    accumulation: int
    micro_steps = 0
    """Micro-steps done."""
    steps = 0
    """Updates made."""

    @property
    def last_micro_step(self) -> bool:
        """The micro-step in progress is the one that the update follows."""
        return (self.micro_steps + 1) % self.accumulation == 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` / accumulation; at the last micro-step they are averaged over the ranks."""

    @abstractmethod
    def step(self) -> bool:
        """End the micro-step; True when that made an update."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Of the next update."""

    def told(self) -> list[str]:
        """Lines to print at the end; called on all ranks."""
        return []


class TorchTraining(Training):
    """The part that DDP, FSDP2 and Horovod share: a torch optimizer, stepped after `accumulation` micro-steps."""

    def __init__(self, module: nn.Module, optimizer: Optimizer, recipe: Recipe) -> None:
        self.module = module
        self.optimizer = optimizer
        self.accumulation = recipe.accumulation
        self.clip_norm = recipe.clip_norm
        self.scheduler = LambdaLR(optimizer, recipe.schedule) if recipe.schedule else None

    def backward(self, loss: Tensor) -> None:
        # a gradient of 1 / accumulation to begin with, instead of dividing the loss: who watches backward sees the loss
        loss.backward(torch.full_like(loss, 1 / self.accumulation))  # type: ignore[no-untyped-call]

    def step(self) -> bool:
        update = self.last_micro_step
        self.micro_steps += 1
        if update:
            self.steps += 1
            self.update()
            self.optimizer.zero_grad()
            if self.scheduler is not None:
                self.scheduler.step()
        return update

    def update(self) -> None:
        self.clip()
        self.optimizer.step()

    def clip(self) -> None:
        if self.clip_norm is not None:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def warmup_decay(warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """DeepSpeed's WarmupDecayLR from a rate of 0, as a factor per update: a logarithmic rise, then a line down to 0.

    >>> rate = warmup_decay(10, 100)
    >>> [round(rate(update), 3) for update in (0, 1, 2, 10, 11, 101)]
    [0.0, 0.0, 0.301, 1.0, 1.0, 0.0]
    """

    def factor(update: int) -> float:
        # DeepSpeed moves its schedule after an update: the first two have a rate of 0
        position = update - 1
        if position < 0:
            return 0.0
        if position < warmup_steps:
            return math.log(position + 1) / math.log(max(2, warmup_steps))
        return max(0.0, (total_steps - position) / max(1.0, total_steps - warmup_steps))

    return factor
