"""The wrappers in one process: what they leave alone."""

import contextlib
import gc
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collected_rows import collecting_recorder, finish

torch = pytest.importorskip("torch")
dist = torch.distributed

from agprof.instruments.comm import CommunicationInstrument  # noqa: E402
from agprof.instruments.comm_groups import label  # noqa: E402
from agprof.instruments.comm_ops import OPERATIONS  # noqa: E402

OWNERS = (dist, dist.distributed_c10d, dist.Work, torch.nn.parallel.distributed.DistributedDataParallel)


class Armed:
    def __init__(self) -> None:
        self.recorder, self.collected = collecting_recorder()
        self.instrument = CommunicationInstrument(self.recorder, torch)
        self.instrument.arm(dist)
        self.instrument.arm_ddp(torch.nn.parallel.distributed)

    def rows(self) -> list[dict[str, Any]]:
        return self.collected.table("collectives")


@contextlib.contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """A gloo group of one rank. What torch itself leaves behind is put back."""
    code = vars(dist.distributed_c10d)
    hook, state = sys.excepthook, {name: code[name] for name in ("_default_pg_init_method", "_backend")}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook
        code.update(state)


@pytest.fixture
def armed(tmp_path: Path) -> Iterator[Armed]:
    warnings.simplefilter("ignore")
    before = [dict(vars(owner)) for owner in OWNERS]
    armed = Armed()
    with process_group(tmp_path):
        yield armed
    finish(armed.recorder)
    assert armed.collected.table("faults") == []
    for owner, was in zip(OWNERS, before, strict=True):
        now = vars(owner)
        assert [key for key in was if callable(was[key]) and now.get(key) is not was[key]] == []


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_every_function_of_the_list_is_wrapped_in_both_namespaces(armed: Armed) -> None:
    for name in OPERATIONS:
        wrapper = getattr(dist.distributed_c10d, name)
        assert wrapper.__wrapped__ is not wrapper
        assert getattr(dist, name, wrapper) is wrapper


def test_no_collective_of_this_torch_is_forgotten() -> None:
    not_operations = {"init", "destroy", "new", "get", "is", "split", "shrink", "supports", "record", "register"}
    functions = {
        name
        for name in dist.distributed_c10d.__all__
        if type(getattr(dist.distributed_c10d, name)).__name__ == "function"
    }
    assert {name for name in functions - set(OPERATIONS) if name.split("_")[0] not in not_operations} == set()


def test_the_same_work_object_comes_back_and_nothing_keeps_it_alive(armed: Armed) -> None:
    tensor = torch.ones(4)
    work = dist.all_reduce(tensor, async_op=True)
    assert type(work) is dist.Work
    references = weakref.ref(work), weakref.ref(tensor)
    work.wait()
    del work, tensor
    gc.collect()
    until(lambda: references[0]() is None and references[1]() is None)
    until(armed.rows)
    assert armed.instrument._works._by_work == {}
    assert armed.instrument._works._open == {}


def test_a_work_nobody_waits_for_is_written_once_it_is_done(armed: Armed) -> None:
    dist.all_reduce(torch.ones(4), async_op=True)
    until(armed.rows)
    [row] = armed.rows()
    assert row["wait_ns"] == 0
    assert row["end_ns"] >= row["start_ns"]


def test_two_waits_on_one_work_are_one_row_and_two_waits(armed: Armed) -> None:
    work = dist.broadcast(torch.ones(4), 0, async_op=True)
    work.wait()
    work.wait()
    del work
    until(armed.rows)
    assert len(armed.rows()) == 1
    assert [row["op"] for row in armed.collected.table("waits")] == ["broadcast", "broadcast"]


def test_arguments_bind_as_torch_binds_them(armed: Armed) -> None:
    dist.all_gather_single(input_tensor=torch.ones(3), output_tensor=torch.empty(3))
    dist.reduce_scatter_tensor(torch.empty(3), torch.ones(3), dist.ReduceOp.SUM, None, False)
    assert [row["bytes"] for row in armed.rows()] == [12, 12]


