"""The FLOPs of the profile step as the instrument writes them, and DeepSpeed's figure beside them."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from collected_rows import CollectedRows, collecting_recorder, finish

torch = pytest.importorskip("torch")

import torch.utils.checkpoint as checkpoint_code  # noqa: E402

from agprof.instruments.flops import FlopsPart  # noqa: E402
from agprof.instruments.profile_step import ProfileStep  # noqa: E402

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
LINEAR = 2 * 16 * 16 * 16  # two sequences of eight tokens through 16 x 16
HEAD = 2 * 16 * 16 * 10
ATTENTION = 2 * 2 * 8 * 8 * 16 * 2
FORWARD = LINEAR * 9 + ATTENTION * 2 + HEAD
FULL_BACKWARD = 2 * FORWARD - LINEAR  # the encoder reads no tensor that needs a gradient
MICRO_STEPS = 2


def changed_dictionaries() -> list[Any]:
    return [torch, torch.Tensor, nn.functional, checkpoint_code, *filter(None, [sys.modules.get("einops")])]


@pytest.fixture(params=["torch", "deepspeed"])
def beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Whether DeepSpeed's profiler runs beside ours; afterwards torch's functions are what they were."""
    if request.param == "deepspeed":
        pytest.importorskip("deepspeed.profiling.flops_profiler.profiler")
    else:
        monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    before = [(owner, dict(vars(owner))) for owner in changed_dictionaries()]
    yield request.param
    for owner, was in before:
        now = vars(owner)
        assert [key for key in {*was, *now} if callable(now.get(key)) and was.get(key) is not now.get(key)] == []


def profiled_recorder(profile_step: int | None) -> tuple[Any, CollectedRows, ProfileStep]:
    recorder, collected = collecting_recorder(profile_step=profile_step)
    profile = ProfileStep(recorder, torch)
    profile.add("flops", FlopsPart(recorder, torch))
    profile.arm()
    return recorder, collected, profile


def train(
    model: Any, profile_step: int | None, steps: int = 3, at: Callable[[int], None] = lambda step: None
) -> tuple[list[float], CollectedRows, list[bool]]:
    """A plain loop of `steps` with two micro-steps each, as the bootstrap and the forward instrument drive this one."""
    recorder, collected, profile = profiled_recorder(profile_step)
    seen: list[Any] = []

    def first_call(module: Any, _inputs: Any) -> None:
        if not seen:
            seen.append(module)
            profile.on_root(module)

    handle = model.register_forward_pre_hook(first_call)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    torch.manual_seed(1)
    losses, profiled = [], []
    for step in range(steps):
        at(step)
        for _micro_step in range(MICRO_STEPS):
            loss = model(IDS).square().sum()
            loss.backward()
            recorder.end_micro_step()
        span = recorder.open("phase", "optimizer")
        optimizer.step()
        recorder.close(span)
        optimizer.zero_grad()
        losses.append(loss.item())
        profiled.append(recorder.profiled)
        recorder.end_step()
    finish(recorder)
    handle.remove()
    assert collected.table("faults") == []
    return losses, collected, profiled


def counted(collected: CollectedRows) -> tuple[float, float, float]:
    facts = collected.facts()
    return tuple(float(facts[f"compute.{name}_flops"]) for name in ("forward", "backward", "recomputed"))  # type: ignore[return-value]


@pytest.mark.parametrize("profile_step", [0, 1])
def test_all_micro_steps_of_the_profile_step_are_counted(beside: str, profile_step: int) -> None:
    _, collected, profiled = train(Model(), profile_step)
    assert counted(collected) == (MICRO_STEPS * FORWARD, MICRO_STEPS * FULL_BACKWARD, MICRO_STEPS * ATTENTION)
    assert profiled == [step == profile_step for step in range(3)]
    facts = collected.facts()
    assert facts["compute.profiler"] == '"counted"'
    assert facts["compute.micro_steps"] == str(MICRO_STEPS)
    assert float(facts["compute.first_micro_step_forward_flops"]) == FORWARD
    assert float(facts["compute.first_micro_step_backward_flops"]) == FULL_BACKWARD
    assert float(facts["compute.attention_flops"]) == MICRO_STEPS * 3 * 2 * ATTENTION
    assert float(facts["compute.causal_attention_flops"]) == 0


