"""Trains a stack of linear layers: nearly all its time is in matrix products. The batches carry a padding mask."""

import torch
from torch.utils.data import DataLoader

WIDTH, LAYERS, ROWS, LENGTH, STEPS = 768, 4, 8, 64, 12


def collate(rows):
    ids = torch.stack(rows)
    return {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < LENGTH // 2).long().expand(len(ids), LENGTH)}


torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
inputs = torch.randn(ROWS * LENGTH, WIDTH)
for _batch in DataLoader(torch.zeros(ROWS * STEPS, LENGTH, dtype=torch.long), batch_size=ROWS, collate_fn=collate):
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()
