"""What the three stages share while they run: the process's place in the job, engines, logs, and timed phases."""

import json
import os
import random
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

import agprof
from agprof_workloads.anomalygpt.deepspeed_config import usable_dtype, without_native_ops
from agprof_workloads.deepspeed_chat import config, lora, metrics
from agprof_workloads.deepspeed_chat.models import parameter_count
from agprof_workloads.frameworks.deepspeed import native_ops_buildable

Say = Callable[[str], None]
BETAS = (0.9, 0.95)
NO_DECAY = ("bias", "norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process of a running job. ``losses`` and ``metrics`` are open files or None."""

    rank: int
    ranks: int
    device: torch.device
    native_ops: bool
    say: Say
    losses: TextIO | None
    metrics: TextIO | None

    def log_loss(self, loss: float) -> None:
        if self.losses is not None:
            self.losses.write(f"{loss!r}\n")

    def log_metrics(self, row: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(json.dumps(row) + "\n")
            self.metrics.flush()

    def average(self, values: list[float]) -> list[float]:
        """Over the ranks."""
        return [value / self.ranks for value in self.total(values)]

    def total(self, values: list[float]) -> list[float]:
        if self.ranks == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float32 if self.device.type != "cpu" else torch.float64)
        sums = sums.to(self.device)
        torch.distributed.all_reduce(sums)
        totals: list[float] = sums.tolist()
        return totals


@contextmanager
def started(options: Namespace) -> Iterator[Job]:
    """Set the process up, initialise communication, open the logs; and undo it."""
    device = prepare_process()
    # imported once the environment is complete: DeepSpeed looks at it while it is imported
    import deepspeed
    import transformers

    deepspeed.utils.logger.setLevel("WARNING")
    transformers.utils.logging.disable_progress_bar()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def say(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    native_ops = not options.no_native_ops and (device.type != "cpu" or native_ops_buildable())
    if not native_ops:
        say(without_native_ops())
    options.dtype, said = usable_dtype(options.dtype, device)
    for line in said:
        say(line)
    deepspeed.init_distributed()
    with ExitStack() as files:
        yield Job(
            rank=rank,
            ranks=ranks,
            device=device,
            native_ops=native_ops,
            say=say,
            losses=opened(files, options.loss_log, rank),
            metrics=opened(files, options.metrics, rank) if rank == 0 else None,
        )
    torch.distributed.destroy_process_group()


def finish(name: str, error: ValueError) -> None:
    """A wrong path or number is the user's to mend: one line from one rank, no traceback."""
    sys.exit(f"{name}: {error}" if os.environ.get("RANK", "0") == "0" else 1)


def prepare_process() -> torch.device:
    """Complete the environment as a launcher would have, choose the device, keep to one thread on a CPU."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    # the tokenizer's own threads are of no use here, and it complains about forks
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    if "OMP_NUM_THREADS" not in os.environ:
        # threads that wait for one another cost a small model ten times what they bring
        torch.set_num_threads(1)
    return torch.device("cpu")


def opened(files: ExitStack, path: Path | None, rank: int) -> TextIO | None:
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.enter_context(path.with_name(path.name + (f".rank{rank}" if rank else "")).open("w"))


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


# -- engines -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is optimized."""

    learning_rate: float
    lora_learning_rate: float
    weight_decay: float
    schedule: str
    warmup_steps: int
    total_steps: int


def prepare_lora(model: nn.Module, rank: int, *, only: bool) -> None:
    if rank:
        lora.add_lora(model, rank)
        if only:
            lora.only_optimize_lora(model)


def train_engine(
    model: nn.Module, engine: config.Engine, training: Training, job: Job, hybrid: config.Hybrid | None = None
) -> Any:
    import deepspeed
    from transformers import get_scheduler

    settings = config.training(engine, hybrid)
    if not job.native_ops and engine.offload:
        # torch's AdamW, on the CPU, instead of DeepSpeed's own
        settings["zero_force_ds_cpu_optimizer"] = False
    optimizer = optimizer_class(engine, job)(
        parameter_groups(model, training), lr=training.learning_rate, betas=BETAS, weight_decay=training.weight_decay
    )
    schedule = get_scheduler(
        training.schedule,
        optimizer,
        num_warmup_steps=training.warmup_steps,
        num_training_steps=training.total_steps,
    )
    started, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, lr_scheduler=schedule)
    return started


def optimizer_class(engine: config.Engine, job: Job) -> Any:
    if not job.native_ops:
        return torch.optim.AdamW
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    return DeepSpeedCPUAdam if engine.offload else FusedAdam


def parameter_groups(model: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Decayed, low-rank (with a rate of their own), and not decayed: biases and norms. Empty ones are left out."""
    decayed, low_rank, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if lora.is_lora(name):
            low_rank.append(parameter)
        elif any(word in name.lower() for word in NO_DECAY):
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": low_rank, "weight_decay": training.weight_decay, "lr": training.lora_learning_rate},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def score_engine(model: nn.Module, engine: config.Engine) -> Any:
    import deepspeed

    started, *_ = deepspeed.initialize(model=model, config=config.scoring(engine))
    started.eval()
    return started


def release(*engines: Any) -> None:
    """Let go of engines' hooks and buffers, so that another stage may follow in the same process."""
    for engine in engines:
        engine.destroy()


def shape_of(model: Any) -> metrics.Shape:
    return metrics.Shape(
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        parameters=parameter_count(model),
    )


def counted(model: nn.Module) -> str:
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    return f"{parameter_count(model):,} parameters, {trained:,} trained"


# -- time ----------------------------------------------------------------------------------------------------


class Phases:
    """Named ranges of an iteration and the seconds spent in them, with and without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.last_host_s: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with agprof.range(name):
            begin = time.perf_counter()
            yield
            self.last_host_s[name] = time.perf_counter() - begin
            wait_for(self._device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def restart(self) -> None:
        self.seconds, self.last_host_s = {}, {}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_float(loss: Tensor) -> float:
    return float(loss.detach().item())
