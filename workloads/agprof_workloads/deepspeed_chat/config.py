"""The DeepSpeed configurations of the original, for the engines that train and for those that only score."""

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

PERSISTENCE_ELEMENTS = 10_000
STAGE_3_ELEMENTS = 30_000_000
LOSS_SCALE_WINDOW = 100
CLIPPING = 1.0
HYBRID_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a run decides about one engine."""

    micro_batch: int
    accumulation: int
    ranks: int
    zero_stage: int
    offload: bool
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """The hybrid engine's part, for the actor."""

    longest_output: int
    tensor_parallel: int = 1
    release_cache: bool = False
    pin_parameters: bool = True
    gather_partition: int = 8


def training(engine: Engine, hybrid: Hybrid | None = None) -> Config:
    device = "cpu" if engine.offload else "none"
    config = scoring(engine)
    config["train_batch_size"] = engine.micro_batch * engine.accumulation * engine.ranks
    config["zero_optimization"] |= {
        "overlap_comm": True,
        "offload_optimizer": {"device": device},
        "stage3_max_live_parameters": STAGE_3_ELEMENTS,
        "stage3_prefetch_bucket_size": STAGE_3_ELEMENTS,
    }
    if hybrid is not None:
        config["hybrid_engine"] = {
            "enabled": True,
            "max_out_tokens": hybrid.longest_output,
            "inference_tp_size": hybrid.tensor_parallel,
            "release_inference_cache": hybrid.release_cache,
            "pin_parameters": hybrid.pin_parameters,
            "tp_gather_partition_size": hybrid.gather_partition,
        }
    return config


def scoring(engine: Engine) -> Config:
    """Without anything that belongs to an optimizer."""
    config: Config = {
        "train_batch_size": engine.micro_batch * engine.ranks,
        "train_micro_batch_size_per_gpu": engine.micro_batch,
        "steps_per_print": 10,
        "zero_optimization": {
            "stage": engine.zero_stage,
            "offload_param": {"device": "cpu" if engine.offload else "none"},
            "stage3_param_persistence_threshold": PERSISTENCE_ELEMENTS,
            # with it, DeepSpeed counts FLOPs twice at stage 3
            "memory_efficient_linear": False,
        },
        "gradient_clipping": CLIPPING,
        "prescale_gradients": False,
        "wall_clock_breakdown": False,
    }
    if engine.dtype == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale_window": LOSS_SCALE_WINDOW}
    elif engine.dtype == "bf16":
        config["bfloat16"] = {"enabled": True}
    return config


def hybrid_refused(
    wanted: str, *, device: str, actor_stage: int, critic_stage: int, offload: bool, lora: bool, tensor_parallel: int
) -> str | None:
    """Why the hybrid engine is off, or None where it is used. Raises when the user insists on what can't work."""
    if wanted == "off":
        return "by --hybrid-engine off"
    problem = None
    if tensor_parallel > 1 and actor_stage != 3:
        problem = f"--inference-tp {tensor_parallel} needs --actor-zero-stage 3"
    elif actor_stage == critic_stage == 2 and offload and not lora:
        problem = "ZeRO-2 for actor and critic with offload needs LoRA"
    if problem and wanted == "on":
        raise ValueError(f"--hybrid-engine on: {problem}")
    if problem:
        return problem
    if wanted == "auto" and device == "cpu":
        return "its kernels for inference need a GPU"
    return None
