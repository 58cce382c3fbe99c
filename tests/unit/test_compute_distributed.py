"""FLOPs of one rank under DeepSpeed ZeRO 0-3, DDP, FSDP2 and tensor parallelism: each the closed form of its shapes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

TESTS = Path(__file__).resolve().parents[1]
PROFILER = TESTS.parent / "profiler"

JOB = """
import os, sys
import torch
import torch.distributed as dist
from llama_like import LlamaLike, Shape, add_lora, batch, by_path, count

shape, how = Shape(), sys.argv[1]
dist.init_process_group("gloo")
torch.manual_seed(0)
model = LlamaLike(shape, "sdpa", checkpointing={"none": None, "reentrant": True, "not reentrant": False}[sys.argv[2]])
if how == "ddp":
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
elif how == "fsdp2":
    from torch.distributed.fsdp import fully_shard
    for layer in model.layers:
        fully_shard(layer)
    wrapped = fully_shard(model)
elif how == "tensor parallel":
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
        parallelize_module(layer.mlp, mesh, plan)
    wrapped = model
else:
    import deepspeed
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    config = {
        "train_micro_batch_size_per_gpu": shape.B, "zero_optimization": {"stage": int(how[-1])},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    wrapped, *_ = deepspeed.initialize(model=model, config=config, model_parameters=model.parameters())
    wrapped.train()

backward = getattr(wrapped, "backward", None)
for step in range(2):
    if step == 0:
        loss = wrapped(batch(shape))
        backward(loss) if backward else loss.backward()
        continue
    class Loss:
        def backward(self):
            loss = wrapped(batch(shape))
            backward(loss) if backward else loss.backward()
    flops = count(model, Loss)
layers = by_path(flops, model)
print("FIGURES", flops.forward, flops.backward, flops.recomputed, flops.total.modelled_backward_flops,
      layers["layers.1.attention.k_proj"].backward_flops, layers["layers.1.mlp.up_proj"].backward_flops, flops.unknown)
dist.destroy_process_group()
"""


def figures(folder: Path, how: str, checkpoints: str, ranks: int) -> list[tuple[int, ...]]:
    (folder / "job.py").write_text(JOB)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AGPROF_")} | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join((str(TESTS), str(PROFILER))),
        }  # fmt: skip
        command = [sys.executable, str(folder / "job.py"), how, checkpoints]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes.append(subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes))  # type: ignore[call-overload]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    found = []
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
        line = next(line for line in output.splitlines() if line.startswith("FIGURES"))
        *numbers, unknown = line.split(maxsplit=7)[1:]
        assert unknown == "{}"
        found.append(tuple(map(int, numbers)))
    return found


def expected(checkpoints: str, mlp_parts: int = 1) -> tuple[int, ...]:
    """Forward, backward, recomputed, modelled backward, and backward of a k_proj and an up_proj of one layer."""
    from llama_like import Shape

    shape = Shape()
    saved = shape.L * 3 * shape.h * shape.f * 2 * shape.T * (mlp_parts - 1) // mlp_parts
    forward = shape.forward - saved
    in_kernels = shape.L * shape.attention // 2
    again = {
        "none": 0,
        "reentrant": shape.L * (2 * shape.layer * shape.T + shape.attention),
    }[checkpoints]
    key, up = 4 * shape.h * shape.kv * shape.T, 4 * shape.h * shape.f * shape.T // mlp_parts
    return forward, 2 * forward, in_kernels + again, 2 * forward, key, up


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_zero(tmp_path: Path, stage: int) -> None:
    """Under ZeRO-3 linear layers are functions of DeepSpeed's own, which autograd does not follow."""
    pytest.importorskip("deepspeed")
    assert figures(tmp_path, f"zero {stage}", "none", ranks=1) == [expected("none")]


@pytest.mark.parametrize("checkpoints", ["reentrant", "not reentrant"])
def test_deepspeed_zero_3_under_checkpoints(tmp_path: Path, checkpoints: str) -> None:
    """DeepSpeed's function keeps its operands only when it has run: so a checkpoint that is not reentrant stops no
    sooner than one that is."""
    pytest.importorskip("deepspeed")
    assert figures(tmp_path, "zero 3", checkpoints, ranks=1) == [expected("reentrant")]


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_ranks(tmp_path: Path, how: str) -> None:
    assert figures(tmp_path, how, "none", ranks=2) == [expected("none")] * 2


def test_tensor_parallel_ranks_count_their_part(tmp_path: Path) -> None:
    """Of the MLP; modelled backward is left out, for the local parts of a DTensor do not tell what requires a
    gradient."""
    found, wanted = figures(tmp_path, "tensor parallel", "none", ranks=2), expected("none", mlp_parts=2)
    assert [row[:3] + row[4:] for row in found] == [wanted[:3] + wanted[4:]] * 2


def test_deepspeed_zero_3_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    assert figures(tmp_path, "zero 3", "none", ranks=2) == [expected("none")] * 2
