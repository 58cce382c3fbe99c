"""What the formulas of model states ask of a DeepSpeed engine: element types, offload, what stage 3 keeps whole."""

from collections.abc import Callable
from typing import Any


def zero_facts(engine: Any) -> dict[str, Any]:
    """Facts by their key below `deepspeed.`; what this version of DeepSpeed does not tell is left out."""
    facts: dict[str, Any] = {}
    for key, ask in _QUESTIONS.items():
        try:
            value = ask(engine)
        except (AttributeError, TypeError, ValueError):
            continue
        if value is not None:
            facts[key] = value
    return facts


def _offloads_param(engine: Any) -> bool:
    return bool(getattr(engine._config.zero_config, "offload_param", None))


def _dtype(engine: Any) -> str:
    return str(engine.get_data_types()[0]).removeprefix("torch.")


def _accumulation_dtype(engine: Any) -> str:
    return str(engine.get_data_types()[1]).removeprefix("torch.")


def _persistent_params(engine: Any) -> int | None:
    """Elements of parameters that stage 3 keeps whole on every rank."""
    sizes = [int(p.ds_numel) for p in engine.module.parameters() if getattr(p, "ds_persist", False)]
    return sum(sizes) if engine.zero_optimization_stage() == 3 else None


def _owned_params(engine: Any) -> int | None:
    """Elements of the parameters of which this rank's partition holds any part (stages 1 and 2)."""
    groups = getattr(engine.optimizer, "params_in_partition", None)
    return sum(int(p.numel()) for group in groups for p in group) if groups else None


_QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "offload_param": _offloads_param,
    "dtype": _dtype,
    "grad_accum_dtype": _accumulation_dtype,
    "data_parallel_size": lambda engine: int(engine.dp_world_size),
    "reduce_bucket_size": lambda engine: int(engine.zero_reduce_bucket_size()),
    "overlap_comm": lambda engine: bool(engine.zero_overlap_comm()),
    "persistent_params": _persistent_params,
    "owned_params": _owned_params,
}
