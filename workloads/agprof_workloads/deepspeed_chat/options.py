"""Flags that the stages share, each stage's defaults by preset, and what follows from them: data and tokenizer."""

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agprof_workloads.deepspeed_chat import checkpoints, data, text

PRESETS = ("tiny", "small", "full")
DTYPES = ("fp32", "bf16", "fp16")
SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")
VOCABULARY = {"tiny": 1024, "small": 4096, "full": 4096}

Defaults = Mapping[str, Mapping[str, Any]]


def parser_of(name: str, description: str | None) -> ArgumentParser:
    """A parser with the flags that every stage takes."""
    parser = argparse.ArgumentParser(prog=name, description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny", help="size of the models, and the defaults of most other flags")
    add(
        "--data", type=Path, nargs="+", help="JSON files, or folders with train.json and eval.json; several are blended"
    )
    add("--data-split", default="2,4,4", help="how the rows are divided among the three stages")
    add("--end-marker", default="<|endoftext|>", help="text that ends an answer in stages 2 and 3")
    add("--add-eot-token", action="store_true", help="make the end marker one token; otherwise it is several")
    add("--padding-at-beginning", type=int, default=1, help="pads that the tokenizer puts before a text: 1 for OPT")
    add("--seed", type=int, default=1234)
    add("--dtype", choices=DTYPES)
    add("--offload", action="store_true", help="keep optimizer state and, at ZeRO-3, parameters on the CPU")
    add("--only-optimize-lora", action="store_true", help="with LoRA, freeze also what stands outside of it")
    add("--gradient-checkpointing", action="store_true", help="compute activations again in the backward pass")
    add("--schedule", choices=SCHEDULES, default="cosine")
    add("--lora-learning-rate", type=float, default=5e-4)
    add("--no-native-ops", action="store_true", help="do without DeepSpeed's C++ operators, which need a compiler")
    add("--out", type=Path, help="folder for the checkpoints, written at the end")
    add("--loss-log", type=Path, help="file for every loss, exactly; other ranks add .rank<n>")
    add("--metrics", type=Path, help="file for the speeds in both columns, one JSON object per line")
    add("--local_rank", "--local-rank", type=int, help="given by the deepspeed launcher; the environment decides")
    return parser


def add_supervised(parser: ArgumentParser) -> None:
    """What stages 1 and 2 take besides."""
    add = parser.add_argument
    add("--model-dir", type=Path, help="Hugging Face folder to start from, instead of random weights")
    add("--steps", type=int, help="optimizer steps; the learning rate's schedule ends with them")
    add("--micro-batch", type=int, help="rows, or pairs of rows, per rank and micro-step")
    add("--accumulation", type=int, default=1, help="micro-steps per optimizer step")
    add("--max-length", type=int, help="tokens to which a text is padded or cut")
    add("--zero-stage", type=int, choices=(0, 1, 2, 3))
    add("--learning-rate", type=float)
    add("--weight-decay", type=float)
    add("--warmup-steps", type=int)
    add("--dropout", type=float)
    add("--lora-rank", type=int, default=0, help="0: no LoRA")
    add("--eval-batches", type=int, default=100, help="batches of held-out rows per evaluation, at most")


def parsed(
    parser: ArgumentParser, argv: Sequence[str] | None, defaults: Defaults, positive: Sequence[str]
) -> Namespace:
    """The options, what was not given filled in from the preset, ``positive`` ones checked."""
    options = parser.parse_args(argv)
    for name, value in defaults[options.preset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in positive:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    try:
        data.parse_parts(options.data_split)
    except ValueError as error:
        parser.error(str(error))
    return options


def check_model_dir(options: Namespace) -> None:
    if options.model_dir:
        checkpoints.check_model(options.model_dir, "--model-dir")
    elif options.preset == "full":
        raise ValueError("--preset full needs --model-dir: the Hugging Face folder of the model to start from")


def texts_of(options: Namespace) -> list[text.Texts]:
    paths = options.data or [text.built_in(VOCABULARY[options.preset])]
    return [text.read_texts(path) for path in paths]


def tokenizer_of(options: Namespace, folder: Path | None) -> Any:
    """The tokenizer of the model's folder, or the built-in one."""
    tokenizer = checkpoints.tokenizer_from(folder or text.built_in(VOCABULARY[options.preset]) / "tokenizer")
    if options.add_eot_token:
        tokenizer.add_special_tokens({"additional_special_tokens": [options.end_marker]})
    return tokenizer


def source(options: Namespace) -> str:
    return ", ".join(map(str, options.data)) if options.data else "docstrings of this Python"
