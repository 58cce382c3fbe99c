import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from rank_streams import faults
from torch.utils.checkpoint import checkpoint

from agprof.instruments.training import TAKE_OVER_STEPS, TrainingLoop, read_loss


def model_and_optimizer(**options):
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, **options)


def names(tables):
    return [span.name for span in tables.get("spans", []) if span.category == "phase"]


def test_gradient_accumulation(arm):
    rig = arm()
    model, optimizer = model_and_optimizer()
    losses = []
    for number in range(6):
        loss = model(torch.ones(2, 3)).sum()
        losses.append(loss.item())
        loss.backward()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    tables = rig.finish()
    assert [row.micro_steps for row in tables["steps"]] == [3, 3]
    assert [row.loss for row in tables["micro_steps"]] == losses
    assert tables["steps"][0].loss == sum(losses[:3]) / 3
    assert names(tables) == (["forward", "backward"] * 3 + ["optimizer"]) * 2
    assert not faults(tables)
    assert tables["end"][0].reason == "clean"


@pytest.mark.parametrize(
    "backward",
    [
        lambda loss: loss.backward(),
        lambda loss: torch.autograd.backward(loss),  # noqa: PLW0108 (looked up when called: it is patched then)
        lambda loss: torch.autograd.backward([loss]),
        lambda loss: torch.autograd.backward(tensors=(loss,)),
        lambda loss: loss.reshape(1, 1).backward(),
        lambda loss: loss.backward(gradient=torch.tensor(2.0)),
    ],
)
def test_every_way_to_call_backward_is_one_micro_step_with_its_loss(arm, backward):
    rig = arm()
    weight = torch.tensor(3.0, requires_grad=True)
    backward(weight * 2)
    (row,) = rig.finish()["micro_steps"]
    assert row.loss == 6.0


def test_a_tensor_that_is_no_loss_has_none(arm):
    rig = arm()
    weight = torch.ones(3, requires_grad=True)
    (weight * 2).backward(torch.ones(3))
    torch.autograd.backward([weight.sum(), (weight * 2).sum()])
    assert weight.grad.tolist() == [5, 5, 5]
    tables = rig.finish()
    assert [row.loss for row in tables["micro_steps"]] == [None, None]
    assert not faults(tables)


def test_retained_graph_backward_twice_is_two_micro_steps(arm):
    rig = arm()
    loss = torch.ones(3, requires_grad=True).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert len(rig.finish()["micro_steps"]) == 2


def test_a_failed_backward_is_no_micro_step_and_closes_its_phase(arm):
    rig = arm()
    weight = torch.ones(3, requires_grad=True)
    loss = weight.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="grad"):
        torch.ones(1).backward()
    weight.sum().backward()
    assert rig.recorder.phase() == "other"
    tables = rig.finish()
    assert len(tables["micro_steps"]) == 2
    assert [span.depth for span in tables["spans"]] == [0, 0, 0]
    assert not faults(tables)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_inside_the_backward_phase(arm, reentrant):
    rig = arm()
    inner = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    Model()(torch.ones(2, 3, requires_grad=True)).sum().backward()
    tables = rig.finish()
    assert names(tables) == ["forward", "backward"]
    assert len(tables["micro_steps"]) == 1


def test_closure_optimizers(arm):
    rig = arm()
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    tables = rig.finish()
    (step,) = tables["steps"]
    assert step.micro_steps == len(tables["micro_steps"]) == names(tables).count("forward") >= 2
    assert tables["spans"][-1].name == "optimizer"
    assert {span.depth for span in tables["spans"][:-1]} == {1}


def test_two_optimizers_in_turn_make_one_step_per_round(arm):
    rig = arm()
    first, second = model_and_optimizer(), model_and_optimizer()
    for _ in range(4):
        for model, optimizer in (first, second):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    assert [row.micro_steps for row in rig.finish()["steps"]] == [1, 3, 2, 2]


def test_the_next_optimizer_takes_over_from_one_that_is_gone_or_idle(arm):
    rig = arm()
    _, gone = model_and_optimizer()
    gone.step()
    del gone
    gc.collect()
    _, idle = model_and_optimizer()
    idle.step()
    _, later = model_and_optimizer()
    for _ in range(TAKE_OVER_STEPS + 2):
        later.step()
    assert rig.recorder.step == 2 + 3
    idle.step()
    assert rig.recorder.step == 5


