"""Checkpoints in the original's layout: ``pytorch_model.bin``, ``config.json`` and the tokenizer's files, per model."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agprof_workloads.deepspeed_chat import ema, lora
from agprof_workloads.deepspeed_chat.models import RewardModel, fitted, with_dropout

WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
HEAD = "v_head.weight"


def actor_folder(out: Path, size: str) -> Path:
    return out / "actor-models" / size


def reward_folder(out: Path, size: str) -> Path:
    return out / "reward-models" / size


def step3_folder(out: Path, size: str) -> Path:
    return out / "step3-models" / size


def check(folder: Path, option: str, stage: str) -> None:
    """Raise unless the folder holds what an earlier stage saves."""
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: no such folder")
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"{option} {folder}: has no {name}; give the folder that {stage} saved with --out")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{option} {folder}: has no tokenizer; one of {', '.join(TOKENIZER_FILES)} must be there")


def check_model(folder: Path, option: str) -> None:
    """Raise unless the folder may be a Hugging Face model with its tokenizer."""
    if not folder.is_dir():
        raise ValueError(f"{option} {folder}: no such folder")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{option} {folder}: has no {CONFIG}; give a Hugging Face model's folder")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(f"{option} {folder}: has no tokenizer; one of {', '.join(TOKENIZER_FILES)} must be there")


def tokenizer_from(folder: Path) -> Any:
    """The tokenizer in a folder, padded with its end marker on the right, as the original does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token is None:
        raise ValueError(f"{folder}: its tokenizer has no end marker (eos_token), which pads and ends the texts")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def reward_model_from(folder: Path, tokenizer: Any, dropout: float | None = None) -> RewardModel:
    """The reward model that stage 2 saved."""
    from transformers import AutoConfig, AutoModel

    state: dict[str, Tensor] = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    if HEAD not in state:
        raise ValueError(f"{folder / WEIGHTS}: is no reward model, it has no {HEAD}; train one with the reward stage")
    config = with_dropout(AutoConfig.from_pretrained(folder), dropout)
    model = RewardModel(AutoModel.from_config(config, dtype=torch.float32))
    wrong = model.load_state_dict(state, strict=False)
    if wrong.missing_keys or wrong.unexpected_keys:
        first = (wrong.missing_keys or wrong.unexpected_keys)[0]
        raise ValueError(
            f"{folder / WEIGHTS}: does not fit its {CONFIG}: {len(wrong.missing_keys)} weights are missing and "
            f"{len(wrong.unexpected_keys)} have no place, first {first}"
        )
    fitted(model.rwtransformer, tokenizer)
    return model


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter under each of its names, on the CPU, low-rank pairs worked in. Collective under ZeRO-3."""
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with ema.gathered([parameter]):
            state[name] = parameter.detach().to("cpu", copy=True)
    return lora.fused_state(state)


def save(model: nn.Module, tokenizer: Any, folder: Path, rank: int) -> None:
    """Write the model's folder. All ranks must call this; rank 0 writes."""
    state = whole_state(model)
    if rank:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.partial"
    torch.save(state, partial)
    config: Any = model.config
    (folder / CONFIG).write_text(json.dumps(json.loads(config.to_json_string(use_diff=False)), indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    partial.rename(folder / WEIGHTS)
