"""What the original does and need not: each habit has one switch that mends it. None is set: the original as it is."""

import argparse
from dataclasses import dataclass, fields

ALL, NONE = "all", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """One flag of ``train.py`` each, of the same name. ``--fixed`` sets them all, or those that it names."""

    cache_text: bool = False
    """Encode each class's sentences once in the run, not at every step: the tower is frozen and they never change."""
    encode_class_once: bool = False
    """Encode the class of a normal and a synthetic image once, not once per image."""
    steady_bank: bool = False
    """Give the memory bank half of the images of every micro-step, not all of them in half of the micro-steps. Each
    image has the same chance as before; which half it is, the coin says."""
    reuse_taps: bool = False
    """Compare the bank with the taps that the vision tower has handed out already, not with a second encoding."""
    cache_bank: bool = False
    """Encode the normal image of a class at its four quarter turns once in the run, not at every use."""
    focal_on_device: bool = False
    """Make the focal loss's one-hot target where the maps are, not by way of the host."""
    read_per_step: bool = False
    """Read losses and accuracies back once per optimizer step, not four times per micro-step."""
    quiet: bool = False
    """Leave out the lines that every rank prints for every sample."""
    large_buckets: bool = False
    """Let DeepSpeed send all trained parameters as one bucket, not 50,000 elements at a time."""
    drop_inert_block: bool = False
    """Leave activation_checkpointing out of the DeepSpeed JSON: the model never asks for it."""
    matched_lr: bool = False
    """Write into optimizer.lr the rate that the scheduler sets anyway."""


NAMES = tuple(field.name for field in fields(Switches))


def flag(name: str) -> str:
    return name.replace("_", "-")


def add_switches(parser: argparse.ArgumentParser) -> None:
    for name, what in WHAT.items():
        parser.add_argument(f"--{flag(name)}", action="store_true", help=what)
    parser.add_argument(
        "--fixed",
        nargs="?",
        const=ALL,
        default=NONE,
        metavar="SWITCH,..",
        help=f"all of {', '.join(map(flag, NAMES))}; or those of them that are named; {NONE}: the original as it is",
    )


def chosen(options: argparse.Namespace) -> Switches:
    """The switches of a command line. Raises ValueError when --fixed names one that there is not."""
    named = {name.strip() for name in options.fixed.split(",")} - {NONE, ""}
    if unknown := sorted(named - {ALL, *map(flag, NAMES)}):
        raise ValueError(f"--fixed: unknown switch {unknown[0]!r}; choose from {', '.join(map(flag, NAMES))}, {ALL}")
    return Switches(**{name: getattr(options, name) or ALL in named or flag(name) in named for name in NAMES})


WHAT = {
    "cache_text": "encode each class's sentences once, not at every step",
    "encode_class_once": "encode the class of a pair of images once, not once per image",
    "steady_bank": "the memory bank gets half of the images of every micro-step, not all of them in half of the steps",
    "reuse_taps": "compare the memory bank with taps that exist, not with a second encoding of the images",
    "cache_bank": "encode the memory bank's images once per class, not at every use",
    "focal_on_device": "make the focal loss's target on the device, not by way of the host",
    "read_per_step": "read losses back once per optimizer step, not four times per micro-step",
    "quiet": "no lines per sample",
    "large_buckets": "DeepSpeed sends all trained parameters as one bucket, not 50,000 elements at a time",
    "drop_inert_block": "no activation_checkpointing in the DeepSpeed JSON, which has no effect",
    "matched_lr": "optimizer.lr of the DeepSpeed JSON is the rate that the scheduler sets",
}
"""One line of help each."""
