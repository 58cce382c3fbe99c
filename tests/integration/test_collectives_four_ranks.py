"""Four gloo ranks in sub-groups call everything that torch.distributed offers: bytes, n and bandwidths, by hand.

The grid: tensor-parallel pairs (0, 1) and (2, 3), data-parallel pairs (0, 2) and (1, 3), a group of three (1, 2, 3),
and all four. Run as a program this file is one rank: `python test_collectives_four_ranks.py RANK FOLDER`.

The expected S, n and factor of every call are written out below as literals by nccl-tests' definitions
(doc/PERFORMANCE.md): all-reduce S = the buffer, 2 (n - 1) / n; all-gather S = sendcount n, reduce-scatter S =
recvcount n, gather and scatter likewise, all-to-all S = count n, (n - 1) / n; broadcast, reduce, send and recv S = the
buffer, 1. Their t is the shortest duration over the ranks, read off the rows here without the analysis.
"""

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # a rank is not started by pytest
from agprof.analysis.run import analyse
from agprof.model.answers import RunAnswers
from agprof.store import layout
from agprof.store.reader import read_run
from collected_rows import CollectedRows, collecting_recorder, finish
from synthetic import rank_header, write_stream

RANKS = 4
LINES = {"tensor": ((0, 1), (2, 3)), "data": ((0, 2), (1, 3)), "three": ((1, 2, 3),), "all": ((0, 1, 2, 3),)}
WORD = {"rank": 0}
"""What the object collectives carry; pickled, the same on every rank."""


# -- the ranks -------------------------------------------------------------------------------------------------------


def calls(dist: Any, torch: Any, rank: int, members: tuple[int, ...], group: Any, scale: int, later: bool) -> None:
    """Each collective once on one group of n ranks; `scale` floats are what one rank gives or takes."""
    n, first = len(members), members[0]
    root = rank == first

    def new(count: int = scale) -> Any:
        return torch.ones(count)

    def chunks() -> list[Any]:
        return [new() for _ in range(n)]

    to = {"group": group, "async_op": later}
    works = [
        dist.all_reduce(new(), **to),
        dist.all_reduce_coalesced([new(), new(2 * scale)], **to),
        dist.all_gather(chunks(), new(), **to),
        dist.all_gather_into_tensor(new(n * scale), new(), **to),
        dist.all_gather_coalesced([[new()] for _ in range(n)], [new()], **to),
        dist.reduce_scatter(new(), chunks(), **to),
        dist.reduce_scatter_tensor(new(), new(n * scale), **to),
        dist.broadcast(new(), first, **to),
        dist.reduce(new(), first, **to),
        dist.gather(new(), chunks() if root else None, first, **to),
        dist.scatter(new(), chunks() if root else None, first, **to),
        dist.all_to_all(chunks(), chunks(), **to),
        dist.all_to_all_single(new(n * scale), new(n * scale), **to),
        uneven(dist, torch, rank, members, group, scale, later),
        dist.barrier(**to),
    ]
    for work in works:
        if work is not None:
            work.wait()


def uneven(dist: Any, torch: Any, rank: int, members: tuple[int, ...], group: Any, scale: int, later: bool) -> Any:
    """The rank at place i of the group sends (i + 1) x scale floats to each other and to itself."""
    n, mine = len(members), members.index(rank)
    inputs, outputs = [(mine + 1) * scale] * n, [(place + 1) * scale for place in range(n)]
    return dist.all_to_all_single(
        torch.empty(sum(outputs)), torch.ones(sum(inputs)), outputs, inputs, group=group, async_op=later
    )


def coalesced(dist: Any, torch: Any, members: tuple[int, ...], group: Any, scale: int) -> None:
    n = len(members)
    with dist._coalescing_manager(group):
        dist.all_reduce(torch.ones(scale), group=group)
        dist.all_reduce(torch.ones(3 * scale), group=group)
    with dist._coalescing_manager(group, async_ops=True) as manager:
        dist.all_gather_into_tensor(torch.ones(n * scale), torch.ones(scale), group=group)
        dist.all_gather_into_tensor(torch.ones(n * 4 * scale), torch.ones(4 * scale), group=group)
    manager.wait()


def objects(dist: Any, rank: int, members: tuple[int, ...], group: Any) -> None:
    n, first = len(members), members[0]
    root = rank == first
    dist.all_gather_object([None] * n, WORD, group=group)
    dist.gather_object(WORD, [None] * n if root else None, first, group=group)
    dist.broadcast_object_list([WORD], first, group=group)
    dist.scatter_object_list([None], [WORD] * n if root else None, first, group=group)


