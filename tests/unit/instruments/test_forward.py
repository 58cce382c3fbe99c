import copy
import io
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from rank_streams import faults
from torch.nn.modules import module as module_code

from agprof.instruments.forward import MAX_ROOTS


class Net(torch.nn.Module):
    """Two layers; does what it is told to in its forward."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 1)
        self.inside = None

    def forward(self, x):
        if self.inside is not None:
            self.inside()
        return self.second(self.first(x))


X = torch.ones(2, 3)


def forwards(tables):
    return [span for span in tables.get("spans", []) if span.name == "forward"]


def test_one_phase_per_outermost_call(arm):
    rig = arm()
    net = Net()
    for _ in range(3):
        net(X)
    net(x=X)
    assert [span.depth for span in forwards(rig.finish())] == [0] * 4


def test_inner_modules_never_meet_a_hook(arm):
    rig = arm()
    net = Net()
    seen = []
    net.inside = lambda: seen.append(len(module_code._global_forward_pre_hooks))
    net(X)
    net(X)
    assert seen == [0, 0]
    assert len(module_code._global_forward_pre_hooks) == 1
    rig.finish()


def test_between_calls_modules_carry_nothing(arm):
    rig = arm()
    net = Net()
    before = net.state_dict()
    net(X)
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._forward_hooks_always_called
    assert net.state_dict().keys() == before.keys()
    copied = copy.deepcopy(net)
    torch.save(net, io.BytesIO())
    pickle.loads(pickle.dumps(net))(X)
    copied(X)
    assert len(forwards(rig.finish())) == 3


def test_copies_made_during_the_call_stay_harmless(arm):
    rig = arm()
    net = Net()
    copies = []

    def copy_both_ways():
        net.inside = None
        copies.append(copy.deepcopy(net))
        copies.append(pickle.loads(pickle.dumps(net)))

    net.inside = copy_both_ways
    net(X)
    for one in copies:
        assert torch.equal(one(X), net(X))
    tables = rig.finish()
    assert len(forwards(tables)) == 1 + 4
    assert not faults(tables)
    assert torch.equal(copies[1](X), net(X))


@pytest.mark.parametrize("in_except", [True, False])
def test_a_failed_forward_closes_its_phase_and_raises_what_it_raised(arm, in_except):
    rig = arm()
    net = Net()
    net.register_forward_hook(lambda *_: None, always_call=True)  # somebody else's, after which torch goes on

    def fail():
        raise KeyError("mine")

    for _ in range(2):
        net.inside = fail
        with pytest.raises(KeyError, match="mine"), warnings.catch_warnings():
            warnings.simplefilter("error")
            net(X)
        net.inside = None
        if in_except:
            try:
                raise ValueError
            except ValueError:
                net(X)
        net(X)
    assert len(net._forward_hooks) == 1
    tables = rig.finish()
    assert len(forwards(tables)) == (6 if in_except else 4)
    assert {span.depth for span in forwards(tables)} == {0}
    assert not faults(tables)


def test_after_a_keyboard_interrupt_phases_come_back(arm):
    rig = arm()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def interrupt():
        raise KeyboardInterrupt

    net.inside = interrupt
    with pytest.raises(KeyboardInterrupt):
        net(X)
    net.inside = None
    for _ in range(5):
        net(X).sum().backward()
        optimizer.step()
    assert not net._forward_hooks
    assert len(forwards(rig.finish())) >= 3


def test_calls_on_several_threads(arm):
    rig = arm()
    nets = [Net() for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(net):
        barrier.wait()
        return [net(X).sum().item() for _ in range(200)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, nets))
    assert [result[0] for result in results] == [net(X).sum().item() for net in nets]
    assert all(not module._forward_hooks for net in nets for module in net.modules())
    tables = rig.finish()
    assert forwards(tables)
    assert not faults(tables)


def test_replicas_inside_a_call_are_no_roots(arm):
    rig = arm()
    net, replica = Net(), Net()
    net.inside = lambda: (thread := threading.Thread(target=replica, args=(X,))).start() or thread.join()
    net(X)
    assert len(forwards(rig.finish())) == 1


def test_models_that_come_and_go_are_announced_each_and_kept_by_nobody(arm):
    rig = arm()
    for _ in range(MAX_ROOTS + 20):
        torch.nn.Linear(3, 1)(X)
    tables = rig.finish()
    assert len(forwards(tables)) == MAX_ROOTS + 20
    described = {row.key for row in tables["facts"] if row.key.endswith(".params")}
    assert "model.params" in described
    assert len(described) == 8


def test_an_address_that_is_used_again_is_another_root(rig):
    from agprof.instruments.forward import ForwardPhases

    announced = []
    forward = ForwardPhases(rig.recorder, torch, lambda module: announced.append(type(module).__name__))
    first = torch.nn.ReLU()
    forward._announce(first)
    forward._announce(first)
    second = torch.nn.GELU()
    forward._roots[id(second)] = forward._roots[id(first)]
    forward._announce(second)
    assert announced == ["ReLU", "GELU"]


def test_torchscript_runs_and_is_not_timed(arm):
    rig = arm()
    net = torch.nn.Sequential(torch.nn.Linear(3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, X)
        scripted = torch.jit.script(net)
    for _ in range(4):
        assert torch.equal(traced(X), net(X))
        assert torch.equal(scripted(X), net(X))
    assert not faults(rig.finish())


def test_evaluation_between_steps(arm):
    rig = arm()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        net(X).sum().backward()
        optimizer.step()
        with torch.no_grad():
            net(X)
    tables = rig.finish()
    assert [row.micro_steps for row in tables["steps"]] == [1, 1]
    assert [span.step for span in forwards(tables)] == [0, 1, 1, 2]


@pytest.mark.parametrize("way", ["wrapped", "in place", "function", "outer"])
def test_compiled_modules_have_no_break_no_warning_and_a_phase(arm, way):
    def build():
        torch._dynamo.reset()
        torch.manual_seed(3)
        net = Net()
        if way == "in place":
            net.compile(backend="eager", fullgraph=True)
            return net
        if way == "outer":
            net.compile(backend="eager")
        if way in ("function", "outer"):
            return torch.compile(lambda x: net(x) + 0, backend="eager", fullgraph=True)
        return torch.compile(net, backend="eager", fullgraph=True)

    expected = build()(X)
    rig = arm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = build()
        for _ in range(3):
            assert torch.equal(compiled(X), expected)
    tables = rig.finish()
    assert torch.equal(compiled(X), expected)
    assert len(forwards(tables)) == (0 if way in ("function", "outer") else 3)
    assert not faults(tables)
    torch._dynamo.reset()


def test_switched_off_it_takes_its_hook_away(arm):
    rig = arm()
    for _ in range(3):
        rig.recorder.fault("forward", "test", ValueError())
    Net()(X)
    assert not module_code._global_forward_pre_hooks
    assert not forwards(rig.finish())
