"""One process, gradient accumulation by hand."""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--accumulation", type=int, default=4)
args = parser.parse_args()

torch.manual_seed(0)
inputs = torch.randn(96, 16)
data = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4, shuffle=True)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

steps = micro_steps = 0
for number, (x, y) in enumerate(data, 1):
    loss = nn.functional.mse_loss(model(x), y)
    print(f"loss {loss.item()!r}")
    (loss / args.accumulation).backward()
    micro_steps += 1
    if number % args.accumulation == 0:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
print(f"done {steps} steps {micro_steps} micro-steps")
