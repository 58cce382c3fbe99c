"""Memory snapshots: their events with exact totals, and nothing in them that runs."""

import pickle
import pickletools
import random
from pathlib import Path
from typing import Any

import pytest

from agprof.errors import TraceError
from agprof.importers import torch_snapshot
from agprof.store.traces import read_traces


def event(action: str, size: int, time_us: int, addr: int = 4096) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "stream": 0, "time_us": time_us, "frames": []}


EVENTS = [
    event("segment_alloc", 1000, 10),
    event("alloc", 300, 11, 1),
    event("alloc", 200, 12, 2),
    event("free_requested", 300, 13, 1),
    event("free_completed", 300, 14, 1),
    event("snapshot", 0, 15),
]
LIVE = "active_allocated"
SEGMENTS = [
    {"device": 0, "total_size": 1000, "blocks": [{"size": 200, "state": LIVE}, {"size": 800, "state": "inactive"}]},
    {"device": 0, "total_size": 500, "blocks": [{"size": 500, "state": LIVE}]},
]
SNAPSHOT: dict[str, Any] = {"segments": SEGMENTS, "device_traces": [EVENTS, []], "allocator_settings": {"a": True}}


def written(tmp_path: Path, value: Any, name: str = "snapshot.pickle") -> Path:
    file = tmp_path / name
    file.write_bytes(pickle.dumps(value))
    return file


def test_totals_are_exact_though_the_history_begins_anywhere(tmp_path: Path) -> None:
    """500 bytes were allocated, and 500 reserved, before the history begins: the segments say so."""
    left_out = torch_snapshot.add_to(tmp_path, 0, written(tmp_path, SNAPSHOT)).left_out
    torch_snapshot.import_alone(tmp_path, 1, written(tmp_path, SNAPSHOT), rank_source="test", source="x")
    assert not left_out
    rows = read_traces(tmp_path)[1].table(
        "memory_events", "time_ns", "address", "bytes", "allocated_bytes", "reserved_bytes", "device", "on_device"
    )
    assert rows.rows() == [
        (11_000, 1, 300, 800, 1500, 0, True),
        (12_000, 2, 200, 1000, 1500, 0, True),
        (13_000, 1, -300, 700, 1500, 0, True),
    ]


def test_the_totals_at_the_end_are_those_of_the_segments(tmp_path: Path) -> None:
    chance = random.Random(3)
    live: dict[int, int] = {}
    events = []
    for number in range(500):
        if live and chance.random() < 0.5:
            address = chance.choice(list(live))
            events.append(event("free_requested", live.pop(address), number, address))
        else:
            live[number] = chance.randrange(1, 1000)
            events.append(event("alloc", live[number], number, number))
    blocks = [{"size": size, "state": "active_allocated"} for size in live.values()]
    segments = [{"device": 0, "total_size": 10**6, "blocks": blocks}]
    value = {"segments": segments, "device_traces": [events[200:]]}
    torch_snapshot.import_alone(tmp_path, 0, written(tmp_path, value), rank_source="test", source="x")
    rows = read_traces(tmp_path)[0].table("memory_events")
    assert rows["allocated_bytes"][-1] == sum(live.values())
    assert rows["allocated_bytes"].min() >= 0  # type: ignore[operator]
    before = sum(row["size"] * (1 if row["action"] == "alloc" else -1) for row in events[:200])
    assert rows["allocated_bytes"][0] - rows["bytes"][0] == before


def test_what_is_not_understood_is_counted(tmp_path: Path) -> None:
    strange = [event("teleport", 1, 1), event("alloc", -5, 2), event("alloc", 5, -1), {"action": "alloc"}, "no event"]
    value = {"segments": [], "device_traces": [strange]}
    left_out = torch_snapshot.add_to(tmp_path, 0, written(tmp_path, value)).left_out
    assert left_out == {"unknown action of the allocator": 1, "no size": 1, "no time": 2}


@pytest.mark.parametrize("value", [{"segments": [1, 2], "device_traces": "x"}, {"segments": [], "device_traces": [[]]}])
def test_a_snapshot_of_nothing_is_no_run(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TraceError, match="neither a segment nor an event"):
        torch_snapshot.import_alone(tmp_path, 0, written(tmp_path, value), rank_source="name", source="x.pickle")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04", b"\x80\x04\x8d" + b"\xff" * 8, b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", b"\x80\x04K\x05.",
     pickle.dumps([1, 2]), pickle.dumps({"segments": 5}), pickle.dumps({"a": 1})],
)  # fmt: skip
def test_what_is_no_snapshot(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.pickle"
    file.write_bytes(content)
    with pytest.raises(TraceError, match=r"x\.pickle: no (readable )?memory snapshot"):
        torch_snapshot.load(file)


def test_cut_and_flipped(tmp_path: Path) -> None:
    """A damaged pickle is refused, or is the snapshot with another value in it: never anything else."""
    whole = pickle.dumps(SNAPSHOT)
    assert len(pickletools.optimize(whole)) > 200
    file = tmp_path / "x.pickle"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(TraceError):
            torch_snapshot.load(file)
    chance = random.Random(4)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            torch_snapshot.import_alone(tmp_path, 0, file, rank_source="test", source="x")
        except TraceError:
            continue


def test_one_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_snapshot, "MAX_BYTES", 100)
    with pytest.raises(TraceError, match="more than the 100 that are read"):
        torch_snapshot.load(written(tmp_path, SNAPSHOT))