def test_the_tree_adds_up(beside: str) -> None:
    _, collected, _ = train(Model(), 1)
    rows = {row["path"]: row for row in collected.table("modules")}
    root = rows[""]
    assert (root["root"], root["parent"], root["depth"], root["order"], root["type"]) == (0, None, 0, 0, "Model")
    assert root["calls"] == MICRO_STEPS
    assert root["params"] == root["trainable_params"] == sum(weight.numel() for weight in Model().parameters())
    assert (root["forward_flops"], root["backward_flops"], root["recomputed_flops"]) == counted(collected)
    assert root["forward_ns"] > rows["blocks.0"]["forward_ns"] > rows["blocks.0.query"]["forward_ns"] > 0
    assert root["backward_ns"] > rows["blocks.0"]["backward_ns"] > rows["blocks.0.query"]["backward_ns"] > 0
    query = rows["blocks.1.query"]
    assert {name: value for name, value in query.items() if not name.endswith(("_ns", "_bytes"))} == {
        "step": 1, "root": 0, "path": "blocks.1.query", "parent": "blocks.1", "depth": 3, "type": "Linear",
        "order": rows["blocks.1"]["order"] + 1, "params": 256, "trainable_params": 256,
        "calls": MICRO_STEPS, "recomputed_calls": 0,
        "forward_flops": MICRO_STEPS * LINEAR, "backward_flops": MICRO_STEPS * 2 * LINEAR, "recomputed_flops": 0,
        "attention_flops": 0, "modelled_forward_flops": MICRO_STEPS * LINEAR,
        "modelled_backward_flops": MICRO_STEPS * 2 * LINEAR,
    }  # fmt: skip
    # Operands and result of the product, four bytes an element; backward is two such products.
    assert query["forward_bytes"] == MICRO_STEPS * 4 * 3 * 256
    assert query["backward_bytes"] == MICRO_STEPS * 2 * 4 * 3 * 256
    # A list of modules is never called itself.
    assert rows["blocks"]["calls"] == 0
    for column in ("forward_flops", "backward_flops", "recomputed_flops", "forward_ns", "backward_ns"):
        for path in ("", "blocks"):
            children = [row[column] for row in rows.values() if row["parent"] == path]
            assert rows[path][column] >= sum(children)
        assert rows["blocks"][column] == rows["blocks.0"][column] + rows["blocks.1"][column]


def test_operations_by_kind_pass_and_element_type_sum_to_the_same(beside: str) -> None:
    _, collected, _ = train(Model(), 1)
    rows = {(row["in_pass"], row["kind"], row["dtype"]): row for row in collected.table("operations")}
    flops = {key[:2]: row["flops"] for key, row in rows.items() if key[1] != "other"}
    assert flops == {
        ("forward", "attention"): MICRO_STEPS * 2 * ATTENTION,
        ("forward", "matmul"): MICRO_STEPS * (FORWARD - 2 * ATTENTION),
        ("backward", "attention"): MICRO_STEPS * 4 * ATTENTION,
        ("backward", "matmul"): MICRO_STEPS * (FULL_BACKWARD - 4 * ATTENTION),
        ("recomputed", "attention"): MICRO_STEPS * ATTENTION,
    }
    assert {key[2] for key in rows if key[1] != "other"} == {"float32"}
    assert rows["forward", "matmul", "float32"]["calls"] == MICRO_STEPS * 10
    assert rows["forward", "other", "float32"]["duration_ns"] > 0
    assert rows["forward", "other", "float32"]["bytes"] is None
    assert all(row["flops"] == 0 for key, row in rows.items() if key[1] == "other")
    root = next(row for row in collected.table("modules") if row["path"] == "")
    of_modules = sum(row["duration_ns"] for key, row in rows.items() if key[0] == "forward")
    assert root["forward_ns"] == of_modules


