"""The three stages in one job, each from the checkpoint of the one before; the ranks stay the same processes.

A flag goes to all three stages (``--seed 7``), or with a stage's name to that one alone (``--sft.steps 24``,
``--reward.learning-rate 1e-3``, ``--rlhf.ema``). Without ``--out`` the checkpoints are thrown away at the end.
"""

import gc
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import agprof
from agprof_workloads.deepspeed_chat import checkpoints, job, reward, rlhf, sft
from agprof_workloads.deepspeed_chat.job import Job

NAME = "deepspeed_chat.chain"
STAGES = {"sft": sft, "reward": reward, "rlhf": rlhf}
MADE_HERE = ("--actor-dir", "--critic-dir", "--out")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(
            f"{__doc__}\nFlags of the stages:",
            *(f"  python -m {stage.__name__} --help" for stage in STAGES.values()),
            sep="\n",
        )
        return
    try:
        given = parse(argv)
        check(given)
        with job.started(given["sft"]) as running:
            train(given, running)
    except ValueError as error:
        job.finish(NAME, error)


def parse(argv: Sequence[str]) -> dict[str, Namespace]:
    """Each stage's options. A flag and its values reach the stages that it is meant for."""
    arguments: dict[str, list[str]] = {stage: [] for stage in STAGES}
    meant = list(STAGES)
    for word in argv:
        if word.startswith("--"):
            name, dot, rest = word.removeprefix("--").partition(".")
            alone = bool(dot) and name in STAGES
            meant = [name] if alone else list(STAGES)
            flag = f"--{rest}" if alone else word
            if alone and flag.partition("=")[0] in MADE_HERE:
                raise ValueError(f"{word.partition('=')[0]}: the stages' folders are the chain's; give --out for all")
        else:
            flag = word
        for stage in meant:
            arguments[stage].append(flag)
    return {stage: module.parse(arguments[stage]) for stage, module in STAGES.items()}


def check(given: dict[str, Namespace]) -> None:
    """Raise on what can be known to be wrong before anything is started."""
    sft.check(given["sft"])
    reward.check(given["reward"])
    # its folders are not there yet
    rlhf.check_numbers(given["rlhf"])
    if given["sft"].out is None and os.environ.get("LOCAL_WORLD_SIZE", "1") != os.environ.get("WORLD_SIZE", "1"):
        raise ValueError("--out is needed on several nodes: a folder that all of them see")


def train(given: dict[str, Namespace], running: Job) -> None:
    with folder_for(given["sft"].out, running) as out:
        for options in given.values():
            options.out = out
            options.dtype = given["sft"].dtype
        agprof.mark("stage sft")
        sft.train(given["sft"], running)
        finish_stage(running)
        agprof.mark("stage reward")
        reward.train(given["reward"], running)
        finish_stage(running)
        last = given["rlhf"]
        last.actor_dir = checkpoints.actor_folder(out, given["sft"].preset)
        last.critic_dir = checkpoints.reward_folder(out, given["reward"].preset)
        rlhf.check(last)
        agprof.mark("stage rlhf")
        rlhf.train(last, running)
        finish_stage(running)


@contextmanager
def folder_for(out: Path | None, running: Job) -> Iterator[Path]:
    """The given folder, or a temporary one that all ranks of this node share."""
    if out is not None:
        yield out
        return
    named: list[str] = [tempfile.mkdtemp(prefix="deepspeed-chat-") if running.rank == 0 else ""]
    torch.distributed.broadcast_object_list(named)
    try:
        yield Path(named[0])
    finally:
        if running.rank == 0:
            shutil.rmtree(named[0], ignore_errors=True)


def finish_stage(running: Job) -> None:
    """Free the stage's engines, which refer to themselves, and wait until rank 0 has written what all read next."""
    gc.collect()
    if running.ranks > 1:
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