def functional(torch: Any, members: tuple[int, ...], group: Any, scale: int) -> None:
    from torch.distributed import _functional_collectives as functions

    n = len(members)
    for result in (
        functions.all_reduce(torch.ones(scale), "sum", group),
        functions.all_gather_tensor(torch.ones(scale), 0, group),
        functions.reduce_scatter_tensor(torch.ones(n * scale), "sum", 0, group),
        functions.all_to_all_single(torch.ones(n * scale), None, None, group),
        *functions.all_reduce_coalesced([torch.ones(scale), torch.ones(2 * scale)], "sum", group),
    ):
        functions.wait_tensor(result)


def point_to_point(dist: Any, torch: Any, rank: int, members: tuple[int, ...], group: Any, scale: int) -> None:
    """The first of the pair sends, and both pass a tensor round at once."""
    first, second = members
    if rank == first:
        dist.send(torch.ones(scale), second, group=group)
        dist.isend(torch.ones(scale), second, group=group).wait()
        dist.send_object_list([WORD], second, group=group)
    else:
        dist.recv(torch.ones(scale), first, group=group)
        dist.irecv(torch.ones(scale), first, group=group).wait()
        dist.recv_object_list([None], first, group=group)
    other = second if rank == first else first
    both = [
        dist.P2POp(dist.isend, torch.ones(scale), other, group),
        dist.P2POp(dist.irecv, torch.ones(scale), other, group),
    ]
    for work in dist.batch_isend_irecv(both):
        work.wait()


