from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.comm import bus_factor
from agprof.analysis.run import analyse
from agprof.model.answers import CommunicationAnswer
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import BOOT_NS, MS, build_run, rank_header, write_stream

Call = tuple[Any, ...]


def call(op: str, start: int, end: int | None, size: int | None, n: int = 2, step: int = 0, group: str = "g") -> Call:
    """A synchronous collective, milliseconds since the begin."""
    begin = BOOT_NS + start * MS
    done = None if end is None else BOOT_NS + end * MS
    issue = begin + MS if done is None else done
    return (step, 0, op, group, n, size, "float32", done is None, begin, issue, done, 0, "wrapper", 7, "backward")


def communication(path: Path, calls: dict[int, list[Call]], waits: list[Call] | None = None) -> CommunicationAnswer:
    """One step of 100 ms on each rank with these calls."""
    (path / layout.RANKS).mkdir()
    for rank, rows in calls.items():
        step = (0, BOOT_NS, BOOT_NS + 100 * MS, 1, None, None, None, False)
        tables = {"steps": [step], "collectives": rows, "waits": waits or []}
        write_stream(layout.rank_stream(path, rank), rank_header(rank, len(calls)), tables)  # type: ignore[arg-type]
    return analyse(read_run(path)).communication


@pytest.mark.parametrize(
    ("op", "n", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 8, 1.75),
        ("all_gather", 4, 0.75),
        ("reduce_scatter", 4, 0.75),
        ("all_to_all", 4, 0.75),
        ("gather", 4, 0.75),
        ("scatter", 4, 0.75),
        ("broadcast", 4, 1.0),
        ("reduce", 4, 1.0),
        ("send", 2, 1.0),
        ("barrier", 4, None),
        ("something", 4, None),
        ("all_reduce", 1, None),
    ],
)
def test_bus_factors_are_those_of_nccl_tests(op: str, n: int, factor: float | None) -> None:
    assert bus_factor(op, n) == factor


def test_bandwidth_takes_the_shortest_duration_over_the_ranks(tmp_path: Path) -> None:
    # rank 1 enters 30 ms later: the transfer is its 10 ms, the rest of rank 0's 40 ms is waiting
    answer = communication(
        tmp_path, {0: [call("all_reduce", 10, 50, 1_000_000)], 1: [call("all_reduce", 40, 50, 1_000_000)]}
    )
    (row,) = answer.rows
    assert row.algorithm_bandwidth.value == pytest.approx(1_000_000 / 0.010)
    assert row.bus_bandwidth.value == pytest.approx(1_000_000 / 0.010 * 1.0)
    assert row.algorithm_bandwidth.n == 1
    assert row.exposed_ns_per_step == pytest.approx((40 + 10) / 2 * MS)
    assert row.share == pytest.approx(0.25)
    assert answer.exposed_share.value == pytest.approx(0.25)


def test_the_kth_call_of_an_operation_on_a_group_is_matched(tmp_path: Path) -> None:
    late = [call("all_reduce", 0, 10, 100), call("broadcast", 10, 11, 100), call("all_reduce", 20, 30, 100)]
    early = [call("all_reduce", 8, 10, 100), call("all_reduce", 25, 30, 100), call("broadcast", 10, 11, 100)]
    answer = communication(tmp_path, {0: late, 1: early})
    rows = {row.op: row for row in answer.rows}
    bandwidth = rows["all_reduce"].algorithm_bandwidth
    assert bandwidth.n == 2
    assert (bandwidth.low, bandwidth.high) == (pytest.approx(100 / 0.005), pytest.approx(100 / 0.002))


def test_a_call_without_its_ranks_uses_its_own_duration_and_says_so(tmp_path: Path) -> None:
    answer = communication(tmp_path, {0: [call("all_reduce", 10, 50, 1_000_000, n=4)], 1: []})
    (row,) = answer.rows
    assert row.algorithm_bandwidth.value == pytest.approx(1_000_000 / 0.040)
    assert "waiting included" in row.algorithm_bandwidth.method
    assert row.bus_bandwidth.value == pytest.approx(1_000_000 / 0.040 * 1.5)


def test_a_group_uses_its_own_size(tmp_path: Path) -> None:
    calls = {rank: [call("all_gather", 0, 10, 4000, n=2, group="pair" if rank < 2 else "other")] for rank in range(4)}
    answer = communication(tmp_path, calls)
    assert [row.group for row in answer.rows] == ["other", "pair"]
    for row in answer.rows:
        assert row.bus_bandwidth.value == pytest.approx(4000 / 0.010 / 2)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([call("all_reduce", 0, 5, None)], "the size is not known"),
        ([call("barrier", 0, 5, 0)], "it moves no data"),
        ([call("all_reduce", 0, 5, 100, n=1)], "one rank: nothing is transferred"),
        ([call("all_reduce", 0, None, 100)], "no call was seen to complete"),
    ],
)
def test_no_bandwidth_has_a_reason(rows: list[Call], reason: str, tmp_path: Path) -> None:
    answer = communication(tmp_path, {0: rows, 1: rows})
    assert answer.rows[0].bus_bandwidth.value is None
    assert answer.rows[0].bus_bandwidth.reason == reason


def test_overlapping_waits_count_once(tmp_path: Path) -> None:
    waits = [(0, "all_reduce", BOOT_NS + a * MS, BOOT_NS + b * MS, 7) for a, b in ((20, 40), (30, 50), (99, 140))]
    answer = communication(tmp_path, {0: [call("all_reduce", 10, None, 8)], 1: []}, waits)
    assert answer.exposed_per_step.high == (1 + 30 + 1) * MS


def test_one_rank_says_that_there_is_nothing_to_communicate(tmp_path: Path) -> None:
    answer = analyse(read_run(build_run(tmp_path / "run", ranks=1))).communication
    assert answer.sentence == "One rank: there is nothing to communicate."
    assert answer.rows == ()
    assert answer.exposed_share.value == 0


def test_the_ledger_confirms_or_names_what_is_unseen(tmp_path: Path) -> None:
    good = analyse(read_run(build_run(tmp_path / "a"))).communication
    assert good.ledger_sentence == "The flight recorder confirms all 312 collectives."
    bad = analyse(read_run(build_run(tmp_path / "b", unseen=True))).communication
    assert [(row.rank, row.op, row.recorded - row.seen) for row in bad.unseen] == [
        (0, "all_reduce", 5),
        (0, "barrier", 3),
        (1, "all_reduce", 5),
        (1, "barrier", 3),
    ]
    assert "16 of 328 collectives" in bad.ledger_sentence
    none = analyse(read_run(build_run(tmp_path / "c", ledger=False))).communication
    assert none.ledger_sentence.startswith("There is no ledger")


def test_counts_per_step_on_a_synthetic_run(tmp_path: Path) -> None:
    answer = analyse(read_run(build_run(tmp_path / "run", collectives=7, collective_bytes=1000))).communication
    assert answer.calls_per_step.value == 8
    assert answer.bytes_per_step.value == 7 * 1000 + 2000
    assert {(row.op, row.calls_per_step, row.caller) for row in answer.rows} == {
        ("all_reduce", 7.0, "backward"),
        ("all_gather", 1.0, "optimizer"),
    }
