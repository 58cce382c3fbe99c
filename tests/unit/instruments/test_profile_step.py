"""When the profile step looks at operations, and that it leaves nothing behind however the step goes."""

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from agprof.instruments.op_watch import OpWatch
from agprof.instruments.profile_step import ProfileStep, StepPart
from collected_rows import CollectedRows, collecting_recorder, finish


class Part(StepPart):
    """Writes down what it was told."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.operations: list[str] = []
        self.watch: OpWatch | None = None

    def begin(self, step: int, watch: OpWatch) -> None:
        self.log.append(("begin", step))
        self.watch = watch
        watch.listeners.append(lambda operation: self.operations.append(str(operation.function)))

    def root(self, module: Any, number: int) -> None:
        self.log.append(("root", type(module).__name__, number))

    def end(self, step: int) -> None:
        assert not _get_current_dispatch_mode_stack()
        self.log.append(("end", step))

    def abandon(self) -> None:
        self.log.append("abandoned")


class Job:
    """A loop over modules, each of which is a root at its first call, as the forward instrument announces them."""

    def __init__(self, profile_step: int | None, *parts: StepPart) -> None:
        self.recorder, self.collected = collecting_recorder(profile_step=profile_step)
        self.profile = ProfileStep(self.recorder, torch)
        for number, part in enumerate(parts):
            self.profile.add(f"part {number}", part)
        self.profile.arm()
        self._seen: set[int] = set()
        self._handles: list[Any] = []

    def call(self, module: Any, inputs: Any) -> Any:
        if id(module) not in self._seen:
            self._seen.add(id(module))
            handle = module.register_forward_pre_hook(lambda module, _inputs: self._announce(module))
            self._handles.append(handle)
        return module(inputs)

    def _announce(self, module: Any) -> None:
        self._handles.pop().remove()
        self.profile.on_root(module)

    def step(self, *modules: Any) -> list[bool]:
        profiled = self.recorder.profiled
        for module in modules:
            self.call(module, torch.ones(2, 4)).sum().backward()
            self.recorder.end_micro_step()
        self.recorder.end_step()
        return [profiled]

    def finish(self) -> CollectedRows:
        finish(self.recorder)
        return self.collected


@pytest.fixture
def model() -> Iterator[Any]:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    yield module
    for inner in module.modules():
        assert not inner._forward_hooks
        assert not inner._forward_pre_hooks


def test_one_step_is_looked_at_from_its_begin_to_its_end(model: Any) -> None:
    part = Part()
    job = Job(1, part)
    job.step(model)
    assert (part.operations, part.log) == ([], [("begin", 1), ("root", "Sequential", 0)])
    job.step(model, model)
    seen = list(part.operations)
    job.step(model)
    assert part.operations == seen
    assert seen.count("aten.mm.default") == 2 * 2  # forward and the weight's gradient, of both micro-steps
    assert part.log == [("begin", 1), ("root", "Sequential", 0), ("end", 1)]
    job.finish()


def test_step_0_begins_with_the_first_call_of_a_root(model: Any) -> None:
    part = Part()
    job = Job(0, part)
    assert job.step(model) == [True]
    assert part.log == [("begin", 0), ("root", "Sequential", 0), ("end", 0)]
    assert part.operations.count("aten.mm.default") == 2
    job.finish()


def test_roots_keep_their_numbers_and_later_ones_are_told_too(model: Any) -> None:
    part = Part()
    job = Job(1, part)
    other, third = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
    job.step(model, other)
    job.step(third)
    assert part.log == [("begin", 1), ("root", "Sequential", 0), ("root", "Linear", 1), ("root", "LayerNorm", 2),
                        ("end", 1)]  # fmt: skip
    job.finish()


def test_an_engine_and_what_it_wraps_are_one_root(model: Any) -> None:
    class DistributedDataParallel(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

        def forward(self, inputs: Any) -> Any:
            return self.module(inputs)

    part = Part()
    job = Job(1, part)
    job.step(DistributedDataParallel(model), model)
    job.step(model)
    assert part.log == [("begin", 1), ("root", "Sequential", 0), ("end", 1)]
    job.finish()


def test_faults_of_a_part_touch_neither_the_other_nor_the_training(model: Any) -> None:
    class Broken(Part):
        def begin(self, step: int, watch: OpWatch) -> None:
            super().begin(step, watch)
            watch.listeners.append(self.fail)
            raise ValueError("begin")

        def fail(self, _operation: Any) -> None:
            raise ValueError("listener")

        def root(self, module: Any, number: int) -> None:
            raise ValueError("root")

        def end(self, step: int) -> None:
            raise ValueError("end")

    broken, sound = Broken(), Part()
    job = Job(1, broken, sound)
    job.step(model)
    job.step(model)
    assert sound.log == [("begin", 1), ("root", "Sequential", 0), ("end", 1)]
    assert "aten.mm.default" in sound.operations
    faults = {(row["instrument"], row["error"]) for row in job.finish().table("faults")}
    assert {("part 0", "ValueError: begin"), ("part 0", "ValueError: root"), ("part 0", "ValueError: end")} <= faults
    assert {instrument for instrument, _error in faults} == {"part 0", "profile step"}


@pytest.mark.parametrize("profile_step", [None, 7])
def test_a_step_that_never_comes_costs_nothing(model: Any, profile_step: int | None) -> None:
    part = Part()
    job = Job(profile_step, part)
    assert [*job.step(model), *job.step(model)] == [False, False]
    job.finish()
    assert part.log == []


def test_a_job_that_ends_in_the_step(model: Any) -> None:
    part = Part()
    job = Job(1, part)
    job.step(model)
    model(torch.ones(2, 4))
    assert _get_current_dispatch_mode_stack()
    job.finish()
    assert not _get_current_dispatch_mode_stack()
    assert part.log[-1] == "abandoned"


def test_a_step_that_raises_ends_later(model: Any) -> None:
    class Failing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: Any) -> Any:
            raise RuntimeError("the model's own error")

    part, failing = Part(), Failing()
    job = Job(1, part)
    job.step(model)
    with pytest.raises(RuntimeError, match="the model's own error"):
        job.call(failing, torch.ones(2, 4))
    assert part.watch is not None
    assert list(part.watch.calls) == []
    job.step(model)
    assert part.log[-1] == ("end", 1)
    job.finish()
    assert not failing._forward_hooks


class Theirs(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_job_around_the_steps_border_is_respected(model: Any) -> None:
    part = Part()
    job = Job(1, part)
    with Theirs():
        job.step(model)
    job.step(model)
    assert "dispatch mode of its own" in job.finish().facts()["compute.profiler_absent"]
    assert part.log == []


def test_a_mode_of_the_job_above_ours_is_left_in_place(model: Any) -> None:
    part = Part()
    job = Job(1, part)
    job.step(model)
    theirs = Theirs()
    theirs.__enter__()
    job.recorder.end_step()
    assert _get_current_dispatch_mode_stack()[-1] is theirs
    seen = len(part.operations)
    theirs.__exit__(None, None, None)
    torch.ones(2) + 1
    assert len(part.operations) == seen  # ours is still there, and does nothing
    job.recorder.end_step()
    assert not _get_current_dispatch_mode_stack()
    job.finish()


def test_a_compiled_model_is_not_looked_at(model: Any) -> None:
    class OptimizedModule(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self._orig_mod = module

        def forward(self, inputs: Any) -> Any:
            return self._orig_mod(inputs)

    import_module("torch._dynamo")  # as everything that has compiled something
    for profile_step in (0, 1):
        part = Part()
        job = Job(profile_step, part)
        compiled = OptimizedModule(model)
        job.step(compiled)
        job.step(compiled)
        assert "compiled" in job.finish().facts()["compute.profiler_absent"]
        assert part.operations == []
        assert ("end", profile_step) not in part.log


def test_a_forked_child_carries_nothing(model: Any) -> None:
    part = Part()
    job = Job(1, part)
    job.step(model)
    child = os.fork()
    if child == 0:
        for forget in job.recorder.on_fork:
            forget()
        clean = not _get_current_dispatch_mode_stack() and not model._forward_hooks
        os._exit(0 if clean else 1)
    assert os.waitpid(child, 0)[1] == 0
    job.step(model)
    assert part.log[-1] == ("end", 1)
    job.finish()
