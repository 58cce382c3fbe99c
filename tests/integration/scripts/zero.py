"""DeepSpeed through engine.backward and engine.step, at any ZeRO stage."""

import argparse

import deepspeed
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--stage", type=int, default=2)
parser.add_argument("--reduce-scatter", action="store_true")
parser.add_argument("--local_rank", type=int, default=-1)
args = parser.parse_args()

config = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": args.stage, "stage3_param_persistence_threshold": 0},
    "bf16": {"enabled": args.stage == 3},
}

deepspeed.init_distributed("gloo")
torch.manual_seed(7)
model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32))
engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
rank = torch.distributed.get_rank()
torch.manual_seed(rank)
micro_steps = 0
for _ in range(12):
    x = torch.randn(4, 32).to(next(engine.parameters()).dtype)
    loss = (engine(x) - x).float().pow(2).mean()
    engine.backward(loss)
    engine.step()
    micro_steps += 1
    if rank == 0:
        print(f"loss {loss.item()!r}")
if rank == 0:
    print(f"done {engine.global_steps} steps {micro_steps} micro-steps")
torch.distributed.destroy_process_group()
