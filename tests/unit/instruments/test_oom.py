"""Out of memory in a rank: noticed, written down, and passed on as it is."""

import gc
import json
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agprof.instruments import oom
from agprof.instruments.oom import OomWatch, innermost_module
from agprof.instruments.oom_errors import read_error, wanted_bytes

GIB = 2**30
CUDA_213 = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.12 GiB is "
    "free. Including non-PyTorch memory, this process has 78.02 GiB memory in use. Of the allocated memory 75.10 GiB "
    "is allocated by PyTorch, and 1.50 GiB is reserved by PyTorch but unallocated."
)
CUDA_OLD = (
    "CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; 7.93 GiB total capacity; 130.35 MiB already allocated; "
    "47.06 MiB free; 188.00 MiB reserved in total by PyTorch)"
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "40000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "space", "wanted"),
    [
        (torch.OutOfMemoryError(CUDA_213), "device", int(2.5 * GIB)),
        (torch.OutOfMemoryError(CUDA_OLD), "device", 36 * 2**20),
        (RuntimeError(CUDA_OLD), "device", 36 * 2**20),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "device", None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device", None),
        (RuntimeError(CPU), "host", 40_000_000_000),
        (MemoryError(), "host", None),
    ],
)
def test_errors_that_mean_it(error: BaseException, space: str, wanted: int | None) -> None:
    told = read_error(error, torch)
    assert told is not None
    assert (told.space, told.wanted_bytes) == (space, wanted)
    assert told.type == type(error).__name__


def test_the_errors_of_this_torch_and_this_numpy() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty((2**24, 2**24))
    for caught, wanted in ((of_torch, 2**62), (of_numpy, 2**51)):
        told = read_error(caught.value, torch)
        assert told is not None
        assert (told.space, told.wanted_bytes) == ("host", wanted)


class NastyError(RuntimeError):
    def __str__(self) -> str:
        raise AssertionError("an exception's own code was run")


@pytest.mark.parametrize(
    "error",
    [ValueError(CPU), RuntimeError("shape mismatch"), RuntimeError(5), NastyError(), KeyboardInterrupt(), OSError(12)],
)
def test_errors_that_do_not(error: BaseException) -> None:
    assert read_error(error, torch) is None


def test_a_huge_text_is_cut_and_a_huge_number_is_no_matter() -> None:
    told = read_error(RuntimeError(CPU + "x" * 10**6), torch)
    assert told is not None
    assert len(told.text) == 2000
    assert wanted_bytes("tried to allocate " + "9" * 400 + " bytes") is None


# -- noticing ----------------------------------------------------------------------------------------------------------


class Fails(nn.Module):
    """Fails as the allocator would, in its `inner` part, as long as `times` says."""

    def __init__(self, error: Callable[[], Exception], times: int = 10**9) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = nn.ModuleList([_Inner(error, times)])

    def forward(self, x: Any) -> Any:
        return self.inner[0](self.first(x))


class _Inner(nn.Module):
    def __init__(self, error: Callable[[], Exception], times: int) -> None:
        super().__init__()
        self.error, self.times = error, times

    def forward(self, x: Any) -> Any:
        if self.times > 0:
            self.times -= 1
            raise self.error()
        return x


def cpu_error() -> Exception:
    return RuntimeError(CPU)


def facts(tables: Any) -> list[dict[str, Any]]:
    return [json.loads(row.value) for row in tables.get("facts", []) if row.key == "oom"]


@pytest.fixture
def watched(arm: Callable[..., Any]) -> Any:
    return arm("default")


def test_an_uncaught_error_is_passed_on_and_written_down(watched: Any) -> None:
    model = Fails(cpu_error)
    try:
        model(torch.randn(2, 4))
    except RuntimeError as error:
        trace = error.__traceback__
        depth = len(list(frames(trace)))
        attributes = dict(vars(error))
        watched.recorder.failing(error, uncaught=True)
        assert error.__traceback__ is trace
        assert len(list(frames(trace))) == depth
        assert vars(error) == attributes
        assert str(error) == CPU
    told = facts(watched.finish())
    assert [row["uncaught"] for row in told] == [False, True]
    assert [row["count"] for row in told] == [1, 1]
    last = told[-1]
    assert last["space"] == "host"
    assert last["wanted_bytes"] == 40_000_000_000
    assert (last["step"], last["micro_step"], last["phase"], last["module"]) == (0, 0, "forward", "inner.0")
    assert last["rss_bytes"] > 2**20
    assert last["limit_bytes"] > 2**28


def frames(trace: Any) -> Any:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def test_the_account_of_the_moment_is_written(watched: Any) -> None:
    model = Fails(cpu_error)
    big = torch.zeros(1 << 20)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 4))
    tables = watched.finish()
    parts = [row for row in tables["memory_parts"] if row.at == "oom"]
    assert {row.part for row in parts} >= {"total", "parameters"}
    trainable = sum(row.bytes for row in parts if row.part == "parameters")
    assert trainable >= sum(p.numel() * 4 for p in model.parameters())
    largest = max((row for row in tables["allocations"] if row.at == "oom"), key=lambda row: row.bytes)
    assert largest.bytes >= big.numel() * 4


def test_a_loop_that_tries_again_is_counted(watched: Any) -> None:
    """The errors are equal, and each may have the number in memory of the one before."""
    model = Fails(cpu_error, times=5)
    for _ in range(6):
        try:
            model(torch.randn(2, 4)).sum().backward()
        except RuntimeError:
            continue
    tables = watched.finish()
    told = facts(tables)
    assert [row["count"] for row in told] == [1, 2, 3, 4, 5]
    assert not any(row["uncaught"] for row in told)
    assert len([row for row in tables["memory_parts"] if row.at == "oom" and row.part == "total"]) == 1, "of one step"


