"""What needs no second rank: options, recipes, schedules, models and text."""

import argparse
import importlib.util
import logging

import pytest
import torch

from agprof_workloads.anomalygpt import deepspeed_config
from agprof_workloads.bert.model import Classifier, decay_groups
from agprof_workloads.bert.train import HELD_OUT, passages, scores
from agprof_workloads.frameworks import FRAMEWORKS
from agprof_workloads.frameworks.deepspeed import cpu_adam
from agprof_workloads.frameworks.training import Recipe, TorchTraining, warmup_decay
from agprof_workloads.frameworks.wrap import add_options, check_options, wrap
from agprof_workloads.gpt2 import model as gpt2
from agprof_workloads.gpt2 import train as gpt2_train
from agprof_workloads.text import docstrings, topics, train_tokenizer


def recipe(**changes: object) -> Recipe:
    given = {"micro_batch": 1, "accumulation": 2, **changes}
    return Recipe(make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1.0), **given)  # type: ignore[arg-type]


def plain(weight: torch.nn.Linear, given: Recipe) -> TorchTraining:
    return TorchTraining(weight, given.make_optimizer(weight), given)


def test_gradients_are_the_mean_of_the_micro_steps() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    training = plain(layer, recipe())
    updates = []
    for value in (2.0, 4.0, 6.0, 8.0):
        training.backward(training.forward(torch.tensor([[value]])).sum())
        updates.append((training.step(), round(layer.weight.item(), 6)))
    assert updates == [(False, 0.0), (True, -3.0), (False, -3.0), (True, -10.0)]
    assert (training.micro_steps, training.steps) == (4, 2)


def test_gradients_are_clipped_together() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    training = plain(layer, recipe(accumulation=1, clip_norm=1.0))
    training.backward(training.forward(torch.tensor([[3.0, 4.0]])).sum())
    training.step()
    assert layer.weight.tolist()[0] == pytest.approx([-0.6, -0.8], abs=1e-6)


def test_the_schedule_is_deepspeeds() -> None:
    from deepspeed.runtime.lr_schedules import WarmupDecayLR

    logging.getLogger("DeepSpeed").setLevel("ERROR")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e-3)
    theirs = WarmupDecayLR(optimizer, total_num_steps=40, warmup_max_lr=1.0, warmup_num_steps=10)
    ours = warmup_decay(10, 40)
    for update in range(45):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours(update), abs=1e-12), update
        theirs.step()


def test_the_recipe_is_that_of_the_deepspeed_configuration() -> None:
    setup = deepspeed_config.Setup(
        micro_batch=3, accumulation=4, ranks=2, zero_stage=2, offload=False, dtype="fp32", schedule_steps=1000,
        native_ops=True,
    )  # fmt: skip
    config, _ = deepspeed_config.prepared(deepspeed_config.original(), setup)
    made = deepspeed_config.recipe(config)
    (group,) = made.make_optimizer(torch.nn.Linear(2, 2)).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.95), 1e-8, 1e-3)
    assert (made.micro_batch, made.accumulation, made.clip_norm) == (3, 4, 1.0)
    assert made.schedule is not None
    assert made.schedule(101) == 1.0  # the end of the warm-up, a tenth of the schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bf16": {"enabled": True}}, "--dtype bf16 is DeepSpeed's"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "--offload is DeepSpeed's"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer Lamb is known to DeepSpeed only"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler OneCycle is known to DeepSpeed only"),
    ],
)
def test_what_only_deepspeed_can_do_is_said(change: dict[str, object], message: str) -> None:
    config = deepspeed_config.original()
    config["zero_optimization"].pop("offload_optimizer")
    config["fp16"] = {}
    with pytest.raises(ValueError, match=message):
        deepspeed_config.recipe(config | change)


def test_options() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, default="ddp")
    assert vars(parser.parse_args([])) == {"framework": "ddp", "allreduce": "default"}
    check_options("ddp", "ring")
    with pytest.raises(ValueError, match="--allreduce ring is a hook of DDP"):
        check_options("fsdp2", "ring")
    with pytest.raises(ValueError, match=f"choose from {', '.join(FRAMEWORKS)}"):
        wrap("mpi", torch.nn.Linear(1, 1), recipe())


