"""The rules of Chrome's trace event format as Perfetto takes them, and a reader that holds a file to them."""

import gzip
import json
import zlib
from bisect import bisect_right
from collections import Counter, defaultdict
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

Event = dict[str, Any]
NAMED = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index",
         "thread_sort_index": "sort_index"}  # fmt: skip


def read_checked(path: Path) -> tuple[dict[str, Any], list[Event]]:
    """Metadata and events, times in whole nanoseconds (`ts_ns`, `dur_ns`). Fails where a rule is broken."""
    data = path.read_bytes()
    decompressor = zlib.decompressobj(zlib.MAX_WBITS | 16)
    text = decompressor.decompress(data)
    assert decompressor.eof and not decompressor.unused_data, "not one whole gzip member"
    assert text == gzip.decompress(data)
    whole = json.loads(text.decode("utf-8"), parse_float=Decimal, parse_constant=_refuse)
    events = whole.pop("traceEvents")
    for event in events:
        _check_event(event)
    _check_names(events)
    _check_nesting(events)
    _check_flows(events)
    return whole, events


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _check_event(event: Event) -> None:
    assert event["ph"] in "XsfiCM", event
    assert isinstance(event["name"], str)
    for number in ("pid", "tid"):
        assert type(event[number]) is int and 0 <= event[number] < 2**32, event
    event["ts_ns"] = _nanoseconds(event["ts"])
    if event["ph"] == "X":
        event["dur_ns"] = _nanoseconds(event["dur"])
        assert isinstance(event["cat"], str) and isinstance(event["args"], dict)
    elif event["ph"] == "i":
        assert event["s"] in ("t", "p", "g")
    elif event["ph"] == "C":
        assert event["args"] and all(type(value) in (int, Decimal) for value in event["args"].values())
    elif event["ph"] == "M":
        assert isinstance(event["args"][NAMED[event["name"]]], str | int)


def _nanoseconds(microseconds: int | Decimal) -> int:
    exact = microseconds * 1000
    assert exact == int(exact) >= 0, f"{microseconds} is no whole number of nanoseconds"
    return int(exact)


def _check_names(events: list[Event]) -> None:
    """Every track that is used has a name, and no thread belongs to two processes."""
    processes = {event["pid"] for event in events if event["name"] == "process_name" and event["ph"] == "M"}
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name" and e["ph"] == "M"}
    for event in events:
        if event["ph"] in "Xsfi":
            assert (event["pid"], event["tid"]) in threads, event
        if event["ph"] in "XsfiC":
            assert event["pid"] in processes, event
    assert len({tid for _, tid in threads}) == len(threads), "a thread id stands for two tracks"


def _check_nesting(events: list[Event]) -> None:
    """As Perfetto does: by time, in file order where times are equal; a slice that crosses an open one is dropped."""
    stacks: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts_ns"]):
        start, end = event["ts_ns"], event["ts_ns"] + event["dur_ns"]
        stack = stacks[event["pid"], event["tid"]]
        while stack and (stack[-1][1] < start or (stack[-1][1] == start and not (stack[-1][0] == start == end))):
            stack.pop()
        assert not any(start < open_end < end for _, open_end in stack), f"{event} crosses an open slice"
        stack.append((start, end))


def _check_flows(events: list[Event]) -> None:
    """One begin and at least one end for each arrow, each within a slice of its track."""
    slices: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts_ns"], event["ts_ns"] + event["dur_ns"]))
    begins = Counter(event["id"] for event in events if event["ph"] == "s")
    ends = {event["id"] for event in events if event["ph"] == "f"}
    assert set(begins.values()) <= {1} and set(begins) == ends
    furthest = {track: list(accumulate((end for _, end in sorted(spans)), max)) for track, spans in slices.items()}
    starts = {track: sorted(start for start, _ in spans) for track, spans in slices.items()}
    for event in events:
        if event["ph"] in "sf":
            track = event["pid"], event["tid"]
            before = bisect_right(starts.get(track, []), event["ts_ns"])
            assert before and furthest[track][before - 1] >= event["ts_ns"], event
            assert event["ph"] == "s" or event["bp"] == "e"
