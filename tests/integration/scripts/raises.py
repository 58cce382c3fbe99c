"""Fails at step 7."""

import torch

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(20):
    if step == 7:
        print("done 7 steps 7 micro-steps", flush=True)
        raise RuntimeError("no more data at step 7")
    loss = model(torch.ones(2, 4)).pow(2).mean()
    print(f"loss {loss.item()!r}")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
