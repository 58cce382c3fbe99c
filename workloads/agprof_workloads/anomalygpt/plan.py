"""The model and its three kinds of micro-step on tensors without data, for `agprof plan` (docs/plan.md).

Random weights of the full shapes, whatever checkpoints are named, and texts of typical length. An inspection
micro-step takes the memory bank or not, as the coin falls: both are counted, each with half a chance.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from agprof_workloads.anomalygpt import deepspeed_config
from agprof_workloads.anomalygpt import model as parts
from agprof_workloads.anomalygpt.build import CHECKPOINT_OPTIONS, DTYPES, build_model
from agprof_workloads.anomalygpt.data import KEPT_TURNS, Batch
from agprof_workloads.anomalygpt.miniature import ABOUT, CLASSES
from agprof_workloads.anomalygpt.prompts import (
    AFTER_IMAGE,
    ANY_OBJECT,
    BEFORE_IMAGE,
    DESCRIPTIONS,
    Conversation,
    Turn,
    encode_conversation,
    inspection,
    read_descriptions,
)
from agprof_workloads.anomalygpt.sizes import IMAGE_SIDE
from agprof_workloads.anomalygpt.train import parse
from agprof_workloads.frameworks.deepspeed import native_ops_buildable

MVTEC = tuple(DESCRIPTIONS)[:15]
PLACE = "top left"
READ_CONVERSATIONS = 1000
FILLER = " word"


def model(arguments: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    options = parse(arguments)
    for name in (*CHECKPOINT_OPTIONS, "anomalygpt_delta"):
        setattr(options, name, None)
    device = torch.device(asked["device"])
    options.dtype, _said = deepspeed_config.usable_dtype(options.dtype, device)
    options.micro_batch = asked.get("micro_batch", options.micro_batch)
    options.longest_text = max(options.longest_text, asked.get("sequence_length", 0))
    trained = options.train.split("+")
    if "lora" in asked:
        trained = [part for part in trained if part != "lora"] + ["lora"] * asked["lora"]
    checkpointing = asked.get("checkpointing", False)

    module = build_model(options, torch.device("meta"), lambda _line: None)
    if options.framework == "deepspeed":
        module = module.to(DTYPES[options.dtype])  # DeepSpeed does; peft keeps its adapters in fp32
    parts.choose_trainable(module, trained)
    module.train()
    if checkpointing:
        module.llama_model.gradient_checkpointing_enable({"use_reentrant": False})
    without_files()

    texts = Texts(options, module, asked.get("sequence_length"))
    inspected = images(2 * options.micro_batch, texts.inspections, texts.class_name, masked=True)
    instructed = images(options.micro_batch, [texts.instruction], ANY_OBJECT, masked=False)
    pairs = options.accumulation / 2
    coin = {"by_chance": "the coin for the memory bank", "per_step": pairs / 2}
    deepspeed = options.framework == "deepspeed"
    trained_elements = sum(p.numel() for p in module.parameters() if p.requires_grad)
    large = module.switches.large_buckets
    native = not options.no_native_ops and (device.type != "cpu" or native_ops_buildable())
    return {
        "module": module,
        "micro_steps": [
            {"name": "inspection without memory bank", "run": micro_step(module, inspected, bank=False), **coin},
            {"name": "inspection with memory bank", "run": micro_step(module, inspected, bank=True), **coin},
            {"name": "instruction", "run": micro_step(module, instructed, bank=False), "per_step": pairs},
        ],
        "can_change": ["micro_batch", "sequence_length", "checkpointing", "lora"],
        "framework": options.framework,
        "zero_stage": options.zero_stage if deepspeed else 0,
        "offload_optimizer": options.offload,
        "accumulation": options.accumulation,
        "micro_batch": options.micro_batch,
        "sequence_length": texts.positions,
        "checkpointing": checkpointing,
        "lora": "lora" in trained,
        "optimizer": "adamw",
        "optimizer_kernel": "fused" if deepspeed and native else "torch",
        "bucket_elements": max(deepspeed_config.BUCKET_ELEMENTS, trained_elements if large else 0),
    }


def without_files() -> None:
    """Images of the memory bank are made up, and nothing is printed per sample."""
    parts.normal_example = lambda path: path
    parts.normal_image = lambda path: torch.zeros(3, IMAGE_SIDE, IMAGE_SIDE, device="meta")
    parts.print = lambda *_words: None  # type: ignore[attr-defined]


def micro_step(module: parts.AnomalyGPT, batch: Batch, *, bank: bool) -> Callable[[], Tensor]:
    def run() -> Tensor:
        # Each micro-step meets the class for the first time, or never again: what is kept between them is not counted.
        parts.BANK_PROBABILITY = 1.0 if bank else 0.0
        outcome: parts.Outcome = module(batch)
        return outcome.loss

    return run


def images(count: int, conversations: list[Conversation], class_name: str, *, masked: bool) -> Batch:
    with torch.device("meta"):
        return Batch(
            images=torch.zeros(count, 3, IMAGE_SIDE, IMAGE_SIDE),
            class_names=[class_name] * count,
            conversations=[conversations[index % len(conversations)] for index in range(count)],
            masks=torch.zeros(count, IMAGE_SIDE, IMAGE_SIDE) if masked else None,
            paths=[Path("000.png")] * count if masked else None,
        )


class Texts:
    """Conversations of the middle length of their data set, or of the length that is asked for."""

    def __init__(self, options: argparse.Namespace, module: parts.AnomalyGPT, positions: int | None) -> None:
        self._tokenizer, self._longest = module.tokenizer, options.longest_text
        descriptions = read_descriptions(options.descriptions)
        classes = MVTEC if options.data_root else CLASSES
        talks = {name: inspection(name, [PLACE], descriptions) for name in classes}
        self.class_name = self._middle(talks)
        self.inspections = [inspection(self.class_name, [], descriptions), talks[self.class_name]]
        instructions = dict(enumerate(conversations(options.sft_json)))
        self.instruction = instructions[self._middle(instructions)]
        lead = len(self._tokenizer.encode(BEFORE_IMAGE + AFTER_IMAGE)) + 2 + 18
        self.positions = lead + self._length(talks[self.class_name])
        if positions is not None:
            self.inspections = [self._stretched(talk, positions - lead) for talk in self.inspections]
            self.instruction = self._stretched(self.instruction, positions - lead)
            self.positions = positions

    def _middle(self, talks: Mapping[Any, Conversation]) -> Any:
        lengths = {name: self._length(talk) for name, talk in talks.items()}
        middle = median_low(lengths.values())
        return next(name for name, length in lengths.items() if length == middle)

    def _length(self, talk: Conversation) -> int:
        return len(encode_conversation(talk, self._tokenizer, self._longest).ids)

    def _stretched(self, talk: Conversation, tokens: int) -> Conversation:
        more = tokens - self._length(talk)
        if tokens > self._longest or more < 0:
            raise ValueError(
                f"conversations of {tokens} tokens: the texts have {self._length(talk)} to {self._longest} "
                "(--longest-text)"
            )
        return [Turn(speaker=talk[0]["speaker"], value=talk[0]["value"] + FILLER * more), *talk[1:]]


def conversations(file: Path | None) -> list[Conversation]:
    if file is None:
        return [
            [Turn(speaker="human", value=question), Turn(speaker="gpt", value=answer)]
            for question, answer in ABOUT.values()
        ]
    rows = json.loads(file.read_text())[:READ_CONVERSATIONS]
    return [[Turn(speaker=t["from"], value=t["value"]) for t in row["conversation"][:KEPT_TURNS]] for row in rows]
