from types import SimpleNamespace

import torch

from agprof.instruments import optimizer_state


def test_the_state_after_the_first_steps_is_a_fact(rig):
    optimizer_state.arm(rig.recorder)
    weight = torch.nn.Parameter(torch.ones(10, 3))
    optimizer = torch.optim.AdamW([weight])
    for _ in range(5):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        rig.recorder.end_step()
    facts = [(row.key, row.value) for row in rig.finish()["facts"] if row.key == optimizer_state.FACT]
    # two moments in float32, and the step's number
    assert facts == [(optimizer_state.FACT, str(2 * 30 * 4 + 4))]


def test_parameters_that_come_later_are_counted(rig):
    optimizer_state.arm(rig.recorder)
    first, second = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.SGD([first, second], lr=0.1, momentum=0.9)
    first.grad = torch.ones(10)
    optimizer.step()
    rig.recorder.end_step()
    second.grad = torch.ones(5)
    optimizer.step()
    rig.recorder.end_step()
    facts = [row.value for row in rig.finish()["facts"] if row.key == optimizer_state.FACT]
    assert facts == ["40", "60"]


def test_an_optimizer_without_state_says_nothing(rig):
    optimizer_state.arm(rig.recorder)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    torch.optim.SGD([weight], lr=0.1).step()
    rig.recorder.end_step()
    assert "facts" not in rig.finish()


def test_state_that_is_no_tensor_is_left_alone():
    odd = SimpleNamespace(state={1: {"a": 3, "b": None, "c": torch.ones(2)}, 2: "text"})
    assert optimizer_state.state_bytes(odd) == 8
