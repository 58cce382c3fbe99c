"""Stage 2, the reward model: it learns to give the chosen answer of a pair the higher score.

Runs as one process (``python -m agprof_workloads.deepspeed_chat.reward``), under torchrun and under the deepspeed
launcher. Prints one line per optimizer step, from rank 0, and the accuracy on held-out pairs at the end.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import agprof
from agprof_workloads.deepspeed_chat import checkpoints, data, job, losses, models, options
from agprof_workloads.deepspeed_chat.job import Job
from agprof_workloads.deepspeed_chat.sft import Speeds, start_engine

NAME = "deepspeed_chat.reward"
COMMON = {"weight_decay": 0.1, "dropout": 0.0}
ORIGINAL = COMMON | {"micro_batch": 4, "max_length": 512, "learning_rate": 5e-5, "zero_stage": 0, "warmup_steps": 0}
DEFAULTS = {
    "tiny": COMMON
    | {
        "steps": 60,
        "micro_batch": 8,
        "max_length": 128,
        "dtype": "fp32",
        "learning_rate": 2e-3,
        "zero_stage": 2,
        "warmup_steps": 10,
    },
    "small": ORIGINAL | {"steps": 50, "dtype": "bf16"},
    "full": ORIGINAL | {"steps": 500, "dtype": "fp16"},
}


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    try:
        check(given)
        with job.started(given) as running:
            train(given, running)
    except ValueError as error:
        job.finish(NAME, error)


def parse(argv: Sequence[str] | None = None) -> Namespace:
    parser = options.parser_of(NAME, __doc__)
    options.add_supervised(parser)
    parser.add_argument("--eval-interval", type=int, default=0, help="steps between evaluations; 0: only at both ends")
    return options.parsed(parser, argv, DEFAULTS, ("steps", "micro_batch", "accumulation", "max_length"))


def check(given: Namespace) -> None:
    """Raise on what can be known to be wrong before anything is started."""
    options.check_model_dir(given)


def train(given: Namespace, running: Job) -> Path | None:
    """The whole stage; where the reward model was saved."""
    job.seed(given.seed)
    tokenizer = options.tokenizer_of(given, given.model_dir)
    rows, held_out = data.rows_of(options.texts_of(given), data.parse_parts(given.data_split), 2, given.seed)
    place = (given.micro_batch, running.rank, running.ranks)
    train_rows = data.pair_rows(rows, tokenizer, given.max_length, given.end_marker)
    eval_rows = data.pair_rows(held_out, tokenizer, given.max_length, given.end_marker)
    batches = data.loader(train_rows, data.collate_pairs, *place, shuffle=True)
    held_out_batches = data.loader(eval_rows, data.collate_pairs, *place, shuffle=False)

    if given.model_dir:
        model = models.reward_model_on(given.model_dir, tokenizer, given.dropout)
    else:
        model = models.random_reward_model(models.CRITICS[given.preset], tokenizer, given.dropout)
    engine = start_engine(model, given, running)
    start = given.model_dir or "random weights"
    running.say(f"stage 2, reward model of {job.counted(model)}, from {start}")
    running.say(
        f"{len(rows)} pairs and {len(held_out)} held out, {options.source(given)}; "
        f"{running.ranks} x {running.device.type}, {given.dtype}, ZeRO-{given.zero_stage}"
    )
    judge = Judge(tokenizer.pad_token_id, given.padding_at_beginning)

    running.say(f"before: {evaluate(engine, held_out_batches, judge, given, running)}")
    step_loop(engine, batches, held_out_batches, judge, given, running)
    running.say(f"after {given.steps} steps: {evaluate(engine, held_out_batches, judge, given, running)}")
    folder = checkpoints.reward_folder(given.out, given.preset) if given.out else None
    if folder:
        checkpoints.save(model, tokenizer, folder, running.rank)
        running.say(f"reward model saved in {folder}")
    job.release(engine)
    return folder


@dataclass(frozen=True, slots=True)
class Judge:
    """Runs the model on a batch of pairs and compares the two halves."""

    pad: int
    leading: int

    def __call__(self, engine: Any, batch: data.PairBatch) -> losses.PairOutcome:
        values = engine(batch.input_ids, batch.attention_mask)
        chosen, rejected = values.chunk(2)
        chosen_ids, rejected_ids = batch.input_ids.chunk(2)
        return losses.pairwise(chosen, rejected, chosen_ids, rejected_ids, self.pad, self.leading)


def step_loop(engine: Any, batches: Any, held_out: Any, judge: Judge, given: Namespace, running: Job) -> None:
    # a pair is two rows to the model
    speeds = Speeds("reward", engine, given, running, rows=2 * given.micro_batch)
    engine.train()
    seen: list[float] = []
    for batch in data.forever(batches):
        speeds.begin()
        batch = batch.to(running.device)  # noqa: PLW2901
        outcome = judge(engine, batch)
        engine.backward(outcome.loss)
        unpadded = int(batch.attention_mask.sum())
        agprof.step(tokens=batch.input_ids.numel(), samples=len(batch.input_ids) // 2, unpadded_tokens=unpadded)
        engine.step()
        speeds.end()
        seen.append(job.as_float(outcome.loss))
        running.log_loss(seen[-1])
        if engine.micro_steps % given.accumulation:
            continue
        accuracy = (outcome.chosen > outcome.rejected).float().mean().item()
        speeds.report(engine.global_steps, f"loss {fmean(seen):.4f} accuracy {accuracy:.2f}")
        seen.clear()
        if engine.global_steps >= given.steps:
            speeds.summary()
            return
        if given.eval_interval and engine.global_steps % given.eval_interval == 0:
            running.say(str(evaluate(engine, held_out, judge, given, running)))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """On held-out pairs of all ranks."""

    accuracy: float
    pairs: int
    chosen: float
    rejected: float

    def __str__(self) -> str:
        return (
            f"held-out accuracy {self.accuracy:.3f} on {self.pairs} pairs (chance 0.5), "
            f"mean score {self.chosen:.3f} chosen, {self.rejected:.3f} rejected"
        )


@torch.no_grad()
def evaluate(engine: Any, batches: Any, judge: Judge, given: Namespace, running: Job) -> Evaluation:
    engine.eval()
    right, pairs, chosen, rejected = 0.0, 0.0, 0.0, 0.0
    with agprof.range("evaluate"):
        for _, batch in zip(range(given.eval_batches), batches, strict=False):
            outcome = judge(engine, batch.to(running.device))
            right += float((outcome.chosen > outcome.rejected).sum())
            pairs += len(outcome.chosen)
            chosen += float(outcome.chosen.float().sum())
            rejected += float(outcome.rejected.float().sum())
    engine.train()
    right, pairs, chosen, rejected = running.total([right, pairs, chosen, rejected])
    return Evaluation(right / pairs, int(pairs), chosen / pairs, rejected / pairs)


if __name__ == "__main__":
    main()
