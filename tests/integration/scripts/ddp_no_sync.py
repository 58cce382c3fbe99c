"""DDP with gradient accumulation under no_sync: buckets are reduced at the last micro-step only."""

import contextlib
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ACCUMULATION = 3


def main():
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(rank)
    steps = micro_steps = 0
    for _ in range(6):
        for micro in range(ACCUMULATION):
            x = torch.randn(8, 64, generator=generator)
            last = micro == ACCUMULATION - 1
            with contextlib.nullcontext() if last else model.no_sync():
                loss = (model(x) - x).pow(2).mean()
                (loss / ACCUMULATION).backward()
            micro_steps += 1
            if rank == 0:
                print(f"loss {loss.item()!r}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    if rank == 0:
        print(f"done {steps} steps {micro_steps} micro-steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