def test_accounts_of_several_steps_are_few(rig: Any) -> None:
    asked = []

    def account() -> Any:
        asked.append(rig.recorder.step)
        return [], []

    OomWatch(rig.recorder, torch, account).arm()
    for _ in range(6):
        for _ in range(2):
            rig.recorder.failing(MemoryError())
        rig.recorder.end_step()
    assert asked == list(range(oom.MAX_ACCOUNTS))


def test_a_call_inside_the_handler_is_not_a_failure(watched: Any) -> None:
    """`except OutOfMemoryError: model(half)`: the exception that is handled is none of that call's."""
    model = Fails(cpu_error, times=1)
    try:
        model(torch.randn(2, 4))
    except RuntimeError:
        model(torch.randn(1, 4)).sum().backward()
    assert [row["count"] for row in facts(watched.finish())] == [1]


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(_context: Any, _gradient: Any) -> Any:
        raise torch.OutOfMemoryError(CUDA_213)


def test_one_in_backward(watched: Any) -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        _FailsBackward.apply(model(torch.randn(2, 4))).sum().backward()  # type: ignore[no-untyped-call]
    assert str(caught.value) == CUDA_213
    (told,) = facts(watched.finish())
    assert (told["space"], told["phase"], told["wanted_bytes"]) == ("device", "backward", int(2.5 * GIB))


def test_it_is_noticed_at_the_light_level_too(arm: Callable[..., Any]) -> None:
    rig = arm("light")
    with pytest.raises(RuntimeError):
        Fails(cpu_error)(torch.randn(2, 4))
    assert [row["count"] for row in facts(rig.finish())] == [1]


def test_other_errors_write_nothing(watched: Any) -> None:
    model = Fails(lambda: RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        model(torch.randn(2, 4))
    assert facts(watched.finish()) == []


def test_a_failing_account_is_a_fault_and_the_error_stays(rig: Any) -> None:
    def account() -> Any:
        raise MemoryError

    watch = OomWatch(rig.recorder, torch, account)
    watch.arm()
    error = RuntimeError(CPU)
    rig.recorder.failing(error, uncaught=True)
    tables = rig.finish()
    assert facts(tables)[0]["uncaught"]
    assert [row.instrument for row in tables["faults"]] == ["oom"]


def test_the_reserve_is_given_back_and_is_address_space_only(rig: Any) -> None:
    watch = OomWatch(rig.recorder, torch, lambda: ([], []))
    watch.arm()
    assert watch._reserve is not None
    rig.recorder.failing(MemoryError(), uncaught=True)
    assert watch._reserve is None
    rig.recorder.failing(MemoryError())
    assert watch._reserve is not None, "kept back again for a loop that goes on"
    rig.finish()
    assert watch._reserve is None


# -- nothing is kept alive ---------------------------------------------------------------------------------------------


def test_no_tensor_is_kept_alive_for_a_loop_that_tries_again(watched: Any) -> None:
    gone = []

    def attempt(model: nn.Module) -> None:
        batch = torch.randn(1000, 4)
        gone.append(weakref.ref(batch))
        model(batch)

    model = Fails(cpu_error, times=3)
    for _ in range(3):
        try:
            attempt(model)
        except RuntimeError:
            pass
        assert gone[-1]() is None
    gc.collect()
    watched.finish()


def test_running_frames_are_not_asked_for_their_variables() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fails(cpu_error)

        def forward(self, x: Any) -> Any:
            try:
                return self.inner(x)
            except RuntimeError as error:
                # this frame still runs: only what is below it may be named
                return innermost_module(error, nn.Module)

    outer = Outer()
    assert outer(torch.randn(2, 4)) is outer.inner.inner[0]


def test_the_device_is_asked_only_after_the_training_started_it(rig: Any) -> None:
    asked: list[str] = []
    fake = SimpleNamespace(
        OutOfMemoryError=torch.OutOfMemoryError,
        nn=torch.nn,
        cuda=SimpleNamespace(is_initialized=lambda: bool(asked), OutOfMemoryError=torch.OutOfMemoryError),
    )
    watch = OomWatch(rig.recorder, fake, lambda: ([], []))
    watch.noticed(torch.OutOfMemoryError(CUDA_213), True, -1)
    (told,) = facts(rig.finish())
    assert "limit_bytes" not in told
    assert "allocated_bytes" not in told


def test_numbers_of_the_device(rig: Any) -> None:
    counts = {"allocated_bytes": {"all": {"current": 75}}, "reserved_bytes": {"all": {"current": 78}}}
    fake = SimpleNamespace(
        OutOfMemoryError=torch.OutOfMemoryError,
        nn=torch.nn,
        cuda=SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 0, mem_get_info=lambda: (1, 80)),
        _C=SimpleNamespace(_cuda_memoryStats=lambda _device: counts),
    )
    watch = OomWatch(rig.recorder, fake, lambda: ([], []))
    watch.noticed(torch.OutOfMemoryError(CUDA_213), True, -1)
    (told,) = facts(rig.finish())
    assert {key: told[key] for key in ("limit_bytes", "limit", "free_bytes", "allocated_bytes", "reserved_bytes")} == {
        "limit_bytes": 80, "limit": "device", "free_bytes": 1, "allocated_bytes": 75, "reserved_bytes": 78,
    }  # fmt: skip
