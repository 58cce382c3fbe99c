"""Trains one model after another in several frameworks, on the same data; rank 0 prints the losses of all ranks.

torchrun --nproc-per-node 2 frameworks_job.py FRAMEWORK...
"""

import io
import json
import sys

import torch
import torch.distributed as dist

from agprof_workloads.anomalygpt import train as anomalygpt
from agprof_workloads.anomalygpt.build import build_model
from agprof_workloads.anomalygpt.deepspeed_config import without_native_ops
from agprof_workloads.anomalygpt.model import choose_trainable
from agprof_workloads.bert import model as bert
from agprof_workloads.frameworks.process import prepare_process, seed
from agprof_workloads.frameworks.training import Recipe, Training
from agprof_workloads.frameworks.wrap import start_group, wrap
from agprof_workloads.gpt2 import model as gpt2

STEPS, ACCUMULATION, RATE = 6, 2, 1e-3
CPU = torch.device("cpu")


def small_model(kind: str, framework: str, allreduce: str) -> list[float]:
    """Losses per micro-step of this rank: random tokens, the same for every framework."""
    seed(1)
    blocks = bert.BLOCKS if kind == "bert" else gpt2.BLOCKS
    model = bert.Classifier("tiny", 300, 32) if kind == "bert" else gpt2.build("tiny", 300, 32, "lora")
    recipe = Recipe(
        make_optimizer=lambda module: torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=RATE),
        micro_batch=4,
        accumulation=ACCUMULATION,
        clip_norm=1.0,
    )
    training = wrap(framework, model, recipe, blocks=blocks, allreduce=allreduce)
    training.module.train()
    seed(2 + dist.get_rank())
    data = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    while training.steps < STEPS:
        ids = torch.randint(2, 300, (4, 32), generator=data)
        labels = ids[:, 0] % 2 if kind == "bert" else ids
        loss = training.forward(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        training.backward(loss)
        training.step()
        losses.append(loss.item())
    return losses


def anomaly_model(framework: str) -> list[float]:
    words = ["--framework", framework, "--steps", str(STEPS), "--workers", "0", "--no-native-ops"]
    options = anomalygpt.parse(words)
    seed(options.seed)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    loaders = anomalygpt.Loaders(options, rank, ranks)
    model = build_model(options, CPU, quiet)
    choose_trainable(model, options.train.split("+"))
    training: Training = anomalygpt.start_training(model, options, ranks, 1000, False, quiet)
    seed(options.seed)
    log = io.StringIO()
    anomalygpt.run(training, loaders, options, quiet, log)
    return [float(line) for line in log.getvalue().splitlines()]


def quiet(_line: str) -> None:
    pass


def main() -> None:
    prepare_process()
    start_group("ddp", CPU)
    for word in sys.argv[1:]:
        framework, _, allreduce = word.partition("+")
        if framework == "deepspeed":
            without_native_ops()
            start_group(framework, CPU)
        losses = {kind: small_model(kind, framework, allreduce or "default") for kind in ("bert", "gpt2")}
        if not allreduce:
            losses["anomalygpt"] = anomaly_model(framework)
        everybody: list[dict[str, list[float]]] = [{}] * dist.get_world_size()
        dist.all_gather_object(everybody, losses)
        if dist.get_rank() == 0:
            print(json.dumps({"framework": word, "ranks": everybody}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