def test_an_exception_passes_through_and_leaves_no_row(armed: Armed) -> None:
    with pytest.raises(TypeError):
        dist.all_reduce("not a tensor")
    with pytest.raises(TypeError):
        dist.all_reduce()
    dist.all_reduce(torch.ones(1))
    assert len(armed.rows()) == 1


def test_a_broken_reader_is_a_fault_and_not_the_trainings_problem(tmp_path: Path) -> None:
    warnings.simplefilter("ignore")
    armed = Armed()
    tensor = torch.ones(2)
    with process_group(tmp_path):
        armed.instrument._groups.get = lambda group: 1 / 0
        for _ in range(5):
            dist.all_reduce(tensor)
    finish(armed.recorder)
    assert tensor.tolist() == [1, 1]
    assert [row["count"] for row in armed.collected.table("faults")] == [1, 2, 3]
    assert armed.instrument.off


def test_caller_is_the_phase_in_progress(armed: Armed) -> None:
    span = armed.recorder.open("phase", "backward")
    dist.barrier()
    armed.recorder.close(span)
    assert [row["caller"] for row in armed.rows()] == ["backward"]


def test_an_nvtx_range_is_around_every_call_and_every_wait(armed: Armed) -> None:
    calls: list[Any] = []

    class Ranges:
        def push(self, category: str, name: str) -> None:
            calls.append((category, name))

        def pop(self) -> None:
            calls.append("pop")

    armed.recorder.nvtx = Ranges()  # type: ignore[assignment]
    dist.all_gather_into_tensor(torch.empty(2), torch.ones(2))
    dist.all_reduce(torch.ones(2), async_op=True).wait()
    armed.recorder.nvtx = None
    names = ["all_gather", "all_reduce", "wait all_reduce"]
    assert calls == [item for name in names for item in (("communication", name), "pop")]


def test_a_forked_child_records_nothing(armed: Armed) -> None:
    armed.recorder.enabled = False  # what the bootstrap does in the child
    dist.all_reduce(torch.ones(1))
    dist.all_reduce(torch.ones(1), async_op=True).wait()
    armed.recorder.enabled = True
    assert armed.rows() == []


def test_the_dispatchers_tap_comes_with_ddp_and_counts_nothing_twice(armed: Armed) -> None:
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    before = len(armed.rows())
    dist.all_reduce(torch.ones(1))
    assert [row["tap"] for row in armed.rows()[before:]] == ["wrapper"]
    dist.group.WORLD.allreduce([torch.ones(5)], dist.AllreduceOptions()).wait()
    until(lambda: len(armed.rows()) == before + 2)
    assert [(row["tap"], row["bytes"]) for row in armed.rows()[before + 1 :]] == [("dispatcher", 20)]


def test_a_compiled_function_meets_torchs_own_collective(armed: Armed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced = Armed()  # its wrappers hold the patched question
    dist.all_reduce(torch.ones(1))
    finish(traced.recorder)
    assert traced.rows() == []


@pytest.mark.parametrize(
    ("name", "description", "expected"),
    [("0", "default_pg", "default"), ("3", "undefined", "3"), ("3", "mesh_dp", "mesh_dp 3")],
)
def test_groups_have_readable_names(name: str, description: str, expected: str) -> None:
    assert label(name, description) == expected


def test_a_call_costs_a_few_microseconds(armed: Armed) -> None:
    """The bound is loose, for loaded machines; docs/communication.md has the measured value."""
    wrapped = armed.instrument._wrap(OPERATIONS["all_reduce"], lambda tensor: None)
    tensor = torch.ones(4)
    best = min(_seconds(wrapped, tensor, 500) for _ in range(20))
    assert best / 500 < 10e-6


def _seconds(function: Any, tensor: Any, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        function(tensor)
    return time.perf_counter() - start
