"""From a framework's name to a `Training`."""

import argparse
from collections.abc import Collection

import torch
import torch.distributed as dist
from torch import nn

from agprof_workloads.frameworks import ALLREDUCE, FRAMEWORKS
from agprof_workloads.frameworks.training import Recipe, Training


def add_options(parser: argparse.ArgumentParser, default: str) -> None:
    """`--framework` and `--allreduce`."""
    parser.add_argument("--framework", choices=FRAMEWORKS, default=default, help="what spreads the job over the ranks")
    parser.add_argument(
        "--allreduce", choices=ALLREDUCE, default="default", help="with ddp: by hand, from isend and irecv"
    )


def check_options(framework: str, allreduce: str, *, offload: bool = False, dtype: str = "fp32") -> None:
    """Raises ValueError for what can't work, before anything large is loaded."""
    if framework != "deepspeed":
        if offload:
            raise ValueError(f"--offload is DeepSpeed's; leave it out with --framework {framework}")
        if dtype != "fp32":
            raise ValueError(f"--dtype {dtype} is DeepSpeed's; --framework {framework} trains in fp32 only")
    if allreduce != "default" and framework != "ddp":
        raise ValueError(f"--allreduce {allreduce} is a hook of DDP; leave it out with --framework {framework}")
    if framework == "horovod":
        from agprof_workloads.frameworks import horovod

        horovod.check()


def start_group(framework: str, device: torch.device) -> None:
    """torch's default process group, as the framework wants it made."""
    if framework == "deepspeed":
        import deepspeed

        deepspeed.utils.logger.setLevel("WARNING")
        deepspeed.init_distributed()
    else:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def wrap(
    framework: str,
    model: nn.Module,
    recipe: Recipe,
    *,
    blocks: Collection[str] = (),
    zero_stage: int = 2,
    offload: bool = False,
    dtype: str = "fp32",
    allreduce: str = "default",
    anchor: bool = False,
) -> Training:
    """The model under `framework`, one of FRAMEWORKS. The default process group must exist.

    `blocks` (class names) tells FSDP2 what to shard by itself, `zero_stage`, `offload` and `dtype` are DeepSpeed's,
    `allreduce` and `anchor` are DDP's (see `ddp.Anchored`).
    """
    # each imports its framework, which the others should not pay for
    if framework == "ddp":
        from agprof_workloads.frameworks.ddp import DdpTraining

        return DdpTraining(model, recipe, allreduce, anchor)
    if framework == "fsdp2":
        from agprof_workloads.frameworks.fsdp2 import Fsdp2Training

        return Fsdp2Training(model, recipe, blocks)
    if framework == "horovod":
        from agprof_workloads.frameworks.horovod import HorovodTraining

        return HorovodTraining(model, recipe)
    if framework == "deepspeed":
        from agprof_workloads.frameworks import deepspeed

        return deepspeed.start(model, recipe, zero_stage, dist.get_world_size(), offload=offload, dtype=dtype)
    raise ValueError(f"unknown framework {framework!r}; choose from {', '.join(FRAMEWORKS)}")
