"""A training whose batches grow until host memory ends: under a limit that the script sets itself, or the cgroup's.

    out_of_memory.py [--address-space BYTES] [--batch N] [--grow FACTOR] [--steps N] [--catch] [--numpy]

With --catch it halves the batch and tries again, as many loops do.
"""

import argparse
import resource
from pathlib import Path

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--address-space", type=int, default=0)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--grow", type=float, default=1.0)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--catch", action="store_true")
parser.add_argument("--numpy", action="store_true")
arguments = parser.parse_args()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


torch.manual_seed(0)
torch.set_num_threads(1)
width = 256
model = nn.Sequential(*(Block(width) for _ in range(4)))
optimizer = torch.optim.AdamW(model.parameters())
if arguments.address_space:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + arguments.address_space
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(f"limit {limit}", flush=True)


def train(batch: int) -> float:
    loss = model(torch.randn(batch, width)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


batch = arguments.batch
for step in range(arguments.steps):
    if arguments.numpy and step == arguments.steps - 1:
        import numpy

        numpy.ones((10**6, 10**6))
    while True:
        try:
            loss = train(batch)
        except (MemoryError, RuntimeError) as error:
            if not arguments.catch or "allocate" not in str(error):
                raise
            optimizer.zero_grad()
            print(f"caught at batch {batch}", flush=True)
            batch //= 2
            arguments.grow = 1
            continue
        break
    print(f"step {step} batch {batch} loss {loss:.6f}", flush=True)
    batch = int(batch * arguments.grow)
