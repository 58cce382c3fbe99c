"""Accelerate: prepare, accumulate, clip; started by `accelerate launch` or by torchrun."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
set_seed(5)
inputs = torch.randn(96, 16)
data = DataLoader(TensorDataset(inputs, inputs.flip(-1)), batch_size=4)
model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4)
model, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)

steps = micro_steps = 0
for x, y in data:
    with accelerator.accumulate(model):
        loss = nn.functional.mse_loss(model(x), y)
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            steps += 1
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    micro_steps += 1
    accelerator.print(f"loss {loss.item()!r}")
accelerator.print(f"done {steps} steps {micro_steps} micro-steps")
accelerator.end_training()
