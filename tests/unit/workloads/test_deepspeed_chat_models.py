"""Models, low-rank layers, the slow copy, checkpoints and DeepSpeed's configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agprof_workloads.deepspeed_chat import checkpoints, config, ema, job, lora, models


@pytest.fixture
def actor(chat_tokenizer: Any) -> Any:
    torch.manual_seed(1)
    return models.random_actor(models.ACTORS["tiny"], chat_tokenizer, dropout=0.0).eval()


@pytest.fixture
def critic(chat_tokenizer: Any) -> models.RewardModel:
    torch.manual_seed(2)
    return models.random_reward_model(models.CRITICS["tiny"], chat_tokenizer, dropout=0.0).eval()


IDS = torch.tensor([[0, 5, 6, 7, 8]])
MASK = torch.ones_like(IDS)


def test_the_reward_model_projects_in_and_out(critic: models.RewardModel) -> None:
    names = dict(critic.named_parameters())
    assert names["rwtransformer.decoder.project_in.weight"].shape == (64, 32)
    assert names["rwtransformer.decoder.project_out.weight"].shape == (32, 64)
    assert names["v_head.weight"].shape == (1, 32)
    assert critic(IDS, MASK).shape == (1, 5)


def test_full_size_counts(chat_tokenizer: Any) -> None:
    """OPT-350M and OPT-1.3B, without memory."""
    shared = {"layers": 24, "positions": 2048, "least_vocabulary": 50_272}
    big = models.Size(hidden=2048, feed_forward=8192, heads=32, word_projection=2048, norm_first=True, **shared)
    less = models.Size(hidden=1024, feed_forward=4096, heads=16, word_projection=512, norm_first=False, **shared)
    with torch.device("meta"):
        assert models.parameter_count(models.random_actor(big, chat_tokenizer)) == 1_315_758_080
        reward = models.random_reward_model(less, chat_tokenizer)
    assert models.parameter_count(reward) == 331_196_416 + 512
    assert reward.v_head.weight.shape == (1, 512)


def test_dropout_is_set_where_the_architecture_has_it(chat_tokenizer: Any) -> None:
    chosen = models.opt_config(models.ACTORS["tiny"], chat_tokenizer, 0.25)
    assert (chosen.dropout, chosen.attention_dropout) == (0.25, 0.25)
    assert models.opt_config(models.ACTORS["tiny"], chat_tokenizer, None).dropout == 0.1


def test_padded() -> None:
    assert [models.padded(count) for count in (1, 8, 9, 50_265)] == [8, 8, 16, 50_272]


def test_a_fused_low_rank_layer_does_the_same() -> None:
    torch.manual_seed(0)
    layer = lora.LowRankLinear(nn.Linear(6, 5), rank=3)
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    nn.init.normal_(layer.lora_left_weight)
    by_hand = layer.weight + (layer.lora_right_weight @ layer.lora_left_weight).T / 3
    torch.testing.assert_close(layer(x), x @ by_hand.T + layer.bias)
    fused = lora.fused(layer.weight, layer.lora_right_weight, layer.lora_left_weight)
    torch.testing.assert_close(nn.functional.linear(x, fused, layer.bias), layer(x))


def test_lora_is_put_into_the_layers_and_freezes_their_weights(actor: Any) -> None:
    # q, k, v, out and two feed-forward layers in each of two
    assert lora.add_lora(actor, 4) == 12
    frozen = {name for name, p in actor.named_parameters() if not p.requires_grad}
    assert len(frozen) == 12
    assert all(name.startswith("model.decoder.layers.") and name.endswith(".weight") for name in frozen)
    lora.only_optimize_lora(actor)
    assert sum(p.requires_grad for p in actor.parameters()) == 24


def test_a_model_with_lora_is_saved_fused(actor: Any, chat_tokenizer: Any, tmp_path: Path) -> None:
    lora.add_lora(actor, 4)
    for name, parameter in actor.named_parameters():
        if name.endswith(lora.LEFT):
            nn.init.normal_(parameter, std=0.3)
    checkpoints.save(actor, chat_tokenizer, tmp_path, rank=0)
    loaded = models.actor_from(tmp_path, chat_tokenizer).eval()
    assert not [name for name, _ in loaded.named_parameters() if lora.is_lora(name)]
    torch.testing.assert_close(loaded(input_ids=IDS).logits, actor(input_ids=IDS).logits, rtol=1e-4, atol=1e-5)


def test_checkpoints_come_back_as_they_were(
    actor: Any, critic: models.RewardModel, chat_tokenizer: Any, tmp_path: Path
) -> None:
    places = checkpoints.actor_folder(tmp_path, "tiny"), checkpoints.reward_folder(tmp_path, "tiny")
    assert [str(place.relative_to(tmp_path)) for place in places] == ["actor-models/tiny", "reward-models/tiny"]
    for model, place in zip((actor, critic), places, strict=True):
        checkpoints.save(model, chat_tokenizer, place, rank=0)
        checkpoints.check(place, "--dir", "stage")
    saved = torch.load(places[1] / "pytorch_model.bin", weights_only=True)
    assert saved.keys() == critic.state_dict().keys()
    tokenizer = checkpoints.tokenizer_from(places[0])
    assert tokenizer(" Return it.")["input_ids"] == chat_tokenizer(" Return it.")["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (tokenizer.eos_token_id, "right")
    assert torch.equal(
        models.actor_from(places[0], tokenizer).eval()(input_ids=IDS).logits, actor(input_ids=IDS).logits
    )
    assert torch.equal(checkpoints.reward_model_from(places[1], tokenizer).eval()(IDS, MASK), critic(IDS, MASK))
    # stage 2 can start from stage 1's folder, too
    assert models.reward_model_on(places[0], tokenizer)(IDS, MASK).shape == (1, 5)
    with pytest.raises(ValueError, match=r"is no reward model, it has no v_head.weight"):
        checkpoints.reward_model_from(places[0], tokenizer)


def test_other_ranks_write_nothing(actor: Any, chat_tokenizer: Any, tmp_path: Path) -> None:
    checkpoints.save(actor, chat_tokenizer, tmp_path / "x", rank=1)
    assert not (tmp_path / "x").exists()


def test_what_a_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--actor-dir .*none: no such folder"):
        checkpoints.check(tmp_path / "none", "--actor-dir", "stage 1")
    with pytest.raises(ValueError, match=r"has no pytorch_model.bin; give the folder that stage 1 saved with --out"):
        checkpoints.check(tmp_path, "--actor-dir", "stage 1")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"has no config.json"):
        checkpoints.check(tmp_path, "--actor-dir", "stage 1")
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match=r"has no tokenizer; one of tokenizer.json"):
        checkpoints.check(tmp_path, "--actor-dir", "stage 1")


def test_weights_that_do_not_fit_are_named(critic: models.RewardModel, chat_tokenizer: Any, tmp_path: Path) -> None:
    checkpoints.save(critic, chat_tokenizer, tmp_path, rank=0)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save(
        {"v_head.weight": state["v_head.weight"], "other": state["v_head.weight"]}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match=r"weights are missing and 1 have no place, first rwtransformer"):
        checkpoints.reward_model_from(tmp_path, chat_tokenizer)


def test_the_slow_copy_follows() -> None:
    slow, fast = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(slow.weight, 1.0)
    nn.init.constant_(fast.weight, 2.0)
    ema.update(slow, fast)
    assert slow.weight.item() == pytest.approx(0.992 * 1 + 0.008 * 2)
    ema.update(slow, fast, beta=0)
    assert slow.weight.item() == 2.0


def test_parameters_are_in_three_groups(actor: Any) -> None:
    lora.add_lora(actor, 4)
    training = job.Training(
        learning_rate=1.0, lora_learning_rate=2.0, weight_decay=0.1, schedule="cosine", warmup_steps=0, total_steps=1
    )
    decayed, low_rank, plain = job.parameter_groups(actor, training)
    assert (decayed["weight_decay"], low_rank["weight_decay"], plain["weight_decay"]) == (0.1, 0.1, 0.0)
    assert (low_rank["lr"], len(low_rank["params"])) == (2.0, 24)
    assert all(parameter.ndim == 1 for parameter in plain["params"])
    # the two embeddings alone: every linear weight is frozen
    assert len(decayed["params"]) == 2


ENGINE = config.Engine(micro_batch=4, accumulation=3, ranks=2, zero_stage=2, offload=False, dtype="bf16")


def test_deepspeed_configurations_are_the_originals() -> None:
    training = config.training(ENGINE, config.Hybrid(longest_output=512))
    assert (training["train_batch_size"], training["train_micro_batch_size_per_gpu"]) == (24, 4)
    assert training["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "offload_param": {"device": "none"},
        "offload_optimizer": {"device": "none"},
        "stage3_param_persistence_threshold": 10_000,
        "stage3_max_live_parameters": 30_000_000,
        "stage3_prefetch_bucket_size": 30_000_000,
        "memory_efficient_linear": False,
    }
    assert training["bfloat16"] == {"enabled": True}
    assert training["hybrid_engine"]["max_out_tokens"] == 512
    assert (training["gradient_clipping"], training["steps_per_print"]) == (1.0, 10)
    scoring = config.scoring(ENGINE)
    assert "offload_optimizer" not in scoring["zero_optimization"]
    assert "hybrid_engine" not in config.training(ENGINE)


def hybrid_refused(wanted: str = "auto", **changes: Any) -> str | None:
    usual = {
        "device": "cuda", "actor_stage": 2, "critic_stage": 2, "offload": False, "lora": False, "tensor_parallel": 1
    }  # fmt: skip
    return config.hybrid_refused(wanted, **(usual | changes))


def test_the_hybrid_engine_is_off_where_it_cannot_work() -> None:
    assert hybrid_refused() is None
    assert hybrid_refused(device="cpu") == "its kernels for inference need a GPU"
    assert hybrid_refused("on", device="cpu") is None
    assert hybrid_refused("off") == "by --hybrid-engine off"
    assert hybrid_refused(offload=True) == "ZeRO-2 for actor and critic with offload needs LoRA"
    assert hybrid_refused(offload=True, lora=True) is None
    with pytest.raises(ValueError, match="--hybrid-engine on: --inference-tp 2 needs --actor-zero-stage 3"):
        hybrid_refused("on", tensor_parallel=2)


def test_config_json_is_json(actor: Any, chat_tokenizer: Any, tmp_path: Path) -> None:
    checkpoints.save(actor, chat_tokenizer, tmp_path, rank=0)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "opt"