def test_what_only_deepspeed_has_is_refused_elsewhere() -> None:
    with pytest.raises(ValueError, match="--offload is DeepSpeed's; leave it out with --framework ddp"):
        check_options("ddp", "default", offload=True)
    with pytest.raises(ValueError, match="--dtype bf16 is DeepSpeed's; --framework fsdp2"):
        check_options("fsdp2", "default", dtype="bf16")
    check_options("deepspeed", "default", offload=True, dtype="bf16")


def test_offload_wants_an_adamw() -> None:
    with pytest.raises(ValueError, match="--offload wants AdamW, not SGD"):
        cpu_adam(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0))


def test_gpt2_small_is_the_published_one() -> None:
    with torch.device("meta"):
        model = gpt2.build("small", 1024, 64, "none")
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    with pytest.raises(ValueError, match="--preset small has 1024 positions and 50257 tokens"):
        gpt2.build("small", 1024, 1020, "prompt")
    with pytest.raises(ValueError, match="--vocabulary 60000"):
        gpt2.build("small", 60_000, 64, "none")


def test_gpt2_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = gpt2_train.parse(["--preset", "small", "--offload", "--held-out", "0"])
    assert (options.offload, options.dtype, options.held_out) == (True, "fp32", 0)
    with pytest.raises(SystemExit):
        gpt2_train.parse(["--held-out", "33"])
    assert "--held-out must be 0 to 32, not 33" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("horovod") is not None, reason="Horovod is installed here")
def test_how_to_get_horovod_is_said() -> None:
    with pytest.raises(ValueError, match="`make horovod`"):
        check_options("horovod", "default")


TRAINED = {  # of 2 blocks with 64 channels: vocabulary 300, context 32
    "lora": 2 * 8 * (64 + 192),
    "prompt": 8 * 64,
    "prefix": 8 * 2 * 2 * 64,
    "ia3": 2 * (192 + 256),
}


@pytest.mark.parametrize("method", gpt2.METHODS)
def test_every_method_trains_what_it_says(method: str) -> None:
    torch.manual_seed(0)
    model = gpt2.build("tiny", 300, 32, method)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(count for count, wanted in sizes if wanted)
    if method == "none":
        assert trained == sum(count for count, _ in sizes)
    else:
        assert trained == TRAINED.get(method, trained)
        assert 0 < trained < sum(count for count, _ in sizes) / 4
    model.eval()  # without dropout, learning one batch by heart has to show
    ids = torch.randint(2, 300, (2, 32))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name


def test_biases_and_layer_norms_do_not_decay() -> None:
    model = Classifier("tiny", 300, 32)
    decayed, spared = decay_groups(model, 0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in (names[id(p)] for p in spared["params"]))
    assert not any("LayerNorm" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_scores() -> None:
    assert scores([(1, 1), (1, 1), (1, 0), (0, 1)]) == (
        0.5,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    )
    assert scores([(0, 1), (0, 0)]) == (0.5, 0.0, 0.0, 0.0)
    assert scores([]) == (0.0, 0.0, 0.0, 0.0)


def test_text_is_there_and_always_the_same() -> None:
    for texts in (topics(), docstrings()):
        assert len(texts) > 500
        assert min(map(len, texts)) >= 120
    assert docstrings() == docstrings()


def test_a_tokenizer_is_made_on_the_spot() -> None:
    tokenizer = train_tokenizer(topics()[:50], 400, 64)
    again = train_tokenizer(topics()[:50], 400, 64)
    text = topics()[60]
    assert tokenizer(text)["input_ids"] == again(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 400)


def test_passages_are_balanced_and_held_out_ones_are_others() -> None:
    learned, held_out = passages(32, 400)
    assert len(held_out) == HELD_OUT
    for part in (learned, held_out):
        assert part.columns["labels"].float().mean().item() == 0.5
        assert part.columns["input_ids"].shape == (len(part), 32)
