"""Train a BERT classifier to tell CPython's language reference from its docstrings.

Runs as one process (``python -m agprof_workloads.bert.train``) and under torchrun, in each framework of --framework.
Prints one line per optimizer step and the scores on held-out passages, from rank 0.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import agprof
from agprof_workloads.bert.model import BLOCKS, SIZES, Classifier, decay_groups
from agprof_workloads.frameworks.process import Say, open_log, prepare_process, say_on_rank_0, seed
from agprof_workloads.frameworks.training import Recipe, Training
from agprof_workloads.frameworks.wrap import add_options, check_options, start_group, wrap
from agprof_workloads.text import docstrings, topics, train_tokenizer

HELD_OUT = 64
TOKENIZER_TEXTS = 400
"""Passages that the tokenizer is trained on; more only takes longer."""

Batch = dict[str, Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    try:
        train(options)
    except ValueError as error:
        sys.exit(f"bert: {error}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bert", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--preset", choices=SIZES, default="tiny", help="size of the model")
    add_options(parser, default="ddp")
    add("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2, help="of --framework deepspeed")
    add("--steps", type=int, default=20, help="optimizer steps")
    add("--micro-batch", type=int, default=8, help="passages per rank and micro-step")
    add("--accumulation", type=int, default=1, help="micro-steps per optimizer step")
    add("--context", type=int, default=128, help="tokens that every passage is cut or padded to")
    add("--vocabulary", type=int, default=1024, help="tokens of the tokenizer")
    add("--lr", type=float, default=2e-5, help="learning rate")
    add("--weight-decay", type=float, default=0.01)
    add("--seed", type=int, default=42)
    add("--loss-log", type=Path, help="file for one loss per micro-step, exactly; other ranks add .rank<n>")
    options = parser.parse_args(argv)
    for name in ("steps", "micro_batch", "accumulation", "context"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    return options


def train(options: argparse.Namespace) -> None:
    check_options(options.framework, options.allreduce)
    device = prepare_process()
    start_group(options.framework, device)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    say = say_on_rank_0(rank)

    seed(options.seed)
    learned, held_out = passages(options.context, options.vocabulary)
    model = Classifier(options.preset, options.vocabulary, options.context).to(device)
    training = wrap(
        options.framework,
        model,
        Recipe(
            make_optimizer=lambda module: torch.optim.AdamW(
                decay_groups(module, options.weight_decay), lr=options.lr, eps=1e-8
            ),
            micro_batch=options.micro_batch,
            accumulation=options.accumulation,
        ),
        blocks=BLOCKS,
        zero_stage=options.zero_stage,
        allreduce=options.allreduce,
    )
    # frameworks draw different numbers of random numbers while they start; dropout must not notice
    seed(options.seed + 1 + rank)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters on {ranks} x {device.type}, {options.framework}")

    sampler: DistributedSampler[Batch] = DistributedSampler(learned, ranks, rank, seed=options.seed, drop_last=True)
    loader = DataLoader(learned, options.micro_batch, sampler=sampler, drop_last=True)
    with open_log(options.loss_log, rank) as log:
        run(training, endless(loader, sampler, device), options, say, log)
    say(str(evaluate(training, DataLoader(held_out, options.micro_batch), device)))
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
        agprof.step(samples=len(batch["labels"]))  # tokens and padding are read off the batch's mask
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


class Scores(NamedTuple):
    """Of the class `docstring` on held-out passages."""

    accuracy: float
    precision: float
    recall: float
    f1: float

    def __str__(self) -> str:
        words = (f"{name} {value:.3f}" for name, value in self._asdict().items())
        return f"held out: {', '.join(words)}"


def evaluate(training: Training, loader: "DataLoader[Batch]", device: torch.device) -> Scores:
    """Every rank scores all passages: FSDP2 gathers its weights on all of them."""
    training.module.eval()
    pairs: list[tuple[int, int]] = []
    with torch.no_grad():
        for batch in loader:
            logits = training.module(**{key: value.to(device) for key, value in batch.items()}).logits
            pairs += zip(logits.argmax(dim=-1).tolist(), batch["labels"].tolist(), strict=True)
    return scores(pairs)


def scores(pairs: Sequence[tuple[int, int]]) -> Scores:
    """From (guessed, true) classes.

    >>> scores([(1, 1), (1, 0), (0, 0), (0, 1)])
    Scores(accuracy=0.5, precision=0.5, recall=0.5, f1=0.5)
    """
    hits = sum(guessed == true == 1 for guessed, true in pairs)
    guessed_ones, ones = sum(guessed for guessed, _ in pairs), sum(true for _, true in pairs)
    precision, recall = hits / max(1, guessed_ones), hits / max(1, ones)
    return Scores(
        accuracy=sum(guessed == true for guessed, true in pairs) / max(1, len(pairs)),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
    )


class Passages(Dataset[Batch]):
    """Encoded passages with their class, all of one length."""

    def __init__(self, tokenizer: Any, labelled: Sequence[tuple[str, int]], context: int) -> None:
        texts = [text for text, _ in labelled]
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
        self.columns: Batch = {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": torch.tensor([label for _, label in labelled]),
        }

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> Batch:
        return {key: column[index] for key, column in self.columns.items()}


def passages(context: int, vocabulary: int) -> tuple[Passages, Passages]:
    """As many paragraphs of the reference (class 0) as docstrings (1): those to learn from, and HELD_OUT others."""
    classes = [topics(), docstrings()]
    shuffle = random.Random(0)
    for texts in classes:
        shuffle.shuffle(texts)
    count = min(map(len, classes))
    labelled = [(texts[index], label) for index in range(count) for label, texts in enumerate(classes)]
    tokenizer = train_tokenizer([text for text, _ in labelled[:TOKENIZER_TEXTS]], vocabulary, context)
    return (
        Passages(tokenizer, labelled[HELD_OUT:], context),
        Passages(tokenizer, labelled[:HELD_OUT], context),
    )


def endless(loader: "DataLoader[Batch]", sampler: "DistributedSampler[Batch]", device: torch.device) -> Iterator[Batch]:
    for epoch in count():
        agprof.mark(f"epoch {epoch + 1}")
        sampler.set_epoch(epoch)
        for batch in loader:
            yield {key: value.to(device) for key, value in batch.items()}


if __name__ == "__main__":
    main()
