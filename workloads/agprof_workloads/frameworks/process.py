"""What a training script does before it trains: environment, device, seeds, and who prints."""

import os
import random
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

Say = Callable[[str], None]


def prepare_process() -> torch.device:
    """Complete the environment as a launcher would have, choose the device, keep to one thread on a CPU."""
    lone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in os.environ:
        os.environ |= lone | {"MASTER_PORT": str(free_port())}
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    if "OMP_NUM_THREADS" not in os.environ:
        # threads that wait for one another cost a small model ten times what they bring
        torch.set_num_threads(1)
    return torch.device("cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def say_on_rank_0(rank: int) -> Say:
    def say(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    return say


def open_log(path: Path | None, rank: int) -> AbstractContextManager[TextIO | None]:
    if path is None:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + (f".rank{rank}" if rank else "")).open("w")
