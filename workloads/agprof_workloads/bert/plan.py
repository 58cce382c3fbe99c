"""The model and its micro-step on tensors without data, for `agprof plan` (docs/plan.md)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agprof_workloads.bert.model import Classifier
from agprof_workloads.bert.train import parse


def model(arguments: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    options = parse(arguments)
    context = asked.get("sequence_length", options.context)
    micro_batch = asked.get("micro_batch", options.micro_batch)
    checkpointing = asked.get("checkpointing", False)
    with torch.device("meta"):
        module = Classifier(options.preset, options.vocabulary, context)
        ids = torch.zeros(micro_batch, context, dtype=torch.long)
        mask = torch.ones_like(ids)
        labels = torch.zeros(micro_batch, dtype=torch.long)
    module.train()
    if checkpointing:
        module.bert.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]

    return {
        "module": module,
        "micro_steps": [
            {"name": "text", "per_step": options.accumulation, "run": lambda: module(ids, mask, labels).loss}
        ],
        "can_change": ["micro_batch", "sequence_length", "checkpointing"],
        "framework": options.framework,
        "zero_stage": options.zero_stage if options.framework == "deepspeed" else 0,
        "accumulation": options.accumulation,
        "micro_batch": micro_batch,
        "sequence_length": context,
        "checkpointing": checkpointing,
        "optimizer": "adamw",
    }
