"""DistributedDataParallel: gradients accumulate locally, and the last backward pass reduces them bucket by bucket."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from agprof_workloads.frameworks import ring
from agprof_workloads.frameworks.training import Recipe, TorchTraining


class DdpTraining(TorchTraining):
    """`anchor` for a model that leaves trained parameters unused in some micro-steps, see `Anchored`."""

    def __init__(self, model: nn.Module, recipe: Recipe, allreduce: str = "default", anchor: bool = False) -> None:
        device = next(model.parameters()).device
        replica = DistributedDataParallel(
            Anchored(model) if anchor else model,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,
        )
        self.allreduce = allreduce
        self.traffic = ring.Traffic()
        if allreduce != "default":
            replica.register_comm_hook((ring.ALGORITHMS[allreduce], self.traffic), ring.hook)
        super().__init__(replica, recipe.make_optimizer(model), recipe)
        self.replica = replica

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # no_sync has to hold in forward too: there DDP decides whether the coming backward reduces
        with nullcontext() if self.last_micro_step else self.replica.no_sync():
            return self.replica(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        with nullcontext() if self.last_micro_step else self.replica.no_sync():
            super().backward(loss)

    def told(self) -> list[str]:
        return [] if self.allreduce == "default" else [ring.told(self.allreduce, self.traffic)]


class Anchored(nn.Module):
    """A model, returning a dataclass with `loss`, whose loss depends on every trained parameter, if with a weight of 0.

    DDP reduces a parameter only when the last micro-step's graph holds it. Left out there, with or without
    `find_unused_parameters`, the gradient that earlier micro-steps accumulated would stay each rank's own, and the
    ranks' weights would drift apart without a word.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outcome: Any = self.model(*args, **kwargs)
        # one element each: the gradient of the rest is zero all the same, and the model is not read once more
        nothing = torch.stack([parameter.reshape(-1)[0] * 0 for parameter in self.trained]).sum()
        loss = outcome.loss + nothing
        return replace(outcome, loss=loss)
