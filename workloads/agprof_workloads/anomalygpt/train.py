"""Train AnomalyGPT: one micro-step on inspection images, one on general instructions, in turn.

Runs as one process (``python -m agprof_workloads.anomalygpt.train --preset tiny``), under torchrun and under the
deepspeed launcher; with DeepSpeed, as the original, or with another framework. Prints one line per optimizer step, from
rank 0.
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
from typing import Any, TextIO

import cv2
import torch
from torch import Tensor

import agprof
from agprof_workloads.anomalygpt import checkpoints, deepspeed_config
from agprof_workloads.anomalygpt.build import CHECKPOINT_OPTIONS, DTYPES, build_model, check_checkpoints
from agprof_workloads.anomalygpt.data import Batch, InstructionDataset, MvtecDataset, RankSlices, loader
from agprof_workloads.anomalygpt.miniature import miniature
from agprof_workloads.anomalygpt.model import AnomalyGPT, Outcome, choose_trainable
from agprof_workloads.anomalygpt.prompts import read_descriptions
from agprof_workloads.anomalygpt.sizes import SIZES
from agprof_workloads.anomalygpt.switches import add_switches, chosen
from agprof_workloads.frameworks.deepspeed import DeepSpeedTraining, native_ops_buildable
from agprof_workloads.frameworks.process import Say, open_log, prepare_process, say_on_rank_0, seed
from agprof_workloads.frameworks.training import Training
from agprof_workloads.frameworks.wrap import add_options, check_options, start_group, wrap

DEFAULTS: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 20, "accumulation": 2, "dtype": "fp32", "workers": 1, "sft_workers": 0, "longest_text": 128},
    "small": {"steps": 50, "accumulation": 8, "dtype": "bf16", "workers": 4, "sft_workers": 1, "longest_text": 512},
    "full": {"steps": 50, "accumulation": 8, "dtype": "fp16", "workers": 8, "sft_workers": 1, "longest_text": 1024},
}
for _preset, _values in DEFAULTS.items():
    _values["unused_towers"] = _preset == "full"

FSDP_BLOCKS = ("LlamaDecoderLayer", "Block")
"""Class names of what FSDP2 gathers one at a time: layers of the language model and of the towers."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    try:
        train(options)
    except ValueError as error:
        # a wrong path or number is the user's to mend: one line, no traceback
        sys.exit(f"anomalygpt: {error}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="anomalygpt", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--preset", choices=SIZES, default="tiny", help="size of the model")
    add("--steps", type=int, help="optimizer steps")
    add("--epochs", type=int, default=50, help="epochs that the learning-rate schedule is laid out for")
    add("--micro-batch", type=int, default=1, help="items per rank and micro-step; an MVTec item is two images")
    add("--accumulation", type=int, help="micro-steps per optimizer step")
    add_options(parser, default="deepspeed")
    add("--zero-stage", type=int, choices=(0, 1, 2, 3), default=2, help="DeepSpeed's")
    add("--offload", action="store_true", help="keep the optimizer's state on the CPU; DeepSpeed's")
    add("--dtype", choices=DTYPES)
    add("--train", default="decoder+prompt", help="trained parts: decoder, prompt, lora, proj, joined by +")
    add("--seed", type=int, default=42)
    add("--decorrelate", action="store_true", help="let each rank throw its own coin for the memory bank")
    add("--data-root", type=Path, help="an MVTec-AD folder, instead of the miniature")
    add("--sft-json", type=Path, help="PandaGPT's instruction JSON, instead of the miniature's")
    add("--sft-images", type=Path, help="folder of its images; default: images/ beside the JSON")
    add("--descriptions", type=Path, help="JSON {class: description}, on top of our wording")
    add_switches(parser)
    add(
        "--unused-towers",
        action=argparse.BooleanOptionalAction,
        help="hold ImageBind's four towers that are never run; default: with --preset full",
    )
    add("--workers", type=int, help="loader processes for the MVTec images")
    add("--sft-workers", type=int, help="loader processes for the instruction images")
    add("--longest-text", type=int, help="tokens of a conversation before it is cut")
    add("--deepspeed-config", type=Path, help="DeepSpeed JSON to start from, instead of the original's")
    add("--no-native-ops", action="store_true", help="do without DeepSpeed's C++ operators, which need a compiler")
    add("--random-weights", action="store_true", help="with --preset full: run without any checkpoint")
    for name, what in CHECKPOINT_OPTIONS.items():
        add(f"--{name.replace('_', '-')}", type=Path, help=what)
    add("--anomalygpt-delta", type=Path, help="weights saved by an earlier run, or AnomalyGPT's pytorch_model.pt")
    add("--save-dir", type=Path, help="folder for the trained weights, written at the end")
    add("--loss-log", type=Path, help="file for one loss per micro-step, exactly; other ranks add .rank<n>")
    add("--local_rank", "--local-rank", type=int, help="given by the deepspeed launcher; the environment decides")
    options = parser.parse_args(argv)
    for name, value in DEFAULTS[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("steps", "epochs", "micro_batch", "accumulation", "longest_text"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    return options


def train(options: argparse.Namespace) -> None:
    check_checkpoints(options)
    chosen(options)  # complains about a name that there is not before anything is loaded
    check_options(options.framework, options.allreduce)
    device = prepare_process()
    if device.type == "cpu":
        cv2.setNumThreads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    say = say_on_rank_0(rank)

    native_ops = not options.no_native_ops and (device.type != "cpu" or native_ops_buildable())
    if options.framework == "deepspeed" and not native_ops:
        say(deepspeed_config.without_native_ops())
    options.dtype, said = deepspeed_config.usable_dtype(options.dtype, device)
    for line in said:
        say(line)
    start_group(options.framework, device)

    seed(options.seed)
    loaders = Loaders(options, rank, ranks)
    model = build_model(options, device, say)
    choose_trainable(model, options.train.split("+"))
    training = start_training(
        model, options, ranks, schedule_steps(options, ranks, len(loaders.mvtec_data)), native_ops, say
    )
    # the model's start must be the same on all ranks; only the coin may differ
    random.seed(options.seed + (rank if options.decorrelate else 0))
    framework = f"ZeRO-{options.zero_stage}" if options.framework == "deepspeed" else options.framework
    say(f"{counted(model)} on {ranks} x {device.type}, {options.dtype}, {framework}")

    with open_log(options.loss_log, rank) as log:
        run(training, loaders, options, say, log)
    if options.save_dir:
        weights = checkpoints.trained_weights(model)
        if rank == 0:
            say(f"trained weights saved as {checkpoints.save_delta(weights, options.save_dir)}")
    for line in training.told():
        say(line)
    torch.distributed.destroy_process_group()


def run(training: Training, loaders: "Loaders", options: argparse.Namespace, say: Say, log: TextIO | None) -> None:
    """The loop. A micro-step is forward, backward and step; every ``--accumulation``-th really updates the weights."""
    training.module.train()
    outcomes = Outcomes(chosen(options).read_per_step)
    started = time.perf_counter()
    for batch in alternate(loaders):
        outcome: Outcome = training.forward(batch)
        training.backward(outcome.loss)
        agprof.step(tokens=outcome.positions, samples=outcome.samples, unpadded_tokens=outcome.tokens)
        updated = training.step()
        outcomes.note(outcome)
        if not updated:
            continue
        losses, accuracies = outcomes.read()
        if log is not None:
            log.writelines(f"{loss!r}\n" for loss in losses)
        now = time.perf_counter()
        say(
            f"step {training.steps}/{options.steps} loss {fmean(losses):.4f} accuracy {fmean(accuracies):.3f} "
            f"lr {training.learning_rate():.2e} {1000 * (now - started):.0f} ms"
        )
        started = now
        if training.steps >= options.steps:
            return


class Outcomes:
    """Losses and accuracies of an optimizer step in progress."""

    def __init__(self, read_per_step: bool) -> None:
        self.read_per_step = read_per_step
        self.losses: list[Tensor | float] = []
        self.accuracies: list[Tensor | float] = []
        self.shown = ""

    def note(self, outcome: Outcome) -> None:
        """As the original, read the loss back at every micro-step: for its progress bar, and for its list of losses."""
        loss = outcome.loss.detach()
        if not self.read_per_step:
            self.shown = f"loss {round(loss.item(), 4)} accuracy {outcome.accuracy}"
        self.losses.append(loss if self.read_per_step else loss.item())
        self.accuracies.append(outcome.accuracy)

    def read(self) -> tuple[list[float], list[float]]:
        """All since the last call, which are forgotten."""
        losses, accuracies = read_back(self.losses), read_back(self.accuracies)
        self.losses, self.accuracies = [], []
        return losses, accuracies


def read_back(values: Sequence[Tensor | float]) -> list[float]:
    """Values on the device come over as one."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) != len(values):
        return [float(value) for value in values]
    read: list[float] = torch.stack(tensors).tolist()
    return read


def alternate(loaders: "Loaders") -> Iterator[Batch]:
    """A batch of inspection images, a batch of instructions, and so on; an epoch ends with the shorter of the two."""
    for epoch in count(1):
        agprof.mark(f"epoch {epoch}")
        loaders.mvtec_data.start_epoch(epoch)
        for pair in zip(loaders.mvtec, loaders.sft, strict=False):
            yield from pair


class Loaders:
    """Both data sets with their loaders; the miniature's where no path is given."""

    def __init__(self, options: argparse.Namespace, rank: int, ranks: int) -> None:
        root: Path = options.data_root or miniature() / "mvtec"
        instructions: Path = options.sft_json or miniature() / "sft.json"
        self.mvtec_data = MvtecDataset(root, read_descriptions(options.descriptions), options.seed)
        sft_data = InstructionDataset(instructions, options.sft_images or instructions.parent / "images")
        slices = (options.micro_batch, rank, ranks, options.seed)
        self.mvtec = loader(self.mvtec_data, RankSlices(len(self.mvtec_data), *slices), options.workers)
        self.sft = loader(sft_data, RankSlices(len(sft_data), *slices), options.sft_workers)


def schedule_steps(options: argparse.Namespace, ranks: int, items: int) -> int:
    """Optimizer steps in all epochs, counting two micro-steps per pair of loaders."""
    steps = 2 * options.epochs * items // (options.micro_batch * options.accumulation * ranks)
    return max(int(steps), 1)


def start_training(
    model: AnomalyGPT, options: argparse.Namespace, ranks: int, steps: int, native_ops: bool, say: Say
) -> Training:
    """The model under --framework, each trained as the DeepSpeed configuration says."""
    setup = deepspeed_config.Setup(
        micro_batch=options.micro_batch,
        accumulation=options.accumulation,
        ranks=ranks,
        zero_stage=options.zero_stage,
        offload=options.offload,
        dtype=options.dtype,
        schedule_steps=steps,
        native_ops=native_ops,
        trained_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad),
        switches=chosen(options),
    )
    file = options.deepspeed_config
    config, said = deepspeed_config.prepared(
        deepspeed_config.read(file) if file else deepspeed_config.original(), setup
    )
    for line in said:
        say(f"DeepSpeed configuration: {line}")
    if options.framework != "deepspeed":
        return wrap(
            options.framework,
            model,
            deepspeed_config.recipe(config),
            blocks=FSDP_BLOCKS,
            allreduce=options.allreduce,
            anchor=True,  # micro-steps on instructions have no anomaly map: decoder and prompt learner stay unused
        )
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=[p for p in model.parameters() if p.requires_grad], config=config
    )
    return DeepSpeedTraining(engine)


def counted(model: AnomalyGPT) -> str:
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return f"{sum(n for n, _ in sizes):,} parameters, {sum(n for n, trained in sizes if trained):,} trained,"


if __name__ == "__main__":
    main()
