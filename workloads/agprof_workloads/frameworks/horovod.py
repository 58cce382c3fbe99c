"""Horovod: hooks on every gradient hand it to a background thread, which negotiates, fuses and all-reduces.

Horovod has a launcher of its own, `horovodrun`, whose server the ranks meet at. Here rank 0 runs that server, so that
torchrun, and `agprof run` with it, can start Horovod jobs as any other.
"""

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from agprof_workloads.frameworks.training import Recipe, TorchTraining

MISSING = (
    "--framework horovod: this Python can't import horovod.torch; `make horovod` builds it (minutes, once), then start "
    "with .venv-horovod/bin/python -m agprof run ..."
)


class HorovodTraining(TorchTraining):
    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        hvd = connect()
        optimizer = recipe.make_optimizer(model)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        # Not followed by broadcast_optimizer_state, as in Horovod's examples: to have a state to send, it makes a step
        # of the new optimizer with zero gradients, in which AdamW's weight decay already changes the weights.
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        optimizer = hvd.DistributedOptimizer(
            optimizer, named_parameters=trained, backward_passes_per_step=recipe.accumulation, op=hvd.Average
        )
        super().__init__(model, optimizer, recipe)

    def update(self) -> None:
        optimizer: Any = self.optimizer
        # what the hooks began has to be complete before the norm of the gradients means anything
        optimizer.synchronize()
        self.clip()
        with optimizer.skip_synchronize():
            optimizer.step()


def check() -> None:
    """Raises ValueError where Horovod is not installed."""
    try:
        import horovod.torch  # noqa: F401
    except ImportError as error:
        raise ValueError(MISSING) from error


def connect() -> Any:
    """`horovod.torch`, initialised among the ranks of torch's default group."""
    check()
    import horovod.torch as hvd

    rank, size = dist.get_rank(), dist.get_world_size()
    local = {"rank": int(os.environ.get("LOCAL_RANK", "0")), "size": int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))}
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in os.environ:
        places: list[Any] = [None] * size
        dist.all_gather_object(places, (socket.gethostname(), local["rank"], local["size"]))
        address = [serve(places) if rank == 0 else None]
        dist.broadcast_object_list(address, src=0)
        host, port = address[0]  # type: ignore[misc]
        os.environ |= {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": host,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_HOSTNAME": socket.gethostname(),
            "HOROVOD_RANK": str(rank),
            "HOROVOD_SIZE": str(size),
            "HOROVOD_LOCAL_RANK": str(local["rank"]),
            "HOROVOD_LOCAL_SIZE": str(local["size"]),
            "HOROVOD_CROSS_RANK": str(rank // local["size"]),
            "HOROVOD_CROSS_SIZE": str(size // local["size"]),
        }
    hvd.init()
    if torch.cuda.is_available():
        torch.cuda.set_device(hvd.local_rank())
    return hvd


def serve(places: list[Any]) -> tuple[str, int]:
    """Start Horovod's rendezvous server in this process; where it listens."""
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.http.http_server import RendezvousServer

    slots: dict[str, int] = {}
    for host, _, _ in places:
        slots[host] = slots.get(host, 0) + 1
    hosts = parse_hosts(",".join(f"{host}:{count}" for host, count in slots.items()))
    server = RendezvousServer(verbose=0)
    port = server.start()
    server.init(get_host_assignments(hosts, len(places)))
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), port
