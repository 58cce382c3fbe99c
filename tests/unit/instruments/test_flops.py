"""Flops of a forward and of the backward that belongs to it, by both counters."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from collected_rows import CollectedRows, collecting_recorder, finish

torch = pytest.importorskip("torch")

import torch.utils.checkpoint as checkpoint_code  # noqa: E402

from agprof.instruments.flops import FlopsInstrument  # noqa: E402

nn = torch.nn
import_module("torch._dynamo")  # replaces torch.manual_seed when it is first imported, and for good


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: Any) -> Any:
        mixed = nn.functional.scaled_dot_product_attention(
            self.query(tokens).unsqueeze(1), self.key(tokens).unsqueeze(1), self.value(tokens).unsqueeze(1)
        )
        return tokens + self.dropout(self.out(mixed.squeeze(1)))


class Model(nn.Module):
    """Embedding, an encoder that may be frozen, two blocks, a head."""

    def __init__(self, checkpointing: bool | None = None, no_grad_encoder: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 16)
        self.encoder = nn.Linear(16, 16, bias=False)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(16, 10, bias=False)
        self.checkpointing = checkpointing
        self.no_grad_encoder = no_grad_encoder
        self.fails = False

    def forward(self, ids: Any) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.no_grad_encoder):
            extra = self.encoder(torch.ones(ids.shape[0], ids.shape[1], 16))
        tokens = self.embedding(ids) + extra
        for block in self.blocks:
            if self.checkpointing is None:
                tokens = block(tokens)
            else:
                tokens = checkpoint_code.checkpoint(block, tokens, use_reentrant=self.checkpointing)
        if self.fails:
            raise RuntimeError("the model's own error")
        return self.head(tokens)


IDS = torch.zeros(2, 8, dtype=torch.long)
LINEAR = 2 * 16 * 16 * 16.0  # two sequences of eight tokens through 16 x 16
HEAD = 2 * 16 * 16 * 10.0
ATTENTION = 2 * 2 * 8 * 8 * 16 * 2.0
FORWARD = LINEAR * 9 + ATTENTION * 2 + HEAD


def changed_dictionaries() -> list[Any]:
    return [torch, torch.Tensor, nn.functional, checkpoint_code, *filter(None, [sys.modules.get("einops")])]


@pytest.fixture(params=["torch", "deepspeed"])
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "deepspeed":
        pytest.importorskip("deepspeed.profiling.flops_profiler.profiler")
    else:
        monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    before = [(owner, dict(vars(owner))) for owner in changed_dictionaries()]
    yield request.param
    for owner, was in before:
        now = vars(owner)
        assert [key for key in {*was, *now} if callable(now.get(key)) and was.get(key) is not now.get(key)] == []


def train(
    model: Any, profile_step: int | None, steps: int = 3, at: Callable[[int], None] = lambda step: None
) -> tuple[list[float], CollectedRows, list[bool]]:
    """A plain loop of `steps`, as the bootstrap and the forward instrument drive this one."""
    recorder, collected = collecting_recorder(profile_step=profile_step)
    instrument = FlopsInstrument(recorder, torch)
    instrument.arm()
    seen: list[Any] = []

    def first_call(module: Any, _inputs: Any) -> None:
        if not seen:
            seen.append(module)
            instrument.on_root(module)

    model.register_forward_pre_hook(first_call)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    torch.manual_seed(1)
    losses, profiled = [], []
    for step in range(steps):
        at(step)
        loss = model(IDS).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        profiled.append(recorder.profiled)
        recorder.end_step()
    finish(recorder)
    return losses, collected, profiled


def counted(collected: CollectedRows) -> tuple[float, float]:
    facts = collected.facts()
    return float(facts["compute.forward_flops"]), float(facts["compute.backward_flops"])


@pytest.mark.parametrize("profile_step", [0, 1])
def test_full_training_is_twice_the_forward(counter: str, profile_step: int) -> None:
    _, collected, profiled = train(Model(), profile_step)
    forward, backward = counted(collected)
    assert forward == pytest.approx(FORWARD, rel=0.03)  # DeepSpeed counts additions too
    # The encoder reads no tensor that needs a gradient.
    assert backward == pytest.approx(2 * FORWARD - LINEAR, rel=0.03)
    assert profiled == [step == profile_step for step in range(3)]
    assert collected.facts()["compute.profiler"] == f'"{counter}"'
    assert collected.table("faults") == []


def test_the_tree_adds_up(counter: str) -> None:
    _, collected, _ = train(Model(), 1)
    rows = {row["path"]: row for row in collected.table("modules")}
    root = rows[""]
    assert (root["parent"], root["depth"], root["order"], root["type"], root["calls"]) == (None, 0, 0, "Model", 1)
    assert root["params"] == root["trainable_params"] == sum(weight.numel() for weight in Model().parameters())
    assert root["forward_flops"] == counted(collected)[0]
    assert root["forward_ns"] > rows["blocks.0"]["forward_ns"] > rows["blocks.0.query"]["forward_ns"] > 0
    assert (rows["blocks"]["forward_ns"], rows["blocks"]["calls"]) == (None, 0)
    assert rows["blocks.1.query"] | {"forward_ns": 0} == {
        "step": 1, "path": "blocks.1.query", "parent": "blocks.1", "depth": 3, "type": "Linear",
        "order": rows["blocks.1"]["order"] + 1, "params": 256, "trainable_params": 256,
        "forward_flops": LINEAR, "forward_ns": 0, "calls": 1,
    }  # fmt: skip
    for path in ("", "blocks"):
        children = [row["forward_flops"] for row in rows.values() if row["parent"] == path]
        assert rows[path]["forward_flops"] >= sum(children)


def test_frozen_weights_cost_the_input_gradient_only(counter: str) -> None:
    model = Model()
    model.requires_grad_(False)
    model.blocks[0].query.requires_grad_(True)
    _, collected, _ = train(model, 1)
    first_block = LINEAR + ATTENTION / 2 * 2 + LINEAR  # its query's weight, two attention products, out's input
    rest = 4 * LINEAR + 2 * ATTENTION + HEAD
    assert counted(collected)[1] == pytest.approx(first_block + rest, rel=0.03)


def test_an_encoder_under_no_grad_costs_no_backward(counter: str) -> None:
    _, collected, _ = train(Model(no_grad_encoder=True), 1)
    assert counted(collected)[1] == pytest.approx(2 * FORWARD - 2 * LINEAR, rel=0.03)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_count(counter: str, reentrant: bool) -> None:
    _, plain, _ = train(Model(), 1)
    _, checkpointed, _ = train(Model(checkpointing=reentrant), 1)
    assert counted(checkpointed) == pytest.approx(counted(plain))


def test_losses_are_bit_identical_with_and_without_the_profile_step(counter: str) -> None:
    assert train(Model(), 1)[0] == train(Model(), None)[0]


def test_nothing_stays_on_the_modules(counter: str) -> None:
    model = Model()
    train(model, 1)
    model._forward_pre_hooks.clear()  # the harness's own
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not [name for name in vars(module) if name.startswith("__")]


def test_a_failing_forward_keeps_its_error_and_torch_its_functions(counter: str) -> None:
    model = Model()
    recorder, collected = collecting_recorder(profile_step=0)
    instrument = FlopsInstrument(recorder, torch)
    instrument.arm()
    model.register_forward_pre_hook(lambda module, _inputs: instrument.on_root(module))
    model.fails = True
    linear = nn.functional.linear
    with pytest.raises(RuntimeError, match="the model's own error"):
        model(IDS)
    assert nn.functional.linear is linear
    model.fails = False
    model(IDS)
    finish(recorder)
    assert collected.table("modules") == []
    assert not any(module._forward_hooks for module in model.modules())


def test_a_call_that_deepspeeds_formulas_reject_does_not_fail(counter: str) -> None:
    class Odd(Model):
        def forward(self, ids: Any) -> Any:
            torch.einsum(torch.ones(2, 2), [0, 1], torch.ones(2, 2), [1, 2])  # no equation: DeepSpeed can't read it
            nn.functional.conv1d(torch.ones(3, 8), torch.ones(2, 3, 2))  # no batch: its formula asserts
            return super().forward(ids)

    _, collected, _ = train(Odd(), 1)
    assert collected.facts()["compute.profiler"] == f'"{counter}"'


def test_only_rank_0_counts_but_every_rank_marks_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    _, collected, profiled = train(Model(), 1)
    assert profiled == [False, True, False]
    assert collected.table("modules") == []


def test_forwards_without_gradients_are_passed_over() -> None:
    model = Model()

    def evaluate(step: int) -> None:
        with torch.no_grad():
            model(IDS)

    _, collected, _ = train(model, 1, at=evaluate)
    assert counted(collected)[1] > 0


def test_no_profile_step_no_work() -> None:
    _, collected, profiled = train(Model(), None)
    assert collected.tables.get("modules") is None
    assert not any(profiled)


def test_every_call_of_a_module_in_the_profiled_forward_is_a_span(counter: str) -> None:
    _, collected, _ = train(Model(), 1)
    spans = [span for span in collected.table("spans") if span["category"] == "module"]
    calls = {row["path"] or "Model": row["calls"] for row in collected.table("modules") if row["calls"]}
    assert {name: sum(span["name"] == name for span in spans) for name in calls} == calls
    assert len(spans) == sum(calls.values())
    assert {span["step"] for span in spans} == {1}
    by_name = {span["name"]: span for span in spans}
    for name, depth in (("Model", 0), ("blocks.1", 1), ("blocks.1.query", 2)):
        assert by_name[name]["depth"] == depth
    outer, inner = by_name["blocks.1"], by_name["blocks.1.query"]
    assert outer["start_ns"] <= inner["start_ns"] <= inner["end_ns"] <= outer["end_ns"]
    assert len({span["span"] for span in spans}) == len(spans)
