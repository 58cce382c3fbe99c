"""torch's memory history of the profile step, by snapshots of an allocator whose truth is known."""

import json
import os
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agprof.instruments import memory_history
from agprof.instruments.memory_account import MemoryAccount
from agprof.instruments.memory_history import MIN_BYTES, MemoryHistory, unexplained
from agprof.instruments.memory_tracker import Allocation
from agprof.model.allocator_history import LiveBlock
from allocator_simulator import Allocator, random_history

MIB = 2**20


class Cuda:
    """The part of torch.cuda that is used; whatever else is asked for is an error."""

    def __init__(self, *, initialized: bool = True, backend: str = "native", capturing: bool = False) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.allocator = Allocator()
        self.enabled = False
        self.initialized, self.capturing = initialized, capturing
        self.memory = SimpleNamespace(
            get_allocator_backend=lambda: backend,
            _record_memory_history=self._record,
            _snapshot=lambda: self.allocator.snapshot(),  # noqa: PLW0108 - tests put another allocator in
        )

    def _record(self, enabled: Any = "all", **options: Any) -> None:
        self.calls.append((enabled, options))
        self.enabled = enabled is not None

    def is_initialized(self) -> bool:
        return self.initialized

    def current_device(self) -> int:
        return self.allocator.device

    def is_current_stream_capturing(self) -> bool:
        return self.capturing


def fake_torch(cuda: Cuda) -> Any:
    return SimpleNamespace(cuda=cuda, _C=SimpleNamespace(_cuda_isHistoryEnabled=lambda: cuda.enabled))


def history(rig: Any, cuda: Cuda, explained: Counter[int] | None = None) -> MemoryHistory:
    return MemoryHistory(rig.recorder, fake_torch(cuda), lambda: explained or Counter())


def fact(tables: Any) -> dict[str, Any]:
    (row,) = [row for row in tables["facts"] if row.key == "memory.history"]
    return dict(json.loads(row.value))


def test_the_largest_blocks_at_the_peak_with_their_python_stacks(rig: Any) -> None:
    cuda = Cuda()
    allocator = cuda.allocator
    kept = allocator.allocate(8 * MIB, [])  # before the step: its stack was not recorded
    part = history(rig, cuda)
    part.begin(4, None)  # type: ignore[arg-type]
    frames = [
        {"filename": "/x/torch/nn/functional.py", "line": 3, "name": "linear"},
        {"filename": "/job/train.py", "line": 12, "name": "step"},
    ]
    big = allocator.allocate(40 * MIB, frames)
    allocator.free(big)
    allocator.allocate(30 * MIB, [])
    allocator.free(kept)
    part.end(4)
    tables = rig.finish()
    rows = tables["allocations"]
    assert [(row.step, row.at, row.space, row.part, row.bytes) for row in rows] == [
        (4, "peak", "device", "unexplained", 40 * MIB),
        (4, "peak", "device", "unexplained", 8 * MIB),
    ]
    assert rows[0].stack == "/job/train.py:12 step\n/x/torch/nn/functional.py:3 linear"
    assert rows[1].stack == ""
    told = fact(tables)
    assert told["complete"] is True
    assert told["peak_requested_bytes"] == 48 * MIB
    assert "faults" not in tables


@pytest.mark.parametrize("seed", range(8))
def test_any_history_gives_the_blocks_that_were_live_at_the_peak(rig: Any, seed: int) -> None:
    cuda = Cuda()
    cuda.allocator = random_history(seed)
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    part.end(0)
    tables = rig.finish()
    told = fact(tables)
    assert told["peak_requested_bytes"] == cuda.allocator.peak_bytes
    large = sorted((size for size in cuda.allocator.peak_live.values() if size >= MIN_BYTES), reverse=True)
    assert [row.bytes for row in tables.get("allocations", [])] == large[: memory_history.TOP_BLOCKS]
    pools = told["pools_at_end"]
    assert sum(pool["reserved_bytes"] for pool in pools) == cuda.allocator.reserved_bytes
    assert sum(pool["live_bytes"] for pool in pools) == cuda.allocator.requested_bytes
    for pool in pools:
        assert pool["reserved_bytes"] == sum(
            pool[key] for key in ("live_bytes", "rounding_bytes", "awaiting_bytes", "free_bytes", "cached_bytes")
        )