def test_frozen_weights_cost_the_input_gradient_only(beside: str) -> None:
    model = Model()
    model.requires_grad_(False)
    model.blocks[0].query.requires_grad_(True)
    _, collected, _ = train(model, 1)
    # Its query's weight, then out's input; in the second block and the head everything's input. A kernel of attention
    # makes all gradients.
    matmuls = LINEAR + LINEAR + 4 * LINEAR + HEAD
    assert counted(collected)[1] == MICRO_STEPS * (matmuls + 2 * 2 * ATTENTION)
    assert float(collected.facts()["compute.modelled_backward_flops"]) == counted(collected)[1]


def test_an_encoder_under_no_grad_costs_no_backward(beside: str) -> None:
    _, collected, _ = train(Model(no_grad_encoder=True), 1)
    assert counted(collected)[1] == MICRO_STEPS * (FULL_BACKWARD - LINEAR)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_told_apart(beside: str, reentrant: bool) -> None:
    _, collected, _ = train(Model(checkpointing=reentrant), 1)
    forward, backward, recomputed = counted(collected)
    assert (forward, backward) == (MICRO_STEPS * FORWARD, MICRO_STEPS * FULL_BACKWARD)
    # Two blocks whole, and in each the scores again that the attention's kernel keeps no copy of.
    assert recomputed == MICRO_STEPS * 2 * (4 * LINEAR + ATTENTION + ATTENTION / 2)
    rows = {row["path"]: row for row in collected.table("modules")}
    assert (rows["blocks.0"]["calls"], rows["blocks.0"]["recomputed_calls"]) == (MICRO_STEPS, MICRO_STEPS)
    assert rows["blocks.0.query"]["recomputed_flops"] == MICRO_STEPS * LINEAR
    assert rows["blocks"]["recomputed_flops"] == recomputed == rows[""]["recomputed_flops"]
    assert float(collected.facts()["compute.modelled_backward_flops"]) == backward


def test_losses_are_bit_identical_with_and_without_the_profile_step(beside: str) -> None:
    assert train(Model(), 1)[0] == train(Model(), None)[0]


def test_nothing_stays_on_the_modules(beside: str) -> None:
    model = Model()
    train(model, 1)
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not [name for name in vars(module) if name.startswith("__")]


def test_a_failing_forward_keeps_its_error_and_torch_its_functions(beside: str) -> None:
    model = Model()
    recorder, collected, profile = profiled_recorder(0)
    handle = model.register_forward_pre_hook(lambda module, _inputs: profile.on_root(module))
    model.fails = True
    linear = nn.functional.linear
    with pytest.raises(RuntimeError, match="the model's own error"):
        model(IDS)
    assert nn.functional.linear is linear
    model.fails = False
    model(IDS)
    finish(recorder)
    handle.remove()
    assert collected.table("modules") == []
    assert not any(module._forward_hooks for module in model.modules())


def test_a_call_that_deepspeeds_formulas_reject_does_not_fail(beside: str) -> None:
    class Odd(Model):
        def forward(self, ids: Any) -> Any:
            torch.einsum(torch.ones(2, 2), [0, 1], torch.ones(2, 2), [1, 2])  # no equation: DeepSpeed can't read it
            nn.functional.conv1d(torch.ones(3, 8), torch.ones(2, 3, 2))  # no batch: its formula asserts
            return super().forward(ids)

    _, collected, _ = train(Odd(), 1)
    einsum, conv = 2 * 2 * 2 * 2, 2 * 2 * 3 * 2 * 7
    assert counted(collected)[0] == MICRO_STEPS * (FORWARD + einsum + conv)


