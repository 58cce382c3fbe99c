"""What is learned once: versions, device, model size, process group."""

import os
from typing import Any

from agprof.instruments.gpu_identity import record_gpu, record_visible_devices
from agprof.instruments.recorder import Recorder


def record_torch(recorder: Recorder, torch: Any) -> None:
    """Facts known once torch is imported."""
    recorder.fact("torch.version", str(torch.__version__))
    record_visible_devices(recorder)


def record_device(recorder: Recorder, torch: Any, module: Any) -> None:
    """Facts of device and threads; called at the first forward, that of `module`, when the rank has chosen them.

    Never touches the CUDA driver before the training did: that would fix CUDA_VISIBLE_DEVICES too early.
    """
    recorder.fact("omp_num_threads", int(torch.get_num_threads()))
    recorder.fact("cpu.affinity", sorted(os.sched_getaffinity(0)))
    recorder.fact("torch.allow_tf32.matmul", _allows_tf32(torch.backends.cuda.matmul, torch))
    recorder.fact("torch.allow_tf32.convolution", _allows_tf32(torch.backends.cudnn, torch))
    record_visible_devices(recorder)
    if torch.cuda.is_initialized():
        recorder.fact("device.type", "cuda")
        record_gpu(recorder, torch, module)
    else:
        recorder.fact("device.type", "cpu")
        recorder.fact("device.name", "CPU")


def _allows_tf32(backend: Any, torch: Any) -> bool:
    """Whether float32 products may run as TF32: a setting of torch, which asks no device.

    torch refuses to tell by the old name what a job has set by the new one (`fp32_precision`).
    """
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        own = getattr(getattr(backend, "conv", backend), "fp32_precision", "none")
        return bool((torch.backends.fp32_precision if own == "none" else own) == "tf32")


def record_model(recorder: Recorder, module: Any, root: int) -> None:
    """Size and element types of a root module; ZeRO-3's partitioned parameters count whole (`ds_numel`)."""
    seen: set[int] = set()
    params = trainable = 0
    dtypes: dict[str, int] = {}
    trained: dict[str, int] = {}
    for parameter in module.parameters():
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        numel = _numel(parameter)
        params += numel
        dtype = str(parameter.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + numel
        if parameter.requires_grad:
            trainable += numel
            trained[dtype] = trained.get(dtype, 0) + numel
    prefix = "model" if root == 0 else f"model{root}"
    recorder.fact(f"{prefix}.type", type(getattr(module, "module", module)).__name__)
    recorder.fact(f"{prefix}.params", params)
    recorder.fact(f"{prefix}.trainable_params", trainable)
    if dtypes:
        recorder.fact(f"{prefix}.dtype", max(dtypes, key=lambda name: dtypes[name]))
        recorder.fact(
            f"{prefix}.params_by_dtype", {name: [size, trained.get(name, 0)] for name, size in dtypes.items()}
        )
        recorder.fact(f"{prefix}.largest_layer_params", _largest_layer(module))
    _record_transformer(recorder, getattr(module, "module", module), prefix)


def _largest_layer(module: Any) -> int:
    """Most parameters that one module holds itself, as DeepSpeed's estimator for stage 3 takes it."""
    own = [vars(inner).get("_parameters") or {} for inner in module.modules()]
    return max((sum(_numel(p) for p in parameters.values() if p is not None) for parameters in own), default=0)


def _numel(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


_CONFIG = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "hidden_size",
    "head_dim": "head_dim",
}


def _record_transformer(recorder: Recorder, model: Any, prefix: str) -> None:
    """What PaLM's formula asks for: the Hugging Face config's sizes, and embedding tables."""
    config = getattr(model, "config", None)
    sizes = {key: value for key, name in _CONFIG.items() if _is_size(value := getattr(config, name, None))}
    if {"layers", "heads", "hidden"} <= sizes.keys():
        recorder.fact(f"{prefix}.config", sizes)
    recorder.fact(f"{prefix}.embedding_params", _embedding_params(model))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _embedding_params(model: Any) -> int:
    """Parameters of tables that are only looked up in: not those that a linear layer shares."""
    looked_up: dict[int, Any] = {}
    multiplied: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__.endswith("Embedding"):
            looked_up[id(weight)] = weight
        else:
            multiplied.add(id(weight))
    tables = [weight for key, weight in looked_up.items() if key not in multiplied and hasattr(weight, "numel")]
    return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in tables)


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
