"""A step that is mostly gradients over the network: a few square layers under DDP, a small batch."""

import argparse

import torch
import torch.distributed as dist

WIDTH, LAYERS = 1024, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=16)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(32, WIDTH)).square().mean().backward()
        optimizer.step()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
