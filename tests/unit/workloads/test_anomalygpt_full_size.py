"""The full model's names and counts, on the meta device: shapes without memory."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from agprof_workloads.anomalygpt.imagebind import ImageBind
from agprof_workloads.anomalygpt.model import AnomalyGPT, choose_trainable
from agprof_workloads.anomalygpt.sizes import FULL, SMALL, TINY
from agprof_workloads.anomalygpt.tokenizer import HashSentenceTokenizer, HashTokenizer


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def trained(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def full() -> AnomalyGPT:
    with torch.device("meta"):
        return AnomalyGPT(FULL, HashSentenceTokenizer(FULL.text_vocabulary), HashTokenizer(FULL.llm_vocabulary))


def test_parts_have_the_published_sizes(full: AnomalyGPT) -> None:
    trunks = full.visual_encoder.modality_trunks
    assert parameters(trunks["vision"]) == 629_680_640
    assert parameters(trunks["text"]) == 302_309_376
    assert parameters(full.image_decoder) == 5_246_976
    assert parameters(full.prompt_learner) == 107_416_504
    assert parameters(full.llama_proj) == 4_198_400
    lora = sum(p.numel() for name, p in full.named_parameters() if "lora_" in name)
    assert lora == 33_554_432
    assert parameters(full.llama_model) - lora == 6_738_415_616


def test_imagebind_has_the_checkpoint_names_and_shapes(full: AnomalyGPT) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in full.visual_encoder.state_dict().items()}
    expected = {
        "modality_preprocessors.vision.cls_token": (1, 1, 1280),
        "modality_preprocessors.vision.rgbt_stem.proj.1.weight": (1280, 3, 2, 14, 14),
        "modality_preprocessors.vision.pos_embedding_helper.pos_embed": (1, 257, 1280),
        "modality_preprocessors.text.pos_embed": (1, 77, 1024),
        "modality_preprocessors.text.mask": (77, 77),
        "modality_preprocessors.text.token_embedding.weight": (49408, 1024),
        "modality_trunks.vision.pre_transformer_layer.0.weight": (1280,),
        "modality_trunks.vision.pre_transformer_layer.0.bias": (1280,),
        "modality_heads.vision.0.weight": (1280,),
        "modality_heads.vision.0.bias": (1280,),
        "modality_heads.vision.2.weight": (1024, 1280),
        "modality_heads.text.proj.0.weight": (1024,),
        "modality_heads.text.proj.0.bias": (1024,),
        "modality_heads.text.proj.1.weight": (1024, 1024),
        # without a dimension in the checkpoint; loading reshapes it
        "modality_postprocessors.text.1.log_logit_scale": (1,),
    }
    for tower, blocks, width in (("vision", 32, 1280), ("text", 24, 1024)):
        for index in range(blocks):
            block = f"modality_trunks.{tower}.blocks.{index}."
            expected |= {
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.fc1.weight": (4 * width, width),
                f"{block}mlp.fc1.bias": (4 * width,),
                f"{block}mlp.fc2.weight": (width, 4 * width),
                f"{block}mlp.fc2.bias": (width,),
            }
            for norm in ("norm_1", "norm_2"):
                expected |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    assert shapes == expected


def test_all_six_towers_have_the_published_size_and_names() -> None:
    with torch.device("meta"):
        encoder = ImageBind(FULL, unused_towers=True)
    assert parameters(encoder) == 1_200_781_057
    assert {name: parameters(trunk) for name, trunk in encoder.modality_trunks.items()} == {
        "vision": 629_680_640,
        "text": 302_309_376,
        "audio": 85_072_896,
        "depth": 21_302_784,
        "thermal": 85_072_896,
        "imu": 18_920_448,
    }
    state = encoder.state_dict()
    assert len(state) == 1311
    shapes = {name: tuple(state[name].shape) for name in state}
    expected = {
        "modality_preprocessors.audio.pos_embedding_helper.pos_embed": (1, 229, 768),
        "modality_preprocessors.audio.rgbt_stem.proj.weight": (768, 1, 16, 16),
        "modality_preprocessors.depth.depth_stem.norm_layer.weight": (384,),
        "modality_preprocessors.thermal.cls_token": (1, 1, 768),
        "modality_preprocessors.imu.imu_stem.proj.weight": (512, 48),
        "modality_preprocessors.imu.pos_embed": (1, 251, 512),
        "modality_trunks.audio.blocks.11.attn.bias_k": (1, 1, 768),
        "modality_heads.audio.2.weight": (1024, 768),
        "modality_heads.imu.3.weight": (1024, 512),
        "modality_postprocessors.audio.1.log_logit_scale": (),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_the_whole_model_with_its_unused_towers_has_8_1_billion() -> None:
    with torch.device("meta"):
        tokenizers = HashSentenceTokenizer(FULL.text_vocabulary), HashTokenizer(FULL.llm_vocabulary)
        model = AnomalyGPT(FULL, *tokenizers, unused_towers=True)
    assert round(parameters(model) / 1e9, 3) == 8.09


def test_faithful_mode_trains_decoder_and_prompt_learner(full: AnomalyGPT) -> None:
    choose_trainable(full, ["decoder", "prompt"])
    names = trained(full)
    channels = (1, 4, 16, 64, 256, 1024)
    expected: dict[str, tuple[int, ...]] = {"prompt_learner.base_prompts": (9, 4096)}
    for layer in range(4):
        expected |= {f"image_decoder.fc.{layer}.weight": (1024, 1280), f"image_decoder.fc.{layer}.bias": (1024,)}
    for index, (before, after) in enumerate(pairwise(channels)):
        expected |= {
            f"prompt_learner.meta_net.{3 * index}.weight": (after, before, 3, 3),
            f"prompt_learner.meta_net.{3 * index}.bias": (after,),
        }
    expected |= {
        "prompt_learner.meta_net.15.weight": (4096, 1024, 5, 5),
        "prompt_learner.meta_net.15.bias": (4096,),
    }
    assert names == expected
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == 112_663_480


def test_pandagpt_delta_names(full: AnomalyGPT) -> None:
    choose_trainable(full, ["lora", "proj"])
    expected: dict[str, tuple[int, ...]] = {"llama_proj.weight": (4096, 1024), "llama_proj.bias": (4096,)}
    for layer in range(32):
        for target in ("q_proj", "k_proj", "v_proj", "o_proj"):
            name = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{target}"
            expected |= {f"{name}.lora_A.default.weight": (32, 4096), f"{name}.lora_B.default.weight": (4096, 32)}
    assert trained(full) == expected


def test_unknown_part_to_train_is_named(full: AnomalyGPT) -> None:
    with pytest.raises(ValueError, match=r"unknown part 'decodr'.*decoder, prompt, proj, lora"):
        choose_trainable(full, ["decodr"])


@pytest.mark.parametrize(("size", "millions"), [(TINY, 0.564), (SMALL, 385.451)])
def test_smaller_presets(size: object, millions: float) -> None:
    assert isinstance(size, type(FULL))
    with torch.device("meta"):
        model = AnomalyGPT(size, HashSentenceTokenizer(size.text_vocabulary), HashTokenizer(size.llm_vocabulary))
    assert round(parameters(model) / 1e6, 3) == millions
