"""What is learned once: versions, device, model size, process group."""

import os
from typing import Any

from agprof.instruments.recorder import Recorder


def record_torch(recorder: Recorder, torch: Any) -> None:
    """Facts known once torch is imported."""
    recorder.fact("torch.version", str(torch.__version__))


def record_device(recorder: Recorder, torch: Any) -> None:
    """Facts of device and threads; called at the first forward, when the rank has chosen them.

    Never touches the CUDA driver before the training did: that would fix CUDA_VISIBLE_DEVICES too early.
    """
    recorder.fact("omp_num_threads", int(torch.get_num_threads()))
    recorder.fact("cpu.affinity", sorted(os.sched_getaffinity(0)))
    if torch.cuda.is_initialized():
        index = torch.cuda.current_device()
        properties = torch.cuda.get_device_properties(index)
        recorder.fact("device.type", "cuda")
        recorder.fact("device.name", properties.name)
        recorder.fact("device.uuid", str(getattr(properties, "uuid", "")))
        recorder.fact("device.memory_total_bytes", int(properties.total_memory))
    else:
        recorder.fact("device.type", "cpu")
        recorder.fact("device.name", "CPU")


def record_model(recorder: Recorder, module: Any, root: int) -> None:
    """Size and element types of a root module; ZeRO-3's partitioned parameters count whole (`ds_numel`)."""
    seen: set[int] = set()
    params = trainable = 0
    dtypes: dict[str, int] = {}
    for parameter in module.parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        numel = int(getattr(parameter, "ds_numel", parameter.numel()))
        params += numel
        if parameter.requires_grad:
            trainable += numel
        dtype = str(parameter.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + numel
    prefix = "model" if root == 0 else f"model{root}"
    recorder.fact(f"{prefix}.type", type(getattr(module, "module", module)).__name__)
    recorder.fact(f"{prefix}.params", params)
    recorder.fact(f"{prefix}.trainable_params", trainable)
    if dtypes:
        recorder.fact(f"{prefix}.dtype", max(dtypes, key=lambda name: dtypes[name]))


_SHARDED = {"FSDPModule": "fsdp2", "FullyShardedDataParallel": "fsdp"}
_WRAPPERS = {"DeepSpeedEngine": "deepspeed", "DistributedDataParallel": "ddp"}


def record_framework(recorder: Recorder, module: Any, root: int) -> None:
    """What spreads a root module over the ranks, by the classes it and its parts have; nothing for the first: plain."""
    for names, modules in ((_WRAPPERS, [module]), (_SHARDED, module.modules())):
        for inner in modules:
            found = next((names[kind.__name__] for kind in type(inner).__mro__ if kind.__name__ in names), None)
            if found is not None:
                recorder.fact("framework", found)
                return
    if root == 0:
        recorder.fact("framework", "plain")


def record_process_group(recorder: Recorder, distributed: Any) -> None:
    """Facts of the default process group, once there is one."""
    recorder.fact("dist.backend", str(distributed.get_backend()))
    recorder.fact("dist.world_size", int(distributed.get_world_size()))