def test_what_a_tensor_explains_is_not_listed(rig: Any) -> None:
    cuda = Cuda()
    part = history(rig, cuda, Counter({5 * MIB: 2, 3 * MIB: 1}))
    part.begin(0, None)  # type: ignore[arg-type]
    for size in (5, 5, 5, 3, 7):
        cuda.allocator.allocate(size * MIB)
    cuda.allocator.allocate(100)
    part.end(0)
    assert [row.bytes for row in rig.finish()["allocations"]] == [7 * MIB, 5 * MIB]


def test_few_are_listed_and_none_twice() -> None:
    blocks = tuple(LiveBlock(n, (1000 - n) * MIB, (), None) for n in range(500))
    assert len(unexplained(blocks, Counter())) == memory_history.TOP_BLOCKS


# -- on and off --------------------------------------------------------------------------------------------------------


def test_it_records_with_python_stacks_and_a_bound_and_is_off_again(rig: Any) -> None:
    cuda = Cuda()
    part = history(rig, cuda)
    assert cuda.calls == []
    part.begin(0, None)  # type: ignore[arg-type]
    ((enabled, options),) = cuda.calls
    assert enabled == "all"
    assert options["stacks"] == "python"
    assert options["max_entries"] == memory_history.MAX_ENTRIES <= 10**6
    part.end(0)
    assert [call for call, _ in cuda.calls] == ["all", None]
    part.abandon()
    rig.finish()
    assert len(cuda.calls) == 2


def test_a_step_without_an_end_turns_it_off(rig: Any) -> None:
    cuda = Cuda()
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    tables = rig.finish()
    assert [call for call, _ in cuda.calls] == ["all", None]
    assert "allocations" not in tables


def test_the_device_is_not_what_starts_the_driver(rig: Any) -> None:
    cuda = Cuda(initialized=False)
    cuda.memory = None
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    part.end(0)
    assert set(rig.finish()) <= {"header", "end", "cost"}


@pytest.mark.parametrize(
    ("options", "recording", "words"),
    [
        ({}, True, "somebody else records"),
        ({"backend": "cudaMallocAsync"}, False, "not torch's own"),
        ({"capturing": True}, False, "graph"),
    ],
)
def test_where_it_does_not_record(rig: Any, options: dict[str, Any], recording: bool, words: str) -> None:
    cuda = Cuda(**options)
    cuda.enabled = recording
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    part.end(0)
    assert cuda.calls == []
    assert words in fact(rig.finish())["absent"]


def test_who_begins_to_record_in_the_step_keeps_the_recording(rig: Any) -> None:
    cuda = Cuda()
    original = cuda.memory._record_memory_history
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    cuda.memory._record_memory_history("all", max_entries=7)
    part.end(0)
    assert [call for call, _ in cuda.calls] == ["all", "all"]
    assert cuda.enabled
    rig.finish()
    assert cuda.memory._record_memory_history == original, "taken back with the other patches"


def test_a_forked_child_leaves_it_alone(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    part.abandon()
    monkeypatch.undo()
    assert [call for call, _ in cuda.calls] == ["all"]


def test_a_failing_snapshot_turns_it_off_all_the_same(rig: Any) -> None:
    cuda = Cuda()

    def fail() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda.memory._snapshot = fail
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        part.end(0)  # the profile step guards its parts
    assert cuda.calls[-1][0] is None


def test_a_ring_that_forgot_the_begin_says_so(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_history, "MAX_ENTRIES", 100)
    cuda = Cuda()
    cuda.allocator = random_history(5, ring=100)
    part = history(rig, cuda)
    part.begin(0, None)  # type: ignore[arg-type]
    part.end(0)
    assert fact(rig.finish())["complete"] is False


def test_the_account_says_which_sizes_it_explains(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the history's list is made with: the storages on the device that were alive at the account's peak."""
    account = MemoryAccount(rig.recorder, torch)
    watch = SimpleNamespace(listeners=[], on_call=[], on_return=[])
    account.begin(0, watch)  # type: ignore[arg-type]
    tracker = account._tracker
    assert tracker is not None
    records = []
    for size, space in ((5 * MIB, "device"), (5 * MIB, "device"), (7 * MIB, "host")):
        records.append(Allocation(size, 0, space))  # type: ignore[arg-type]
    monkeypatch.setattr(tracker, "at_high", lambda name: records if name == account._peak else [])
    account.end(0)
    assert account.peak_sizes == Counter({5 * MIB: 2})
