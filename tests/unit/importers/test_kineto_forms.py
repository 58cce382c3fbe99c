"""The shapes in which Kineto's JSON comes, and what each kind of event becomes."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agprof.errors import TraceError
from agprof.importers.kineto import import_file, peek
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import TraceMeta
from kineto_files import expected_rows, kernel, kineto_text, loaded, only_trace, op, rows_of

BASE_NS = 1_700_000_000_123_456_789
EVENTS: list[Any] = [
    op(100.25, 50, **{"External id": 3}),
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 9, "tid": 9, "ts": 110, "dur": 5.125,
     "args": {"correlation": 5}},
    {"ph": "s", "id": 5, "pid": 9, "tid": 9, "ts": 110, "cat": "ac2g", "name": "ac2g"},
    kernel(120.001, 30.999),
    {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 9, "tid": 9, "ts": 121.5, "s": "t",
     "args": {"Total Reserved": 20, "Total Allocated": 10, "Bytes": -5, "Addr": 77, "Device Id": 0, "Device Type": 1}},
    {"name": "process_name", "ph": "M", "ts": 1, "pid": 9, "tid": 0, "args": {"name": "python"}},
]  # fmt: skip


def read(tmp_path: Path, text: str | bytes, name: str = "trace.json") -> TraceMeta:
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return import_file(file, tmp_path / "run", 0)


def column(tmp_path: Path, table: str, *columns: str) -> list[tuple[Any, ...]]:
    return only_trace(tmp_path / "run").table(table, *columns).rows()


WHOLE = {"schemaVersion": 1, "baseTimeNanoseconds": BASE_NS, "traceEvents": EVENTS}
REORDERED = {"traceEvents": EVENTS, "schemaVersion": 1, "baseTimeNanoseconds": BASE_NS}
SHAPES = {
    "as Kineto writes it": kineto_text(EVENTS, baseTimeNanoseconds=BASE_NS),
    "on one line": json.dumps(WHOLE),
    "without a blank": json.dumps(WHOLE, separators=(",", ":")),
    "indented by one": json.dumps(WHOLE, indent=1),
    "indented by four": json.dumps(WHOLE, indent=4),
    "metadata after the events": json.dumps(REORDERED, indent=2),
    "metadata after them, on one line": json.dumps(REORDERED),
    "lines of Windows": json.dumps(WHOLE, indent=1).replace("\n", "\r\n"),
    "with a byte order mark": "\ufeff" + json.dumps(WHOLE),
    "words of the format in a name": json.dumps(
        {"note": '"traceEvents": [ }, {"ph"', "n": {"traceEvents": [1]}} | WHOLE
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_shape_of_the_text_changes_nothing(tmp_path: Path, shape: str, packed: bool) -> None:
    text = SHAPES[shape].encode()
    meta = read(tmp_path, gzip.compress(text) if packed else text)
    found = rows_of(only_trace(tmp_path / "run"))
    assert found == expected_rows(WHOLE | {"traceEvents": loaded(json.dumps(EVENTS).encode())})
    assert found["gpu"][0][:2] == (BASE_NS + 120_001, 30_999)
    assert meta.truncated is None and meta.timestamp_unit == "ns"
    assert meta.producer == "schemaVersion 1"
    assert meta.events == {"cpu_op": 1, "cuda_runtime": 1, "kernel": 1, "cpu_instant_event": 1, "ph s": 1, "ph M": 1}
    assert (meta.first_ns, meta.last_ns) == (BASE_NS + 100_250, BASE_NS + 151_000)


@pytest.mark.parametrize("text", ["[]", '{"traceEvents": []}', '{"traceEvents":[\n\n],"distributedInfo":{"rank":3}}'])
def test_no_events_are_no_rows(tmp_path: Path, text: str) -> None:
    meta = read(tmp_path, text)
    assert meta.events == {} and meta.first_ns is None and meta.truncated is None
    assert only_trace(tmp_path / "run").table("gpu").is_empty()


def test_a_list_at_the_top_is_a_trace(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(EVENTS)).truncated is None
    assert column(tmp_path, "gpu", "start_ns") == [(120_001,)]


def test_one_event_is_read(tmp_path: Path) -> None:
    read(tmp_path, kineto_text([kernel(5)]))
    assert column(tmp_path, "gpu", "start_ns", "duration_ns") == [(5_000, 10_000)]


def test_times_are_shifted_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(kineto_text(EVENTS, baseTimeNanoseconds=BASE_NS))
    import_file(file, tmp_path / "run", 0, shift_ns=-7)
    assert column(tmp_path, "gpu", "start_ns") == [(BASE_NS + 120_001 - 7,)]


def test_reading_again_replaces_what_was_read(tmp_path: Path) -> None:
    read(tmp_path, kineto_text(EVENTS))
    read(tmp_path, kineto_text([*EVENTS, kernel(300)]))
    assert len(column(tmp_path, "gpu", "name")) == 2


def test_a_triton_operator_with_a_stream_stays_on_the_host(tmp_path: Path) -> None:
    read(tmp_path, kineto_text([op(5, name="triton_poi", stream=7, grid="grid(1,)"), op(6)]))
    assert column(tmp_path, "cpu", "kind", "stream") == [(CpuKind.OP, 7), (CpuKind.OP, None)]
    assert column(tmp_path, "gpu", "kind") == []


@pytest.mark.parametrize(
    ("category", "table", "kind"),
    [
        ("kernel", "gpu", GpuKind.KERNEL), ("Kernel", "gpu", GpuKind.KERNEL), ("gpu_memcpy", "gpu", GpuKind.MEMCPY),
        ("Memcpy", "gpu", GpuKind.MEMCPY), ("gpu_memset", "gpu", GpuKind.MEMSET), ("Memset", "gpu", GpuKind.MEMSET),
        ("cuda_sync", "gpu", GpuKind.SYNC), ("gpu_user_annotation", "gpu", GpuKind.ANNOTATION),
        ("mtia_ccp_events", "gpu", GpuKind.KERNEL), ("cpu_op", "cpu", CpuKind.OP), ("Operator", "cpu", CpuKind.OP),
        ("cuda_runtime", "cpu", CpuKind.RUNTIME), ("Runtime", "cpu", CpuKind.RUNTIME),
        ("privateuse1_runtime", "cpu", CpuKind.RUNTIME), ("mtia_runtime", "cpu", CpuKind.RUNTIME),
        ("hpu_op", "cpu", CpuKind.RUNTIME), ("xpu_sync", "gpu", GpuKind.SYNC), ("driver", "cpu", CpuKind.DRIVER),
        ("cuda_driver", "cpu", CpuKind.DRIVER), ("user_annotation", "cpu", CpuKind.ANNOTATION),
        ("python_function", "cpu", CpuKind.PYTHON), ("overhead", "cpu", CpuKind.OVERHEAD),
        ("something new", "cpu", CpuKind.OTHER),
    ],
)  # fmt: skip
def test_an_event_is_what_its_category_says(tmp_path: Path, category: str, table: str, kind: int) -> None:
    meta = read(tmp_path, kineto_text([kernel(1) | {"cat": category}] * 2))
    assert column(tmp_path, table, "kind") == [(kind,)] * 2
    assert any("something new (2)" in note for note in meta.notes) == (category == "something new")


def test_streams_and_threads_as_text_are_numbers(tmp_path: Path) -> None:
    old = kernel(1, stream="0x0") | {"pid": "0", "tid": "stream 7"}
    del old["args"]["device"]
    nameless = {"ph": "X", "cat": "Kernel", "name": "k", "pid": 1, "tid": "stream 12", "ts": 2, "dur": 1}
    read(tmp_path, kineto_text([old, nameless, op(3) | {"tid": "1890023232"}, op(4) | {"tid": "main"}]))
    assert column(tmp_path, "gpu", "device", "stream") == [(0, 0), (1, 12)]
    assert column(tmp_path, "cpu", "thread") == [(1890023232,), (None,)]


def test_graph_nodes_bytes_and_waits_are_kept(tmp_path: Path) -> None:
    sync = kernel(3, correlation=8, wait_on_stream=20, wait_on_cuda_event_record_corr_id=6) | {"cat": "cuda_sync"}
    copy = kernel(2, bytes=4096) | {"cat": "gpu_memcpy"}
    read(tmp_path, kineto_text([kernel(1, **{"graph node id": 12, "graph id": 3}), copy, sync]))
    assert column(tmp_path, "gpu", "graph_node", "bytes") == [(12, None), (None, 4096), (None, None)]
    assert column(tmp_path, "event_waits", "correlation", "waited_stream", "record_correlation") == [(8, 20, 6)]


def test_a_collective_says_its_size_and_group(tmp_path: Path) -> None:
    said = {
        "Collective name": "_allgather_base", "In msg nelems": 64, "Out msg nelems": 512, "Group size": 8,
        "dtype": "BFloat16", "Process Group Name": "3", "Process Group Description": "tp", "Seq": 41,
    }  # fmt: skip
    read(tmp_path, kineto_text([kernel(1, **said), op(0, name="record_param_comms", **said), kernel(9)]))
    assert column(tmp_path, "comm_args") == [
        (0, None, None, "all_gather", "3 (tp)", 8, "BFloat16", 64, 512, 41),
        (1_000, 5, 3, "all_gather", "3 (tp)", 8, "BFloat16", 64, 512, 41),
    ]


def test_memory_events_are_of_a_device_or_of_the_host(tmp_path: Path) -> None:
    host = json.loads(json.dumps(EVENTS[4]))
    host["args"] |= {"Device Type": 0, "Device Id": -1}
    read(tmp_path, kineto_text([EVENTS[4], host]))
    assert column(tmp_path, "memory_events") == [
        (121_500, True, 0, 77, -5, 10, 20),
        (121_500, False, -1, 77, -5, 10, 20),
    ]


def test_counters_are_samples_by_name(tmp_path: Path) -> None:
    counter = {"ph": "C", "name": "GPU 0", "pid": 0, "ts": 4.5, "args": {"SM": 0.25, "GPU 0": 3, "text": "x"}}
    meta = read(tmp_path, kineto_text([kernel(1), counter]))
    trace = only_trace(tmp_path / "run")
    names = trace.names()
    samples = [(time, names[name], value) for time, name, value in trace.table("counters").iter_rows()]
    assert samples == [(4_500, "GPU 0: SM", 0.25), (4_500, "GPU 0", 3.0)]
    assert meta.events["ph C"] == 1


def test_begins_are_joined_with_the_ends_of_their_thread(tmp_path: Path) -> None:
    def half(phase: str, ts: float, tid: int = 1, **more: Any) -> dict[str, Any]:
        return {"ph": phase, "pid": 1, "tid": tid, "ts": ts} | more

    events = [
        half("B", 1, cat="cpu_op", name="outer"), half("B", 2.5, cat="cpu_op", name="inner"),
        half("B", 2, tid=2, cat="cpu_op", name="other"), half("E", 3.125), half("E", 7, tid=2), half("E", 9),
        half("E", 10), half("B", 11, cat="cpu_op", name="open"),
    ]  # fmt: skip
    meta = read(tmp_path, kineto_text(events))
    trace = only_trace(tmp_path / "run")
    found = [(trace.names()[n], s, d) for n, s, d in trace.table("cpu", "name", "start_ns", "duration_ns").iter_rows()]
    assert found == [("outer", 1_000, 8_000), ("other", 2_000, 5_000), ("inner", 2_500, 625)]
    assert meta.left_out == {"end without begin": 1, "begin without end": 1}


def test_what_the_file_says_of_itself_is_kept(tmp_path: Path) -> None:
    metadata = {
        "deviceProperties": [{"id": 0, "name": "NVIDIA H100", "clock": 1.5}],
        "distributedInfo": {"rank": 2, "world_size": 4},
        "host_name": "node7",
        "INFO": ["INFO: CUPTI stopped early? = 1"],
        "WARNING": ["WARNING: Dropped 12 activity records"],
    }
    meta = read(tmp_path, kineto_text(EVENTS, **metadata))
    assert (meta.world_size, meta.host, meta.dropped_events) == (4, "node7", 12)
    assert meta.devices == ({"id": 0, "name": "NVIDIA H100", "clock": 1.5},)
    assert meta.notes[:2] == ("INFO: CUPTI stopped early? = 1", "WARNING: Dropped 12 activity records")
    assert peek(tmp_path / "trace.json").rank == 2


@pytest.mark.parametrize("packed", [False, True])
def test_the_rank_is_found_at_the_end_of_the_file(tmp_path: Path, packed: bool) -> None:
    text = json.dumps({"traceEvents": EVENTS * 50, "distributedInfo": {"rank": 5}, "x": [{"a": 1}]}).encode()
    file = tmp_path / "a.json"
    file.write_bytes(gzip.compress(text) if packed else text)
    assert peek(file).rank == 5


def test_progress_goes_from_little_to_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(kineto_text(EVENTS * 20))
    told: list[float] = []
    import_file(file, tmp_path / "run", 0, progress=told.append)
    assert told and told == sorted(told) and told[-1] == 1.0


@pytest.mark.parametrize("text", ["", "hello", "{}", '{"traceEvents": 5}', "\x00\x01", '{"a": [1, 2', "PK\x03\x04"])
def test_what_is_no_trace_is_a_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match=r"trace\.json: .*Kineto"):
        read(tmp_path, text)
    assert not list((tmp_path / "run").rglob("*"))


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        import_file(tmp_path / "none.json", tmp_path / "run", 0)
