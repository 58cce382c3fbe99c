"""A small model under DeepSpeed: stage, element type and offload from the command line, two ranks."""

import sys

import deepspeed
import torch

WIDTH, LAYERS = 256, 6

stage, dtype, offload = int(sys.argv[1]), sys.argv[2], sys.argv[3].split("+")
torch.manual_seed(1)
model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
model[0].requires_grad_(False)
zero = {"stage": stage, "reduce_bucket_size": 100_000, "stage3_param_persistence_threshold": 0}
for what in ("optimizer", "param"):
    if what in offload:
        zero[f"offload_{what}"] = {"device": "cpu"}
config = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "zero_optimization": zero,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "bf16": {"enabled": dtype == "bf16"},
    "steps_per_print": 1000,
    "zero_force_ds_cpu_optimizer": False,
}
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
for _step in range(4 * 2):
    values = torch.randn(8, WIDTH, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    engine.backward(engine(values).square().mean())
    engine.step()
torch.distributed.destroy_process_group()
