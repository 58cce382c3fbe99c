"""GPT-2 from a random start, and what of it is trained: everything, or one of peft's methods."""

import warnings
from typing import Any, cast

from torch import nn

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "base": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    # GPT-2 small as published, 124,439,808 parameters: also its 50,257 tokens and 1,024 positions
    "small": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
}
BLOCKS = ("GPT2Block",)
METHODS = ("none", "lora", "prompt", "prefix", "ptuning", "ia3")
VIRTUAL_TOKENS = 8
LORA_RANK = 8


def build(size: str, vocabulary: int, context: int, method: str) -> nn.Module:
    """Random weights. Sizes that name no vocabulary and positions have as many as the text needs.

    Raises ValueError where the text needs more than the size has.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    # prompt-like methods put their virtual tokens before the text
    positions = context + (VIRTUAL_TOKENS if method in ("prompt", "ptuning", "prefix") else 0)
    shape = {"vocab_size": vocabulary, "n_positions": positions} | SIZES[size]
    if positions > shape["n_positions"] or vocabulary > shape["vocab_size"]:
        raise ValueError(
            f"--preset {size} has {shape['n_positions']} positions and {shape['vocab_size']} tokens; "
            f"--context {context} and --vocabulary {vocabulary} need {positions} and {vocabulary}"
        )
    config = GPT2Config(bos_token_id=1, eos_token_id=1, pad_token_id=0, **shape)
    model = cast(nn.Module, GPT2LMHeadModel(config))
    return model if method == "none" else with_method(model, method)


def with_method(model: nn.Module, method: str) -> nn.Module:
    """The model with everything frozen but what `method` adds."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft asks transformers for an attribute by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return cast(nn.Module, get_peft_model(model, method_config(method)))


def method_config(method: str) -> Any:
    from peft import (
        IA3Config,
        LoraConfig,
        PrefixTuningConfig,
        PromptEncoderConfig,
        PromptTuningConfig,
        TaskType,
    )

    task: Any = TaskType.CAUSAL_LM
    if method == "lora":
        # fan_in_fan_out: GPT-2's Conv1D keeps its weight transposed
        return LoraConfig(
            task_type=task, r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=["c_attn"], fan_in_fan_out=True
        )
    if method == "prompt":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL_TOKENS)
    if method == "prefix":
        return PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL_TOKENS)
    if method == "ptuning":
        return PromptEncoderConfig(task_type=task, num_virtual_tokens=VIRTUAL_TOKENS, encoder_hidden_size=64)
    if method == "ia3":
        return IA3Config(
            task_type=task,
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
        )
    raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
