"""Overlap, sizes, groups, matrix and arrivals: by hand on small runs, by invariants on any."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agprof.analysis.run import analyse
from agprof.model.answers import CommunicationAnswer
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import BOOT_NS, MS, build_run, rank_header, write_stream

US = 1000


def call(
    op: str,
    start: int,
    end: int,
    size: int | None,
    *,
    group: str = "default",
    n: int = 2,
    issue: int | None = None,
    wait: int = 0,
    caller: str = "backward",
    peers: str | None = None,
    tap: str = "wrapper",
    step: int = 0,
    dtype: str = "float32",
) -> tuple[Any, ...]:
    """A call; times in ms since the begin. With `issue` it is asynchronous and returned to its caller then."""
    at = [BOOT_NS + round(time * MS) for time in (start, end if issue is None else issue, end)]
    later = issue is not None
    return (step, 0, op, group, n, size, dtype, later, *at, wait * MS, tap, 7, caller, peers)


def fact(key: str, value: str) -> tuple[Any, ...]:
    return (BOOT_NS, key, value)


def write(
    path: Path,
    calls: dict[int, list[tuple[Any, ...]]],
    *,
    facts: dict[int, list[tuple[Any, ...]]] | None = None,
    nodes: dict[int, int] | None = None,
    steps: int = 1,
    waits: dict[int, list[tuple[Any, ...]]] | None = None,
    spans: dict[int, list[tuple[Any, ...]]] | None = None,
) -> Path:
    """Steps of 100 ms on each rank with these calls."""
    (path / layout.RANKS).mkdir(parents=True)
    for rank, rows in calls.items():
        own = [
            (s, BOOT_NS + s * 100 * MS, BOOT_NS + (s + 1) * 100 * MS, 1, None, None, None, False) for s in range(steps)
        ]
        told = [fact("dist.world_size", str(len(calls))), *(facts or {}).get(rank, [])]
        tables = {"steps": own, "collectives": rows, "facts": told, "waits": (waits or {}).get(rank, [])}
        tables["spans"] = (spans or {}).get(rank, [])
        node = (nodes or {}).get(rank, 0)
        header = rank_header(rank, len(calls)) | {"node": node}
        write_stream(layout.rank_stream(path, rank), header, tables)  # type: ignore[arg-type]
    return path


def answer(path: Path, calls: dict[int, list[tuple[Any, ...]]], **more: Any) -> CommunicationAnswer:
    return analyse(read_run(write(path / "run", calls, **more))).communication


# -- overlap -----------------------------------------------------------------------------------------------------------


def test_the_caller_of_a_synchronous_call_stands_in_it(tmp_path: Path) -> None:
    got = answer(tmp_path, {0: [call("all_reduce", 10, 50, 8)], 1: [call("all_reduce", 40, 50, 8)]}).overlap
    assert got is not None
    assert (got.in_flight.value, got.exposed.value, got.overlapped.value) == (25 * MS, 25 * MS, 0)
    # the transfer is rank 1's 10 ms on both; rank 0 waited 30 ms, which are 15 ms of the mean rank
    assert (got.transfer.value, got.skew.value) == (10 * MS, 15 * MS)
    assert got.issue.value is None
    assert got.issue.reason == "all calls return when they are complete: issue and transfer are one"


def test_of_an_asynchronous_call_only_issue_and_wait_are_exposed(tmp_path: Path) -> None:
    rows = {rank: [call("all_reduce", 10, 50, 8, issue=12, wait=5)] for rank in (0, 1)}
    waits = {rank: [(0, "all_reduce", BOOT_NS + 45 * MS, BOOT_NS + 50 * MS, 7)] for rank in (0, 1)}
    got = answer(tmp_path, rows, waits=waits).overlap
    assert got is not None
    assert got.in_flight.value == 40 * MS
    assert got.exposed.value == 7 * MS
    assert got.overlapped.value == 33 * MS
    assert got.issue.value == 2 * MS


def test_ddp_stands_in_its_reducer_from_the_last_bucket_on(tmp_path: Path) -> None:
    """Two buckets; the backward has nothing to do after the second was issued at 41 ms, and both end at 60 ms."""
    buckets = [
        call("all_reduce", 20, 55, 8, issue=21, tap="dispatcher"),
        call("all_reduce", 40, 60, 8, issue=41, tap="dispatcher"),
    ]
    backward = (0, 0, 0, "phase", "backward", BOOT_NS + 5 * MS, BOOT_NS + 61 * MS, 7, 0)
    path = write(tmp_path / "run", {0: buckets, 1: buckets}, spans={0: [backward], 1: [backward]})
    answers = analyse(read_run(path))
    got = answers.communication.overlap
    assert got is not None
    assert got.in_flight.value == 40 * MS
    assert got.exposed.value == (1 + 1 + 19) * MS
    assert got.overlapped.value == 19 * MS
    parts = answers.time.ranks[0].parts_ns
    assert parts["communication"] == 21 * MS
    assert parts["backward"] == (56 - 21) * MS


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_bins_are_half_open_powers_of_two(tmp_path: Path) -> None:
    sizes = [0, 1, 2, 3, 4, 7, 8, 2**40 - 1, 2**40]
    rows = {rank: [call("all_reduce", at, at + 1, size) for at, size in enumerate(sizes)] for rank in (0, 1)}
    got = {row.low_bytes: row for row in answer(tmp_path, rows).sizes}
    assert {low: row.calls_per_step for low, row in got.items()} == {
        0: 1, 1: 1, 2: 2, 4: 2, 8: 1, 2**39: 1, 2**40: 1
    }  # fmt: skip
    assert got[0].high_bytes == 1
    assert all(row.high_bytes == 2 * low for low, row in got.items() if low)
    assert got[4].bytes_per_step == 11
    assert got[4].exposed_ns_per_step == 2 * MS


# -- groups ------------------------------------------------------------------------------------------------------------


def gradients(group: str, elements: int) -> tuple[Any, ...]:
    return call("all_reduce", 60, 61, 4 * elements, group=group)


def layer(group: str, at: int, caller: str = "forward") -> tuple[Any, ...]:
    return call("all_reduce", at, at + 1, 4096, group=group, caller=caller)


def test_a_tensor_and_data_parallel_grid_is_told_by_what_it_moves(tmp_path: Path) -> None:
    lines = {0: ("tp0", "dp0"), 1: ("tp0", "dp1"), 2: ("tp1", "dp0"), 3: ("tp1", "dp1")}
    members = {"tp0": [0, 1], "tp1": [2, 3], "dp0": [0, 2], "dp1": [1, 3]}
    names = {"tp0": "1", "tp1": "2", "dp0": "3", "dp1": "4"}
    calls, facts = {}, {}
    for rank, (tensor, data) in lines.items():
        layers = [layer(names[tensor], at) for at in (10, 20)] + [
            layer(names[tensor], at, "backward") for at in (30, 40)
        ]
        calls[rank] = [*layers, gradients(names[data], 1000)]
        facts[rank] = [fact(f"comm.group.{names[line]}", str(members[line])) for line in (tensor, data)]
        facts[rank].append(fact("model.trainable_params", "1000"))
    got = {row.group: row for row in answer(tmp_path, calls, facts=facts).groups}
    assert {name: (got[names[name]].kind, list(got[names[name]].ranks)) for name in members} == {
        "tp0": ("tensor", [0, 1]), "tp1": ("tensor", [2, 3]), "dp0": ("data", [0, 2]), "dp1": ("data", [1, 3])
    }  # fmt: skip
    assert got["3"].evidence.endswith("as many as the 1,000 parameters that a rank trains")
    assert got["1"].evidence == "2 reductions in the forward of each micro-step: partial sums of layers"
    assert got["3"].bytes_per_step == 4000
    assert got["1"].bytes_per_step == 4 * 4096


def test_nothing_is_guessed_without_evidence(tmp_path: Path) -> None:
    """Groups made like a grid's that move nothing telling; the whole job's is said to be that."""
    calls = {rank: [call("all_reduce", 10, 11, 4, n=4, caller="other")] for rank in range(4)}
    for rank in (0, 2):
        calls[rank].append(call("all_reduce", 20, 21, 64, group="3", caller="other"))
    facts = {rank: [fact("comm.group.3", "[0, 2]")] for rank in (0, 2)}
    got = {row.group: row.kind for row in answer(tmp_path, calls, facts=facts).groups}
    assert got == {"default": "all", "3": "other"}


def test_neighbours_that_send_are_a_pipeline(tmp_path: Path) -> None:
    calls = {
        0: [call("send", 10, 11, 4096, n=3, peers="1")],
        1: [call("recv", 10, 11, 4096, n=3, peers="0"), call("send_recv", 20, 21, 4096, n=3, peers=">2:4096,<2:64")],
        2: [call("send_recv", 20, 21, 4096, n=3, peers="<1:4096,>1:64")],
    }
    got = answer(tmp_path / "a", calls).groups
    assert [(row.kind, row.ranks) for row in got] == [("pipeline", (0, 1, 2))]
    far = {0: [call("send", 10, 11, 4096, n=4, peers="2")], **{rank: [] for rank in (1, 3)}}
    far[2] = [call("recv", 10, 11, 4096, n=4, peers="0")]
    assert [row.kind for row in answer(tmp_path / "b", far).groups] == ["all"]


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        ("mesh_dp 3", "data"),
        ("mesh_tp 4", "tensor"),
        ("TENSOR_MODEL_PARALLEL_GROUP 5", "tensor"),
        ("PIPELINE_MODEL_PARALLEL_GROUP 6", "pipeline"),
        ("DATA_PARALLEL_GROUP 7", "data"),
        ("mesh_dp_tp 8", "other"),
        ("stamped 9", "other"),
    ],
)
def test_a_group_that_the_job_named_is_what_it_is_called(group: str, kind: str, tmp_path: Path) -> None:
    calls = {rank: [call("all_reduce", 10, 11, 64, group=group)] for rank in (0, 1)} | {2: []}
    facts = {rank: [fact(f"comm.group.{group}", "[0, 1]")] for rank in (0, 1)}
    (row,) = answer(tmp_path, calls, facts=facts).groups
    assert row.kind == kind
    assert kind == "other" or row.evidence == f"the job named it `{group}`"


def test_disjoint_groups_of_one_name_are_two_and_are_matched_apart(tmp_path: Path) -> None:
    """As old versions of torch name the groups of one split."""
    ends = {0: 20, 1: 20, 2: 90, 3: 90}
    calls = {rank: [call("all_reduce", 10, end, 1000, group="1")] for rank, end in ends.items()}
    facts = {rank: [fact("comm.group.1", "[0, 1]" if rank < 2 else "[2, 3]")] for rank in ends}
    got = answer(tmp_path, calls, facts=facts)
    assert [row.ranks for row in got.groups] == [(0, 1), (2, 3)]
    (row,) = got.rows
    assert (row.algorithm_bandwidth.n, row.algorithm_bandwidth.low) == (2, pytest.approx(1000 / 0.080))


# -- matrix ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "peers", "sent"),
    [
        ("all_reduce", None, {(0, 1): 800, (1, 2): 800, (2, 0): 800}),  # 2 x 2/3 of 600
        ("all_gather", None, {(0, 1): 400, (1, 2): 400, (2, 0): 400}),
        ("reduce_scatter", None, {(0, 1): 400, (1, 2): 400, (2, 0): 400}),
        ("broadcast", "1", {(1, 2): 600, (2, 0): 600}),
        ("reduce", "1", {(2, 0): 600, (0, 1): 600}),
        ("gather", "1", {(0, 1): 200, (2, 1): 200}),
        ("scatter", "1", {(1, 0): 200, (1, 2): 200}),
        ("all_to_all", None, {(a, b): 200 for a in range(3) for b in range(3) if a != b}),
    ],
)
def test_the_matrix_by_hand(op: str, peers: str | None, sent: dict[tuple[int, int], float], tmp_path: Path) -> None:
    calls = {rank: [call(op, 10, 11, 600, n=3, peers=peers)] for rank in range(3)}
    got = answer(tmp_path, calls, nodes={0: 0, 1: 0, 2: 1}).matrix
    assert got is not None
    found = {
        (source, target): size
        for source, row in zip(got.ranks, got.bytes_per_step, strict=True)
        for target, size in zip(got.ranks, row, strict=True)
        if size
    }
    assert found == pytest.approx(sent)
    between = sum(size for (a, b), size in sent.items() if (a == 2) != (b == 2))
    assert got.between_nodes == pytest.approx(between / sum(sent.values()))


def test_what_was_sent_counts_once_and_what_only_the_receiver_tells_too(tmp_path: Path) -> None:
    calls = {
        0: [call("send", 10, 11, 100, n=3, peers="1")],
        1: [call("recv", 10, 11, 100, n=3, peers="0"), call("recv", 20, 21, 30, n=3, peers="2")],
        2: [call("send_recv", 30, 31, 64, n=3, peers=">0:64,<0:8")],
    }
    got = answer(tmp_path, calls).matrix
    assert got is not None
    # rank 2's send of 30 left no row of its own there, and rank 0 wrote none of its batch
    assert got.bytes_per_step == ((0.0, 100.0, 8.0), (0.0, 0.0, 0.0), (64.0, 30.0, 0.0))


# -- arrivals ----------------------------------------------------------------------------------------------------------


def test_who_comes_last_is_counted_and_how_late(tmp_path: Path) -> None:
    calls = {
        0: [call("all_reduce", 10, 30, 8), call("all_reduce", 40, 60, 8), call("broadcast", 61, 62, 8)],
        1: [call("all_reduce", 25, 30, 8), call("all_reduce", 50, 60, 8), call("broadcast", 69, 70, 8)],
    }
    first, second = answer(tmp_path, calls).arrivals
    assert (first.rank, first.first, first.last, first.matched, first.lateness.value) == (0, 2, 0, 2, 0)
    assert (second.rank, second.first, second.last, second.matched) == (1, 0, 2, 2)
    assert second.lateness.value == 12.5 * MS


def test_across_nodes_whose_clocks_contradict_each_other_nobody_came_last(tmp_path: Path) -> None:
    """Node 1's ranks enter an hour after node 0's left, by clocks that are said to agree; within a node it is known."""
    hour = 3_600_000
    calls = {rank: [call("all_reduce", 10, 30, 8, n=4)] for rank in (0, 1)}
    calls |= {rank: [call("all_reduce", hour + 10, hour + 30, 8, n=4)] for rank in (2, 3)}
    for rank in (0, 1):
        calls[rank].append(call("all_reduce", 40 + rank, 50, 8, group="5"))
    facts = {rank: [fact("comm.group.5", "[0, 1]")] for rank in (0, 1)}
    answers = analyse(read_run(write(tmp_path / "run", calls, facts=facts, nodes={0: 0, 1: 0, 2: 1, 3: 1})))
    assert answers.clocks is not None
    assert answers.clocks.state == "refused"
    found = [(row.rank, row.first, row.last, row.matched) for row in answers.communication.arrivals]
    assert found == [(0, 1, 0, 1), (1, 0, 1, 1)]


# -- invariants --------------------------------------------------------------------------------------------------------

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier", "broadcast")


@st.composite
def lockstep(draw: st.DrawFn) -> dict[int, list[tuple[Any, ...]]]:
    """Calls of up to four ranks on one group, one after another, each done when the last has entered it."""
    n = draw(st.integers(2, 4))
    calls: dict[int, list[tuple[Any, ...]]] = {rank: [] for rank in range(n)}
    now = [0.0] * n
    for _ in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from(OPS))
        size = None if op == "barrier" else draw(st.integers(0, 2**20))
        now = [time + draw(st.integers(0, 5000)) / 1000 for time in now]
        done = max(now) + draw(st.integers(1, 3000)) / 1000
        later = draw(st.booleans())
        for rank in range(n):
            start = now[rank]
            issue = start + 0.001 if later else None
            calls[rank].append(call(op, start, done, size, n=n, issue=issue))  # type: ignore[arg-type]
            now[rank] = done if not later else start + 0.001
    return calls


def relabelled(calls: dict[int, list[tuple[Any, ...]]], order: list[int]) -> dict[int, list[tuple[Any, ...]]]:
    return {order[rank]: rows for rank, rows in calls.items()}


INVARIANT = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@INVARIANT
@given(calls=lockstep(), seed=st.integers(0, 2**16))
def test_parts_add_up_and_do_not_depend_on_the_ranks_numbers(
    calls: dict[int, list[tuple[Any, ...]]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    got = answer(tmp_path_factory.mktemp("a"), calls)
    overlap = got.overlap
    assert overlap is not None
    in_flight, exposed, overlapped = (f.value or 0.0 for f in (overlap.in_flight, overlap.exposed, overlap.overlapped))
    assert exposed + overlapped == pytest.approx(in_flight, rel=1e-12)
    assert min(exposed, overlapped) >= 0
    # transfer and waiting are all of the matched calls' time, and here all are matched
    durations = sum(row[10] - row[8] for rows in calls.values() for row in rows)
    assert (overlap.transfer.value or 0) + (overlap.skew.value or 0) == pytest.approx(durations / len(calls), rel=1e-9)
    counted = [row for rows in calls.values() for row in rows if row[5] is not None]
    assert sum(row.calls_per_step for row in got.sizes) == pytest.approx(len(counted) / len(calls))
    assert sum(row.bytes_per_step for row in got.sizes) == pytest.approx(sum(r[5] for r in counted) / len(calls))
    assert all(row.first + row.last <= 2 * row.matched for row in got.arrivals)

    order = list(calls)
    random.Random(seed).shuffle(order)
    other = answer(tmp_path_factory.mktemp("b"), relabelled(calls, order))
    assert other.overlap == overlap
    assert other.sizes == got.sizes
    assert {order[row.rank]: (row.first, row.last, row.lateness) for row in got.arrivals} == {
        row.rank: (row.first, row.last, row.lateness) for row in other.arrivals
    }
    assert _total(other) == pytest.approx(_total(got))


def _total(got: CommunicationAnswer) -> float:
    return sum(map(sum, got.matrix.bytes_per_step)) if got.matrix is not None else 0.0


def test_a_whole_run_has_all_of_it(tmp_path: Path) -> None:
    got = analyse(read_run(build_run(tmp_path / "run", ranks=4, nodes=2))).communication
    assert got.overlap is not None
    assert got.overlap.exposed.value == pytest.approx(got.overlap.in_flight.value)
    assert got.matrix is not None
    assert got.matrix.between_nodes == pytest.approx(0.5)  # of the ring 0-1-2-3 the edges 1-2 and 3-0
    assert [row.nodes for row in got.groups] == [2]
    assert sum(row.last for row in got.arrivals) > 0
