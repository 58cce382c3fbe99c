"""FSDP2: every block and the root fully sharded; the gradient norm is clipped, which reduces a DTensor."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width=64, depth=3):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(3)
model = Model()
for block in model.blocks:
    fully_shard(block)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
torch.manual_seed(rank)
steps = micro_steps = 0
for _ in range(6):
    for micro in range(2):
        model.set_requires_gradient_sync(micro == 1)
        x = torch.randn(8, 64)
        loss = nn.functional.mse_loss(model(x), x.roll(1, -1))
        loss.backward()
        micro_steps += 1
        if rank == 0:
            print(f"loss {loss.item()!r}")
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
    optimizer.step()
    optimizer.zero_grad()
    steps += 1
    if rank == 0:
        print(f"norm {norm.item()!r}")
if rank == 0:
    print(f"done {steps} steps {micro_steps} micro-steps")
dist.destroy_process_group()