def be_a_rank(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    import torch
    import torch.distributed as dist
    import torch.distributed._functional_collectives  # what is imported before is armed too

    from agprof.instruments.comm import CommunicationInstrument

    recorder, collected = collecting_recorder()
    CommunicationInstrument(recorder, torch).arm(dist)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    groups = {  # every rank makes every group, as torch asks
        kind: [(members, dist.new_group(members) if kind != "all" else None) for members in lines]
        for kind, lines in LINES.items()
    }
    mine = {kind: next(pair for pair in pairs if rank in pair[0]) for kind, pairs in groups.items() if kind != "three"}
    if rank in LINES["three"][0]:
        mine["three"] = groups["three"][0]
    begin = recorder.clock()
    for scale, kind in enumerate(("all", "tensor", "data", "three"), 1):
        if kind not in mine:
            continue
        members, group = mine[kind]
        calls(dist, torch, rank, members, group, 256 * scale, later=False)
        calls(dist, torch, rank, members, group, 256 * scale, later=True)
        coalesced(dist, torch, members, group, 256 * scale)
        objects(dist, rank, members, group)
        functional(torch, members, group or dist.group.WORLD, 256 * scale)
        if len(members) == 2:
            point_to_point(dist, torch, rank, members, group, 256 * scale)
    step = (0, begin, recorder.clock(), 1, None, None, None, False, None)
    dist.barrier()
    dist.destroy_process_group()
    finish(recorder)
    (folder / f"{rank}.json").write_text(json.dumps({"tables": collected.tables, "step": step}))


# -- what they measured ----------------------------------------------------------------------------------------------


class Run(NamedTuple):
    rows: list[list[dict[str, Any]]]
    """Per rank its rows of `collectives` in order."""
    answers: RunAnswers
    faults: list[Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("four")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_FR_BUFFER_SIZE": "4000", "WORLD_SIZE": str(RANKS)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    return _collect(folder)


def _collect(folder: Path) -> Run:
    (folder / "run" / layout.RANKS).mkdir(parents=True)
    rows, faults = [], []
    for rank in range(RANKS):
        dump = json.loads((folder / f"{rank}.json").read_text())
        collected = CollectedRows()
        collected.tables = dump["tables"]
        own = sorted(collected.table("collectives"), key=lambda row: row["start_ns"])
        rows.append([row for row in own if row["start_ns"] < dump["step"][2]])
        faults += collected.table("faults")
        tables = {name: [tuple(row) for row in values] for name, values in dump["tables"].items()}
        write_stream(
            layout.rank_stream(folder / "run", rank),
            rank_header(rank, RANKS),
            {**tables, "steps": [tuple(dump["step"])]},  # type: ignore[dict-item]
        )
    return Run(rows, analyse(read_run(folder / "run")), faults)


class Expected(NamedTuple):
    op: str
    floats: Fraction | int
    """S in units of `scale` floats; or bytes where `pickled`."""
    factor: Fraction | None
    later: bool = False
    pickled: bool = False


def expected(n: int) -> Iterator[Expected]:
    """What the rows of one group of n must say, in order. Written out for each n, so that nothing is computed twice."""
    reduce = {2: Fraction(1), 3: Fraction(4, 3), 4: Fraction(3, 2)}[n]
    shard = {2: Fraction(1, 2), 3: Fraction(2, 3), 4: Fraction(3, 4)}[n]
    one = Fraction(1)
    most = {2: 4, 3: 9, 4: 16}[n]  # of the uneven all-to-all the last of the group sends most: n x n
    for later in (False, True):
        yield Expected("all_reduce", 1, reduce, later)
        yield Expected("all_reduce", 3, reduce, later)
        yield Expected("all_gather", n, shard, later)
        yield Expected("all_gather", n, shard, later)
        yield Expected("all_gather", n, shard, later)
        yield Expected("reduce_scatter", n, shard, later)
        yield Expected("reduce_scatter", n, shard, later)
        yield Expected("broadcast", 1, one, later)
        yield Expected("reduce", 1, one, later)
        yield Expected("gather", n, shard, later)
        yield Expected("scatter", n, shard, later)
        yield Expected("all_to_all", n, shard, later)
        yield Expected("all_to_all", n, shard, later)
        yield Expected("all_to_all", most, shard, later)
        yield Expected("barrier", 0, None, later)
    yield Expected("all_reduce", 4, reduce)
    yield Expected("all_gather", 5 * n, shard, True)
    word = len(pickle.dumps(WORD))
    yield Expected("all_gather_object", n * (8 + word), shard, pickled=True)
    yield Expected("gather_object", n * (8 + word), shard, pickled=True)
    yield Expected("broadcast_object", 8 + word, one, pickled=True)
    yield Expected("scatter_object", 8 + n * (word + 8), shard, pickled=True)
    yield Expected("all_reduce", 1, reduce, True)
    yield Expected("all_gather", n, shard, True)
    yield Expected("reduce_scatter", n, shard, True)
    yield Expected("all_to_all", n, shard, True)
    yield Expected("all_reduce", 3, reduce, True)
    if n == 2:
        yield Expected("send", 1, one)
        yield Expected("send", 1, one, True)
        yield Expected("send_object", 8 + word, one, pickled=True)
        yield Expected("send_recv", 1, one, True)


def by_group(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """A rank's rows per group, in order of the first call."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["group"]].append(row)
    return found


def lines(run: Run) -> Iterator[tuple[tuple[int, ...], int, list[list[dict[str, Any]]]]]:
    """(members, scale, rows of each member) of every group, by the order in which the ranks used them."""
    per_rank = [list(by_group(rows).values()) for rows in run.rows]
    for place, kind in enumerate(("all", "tensor", "data", "three")):
        for members in LINES[kind]:
            yield members, 256 * (place + 1), [per_rank[rank][place] for rank in members]


def size(call: Expected, scale: int) -> int | None:
    return None if call.op == "barrier" else int(call.floats) if call.pickled else int(call.floats) * 4 * scale


def test_nothing_was_missed_and_no_instrument_failed(run: Run) -> None:
    assert run.faults == []
    assert run.answers.communication.unseen == ()
    assert "confirms all" in run.answers.communication.ledger_sentence


def test_every_call_has_its_bytes_and_the_size_of_its_group(run: Run) -> None:
    for members, scale, rows in lines(run):
        n = len(members)
        calls_of_group = list(expected(n))
        for place, own in enumerate(rows):
            found = [(row["op"], row["bytes"], row["group_size"], row["async_op"]) for row in own]
            wanted = []
            for call in calls_of_group:
                op = call.op.replace("send", "recv", 1) if place and call.op in ("send", "send_object") else call.op
                bytes_ = size(call, scale)
                if call.op == "all_to_all" and call.floats == n * n:  # what this rank gives; S is the most of any
                    bytes_ = n * (place + 1) * 4 * scale
                wanted.append((op, bytes_, n, call.later))
            assert found == wanted


def test_bandwidths_are_those_of_nccl_tests_with_n_of_the_group(run: Run) -> None:
    """algbw = S / t and busbw = algbw x factor of every kind of call on every group."""
    answered = {
        (row.group, row.op, row.bytes_per_call.value): row
        for row in run.answers.communication.rows
        if row.caller == "other"
    }
    checked = 0
    for members, scale, rows in lines(run):
        rates: dict[tuple[str, int | None], tuple[list[float], Expected]] = {}
        for number, call in enumerate(expected(len(members))):
            bytes_ = size(call, scale)
            ends = [max(own[number]["issue_end_ns"], own[number]["end_ns"]) for own in rows]
            shortest = min(end - own[number]["start_ns"] for end, own in zip(ends, rows, strict=True))
            if bytes_ is not None and call.op != "send_recv":  # whose two sides are two calls at once
                rates.setdefault((call.op, bytes_), ([], call))[0].append(bytes_ * 1e9 / shortest)
        for (op, bytes_), (each, call) in rates.items():
            row = answered[rows[0][0]["group"], op, bytes_]
            assert row.group_size == len(members)
            assert row.algorithm_bandwidth.value == pytest.approx(median(each))
            assert call.factor is not None
            assert row.bus_bandwidth.value == pytest.approx(median(each) * float(call.factor))
            checked += 1
    assert checked == 2 * 16 + 4 * 18  # kinds of calls on the two larger groups, and on the pairs


def one(run: Run, op: str, members: int) -> Any:
    """A kind of call on a group of that size, the smallest of its operation."""
    rows = [row for row in run.answers.communication.rows if (row.op, row.group_size) == (op, members)]
    return min(rows, key=lambda row: row.bytes_per_call.value)


def test_deepspeeds_logger_is_four_times_off_where_this_is_right(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`reduce_scatter_tensor`: DeepSpeed 0.19.8 takes the whole input for one rank's share, and multiplies by n again.

    Its logger is given the size of the input tensor and the same t.
    """
    logging = pytest.importorskip("deepspeed.utils.comms_logging")
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda: RANKS)
    row = one(run, "reduce_scatter", 4)
    input_bytes = 4 * 256 * 4
    assert row.bytes_per_call.value == input_bytes  # recvcount x n is the input
    seconds = input_bytes / row.algorithm_bandwidth.value
    theirs, _ = logging.calc_bw_log("reduce_scatter_tensor", input_bytes, seconds * 1e3)  # ms -> Gbit/s
    assert theirs * 1e9 / 8 / row.algorithm_bandwidth.value == pytest.approx(4.0)


def test_deepspeeds_logger_is_half_too_high_for_a_group_of_two_where_this_is_right(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An all-reduce of two ranks in a job of four: DeepSpeed 0.19.8 takes n = 4, and its algbw counts S twice."""
    logging = pytest.importorskip("deepspeed.utils.comms_logging")
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda: RANKS)
    row = one(run, "all_reduce", 2)
    assert row.bus_bandwidth.value == pytest.approx(row.algorithm_bandwidth.value)  # 2 (2 - 1) / 2
    seconds = row.bytes_per_call.value / row.algorithm_bandwidth.value
    algorithm, bus = logging.calc_bw_log("all_reduce", row.bytes_per_call.value, seconds * 1e3)
    assert bus * 1e9 / 8 / row.bus_bandwidth.value == pytest.approx(1.5)
    assert algorithm * 1e9 / 8 / row.algorithm_bandwidth.value == pytest.approx(2.0)


def test_the_groups_have_their_members(run: Run) -> None:
    groups = run.answers.communication.groups
    assert sorted(group.ranks for group in groups) == sorted(line for kind in LINES.values() for line in kind)


def test_who_is_at_the_other_end_is_recorded(run: Run) -> None:
    for members, scale, rows in lines(run):
        for place, own in enumerate(rows):
            rooted = {row["peers"] for row in own if row["op"] in ("broadcast", "reduce", "gather", "scatter")}
            assert rooted == {str(members[0])}
            other = members[1 - place] if len(members) == 2 else None
            pairs = {row["peers"] for row in own if row["op"] in ("send", "recv", "send_object", "recv_object")}
            assert pairs == ({str(other)} if other is not None else set())
            batches = {row["peers"] for row in own if row["op"] == "send_recv"}
            assert batches == ({f">{other}:{4 * scale},<{other}:{4 * scale}"} if other is not None else set())


def test_the_matrix_is_what_the_calls_add_up_to(run: Run) -> None:
    """From rank 0 to rank 3, which are neighbours in no ring: all-to-alls and scatters on all four, by hand.

    One rank's share is 1,024 bytes. Five even all-to-alls and two scatters give that to each rank; in the two uneven
    ones rank 0 gives as much; a scatter of objects gives a quarter of its bytes.
    """
    matrix = run.answers.communication.matrix
    assert matrix is not None
    assert matrix.ranks == (0, 1, 2, 3)
    word = len(pickle.dumps(WORD))
    assert matrix.bytes_per_step[0][3] == (5 + 2 + 2) * 1024 + (8 + 4 * (word + 8)) / 4
    assert all(matrix.bytes_per_step[rank][rank] == 0 for rank in range(RANKS))
    assert matrix.between_nodes == 0


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]))
