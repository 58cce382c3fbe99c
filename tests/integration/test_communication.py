"""Two gloo ranks with nothing armed but the communication instrument: what the taps see, and what the ledger says.

Run as a program this file is one rank: `python test_communication.py SCENARIO RANK FOLDER`.
"""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # a rank is not started by pytest
from collected_rows import CollectedRows, collecting_recorder, finish

RANKS = 2


# -- the ranks -------------------------------------------------------------------------------------------------------


def tensor_operations(dist: Any, torch: Any, rank: int, later: bool) -> None:
    """Each wrapped function of tensors; the group has two ranks, `ones` 16 bytes."""
    ones, root = torch.ones(4), rank == 0

    def new(count: int = 4) -> Any:
        return torch.empty(count)

    calls = [
        lambda: dist.all_reduce(ones, async_op=later),
        lambda: dist.all_reduce_coalesced([ones, new(8)], async_op=later),
        lambda: dist.all_gather([new(), new()], ones, async_op=later),
        lambda: dist.all_gather_into_tensor(new(8), ones, async_op=later),
        lambda: dist.all_gather_single(new(8), ones, async_op=later),
        lambda: dist._all_gather_base(new(8), ones, async_op=later),
        lambda: dist.all_gather_coalesced([[new()], [new()]], [ones], async_op=later),
        lambda: dist.reduce_scatter(new(2), [new(2), new(2)], async_op=later),
        lambda: dist.reduce_scatter_tensor(new(2), ones, async_op=later),
        lambda: dist.reduce_scatter_single(new(2), ones, async_op=later),
        lambda: dist._reduce_scatter_base(new(2), ones, async_op=later),
        lambda: dist.broadcast(ones, 0, async_op=later),
        lambda: dist.reduce(ones, 0, async_op=later),
        lambda: dist.gather(ones, [new(), new()] if root else None, 0, async_op=later),
        lambda: dist.scatter(ones, [new(), new()] if root else None, 0, async_op=later),
        lambda: dist.all_to_all([new(2), new(2)], [new(2), new(2)], async_op=later),
        lambda: dist.all_to_all_single(new(), ones, async_op=later),
        lambda: dist.barrier(async_op=later),
    ]
    for call in calls:
        work = call()
        if work is not None:
            work.wait()


def every_operation(dist: Any, torch: Any, rank: int) -> None:
    tensor_operations(dist, torch, rank, later=False)
    tensor_operations(dist, torch, rank, later=True)
    ones, root = torch.ones(4), rank == 0
    dist.monitored_barrier()
    dist.all_gather_object([None, None], "x")
    dist.gather_object("x", [None, None] if root else None, 0)
    dist.broadcast_object_list(["x"], 0)
    dist.scatter_object_list([None], ["x", "y"] if root else None, 0)
    if root:
        dist.send(ones, 1)
        dist.isend(ones, 1).wait()
        dist.send_object_list(["x"], 1)
    else:
        dist.recv(ones, 0)
        dist.irecv(ones, 0).wait()
        dist.recv_object_list([None], 0)
    pair = [dist.P2POp(dist.isend, ones, 1 - rank), dist.P2POp(dist.irecv, torch.empty(4), 1 - rank)]
    for work in dist.batch_isend_irecv(pair):
        work.wait()


def coalesced_and_groups(dist: Any, torch: Any, rank: int) -> None:
    ones = torch.ones(4)
    with dist._coalescing_manager():
        dist.all_reduce(ones)
        dist.all_reduce(torch.ones(8))
    with dist._coalescing_manager(async_ops=True) as manager:
        dist.all_reduce(ones)
        dist.all_reduce(ones)
    manager.wait()
    both, first = dist.new_group([0, 1]), dist.new_group([0])
    dist.all_reduce(ones, group=both)
    dist.all_reduce(ones, group=first)