def test_deepspeeds_figure_is_that_of_its_own_profiler() -> None:
    code = pytest.importorskip("deepspeed.profiling.flops_profiler.profiler")
    _, collected, _ = train(Model(), 1)
    model = Model()
    theirs = code.FlopsProfiler(model)
    functions = {owner: dict(vars(owner)) for owner in (torch, torch.Tensor, nn.functional)}
    theirs.start_profile()
    model(IDS)
    theirs.stop_profile()
    flops, params = theirs.get_total_flops(), theirs.get_total_params()
    theirs.end_profile()
    for owner, was in functions.items():
        for name, value in list(vars(owner).items()):
            if name not in was and callable(value):
                delattr(owner, name)  # what DeepSpeed's own undoing leaves behind
    facts = collected.facts()
    assert float(facts["compute.deepspeed_forward_flops"]) == flops
    assert int(facts["compute.deepspeed_params"]) == params
    assert flops == FORWARD


def test_a_part_that_cannot_count_says_so_and_writes_no_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    from agprof.instruments import flops_count

    def broken(*_args: Any) -> Any:
        raise ValueError("no formula")

    monkeypatch.setattr(flops_count.FlopsCount, "_bytes", broken)
    recorder, collected, profile = profiled_recorder(0)
    model = Model()
    handle = model.register_forward_pre_hook(lambda module, _inputs: profile.on_root(module))
    model(IDS).sum().backward()
    handle.remove()
    recorder.end_micro_step()
    recorder.end_step()
    finish(recorder)
    assert collected.table("modules") == collected.table("operations") == []
    assert "counting failed" in collected.facts()["compute.profiler_absent"]
    assert [row["instrument"] for row in collected.table("faults")] == ["flops"]


def test_forwards_without_gradients_are_counted_as_forward_and_not_taken_for_the_first_micro_step() -> None:
    model = Model()

    def evaluate(step: int) -> None:
        with torch.no_grad():
            model(IDS)

    _, collected, _ = train(model, 1, at=evaluate)
    forward, backward, _ = counted(collected)
    assert (forward, backward) == ((MICRO_STEPS + 1) * FORWARD, MICRO_STEPS * FULL_BACKWARD)
    assert float(collected.facts()["compute.first_micro_step_forward_flops"]) == FORWARD


def test_products_of_the_optimizer_are_no_flops_of_the_model() -> None:
    def outside_any_module(step: int) -> None:
        torch.ones(4, 4) @ torch.ones(4, 4)

    class Muon(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            torch.ones(8, 8) @ torch.ones(8, 8)
            return super().step(closure)

    original, torch.optim.SGD = torch.optim.SGD, Muon
    try:
        _, collected, _ = train(Model(), 1, at=outside_any_module)
    finally:
        torch.optim.SGD = original
    assert counted(collected)[0] == MICRO_STEPS * FORWARD + 2 * 4 * 4 * 4
    assert float(collected.facts()["compute.update_flops"]) == 2 * 8 * 8 * 8


def test_no_profile_step_no_work() -> None:
    _, collected, profiled = train(Model(), None)
    assert collected.tables.get("modules") is None
    assert not any(profiled)


def test_every_call_of_a_module_in_the_first_forward_is_a_span(beside: str) -> None:
    _, collected, _ = train(Model(), 1)
    spans = [span for span in collected.table("spans") if span["category"] == "module"]
    calls = {row["path"] or "Model": row["calls"] / MICRO_STEPS for row in collected.table("modules") if row["calls"]}
    assert {name: sum(span["name"] == name for span in spans) for name in calls} == calls
    assert len(spans) == sum(calls.values())
    assert {span["step"] for span in spans} == {1}
    by_name = {span["name"]: span for span in spans}
    for name, depth in (("Model", 0), ("blocks.1", 1), ("blocks.1.query", 2)):
        assert by_name[name]["depth"] == depth
    outer, inner = by_name["blocks.1"], by_name["blocks.1.query"]
    assert outer["start_ns"] <= inner["start_ns"] <= inner["end_ns"] <= outer["end_ns"]
    assert len({span["span"] for span in spans}) == len(spans)
