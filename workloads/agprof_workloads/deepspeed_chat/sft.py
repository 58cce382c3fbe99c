"""Stage 1, supervised fine-tuning: the actor learns to write prompts and their chosen answers.

Runs as one process (``python -m agprof_workloads.deepspeed_chat.sft``), under torchrun and under the deepspeed
launcher. Prints one line per optimizer step, from rank 0.
"""

import math
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import agprof
from agprof_workloads.deepspeed_chat import checkpoints, config, data, job, metrics, models, options, text
from agprof_workloads.deepspeed_chat.job import Job

NAME = "deepspeed_chat.sft"
COMMON = {"weight_decay": 0.0, "zero_stage": 2, "warmup_steps": 0}
DEFAULTS = {
    "tiny": COMMON
    | {"steps": 24, "micro_batch": 8, "max_length": 128, "dtype": "fp32", "learning_rate": 3e-3, "dropout": 0.0},
    "small": COMMON | {"steps": 50, "micro_batch": 8, "max_length": 512, "dtype": "bf16", "learning_rate": 1e-4},
    "full": COMMON | {"steps": 500, "micro_batch": 8, "max_length": 512, "dtype": "fp16", "learning_rate": 9.65e-6},
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
    parser.add_argument("--sft-only-data", type=Path, nargs="+", help="more data, for this stage alone")
    return options.parsed(parser, argv, DEFAULTS, ("steps", "micro_batch", "accumulation", "max_length"))


def check(given: Namespace) -> None:
    """Raise on what can be known to be wrong before anything is started."""
    options.check_model_dir(given)


def train(given: Namespace, running: Job) -> Path | None:
    """The whole stage; where the actor was saved."""
    job.seed(given.seed)
    tokenizer = options.tokenizer_of(given, given.model_dir)
    rows, held_out = data.rows_of(
        options.texts_of(given),
        data.parse_parts(given.data_split),
        1,
        given.seed,
        [text.read_texts(path) for path in given.sft_only_data or ()],
    )
    place = (given.micro_batch, running.rank, running.ranks)
    train_rows = data.language_rows(rows, tokenizer, given.max_length)
    eval_rows = data.language_rows(held_out, tokenizer, given.max_length)
    batches = data.loader(train_rows, data.collate_language, *place, shuffle=True)
    held_out_batches = data.loader(eval_rows, data.collate_language, *place, shuffle=False)

    if given.model_dir:
        model = models.actor_from(given.model_dir, tokenizer, given.dropout)
    else:
        model = models.random_actor(models.ACTORS[given.preset], tokenizer, given.dropout)
    engine = start_engine(model, given, running)
    start = given.model_dir or "random weights"
    running.say(f"stage 1, supervised fine-tuning: actor of {job.counted(model)}, from {start}")
    running.say(
        f"{len(rows)} rows and {len(held_out)} held out, {options.source(given)}; "
        f"{running.ranks} x {running.device.type}, {given.dtype}, ZeRO-{given.zero_stage}"
    )

    before = perplexity(engine, held_out_batches, given, running)
    step_loop(engine, batches, given, running)
    after = perplexity(engine, held_out_batches, given, running)
    running.say(f"perplexity on held-out rows: {before:.1f} before, {after:.1f} after {given.steps} steps")
    folder = checkpoints.actor_folder(given.out, given.preset) if given.out else None
    if folder:
        checkpoints.save(model, tokenizer, folder, running.rank)
        running.say(f"actor saved in {folder}")
    job.release(engine)
    return folder


def start_engine(model: Any, given: Namespace, running: Job) -> Any:
    """The engine of a stage that trains one model."""
    job.prepare_lora(model, given.lora_rank, only=given.only_optimize_lora)
    if given.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    engine = config.Engine(
        micro_batch=given.micro_batch,
        accumulation=given.accumulation,
        ranks=running.ranks,
        zero_stage=given.zero_stage,
        offload=given.offload,
        dtype=given.dtype,
    )
    training = job.Training(
        learning_rate=given.learning_rate,
        lora_learning_rate=given.lora_learning_rate,
        weight_decay=given.weight_decay,
        schedule=given.schedule,
        warmup_steps=given.warmup_steps,
        total_steps=given.steps,
    )
    return job.train_engine(model, engine, training, running)


def step_loop(engine: Any, batches: Any, given: Namespace, running: Job) -> None:
    speeds = Speeds("sft", engine, given, running, rows=given.micro_batch)
    engine.train()
    losses: list[float] = []
    for batch in data.forever(batches):
        speeds.begin()
        batch = batch.to(running.device)  # noqa: PLW2901
        loss = engine(**fields(batch), use_cache=False).loss
        engine.backward(loss)
        unpadded = int(batch.attention_mask.sum())
        agprof.step(tokens=batch.input_ids.numel(), samples=len(batch.input_ids), unpadded_tokens=unpadded)
        engine.step()
        speeds.end()
        losses.append(job.as_float(loss))
        running.log_loss(losses[-1])
        if engine.micro_steps % given.accumulation:
            continue
        speeds.report(engine.global_steps, f"loss {fmean(losses):.4f}")
        losses.clear()
        if engine.global_steps >= given.steps:
            speeds.summary()
            return


def fields(batch: data.LanguageBatch) -> dict[str, torch.Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


@torch.no_grad()
def perplexity(engine: Any, batches: Any, given: Namespace, running: Job) -> float:
    """e to the mean loss of the held-out batches, over all ranks."""
    engine.eval()
    losses = []
    with agprof.range("evaluate"):
        for _, batch in zip(range(given.eval_batches), batches, strict=False):
            losses.append(job.as_float(engine(**fields(batch.to(running.device)), use_cache=False).loss))
    engine.train()
    (loss,) = running.average([fmean(losses)])
    return math.exp(min(loss, 700))


class Speeds:
    """The speeds of stages 1 and 2 in both columns: of the latest micro-step, and on average at the end."""

    def __init__(self, stage: str, engine: Any, given: Namespace, running: Job, rows: int) -> None:
        self._stage = stage
        self._shape = job.shape_of(engine.module)
        self._given, self._running, self._rows = given, running, rows
        self._factor = metrics.training_factor(
            self._shape.hidden, checkpointing=given.gradient_checkpointing, lora_rank=given.lora_rank
        )
        self._upstream: list[metrics.Column] = []
        self._corrected: list[metrics.Column] = []

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self) -> None:
        host_s = time.perf_counter() - self._began
        job.wait_for(self._running.device)
        step = metrics.SupervisedStep(
            shape=self._shape,
            factor=self._factor,
            rows=self._rows,
            length=self._given.max_length,
            ranks=self._running.ranks,
            host_s=host_s,
            s=time.perf_counter() - self._began,
        )
        self._s = step.s
        self._upstream.append(metrics.supervised_upstream(step))
        self._corrected.append(metrics.supervised_corrected(step))

    def report(self, number: int, what: str) -> None:
        upstream, corrected = self._upstream[-1], self._corrected[-1]
        self._running.say(
            f"step {number}/{self._given.steps} {what} {1000 * self._s:.0f} ms per micro-step, samples/s "
            f"{upstream['samples_per_s']:.1f} as printed upstream, {corrected['samples_per_s']:.1f} corrected"
        )
        self._running.log_metrics(
            {"stage": self._stage, "step": number, "s": self._s, "upstream": upstream, "corrected": corrected}
        )

    def summary(self) -> None:
        for line in metrics.table(metrics.mean(self._upstream), metrics.mean(self._corrected)):
            self._running.say(line)


if __name__ == "__main__":
    main()