def test_an_optimizer_inside_another_is_part_of_it(arm):
    rig = arm()
    _, inner = model_and_optimizer()

    class Outer(torch.optim.SGD):
        def step(self, closure=None):
            inner.step()
            inner.step()

    outer = Outer(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    outer.step()
    outer.step()
    tables = rig.finish()
    assert len(tables["steps"]) == 2
    assert names(tables) == ["optimizer"] * 2


def test_an_update_that_raised_is_forgotten(arm):
    rig = arm()
    broken = [True]

    class Sometimes(torch.optim.SGD):
        def step(self, closure=None):
            if broken:
                raise OverflowError
            return super().step(closure)

    model, _ = model_and_optimizer()
    optimizer = Sometimes(model.parameters(), lr=0.1)
    with pytest.raises(OverflowError):
        optimizer.step()
    broken.clear()
    optimizer.step()
    tables = rig.finish()
    assert [(span.name, span.depth) for span in tables["spans"]] == [("optimizer", 0)]
    assert len(tables["steps"]) == 1


def test_updates_inside_backward_end_the_step_with_it(arm):
    rig = arm()
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: optimizers[parameter].step())
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
    tables = rig.finish()
    assert [row.micro_steps for row in tables["steps"]] == [1, 1, 1]
    assert [row.step for row in tables["micro_steps"]] == [0, 1, 2]


def test_gradient_scaler_records_the_unscaled_loss_and_skipped_updates(arm):
    rig = arm()
    model, optimizer = model_and_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for factor in (1.0, float("inf"), 1.0):
        loss = (model(torch.ones(2, 3)) * factor).sum()
        losses.append(loss.item())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    tables = rig.finish()
    assert [row.loss for row in tables["micro_steps"]] == losses
    assert [row.micro_steps for row in tables["steps"]] == [1, 1, 1]
    assert not faults(tables)


def test_compiled_optimizer_step_is_seen(arm):
    rig = arm()
    model, optimizer = model_and_optimizer()
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()
        compiled()
    assert len(rig.finish()["steps"]) == 3
    torch._dynamo.reset()


def test_nothing_keeps_the_loss_or_the_graph_alive(arm):
    rig = arm()
    model, optimizer = model_and_optimizer()
    scaler = torch.amp.GradScaler("cpu")
    references = []
    for _ in range(2):
        loss = model(torch.ones(2, 3)).sum()
        scaled = scaler.scale(loss)
        references += [weakref.ref(loss), weakref.ref(scaled)]
        scaled.backward()
        optimizer.step()
    del loss, scaled
    assert [reference() for reference in references] == [None] * 4
    rig.finish()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_losses_of_every_floating_type(dtype):
    value = torch.tensor([[1.5]], dtype=dtype, requires_grad=True)
    assert read_loss(torch, value).value == 1.5


@pytest.mark.parametrize(
    "loss",
    [
        torch.ones((), dtype=torch.complex64),
        torch.ones((), device="meta"),
        torch.ones(1).to_sparse(),
        torch.nested.nested_tensor([torch.ones(1)]),
        object(),
        None,
    ],
)
def test_losses_without_a_plain_value_are_none_and_no_fault(rig, loss):
    found = TrainingLoop(rig.recorder, torch)._loss_of((loss,), {})
    assert found is None or found.value == 1.0
    assert "faults" not in rig.finish()


def test_a_dtensor_is_read_only_where_no_communication_is_needed():
    class DTensor:
        def __init__(self, replicated):
            self.placements = [SimpleNamespace(is_replicate=lambda: replicated)]

        def detach(self):
            return self

        def to_local(self):
            return torch.tensor(2.0)

    assert read_loss(torch, DTensor(replicated=True)).value == 2.0
    assert read_loss(torch, DTensor(replicated=False)) is None


class FakeCuda:
    """As much of torch as reading a loss from a device takes; nothing in it waits."""

    float32 = torch.float32

    def __init__(self):
        self.happened = False
        self.capturing = False
        self.host = SimpleNamespace(copy_=self._copy)
        self.cuda = SimpleNamespace(
            is_current_stream_capturing=lambda: self.capturing,
            Event=lambda: SimpleNamespace(record=lambda: None, query=lambda: self.happened),
        )

    def _copy(self, source, non_blocking):
        assert non_blocking
        self.host.value = source

    def empty(self, _shape, dtype, pin_memory):
        assert pin_memory
        return FakeHost(self.host)

    def loss(self, type_="cuda"):
        loss = SimpleNamespace(device=SimpleNamespace(type=type_), is_complex=lambda: False, reshape=lambda _shape: 7.0)
        loss.detach = lambda: loss
        return loss


class FakeHost:
    def __init__(self, host):
        self.copy_ = host.copy_
        self._host = host

    def __float__(self):
        return self._host.value


def test_a_device_loss_is_asked_for_and_never_waited_for():
    fake = FakeCuda()
    loss = read_loss(fake, fake.loss())
    assert not loss.resolved()
    fake.happened = True
    assert loss.resolved()
    assert loss.value == 7.0


def test_no_loss_while_a_graph_is_captured_nor_from_other_devices():
    fake = FakeCuda()
    fake.capturing = True
    assert read_loss(fake, fake.loss()) is None
    assert read_loss(fake, fake.loss("xpu")) is None
