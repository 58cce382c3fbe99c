"""Loading the released weights and saving what was trained, under the names that those files use."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DELTA_FILE = "pytorch_model.pt"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a file brought. ``ignored`` names towers or keys that this model has no place for."""

    keys: int
    ignored: list[str]


def load_imagebind(encoder: nn.Module, path: Path) -> Loaded:
    """``imagebind_huge.pth``: the towers that `encoder` has, strictly; the others are named and left out."""
    state = read(path)
    wanted = encoder.state_dict().keys()
    towers = {key.split(".")[1] for key in wanted}
    ours = {key: value for key, value in state.items() if key.split(".")[1] in towers}
    others = sorted({key.split(".")[1] for key in state.keys() - ours.keys()})
    missing = wanted - ours.keys()
    if missing:
        raise ValueError(
            f"{path}: lacks {len(missing)} weights of the towers {', '.join(sorted(towers))}, first {min(missing)}"
        )
    encoder.load_state_dict(ours, strict=True)
    return Loaded(len(ours), others)


def load_delta(model: nn.Module, path: Path) -> Loaded:
    """PandaGPT's or AnomalyGPT's delta: whichever of our parameters it names."""
    state = {with_adapter_name(key): value for key, value in read(path).items()}
    own = model.state_dict()
    known = {key: value for key, value in state.items() if key in own}
    if not known:
        raise ValueError(f"{path}: names no parameter of this model; it begins with {next(iter(state), 'nothing')}")
    wrong = [key for key, value in known.items() if value.shape != own[key].shape]
    if wrong:
        raise ValueError(
            f"{path}: {wrong[0]} has shape {tuple(known[wrong[0]].shape)}, "
            f"this model's is {tuple(own[wrong[0]].shape)}; choose the preset that the file was trained with"
        )
    model.load_state_dict(known, strict=False)
    return Loaded(len(known), sorted(state.keys() - known.keys()))


def with_adapter_name(key: str) -> str:
    """peft before 0.3 did not write the adapter's name, ``default``."""
    for part in ("lora_A", "lora_B"):
        if key.endswith(f".{part}.weight"):
            return key.removesuffix("weight") + "default.weight"
    return key


def read(path: Path) -> dict[str, Tensor]:
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    return dict(state)


def trained_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """A copy of every parameter that is trained, half precision as released. Collective under ZeRO-3.

    Buffers are left out, as in the original.
    """
    return {
        name: whole(parameter).to("cpu", dtype, copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def whole(parameter: nn.Parameter) -> Tensor:
    """The full parameter; under ZeRO-3 each rank holds a part, and all must call this."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def save_delta(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Call on rank 0 alone: the original lets every rank write the same path."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{DELTA_FILE}.partial"
    torch.save(dict(state), partial)
    return partial.rename(folder / DELTA_FILE)
