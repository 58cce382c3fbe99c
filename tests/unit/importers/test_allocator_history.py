"""The allocator's history against the truth of a simulated one, and against torch's own reader of snapshots."""

import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from agprof.importers import torch_snapshot
from agprof.importers.folder import import_files
from agprof.model.allocator_history import peak_of, pools_of, totals, usable
from agprof.store.reader import read_run
from allocator_simulator import random_history

viz = pytest.importorskip("torch.cuda._memory_viz")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ring", [10**9, 150])
def test_totals_and_peak_are_the_truth(seed: int, ring: int) -> None:
    """With a ring that forgot the begin, they are the truth of what it remembers: the end is exact all the same."""
    allocator = random_history(seed, ring=ring)
    snapshot = allocator.snapshot()
    left_out: Counter[str] = Counter()
    events = usable(snapshot["device_traces"][0], left_out)
    after = list(totals(events, snapshot["segments"]))
    assert not left_out
    assert after[-1].allocated_bytes == allocator.requested_bytes
    assert after[-1].reserved_bytes == allocator.reserved_bytes
    peak = peak_of(events, snapshot["segments"])
    assert peak.allocated_bytes == sum(block.bytes for block in peak.blocks) == max(t.allocated_bytes for t in after)
    if ring > 10**6:
        assert after[0].allocated_bytes == after[0].event.bytes * after[0].event.allocates
        assert peak.allocated_bytes == allocator.peak_bytes
        assert {block.address: block.bytes for block in peak.blocks} == allocator.peak_live
        assert all(block.frames[0] == "/x/train.py:7 outer" for block in peak.blocks)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_answers_as_torch_s_own_reader(tmp_path: Path, seed: int) -> None:
    """`segsum` checks its own sums (it raises where they do not add up) and prints them; `calc_active` gives bytes."""
    allocator = random_history(seed)
    file = tmp_path / "s.pickle"
    file.write_bytes(pickle.dumps(allocator.snapshot()))
    theirs = pickle.loads(file.read_bytes())
    ours = torch_snapshot.load(file)
    assert list(ours.segments) == theirs["segments"]
    assert [list(device) for device in ours.traces] == theirs["device_traces"]
    printed = dict(line.split(": ", 1) for line in viz.segsum(theirs).splitlines() if line.startswith("total_"))
    pools = pools_of(ours.segments_of(0))
    assert printed["total_reserved"] == str(viz.Bytes(sum(pool.reserved_bytes for pool in pools)))
    assert printed["total_allocated"] == str(viz.Bytes(sum(pool.live_bytes for pool in pools)))
    free = sum(pool.free_bytes + pool.cached_bytes + pool.awaiting_bytes for pool in pools)
    rounding = sum(pool.rounding_bytes for pool in pools)
    assert printed["total_free"] == viz._report_free(free, rounding)
    active = sum(map(viz.calc_active, theirs["segments"]))
    assert active == sum(pool.live_bytes + pool.rounding_bytes for pool in pools)


def test_stacks_are_in_the_order_of_torch_s_own_reader() -> None:
    allocator = random_history(1, operations=30)
    snapshot = allocator.snapshot()
    peak = peak_of(usable(snapshot["device_traces"][0], Counter()), snapshot["segments"])
    block = peak.blocks[0]
    (raw,) = [
        e for e in snapshot["device_traces"][0] if e["action"] == "alloc" and e["time_us"] * 1000 == block.time_ns
    ]
    names = [line.rpartition(":")[2] for line in viz._frames_fmt(raw["frames"], reverse=True)]
    assert [frame.rpartition(" ")[2] for frame in block.frames] == names


@pytest.mark.parametrize("private", [(0, 0), (1, 0), (0, 7)])
def test_private_pools_have_a_name_of_their_own(private: tuple[int, int]) -> None:
    segment = {"total_size": 100, "segment_type": "large", "segment_pool_id": private, "blocks": []}
    (pool,) = pools_of([segment])
    assert pool.name == ("large" if private == (0, 0) else f"large of pool {private[0]}.{private[1]}")
    assert (pool.cached_bytes, pool.free_bytes) == (100, 0)


def test_snapshots_of_an_old_torch() -> None:
    """2.0: blocks without addresses and requested sizes, but with a history."""
    blocks = [
        {"size": 512, "state": "active_allocated", "history": [{"addr": 64, "real_size": 100, "frames": []}]},
        {"size": 512, "state": "inactive"},
        {"size": 1024, "state": "active_allocated"},
    ]
    segment = {"address": 4096, "total_size": 2048, "segment_type": "small", "blocks": blocks}
    peak = peak_of([], [segment])
    assert [(block.address, block.bytes) for block in peak.blocks] == [(5120, 1024), (4096, 100)]
    (pool,) = pools_of([segment])
    assert (pool.live_bytes, pool.rounding_bytes, pool.free_bytes) == (1124, 412, 512)


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    2**80,
    "x" * 5000,
    b"x",
    [],
    [[]],
    {},
    {"size": {}},
    (),
    (1, 2, 3),
    1.5,
    float("nan"),
]


@pytest.mark.parametrize("seed", range(20))
def test_values_of_any_kind_raise_nothing(tmp_path: Path, seed: int) -> None:
    """What a hostile snapshot holds is plain values, in any place."""
    chance = random.Random(seed)
    snapshot = random_history(seed, operations=40).snapshot()

    def spoil(value: Any, depth: int = 0) -> Any:
        if chance.random() < 0.03 and depth > 1:
            return chance.choice(HOSTILE)
        if isinstance(value, dict):
            return {key: spoil(inner, depth + 1) for key, inner in value.items()}
        return [spoil(inner, depth + 1) for inner in value] if isinstance(value, list) else value

    spoiled = spoil(snapshot)
    if not isinstance(spoiled["segments"], list):
        return
    file = tmp_path / "s.pickle"
    file.write_bytes(pickle.dumps(spoiled))
    added = torch_snapshot.import_alone(tmp_path, 0, file, rank_source="test", source="x")
    assert all(isinstance(row[4], int) and row[4] >= 0 for row in added.allocations)
    pools_of(torch_snapshot.load(file).segments_of(0))


def test_an_imported_snapshot_gives_the_largest_blocks_with_their_stacks(tmp_path: Path) -> None:
    allocator = random_history(2)
    (tmp_path / "rank0.pickle").write_bytes(pickle.dumps(allocator.snapshot()))
    run = read_run(import_files([tmp_path / "rank0.pickle"], tmp_path / "run", name="s", export_report=lambda a, _b: a))
    assert run.problems == ()
    rows = run.tables["allocations"]
    largest = sorted(allocator.peak_live.values(), reverse=True)[: torch_snapshot.TOP_BLOCKS]
    assert rows["bytes"].to_list() == largest
    assert rows["at"].unique().to_list() == ["peak"]
    assert rows.filter(pl.col("stack") == "").height == 0
    events = run.traces[0].table("memory_events")
    assert events["allocated_bytes"].max() == allocator.peak_bytes
