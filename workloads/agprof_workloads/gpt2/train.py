"""Train a GPT-2 language model on CPython's documentation, whole or by one of peft's methods.

Runs as one process (``python -m agprof_workloads.gpt2.train``) and under torchrun, in each framework of --framework.
Prints one line per optimizer step and the perplexity on held-out text, from rank 0.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import agprof
from agprof_workloads.frameworks.process import Say, open_log, prepare_process, say_on_rank_0, seed
from agprof_workloads.frameworks.training import Recipe, Training
from agprof_workloads.frameworks.wrap import add_options, check_options, start_group, wrap
from agprof_workloads.gpt2.model import BLOCKS, METHODS, SIZES, build
from agprof_workloads.text import docstrings, topics, train_tokenizer

HELD_OUT = 32
"""Blocks of text that are not trained on."""
TOKENIZER_TEXTS = 400
TEXTS = 1500
"""Paragraphs that are encoded."""
DTYPES = ("fp32", "bf16")

Batch = dict[str, Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    try:
        train(options)
    except ValueError as error:
        sys.exit(f"gpt2: {error}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpt2", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--preset", choices=SIZES, default="tiny", help="size of the model")
    add("--peft", choices=METHODS, default="lora", help="what is trained; none: every parameter")
    add_options(parser, default="ddp")
    add("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2, help="of --framework deepspeed")
    add("--offload", action="store_true", help="keep the optimizer's state on the CPU; of --framework deepspeed")
    add("--dtype", choices=DTYPES, default="fp32", help="bf16: of --framework deepspeed")
    add("--steps", type=int, default=20, help="optimizer steps")
    add("--micro-batch", type=int, default=2, help="blocks per rank and micro-step")
    add("--accumulation", type=int, default=2, help="micro-steps per optimizer step")
    add("--context", type=int, default=128, help="tokens of a block")
    add("--vocabulary", type=int, default=1024, help="tokens of the tokenizer")
    add("--lr", type=float, default=5e-5, help="learning rate")
    add("--weight-decay", type=float, default=0.01)
    add("--held-out", type=int, default=HELD_OUT, help="blocks to evaluate on at the end; 0: no evaluation")
    add("--seed", type=int, default=42)
    add("--loss-log", type=Path, help="file for one loss per micro-step, exactly; other ranks add .rank<n>")
    options = parser.parse_args(argv)
    for name in ("steps", "micro_batch", "accumulation", "context"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    if not 0 <= options.held_out <= HELD_OUT:
        parser.error(f"--held-out must be 0 to {HELD_OUT}, not {options.held_out}")
    return options


def train(options: argparse.Namespace) -> None:
    check_options(options.framework, options.allreduce, offload=options.offload, dtype=options.dtype)
    device = prepare_process()
    start_group(options.framework, device)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    say = say_on_rank_0(rank)

    seed(options.seed)
    learned, held_out = blocks(options.context, options.vocabulary)
    model = build(options.preset, options.vocabulary, options.context, options.peft).to(device)
    training = wrap(
        options.framework,
        model,
        Recipe(
            make_optimizer=lambda module: torch.optim.AdamW(
                [p for p in module.parameters() if p.requires_grad], lr=options.lr, weight_decay=options.weight_decay
            ),
            micro_batch=options.micro_batch,
            accumulation=options.accumulation,
        ),
        blocks=BLOCKS,
        zero_stage=options.zero_stage,
        offload=options.offload,
        dtype=options.dtype,
        allreduce=options.allreduce,
    )
    # frameworks draw different numbers of random numbers while they start; dropout must not notice
    seed(options.seed + 1 + rank)
    say(f"{sizes(model)} on {ranks} x {device.type}, {options.framework}, peft: {options.peft}")

    sampler: DistributedSampler[Batch] = DistributedSampler(learned, ranks, rank, seed=options.seed, drop_last=True)
    loader = DataLoader(learned, options.micro_batch, sampler=sampler, drop_last=True)
    with open_log(options.loss_log, rank) as log:
        run(training, endless(loader, sampler, device), options, say, log)
    if options.held_out:
        held_out.tokens = held_out.tokens[: options.held_out]
        loss = evaluate(training, DataLoader(held_out, options.micro_batch), device)
        # the exponential of the loss; slides that print the loss itself as perplexity are wrong
        say(f"held out: loss {loss:.4f}, perplexity {math.exp(loss):.1f}")
    for line in training.told():
        say(line)
    dist.destroy_process_group()


def run(training: Training, batches: Iterator[Batch], options: argparse.Namespace, say: Say, log: Any) -> None:
    training.module.train()
    losses: list[float] = []
    started = time.perf_counter()
    for batch in batches:
        loss = training.forward(**batch).loss
        training.backward(loss)
        tokens = batch["input_ids"].numel()
        agprof.step(tokens=tokens, samples=len(batch["input_ids"]), unpadded_tokens=tokens)
        updated = training.step()
        losses.append(loss.item())
        if log is not None:
            log.write(f"{losses[-1]!r}\n")
        if not updated:
            continue
        now = time.perf_counter()
        say(f"step {training.steps}/{options.steps} loss {fmean(losses):.4f} {1000 * (now - started):.0f} ms")
        started = now
        losses.clear()
        if training.steps >= options.steps:
            return


def evaluate(training: Training, loader: "DataLoader[Batch]", device: torch.device) -> float:
    """Mean loss per token of the held-out blocks. Every rank reads all: FSDP2 gathers its weights on all of them."""
    training.module.eval()
    losses = []
    with torch.no_grad():
        for batch in loader:
            losses.append(training.module(**{key: value.to(device) for key, value in batch.items()}).loss.item())
    return fmean(losses)


class Blocks(Dataset[Batch]):
    """Text as one long row of tokens, cut into blocks of one length."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Batch:
        block = self.tokens[index]
        return {"input_ids": block, "attention_mask": torch.ones_like(block), "labels": block}


def blocks(context: int, vocabulary: int) -> tuple[Blocks, Blocks]:
    """Text to learn from, and HELD_OUT other blocks."""
    both = zip(topics(), docstrings(), strict=False)
    texts = [text for pair in both for text in pair][:TEXTS]
    tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], vocabulary, context)
    row: list[int] = []
    for ids in tokenizer(texts)["input_ids"]:
        row += [*ids, tokenizer.eos_token_id]
    whole = torch.tensor(row[: len(row) // context * context]).reshape(-1, context)
    return Blocks(whole[HELD_OUT:]), Blocks(whole[:HELD_OUT])


def endless(loader: "DataLoader[Batch]", sampler: "DistributedSampler[Batch]", device: torch.device) -> Iterator[Batch]:
    for epoch in count():
        agprof.mark(f"epoch {epoch + 1}")
        sampler.set_epoch(epoch)
        for batch in loader:
            yield {key: value.to(device) for key, value in batch.items()}


def sizes(model: nn.Module) -> str:
    # ZeRO-3 leaves nothing of a parameter but its partition, and its size under this name
    sized = [(p, getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
    everything = sum(count for _p, count in sized)
    trained = sum(count for p, count in sized if p.requires_grad)
    return f"{everything:,} parameters, {trained:,} ({trained / everything:.2%}) trained,"


if __name__ == "__main__":
    main()
