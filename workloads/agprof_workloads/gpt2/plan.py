"""The model and its micro-step on tensors without data, for `agprof plan` (docs/plan.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agprof_workloads.gpt2.model import build
from agprof_workloads.gpt2.train import parse


def model(arguments: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    options = parse(arguments)
    context = asked.get("sequence_length", options.context)
    micro_batch = asked.get("micro_batch", options.micro_batch)
    lora = asked.get("lora", options.peft == "lora")
    peft = ("lora" if lora else "none") if "lora" in asked else options.peft
    with torch.device("meta"):
        module = build(options.preset, options.vocabulary, context, peft)
        ids = torch.zeros(micro_batch, context, dtype=torch.long)
    if options.dtype == "bf16":
        module = module.to(torch.bfloat16)  # as DeepSpeed does
    module.train()
    checkpointing = asked.get("checkpointing", False)
    if checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]

    def micro_step() -> torch.Tensor:
        loss: torch.Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        return loss

    return {
        "module": module,
        "micro_steps": [{"name": "text", "per_step": options.accumulation, "run": micro_step}],
        "can_change": ["micro_batch", "sequence_length", "checkpointing"] + ["lora"] * (peft in ("lora", "none")),
        "framework": options.framework,
        "zero_stage": options.zero_stage if options.framework == "deepspeed" else 0,
        "offload_optimizer": options.offload,
        "accumulation": options.accumulation,
        "micro_batch": micro_batch,
        "sequence_length": context,
        "checkpointing": checkpointing,
        "lora": peft == "lora",
        "optimizer": "adamw",
        "optimizer_kernel": "fused" if options.offload else "torch",
    }
