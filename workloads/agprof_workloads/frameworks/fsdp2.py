"""FSDP2, torch's `fully_shard`: each rank keeps a part of every parameter, its gradient and its optimizer state."""

from collections.abc import Collection
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from agprof_workloads.frameworks.training import Recipe, TorchTraining


class Fsdp2Training(TorchTraining):
    """`blocks` are the class names of the layers that are gathered one at a time; the rest is gathered as a whole."""

    sharded: FSDPModule

    def __init__(self, model: nn.Module, recipe: Recipe, blocks: Collection[str]) -> None:
        device = next(model.parameters()).device
        broadcast(model)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for module in list(model.modules()):
            if type(module).__name__ in blocks:
                fully_shard(module, mesh=mesh)
        root: Any = fully_shard(model, mesh=mesh)
        self.sharded = root
        super().__init__(root, recipe.make_optimizer(root), recipe)

    def backward(self, loss: Tensor) -> None:
        self.sharded.set_requires_gradient_sync(self.last_micro_step)
        super().backward(loss)


def broadcast(model: nn.Module) -> None:
    """Start from rank 0's weights, as DDP, DeepSpeed and Horovod do by themselves."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.data, src=0)
