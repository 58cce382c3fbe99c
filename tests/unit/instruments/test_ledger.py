"""The flight recorder's entries against the calls that were noted."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from agprof.instruments.comm_groups import Group
from agprof.instruments.ledger import Ledger
from collected_rows import CollectedRows, collecting_recorder

GLOO = Group("default", (0, 1, 2, 3), {"cpu": "gloo"})
NCCL = Group("default", (0, 1, 2, 3), {"cuda": "nccl"})


def entry(number: int, name: str, sizes: list[int], outputs: list[int] | None = None, **more: Any) -> dict[str, Any]:
    outputs = sizes if outputs is None else outputs
    return {
        "record_id": number,
        "profiling_name": name,
        "process_group": ["0", "default_pg"],
        "input_sizes": [sizes],
        "input_dtypes": ["Float"],
        "output_sizes": [outputs],
        "output_dtypes": ["Float"],
        "time_created_ns": time.time_ns(),
        **more,
    }


class Dumps:
    """torch with a flight recorder that holds `entries`."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        dump = json.dumps({"entries": entries} if entries else {})
        self._C = SimpleNamespace(_distributed_c10d=SimpleNamespace(_dump_fr_trace_json=lambda _all, _active: dump))


def compare(entries: list[dict[str, Any]], calls: list[tuple[int, Group, str, int | None]]) -> CollectedRows:
    recorder, collected = collecting_recorder()
    ledger = Ledger(recorder, Dumps(entries), 100)
    for end, group, call, size in calls:
        ledger.note(end, group, call, "cuda" if group is NCCL else "cpu", size)
    ledger.finish()
    return collected


def rows(collected: CollectedRows) -> list[tuple[Any, ...]]:
    return [tuple(row.values())[1:] for row in collected.table("ledger")]


def test_nothing_recorded_and_nothing_seen_gives_no_row() -> None:
    collected = compare([], [])
    assert rows(collected) == []
    assert collected.facts() == {"comm.recorded_total": "0", "comm.seen_total": "0"}


def test_gloo_records_a_reduce_scatter_as_all_reduces() -> None:
    entries = [entry(number, "gloo:all_reduce", [2]) for number in range(4)]
    entries.append(entry(4, "gloo:all_reduce", [8]))
    calls = [(1, GLOO, "reduce_scatter_list", 32), (2, GLOO, "reduce_scatter", 32)]
    assert rows(compare(entries, calls)) == [("all_reduce", 5, 5, 64, 64, True)]


def test_what_gloo_does_not_record_is_not_missed() -> None:
    calls = [(1, GLOO, call, 4) for call in ("send", "recv", "send_recv", "monitored_barrier")]
    assert rows(compare([], calls)) == []


def test_nccls_names_are_the_tables_names() -> None:
    entries = [
        entry(0, "nccl:_all_gather_base", [2], [8]),
        entry(1, "nccl:_reduce_scatter_base", [8], [2]),
        entry(2, "nccl:all_reduce_barrier", [0]),
        entry(3, "nccl:send 0->1", [3]),
        entry(4, "nccl:coalesced", []),
    ]
    calls = [(1, NCCL, "all_gather", 32), (2, NCCL, "reduce_scatter", 32), (3, NCCL, "barrier", None)]
    calls.append((4, NCCL, "send", 12))
    assert rows(compare(entries, calls)) == [
        ("all_gather", 1, 1, 32, 32, True),
        ("barrier", 1, 1, 0, 0, True),
        ("reduce_scatter", 1, 1, 32, 32, True),
        ("send", 1, 1, 12, 12, True),
    ]


def test_an_unseen_collective_has_a_row_of_its_own() -> None:
    collected = compare([entry(0, "gloo:broadcast", [2])], [])
    assert rows(collected) == [("broadcast", 1, 0, 8, 0, True)]


def test_after_an_overflow_only_the_kept_part_is_compared() -> None:
    now = time.time_ns()
    offset = now - time.monotonic_ns()
    entries = [entry(number, "gloo:broadcast", [1], time_created_ns=now + number * 1000) for number in (7, 8, 9)]
    calls = [(now - offset + number * 1000 + 500, GLOO, "broadcast", 4) for number in range(10)]
    collected = compare(entries, calls)
    [(op, recorded, seen, *_, complete)] = rows(collected)
    assert (op, recorded, complete) == ("broadcast", 3, False)
    # The two clocks are read a moment apart here; the rank's own rows are made around the recorder's.
    assert abs(seen - 3) <= 1
    assert collected.facts() == {"comm.recorded_total": "10", "comm.seen_total": "10"}


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({}, False), ({"TORCH_FR_BUFFER_SIZE": "0"}, False), ({"TORCH_FR_BUFFER_SIZE": "many"}, False)]
    + [({name: "100"}, True) for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")],
)
def test_there_is_a_ledger_where_the_flight_recorder_runs(
    environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    recorder, _ = collecting_recorder()
    assert (Ledger.of_environment(recorder, Dumps([])) is not None) == wanted


def test_a_torch_without_a_flight_recorder_has_no_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "100")
    recorder, _ = collecting_recorder()
    assert Ledger.of_environment(recorder, SimpleNamespace(_C=SimpleNamespace())) is None
