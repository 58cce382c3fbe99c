"""DataLoader workers in processes of their own, a changed working directory, and a helper program."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        value = torch.full((4,), index / 48)
        return {"x": value, "y": value.pow(2).sum()}


def main():
    os.chdir(tempfile.mkdtemp())
    version = subprocess.run([sys.executable, "-c", "print(1 + 1)"], capture_output=True, text=True, check=True)
    assert version.stdout == "2\n", version
    torch.manual_seed(4)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = 0
    for context, workers in (("fork", 2), ("spawn", 1)):
        loader = DataLoader(Squares(), batch_size=8, shuffle=True, num_workers=workers, multiprocessing_context=context)
        for batch in loader:
            optimizer.zero_grad()
            loss = (model(batch["x"]).squeeze(1) - batch["y"]).pow(2).mean()
            loss.backward()
            optimizer.step()
            steps += 1
            print(f"loss {loss.item()!r}")
    with Path("result.txt").open("w") as file:
        file.write(str(steps))
    print(f"done {steps} steps {steps} micro-steps")


if __name__ == "__main__":
    main()
