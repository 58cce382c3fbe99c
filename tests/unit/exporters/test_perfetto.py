"""What stands in the protobuf trace, read by a decoder that shares nothing with the encoder, is what the run holds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from chrome_rules import read_checked
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from perfetto_decoder import Slice, decode, read_trace
from scene_runs import COLLECTIVE, CPU_ROW, GPU_ROW, MEGABYTE, NASTY, SPAN, run_of

from agprof.exporters import chrome, perfetto, scenes
from agprof.exporters.protobuf import integer, varint, varints
from agprof.store.reader import Run, read_run
from synthetic import EPOCH_NS, build_run

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
Key = tuple[str, int, int | None]


def exported(run: Run, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (path,) = perfetto.export(run, folder, lambda line: None)
    return path


def keys(slices: list[Slice]) -> Counter[Key]:
    return Counter((each.name, each.start_ns, each.end_ns) for each in slices)


def chrome_slices(run: Run, folder: Path) -> tuple[Counter[Key], int]:
    """Name, begin and end of every slice of the other format, and its number of arrows' ends."""
    folder.mkdir(exist_ok=True)
    metadata, events = read_checked(chrome.export(run, folder, lambda line: None)[0])
    base = metadata["baseTimeNanoseconds"]
    slices = [event for event in events if event["ph"] == "X"]
    ends = sum(event["ph"] in "sf" for event in events)
    return Counter((e["name"], base + e["ts_ns"], base + e["ts_ns"] + e["dur_ns"]) for e in slices), ends


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_varints_are_those_of_the_wire_format(values: list[int]) -> None:
    assert varints(np.array(values, np.int64)) == [varint(value) for value in values]
    assert [decode(integer(5, value))[5] for value in values] == [[value] for value in values]


@FEW
@given(spans=st.lists(SPAN, max_size=12), calls=st.lists(COLLECTIVE, max_size=4))
@example(
    spans=[
        {"category": "range", "name": name, "start_ns": 0, "duration_ns": 9, "thread": 1} for name in (*NASTY, MEGABYTE)
    ],
    calls=[],
)
def test_slices_are_those_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, spans: list[dict[str, Any]], calls: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("perfetto")
    with run_of({0: spans}, {0: calls}) as run:
        found = read_trace(exported(run, folder))
        wall = EPOCH_NS - 5_000_000_000_000
        rows = run.tables["spans"].select("name", "start_ns", "end_ns").iter_rows()
        expected = Counter((name, start + wall, end + wall) for name, start, end in rows)
        assert keys([each for each in found.slices if each.category in ("phase", "range", "module")]) == expected
        assert keys(found.slices) == chrome_slices(run, folder / "chrome")[0]
        for each in found.slices:
            assert json.loads(each.args or "{}")["category"] == each.category


@FEW
@given(gpu=st.lists(GPU_ROW, max_size=10), cpu=st.lists(CPU_ROW, min_size=1, max_size=10))
def test_slices_and_arrows_of_a_device_trace_are_those_of_the_other_format(
    tmp_path_factory: pytest.TempPathFactory, gpu: list[dict[str, Any]], cpu: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("perfetto")
    with run_of({0: []}, trace={"gpu": gpu, "cpu": cpu}) as run, patch.object(scenes, "_CHUNK_ROWS", 3):
        found = read_trace(exported(run, folder))
        expected, ends = chrome_slices(run, folder / "chrome")
        assert keys(found.slices) == expected
        begun = [flow for each in found.slices for flow in each.flows_out]
        ended = [flow for each in found.slices for flow in each.flows_in]
        assert len(begun) + len(ended) == ends and set(begun) == set(ended) and len(set(begun)) == len(begun)


def test_every_part_of_a_run_is_in_the_trace(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", hostile=True, gpus=2, async_ops=True, nodes=2))
    found = read_trace(exported(run, tmp_path / "out"))
    kinds = Counter(each.category for each in found.slices)
    assert kinds["step"] == run.tables["steps"].height and kinds["collective"] == run.tables["collectives"].height
    assert len(found.instants) == run.tables["marks"].height
    power = found.counters["node 00", "GPU 0 power power (W)"]
    samples = run.tables["gpu_samples"]
    first = samples.filter((samples["node"] == 0) & (samples["gpu"] == 0)).row(0, named=True)
    assert power[0] == (first["time_ns"] + EPOCH_NS - 5_000_000_000_000, first["power_mw"] / 1000)
    assert {process for process, _ in found.counters} >= {"node 00", "node 01"}
    clocks = [decode(clock) for clock in found.snapshot[1]]
    assert {clock[1][0] for clock in clocks} == {1, 6} and {clock[2][0] for clock in clocks} == {EPOCH_NS}


def test_the_official_definitions_read_the_trace(tmp_path: Path) -> None:
    official = pytest.importorskip(
        "perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="pip install perfetto to check against its protos"
    )
    run = read_run(build_run(tmp_path / "run", hostile=True, gpus=2, async_ops=True))
    path = exported(run, tmp_path / "out")
    trace = official.Trace()
    trace.ParseFromString(path.read_bytes())
    assert not _unknown(trace)
    begins = [p for p in trace.packet if p.track_event.type == official.TrackEvent.TYPE_SLICE_BEGIN]
    ours = read_trace(path)
    assert Counter(p.timestamp for p in begins) == Counter(each.start_ns for each in ours.slices)
    counted = [p for p in trace.packet if p.track_event.type == official.TrackEvent.TYPE_COUNTER]
    assert len(counted) == sum(map(len, ours.counters.values()))


def _unknown(message: Any) -> int:
    """Fields that the official definitions do not know."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    count = len(UnknownFieldSet(message))
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            parts = [value] if isinstance(value, type(message)) or not hasattr(value, "__len__") else value
            count += sum(_unknown(part) for part in parts)
    return count
