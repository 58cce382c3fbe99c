from pathlib import Path

import pytest
import torch

from agprof_workloads.anomalygpt import checkpoints
from agprof_workloads.anomalygpt.model import AnomalyGPT, choose_trainable
from agprof_workloads.anomalygpt.sizes import TINY
from agprof_workloads.anomalygpt.tokenizer import HashSentenceTokenizer, HashTokenizer


def tiny(seed: int, *parts: str) -> AnomalyGPT:
    torch.manual_seed(seed)
    model = AnomalyGPT(TINY, HashSentenceTokenizer(512), HashTokenizer(512))
    choose_trainable(model, parts)
    return model


@pytest.mark.parametrize("parts", [("decoder", "prompt"), ("lora", "proj")])
def test_a_saved_delta_loads_into_another_model(parts: tuple[str, ...], tmp_path: Path) -> None:
    saved, other = tiny(1, *parts), tiny(2, *parts)
    for parameter in saved.parameters():
        torch.nn.init.normal_(parameter)
    path = checkpoints.save_delta(checkpoints.trained_weights(saved), tmp_path)
    names = [name for name, p in saved.named_parameters() if p.requires_grad]
    assert path == tmp_path / "pytorch_model.pt"
    assert sorted(torch.load(path)) == sorted(names)
    assert {tensor.dtype for tensor in torch.load(path).values()} == {torch.float16}

    untouched = {name: p.clone() for name, p in other.named_parameters() if not p.requires_grad}
    loaded = checkpoints.load_delta(other, path)
    assert (loaded.keys, loaded.ignored) == (len(names), [])
    theirs, ours = dict(saved.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(theirs[name].half().float(), ours[name]) for name in names)
    assert all(torch.equal(ours[name], before) for name, before in untouched.items())


def test_lora_names_without_the_adapter_load_too(tmp_path: Path) -> None:
    model = tiny(1, "lora")
    name = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    weight = torch.randn_like(dict(model.named_parameters())[name])
    path = checkpoints.save_delta({name.replace(".default", ""): weight, "unheard.of": weight}, tmp_path)
    loaded = checkpoints.load_delta(model, path)
    assert (loaded.keys, loaded.ignored) == (1, ["unheard.of"])
    assert torch.equal(dict(model.named_parameters())[name], weight)


def test_a_delta_of_another_size_is_refused(tmp_path: Path) -> None:
    path = checkpoints.save_delta({"llama_proj.weight": torch.zeros(4096, 1024)}, tmp_path)
    with pytest.raises(ValueError, match=r"llama_proj.weight has shape \(4096, 1024\), this model's is \(64, 32\)"):
        checkpoints.load_delta(tiny(1), path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = checkpoints.save_delta({"encoder.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(ValueError, match=r"names no parameter of this model; it begins with encoder\.weight"):
        checkpoints.load_delta(tiny(1), path)


def imagebind_file(folder: Path, model: AnomalyGPT) -> tuple[Path, dict[str, torch.Tensor]]:
    """All six towers' names, as released: the scale without a dimension, and towers that we don't hold."""
    state = {name: torch.randn_like(value) for name, value in model.visual_encoder.state_dict().items()}
    scale = "modality_postprocessors.text.1.log_logit_scale"
    state[scale] = torch.tensor(2.5)
    for tower in ("audio", "depth", "thermal", "imu"):
        state[f"modality_trunks.{tower}.blocks.0.attn.bias_k"] = torch.zeros(1)
        state[f"modality_heads.{tower}.0.weight"] = torch.zeros(1)
    path = folder / "imagebind.pth"
    torch.save(state, path)
    return path, state


def test_a_model_with_all_towers_loads_them_all(tmp_path: Path) -> None:
    from agprof_workloads.anomalygpt.imagebind import ImageBind

    encoder = ImageBind(TINY, unused_towers=True)
    state = {name: torch.randn_like(value) for name, value in encoder.state_dict().items()}
    torch.save(state, tmp_path / "all.pth")
    loaded = checkpoints.load_imagebind(encoder, tmp_path / "all.pth")
    assert (loaded.keys, loaded.ignored) == (len(state), [])
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    del state["modality_trunks.imu.blocks.0.attn.bias_k"]
    torch.save(state, tmp_path / "torn.pth")
    with pytest.raises(ValueError, match=r"lacks 1 weights of the towers audio, depth, imu, text.*imu\.blocks\.0"):
        checkpoints.load_imagebind(encoder, tmp_path / "torn.pth")


def test_imagebind_loads_two_towers_and_names_the_others(tmp_path: Path) -> None:
    model = tiny(1)
    path, state = imagebind_file(tmp_path, model)
    loaded = checkpoints.load_imagebind(model.visual_encoder, path)
    assert loaded.ignored == ["audio", "depth", "imu", "thermal"]
    for name, value in model.visual_encoder.state_dict().items():
        assert torch.equal(value, state[name].reshape(value.shape))


def test_imagebind_without_a_weight_is_refused(tmp_path: Path) -> None:
    model = tiny(1)
    path, state = imagebind_file(tmp_path, model)
    del state["modality_heads.vision.2.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"lacks 1 weights .* first modality_heads.vision.2.weight"):
        checkpoints.load_imagebind(model.visual_encoder, path)