def ddp(dist: Any, torch: Any, rank: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 8))
    replica = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.01)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(3):
        replica(torch.randn(4, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.all_reduce(torch.ones(1))


def around_the_taps(dist: Any, torch: Any, rank: int) -> None:
    from torch.distributed import _functional_collectives

    dist.all_reduce(torch.ones(4))
    for _ in range(3):
        _functional_collectives.wait_tensor(_functional_collectives.all_reduce(torch.ones(8), "sum", dist.group.WORLD))


def many(dist: Any, torch: Any, rank: int) -> None:
    for number in range(90):
        dist.broadcast(torch.ones(2), 0) if number % 3 else dist.all_reduce(torch.ones(4))


def zero(dist: Any, torch: Any, rank: int) -> None:
    import deepspeed

    for stage in (1, 2, 3):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=model.parameters(),
            config={
                "train_micro_batch_size_per_gpu": 2,
                "gradient_accumulation_steps": 2,
                "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
                "gradient_clipping": 1.0,
            },
        )
        for _ in range(6):
            loss = engine(torch.randn(2, 32)).square().mean()
            engine.backward(loss)
            engine.step()


SCENARIOS = {
    "every_operation": every_operation,
    "coalesced_and_groups": coalesced_and_groups,
    "ddp": ddp,
    "around_the_taps": around_the_taps,
    "many": many,
    "zero": zero,
}


def be_a_rank(scenario: str, rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    import torch
    import torch.distributed as dist

    from agprof.instruments.comm import CommunicationInstrument

    recorder, collected = collecting_recorder()
    instrument = CommunicationInstrument(recorder, torch)
    owners = (dist, dist.distributed_c10d, dist.Work, torch.nn.parallel.distributed.DistributedDataParallel)
    before = [dict(vars(owner)) for owner in owners]
    instrument.arm(dist)
    instrument.arm_ddp(torch.nn.parallel.distributed)
    if scenario == "zero":
        import deepspeed

        # Only inference uses this op, and it would have to be compiled first.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
        deepspeed.init_distributed(
            "gloo", auto_mpi_discovery=False, init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
        )
    else:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    SCENARIOS[scenario](dist, torch, rank)
    dist.barrier()
    dist.destroy_process_group()
    finish(recorder)
    left = [key for owner, was in zip(owners, before, strict=True) for key in _changed(was, dict(vars(owner)))]
    (folder / f"{rank}.json").write_text(json.dumps({"tables": collected.tables, "left": left}))


def _changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of functions that are not what they were. torch keeps state of its own in the same dictionaries."""
    return [key for key in {*was, *now} if callable(was.get(key)) and was[key] is not now.get(key)]


# -- what they saw ---------------------------------------------------------------------------------------------------


def ranks(scenario: str, folder: Path, **env: str) -> list[CollectedRows]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_FR_BUFFER_SIZE": "2000"} | env
    environment |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, scenario, str(rank), str(folder)],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": str(RANKS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    seen = []
    for rank in range(RANKS):
        dump = json.loads((folder / f"{rank}.json").read_text())
        assert dump["left"] == []
        collected = CollectedRows()
        collected.tables = dump["tables"]
        assert collected.table("faults") == []
        seen.append(collected)
    return seen


def unseen(collected: CollectedRows) -> list[dict[str, Any]]:
    return [
        row
        for row in collected.table("ledger")
        if (row["recorded"], row["recorded_bytes"]) != (row["seen"], row["seen_bytes"])
    ]


def test_every_operation_is_one_row_with_its_bytes(tmp_path: Path) -> None:
    first, second = ranks("every_operation", tmp_path)
    both = [
        ("all_reduce", 16),
        ("all_reduce", 48),
        ("all_gather", 32),
        ("all_gather", 32),
        ("all_gather", 32),
        ("all_gather", 32),
        ("all_gather", 32),
        ("reduce_scatter", 16),
        ("reduce_scatter", 16),
        ("reduce_scatter", 16),
        ("reduce_scatter", 16),
        ("broadcast", 16),
        ("reduce", 16),
        ("gather", 32),
        ("scatter", 32),
        ("all_to_all", 16),
        ("all_to_all", 16),
        ("barrier", None),
    ]
    size, text = 8, len(pickle.dumps("x"))  # what an object collective moves: sizes as int64, and the pickled objects
    objects = {
        "monitored_barrier": None,
        "all_gather_object": RANKS * (size + text),
        "gather_object": RANKS * (size + text),
        "broadcast_object": size + text,
        "scatter_object": size + RANKS * (text + size),
    }
    for collected, mine in ((first, "send"), (second, "recv")):
        # Rows of asynchronous calls come when they are complete, so by their start:
        rows = sorted(collected.table("collectives"), key=lambda row: row["start_ns"])[:-1]
        expected = [(*row, False) for row in both] + [(*row, True) for row in both]
        expected += [(op, moved, False) for op, moved in objects.items()]
        expected += [(mine, 16, False), (mine, 16, True), (f"{mine}_object", size + text, False)]
        expected += [("send_recv", 16, True)]
        assert [(row["op"], row["bytes"], row["async_op"]) for row in rows] == expected
        for row in rows:
            assert (row["group"], row["group_size"], row["tap"], row["caller"]) == ("default", 2, "wrapper", "other")
            assert row["dtype"] == (None if "barrier" in row["op"] or "object" in row["op"] else "float32")
            assert row["start_ns"] <= row["issue_end_ns"]
            assert row["end_ns"] is not None
            assert row["end_ns"] >= row["start_ns"]
        waited = [row for row in rows if row["wait_ns"]]
        assert len(waited) == 16 + 1 + 1 + 1 - 1  # all asynchronous ones but the two that return futures
        assert sum(row["wait_ns"] for row in rows) == sum(
            row["end_ns"] - row["start_ns"] for row in collected.table("waits")
        )
        assert unseen(collected) == []
        assert all(row["complete"] for row in collected.table("ledger"))


def test_coalesced_calls_are_one_row_and_groups_are_told_apart(tmp_path: Path) -> None:
    for rank, collected in enumerate(ranks("coalesced_and_groups", tmp_path)):
        rows = [row for row in collected.table("collectives") if row["op"] == "all_reduce"]
        assert [(row["bytes"], row["async_op"]) for row in rows[:2]] == [(48, False), (32, True)]
        assert [row["group_size"] for row in rows[2:]] == ([2, 1] if rank == 0 else [2])
        assert len({row["group"] for row in rows}) == (3 if rank == 0 else 2)
        assert unseen(collected) == []


def test_buckets_of_ddp_are_seen_with_their_end(tmp_path: Path) -> None:
    for collected in ranks("ddp", tmp_path):
        rows = collected.table("collectives")
        buckets = [row for row in rows if row["tap"] == "dispatcher" and row["op"] == "all_reduce"]
        parameters = 64 * 64 + 64 + 2 * 64 + 64 * 8 + 8
        assert sum(row["bytes"] for row in buckets) == 3 * 4 * parameters
        assert all(row["end_ns"] >= row["issue_end_ns"] for row in buckets)
        assert sum(row["op"] == "all_reduce" and row["tap"] == "wrapper" for row in rows) == 1
        assert unseen(collected) == []
        assert collected.facts()["framework"] == '"ddp"'


def test_what_goes_around_the_taps_is_unseen(tmp_path: Path) -> None:
    for collected in ranks("around_the_taps", tmp_path):
        [row] = unseen(collected)
        assert (row["op"], row["recorded"] - row["seen"]) == ("all_reduce", 3)
        assert row["recorded_bytes"] - row["seen_bytes"] == 3 * 32
        facts = collected.facts()
        assert int(facts["comm.recorded_total"]) - int(facts["comm.seen_total"]) == 3


def test_an_overflowing_recorder_compares_what_it_still_has(tmp_path: Path) -> None:
    for collected in ranks("many", tmp_path, TORCH_FR_BUFFER_SIZE="50"):
        ledger = collected.table("ledger")
        assert unseen(collected) == []
        assert not any(row["complete"] for row in ledger)
        assert sum(row["recorded"] for row in ledger) == 50
        facts = collected.facts()
        assert facts["comm.recorded_total"] == facts["comm.seen_total"] == "91"


def test_nothing_of_deepspeed_is_unseen(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    for collected in ranks("zero", tmp_path):
        operations = {row["op"] for row in collected.table("collectives")}
        assert operations >= {"all_reduce", "all_gather", "reduce_scatter", "broadcast"}
        assert unseen(collected) == []


if __name__ == "__main__":
    be_a_rank(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
