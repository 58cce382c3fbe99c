"""SQLite exports of Nsight Systems: what is read, on which rank it lands, and the reference file's figures."""

import gzip
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from nsys_exports import EPOCH_NS, call, kernel, nvtx, payload, process, strings, thread, write_export

from agprof.errors import TraceError
from agprof.importers import nsys
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace, read_traces

MS = 10**6


def imported(file: Path, run: Path) -> dict[int, RankTrace]:
    head = nsys.peek(file)
    run.mkdir()
    ranks = [number if found.rank is None else found.rank for number, found in enumerate(head.ranks)]
    nsys.import_file(file, run, head, ranks, rank_sources=["test"] * len(ranks))
    problems: list[str] = []
    traces = read_traces(run, problems)
    assert not problems
    return traces


def read(tmp_path: Path, tables: dict[str, Sequence[Any]], **more: Any) -> dict[int, RankTrace]:
    return imported(write_export(tmp_path / "x.sqlite", tables, **more), tmp_path / "run")


def union_ns(rows: pl.DataFrame) -> int:
    total = end = 0
    for start, duration in rows.select("start_ns", "duration_ns").sort("start_ns").iter_rows():
        total += max(0, start + duration - max(start, end))
        end = max(end, start + duration)
    return total


def named(trace: RankTrace, table: str) -> list[str]:
    names = trace.names()
    return [names[number] for number in trace.table(table)["name"]]


def test_the_reference_export_of_two_gpus(tmp_path: Path, traces_dir: Path) -> None:
    file = tmp_path / "x.sqlite"
    with gzip.open(traces_dir / "nsys_h100_2gpu_1s.sqlite.gz") as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out)
    traces = imported(file, tmp_path / "run")
    assert sorted(traces) == [0, 1]
    for rank, trace in traces.items():
        busy = trace.table("gpu").filter(pl.col("kind").is_in([GpuKind.KERNEL, GpuKind.MEMCPY, GpuKind.MEMSET]))
        assert busy["device"].unique().to_list() == [rank]
        assert busy.height == 1721 + 452 + 11
        window = int((busy["start_ns"] + busy["duration_ns"]).max()) - int(busy["start_ns"].min())  # type: ignore[arg-type]
        assert round(window / MS, 1) == (969.4, 969.3)[rank]
        assert round(union_ns(busy) / MS, 1) == (962.9, 962.8)[rank]
        assert trace.meta.left_out == {}
        assert trace.meta.notes == ()
        assert trace.meta.producer == "Nsight Systems 2026.2.1.210"
    # utcEpochNs of the file plus the first copy's start, to the nanosecond
    assert traces[0].table("gpu")["start_ns"][0] == 1_779_630_014_975_716_426 + 155_357_525_002


def test_operators_of_emit_nvtx_are_operators_under_their_own_names(tmp_path: Path) -> None:
    traces = read(
        tmp_path,
        {
            "NVTX_EVENTS": [
                nvtx(0, 10, "aten::mm, seq = 5, op_id = 123"),
                nvtx(20, 30, "MmBackward0, seq = 5, op_id = 130, sizes = [[2, 2], []], input_op_ids = [(129,0)]"),
                nvtx(40, 50, "FSDP::pre_forward (layer.1), op_id = 131"),
                nvtx(60, 70, "my range, op_id = none"),
            ]
        },
    )
    cpu = traces[0].table("cpu")
    assert named(traces[0], "cpu") == [
        "aten::mm",
        "MmBackward0",
        "FSDP::pre_forward (layer.1)",
        "my range, op_id = none",
    ]
    assert cpu["kind"].to_list() == [CpuKind.OP, CpuKind.OP, CpuKind.ANNOTATION, CpuKind.ANNOTATION]
    assert cpu["sequence"].to_list() == [5, 5, None, None]


@pytest.mark.parametrize("suffix", ["", "_V2", "_V3"])
def test_tables_with_a_version_in_their_names(tmp_path: Path, suffix: str) -> None:
    traces = read(
        tmp_path,
        {
            "StringIds": strings("k"),
            f"CUPTI_ACTIVITY_KIND_KERNEL{suffix}": [kernel(5, 9, 1)],
            f"NVTX_EVENTS{suffix}": [nvtx(0, 10, "range")],
        },
    )
    assert (named(traces[0], "gpu"), named(traces[0], "cpu")) == (["k"], ["range"])


def test_the_newest_version_of_a_table_that_has_rows_counts(tmp_path: Path) -> None:
    traces = read(
        tmp_path, {"NVTX_EVENTS": [nvtx(0, 1, "old")], "NVTX_EVENTS_V2": [nvtx(0, 1, "new")], "NVTX_EVENTS_V3": []}
    )
    assert named(traces[0], "cpu") == ["new"]


def test_an_export_of_2022_without_processes_in_the_device_tables(tmp_path: Path) -> None:
    rows = [kernel(300, 400, 1, pid=None, correlation=2), kernel(100, 200, 1, pid=None, correlation=1)]
    traces = read(
        tmp_path,
        {
            "StringIds": strings("k", "cudaLaunchKernel_v7000", "cudaMemcpyAsync_ptsz_v7000", "cuLaunchKernel"),
            "CUPTI_ACTIVITY_KIND_KERNEL": rows,
            "CUPTI_ACTIVITY_KIND_RUNTIME": [
                call(10, 20, 2, correlation=1),
                call(30, 40, 3, correlation=2),
                call(50, 60, 4),
            ],
            "ENUM_CUDA_MEMCPY_OPER": [],
        },
    )
    (trace,) = traces.values()
    assert trace.table("gpu")["start_ns"].to_list() == [EPOCH_NS + 100, EPOCH_NS + 300]
    assert named(trace, "cpu") == ["cudaLaunchKernel", "cudaMemcpyAsync", "cuLaunchKernel"]
    assert trace.table("cpu")["kind"].to_list() == [CpuKind.RUNTIME, CpuKind.RUNTIME, CpuKind.DRIVER]
    assert trace.table("cpu")["correlation"].to_list() == [1, 2, None]


def test_copies_are_named_without_the_enumerations(tmp_path: Path) -> None:
    copy = kernel(0, 5, 0) | {"bytes": 64, "copyKind": 1, "srcKind": 1, "dstKind": 2}
    strange = kernel(10, 15, 0) | {"bytes": 64, "copyKind": 99}
    memset = kernel(20, 25, 0) | {"bytes": 8, "memKind": 2}
    traces = read(tmp_path, {"CUPTI_ACTIVITY_KIND_MEMCPY": [copy, strange], "CUPTI_ACTIVITY_KIND_MEMSET": [memset]})
    assert named(traces[0], "gpu") == ["Memcpy HtoD (Pinned -> Device)", "(no name)", "Memset (Device)"]
    assert traces[0].table("gpu")["bytes"].to_list() == [64, 64, 8]


def test_one_rank_per_process_and_device_and_none_for_a_context_by_mistake(tmp_path: Path) -> None:
    many = [
        kernel(i * 10, i * 10 + 5, 1, pid=pid, device=device) for i in range(200) for pid, device in ((1, 0), (2, 1))
    ]
    stray = [kernel(3, 4, 1, pid=2, device=0)]
    traces = read(
        tmp_path,
        {"StringIds": strings("k"), "CUPTI_ACTIVITY_KIND_KERNEL": many + stray,
         "NVTX_EVENTS": [nvtx(0, 9, "a", pid=1), nvtx(0, 9, "b", pid=2), nvtx(0, 9, "loader", pid=3)]},
    )  # fmt: skip
    assert [trace.table("gpu").height for trace in traces.values()] == [200, 200]
    assert [named(trace, "cpu") for trace in traces.values()] == [["a"], ["b"]]
    assert traces[0].meta.left_out == {
        "CUPTI_ACTIVITY_KIND_KERNEL of other processes or devices": 1,
        "NVTX_EVENTS of other processes or devices": 1,
    }


def test_a_process_with_two_devices_is_two_ranks_and_each_has_its_own_launches(tmp_path: Path) -> None:
    traces = read(
        tmp_path,
        {
            "StringIds": strings("k", "cudaLaunchKernel", "cudaDeviceSynchronize"),
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(5, 9, 1, correlation=1), kernel(6, 9, 1, device=1, correlation=2)],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [call(0, 1, 2, correlation=1), call(2, 3, 2, correlation=2), call(4, 9, 3)],
        },
    )
    assert [trace.table("cpu")["correlation"].to_list() for trace in traces.values()] == [[1, None], [2, None]]


def test_waits_go_by_their_process_and_know_the_record_that_they_wait_for(tmp_path: Path) -> None:
    sync = [kernel(7, 9, 0, pid=2, device=0, correlation=5) | {"syncType": 2, "eventSyncId": 3}]
    record = [{"globalPid": process(2), "eventSyncId": 3, "streamId": 15, "correlationId": 4}]
    traces = read(
        tmp_path,
        {
            "StringIds": strings("k"),
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1, pid=1, device=0), kernel(0, 5, 1, pid=2, device=1)],
            "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": sync,
            "CUPTI_ACTIVITY_KIND_CUDA_EVENT": record,
        },
    )
    assert named(traces[1], "gpu") == ["k", "Stream Wait Event"]
    assert traces[1].table("gpu")["device"].to_list() == [1, 1]
    assert traces[1].table("event_waits").rows() == [(5, 15, 4)]


RANKS_OF = {
    "mark": {"NVTX_EVENTS": [nvtx(1, None, "agprof.rank", type_=34, pid=pid, int64Value=9 - pid) for pid in (1, 2)]},
    "mark with its number in the name": {
        "NVTX_EVENTS": [nvtx(1, None, f"agprof.rank {9 - pid}", type_=34, pid=pid) for pid in (1, 2)]
    },
    "MPI": {"MPI_RANKS": [{"globalTid": thread(pid, 5), "rank": 9 - pid} for pid in (1, 2)]},
    "process": {"PROCESSES": [{"globalPid": process(pid), "name": f"rank 0{9 - pid} (host)"} for pid in (1, 2)]},
}


@pytest.mark.parametrize("how", RANKS_OF)
def test_ranks_that_the_export_tells(tmp_path: Path, how: str) -> None:
    tables = {"StringIds": strings("k"), "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1, pid=1), kernel(0, 5, 1, pid=2)]}
    head = nsys.peek(write_export(tmp_path / "x.sqlite", tables | RANKS_OF[how]))
    assert [(found.rank, (found.process or 0) & 0xFFFFFF) for found in head.ranks] == [(7, 2), (8, 1)]


def test_agprofs_ranges_beside_the_process_that_they_are_of_are_no_second_rank(tmp_path: Path) -> None:
    tables = {
        "NVTX_EVENTS": [
            nvtx(1, None, "agprof.rank 3", type_=34, pid=1),
            nvtx(0, 9, "a", pid=1),
            nvtx(0, 9, "b", pid=2),
        ],
        "PROCESSES": [{"globalPid": process(2), "name": "rank 03 (host)"}],
    }
    (trace,) = read(tmp_path, tables).values()
    assert named(trace, "cpu") == ["a", "agprof.rank 3"]
    assert trace.meta.left_out == {"NVTX_EVENTS of other processes or devices": 1}


def test_two_processes_that_claim_one_rank_have_none(tmp_path: Path) -> None:
    mpi = [{"globalTid": thread(pid, 5), "rank": 3} for pid in (1, 2)]
    tables = {"StringIds": strings("k"), "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1, pid=1), kernel(0, 5, 1, pid=2)]}
    head = nsys.peek(write_export(tmp_path / "x.sqlite", {**tables, "MPI_RANKS": mpi}))
    assert [found.rank for found in head.ranks] == [None, None]


def test_the_rank_in_the_environment_counts_for_an_export_of_one_rank(tmp_path: Path) -> None:
    variables = ['RANK="3"', 'WORLD_SIZE="8"', 'SECRET="4"']
    capture = [{"name": "PROCESS_0:ENVIRONMENT_VARIABLE", "value": value} for value in variables]
    head = nsys.peek(
        write_export(tmp_path / "x.sqlite", {"NVTX_EVENTS": [nvtx(0, 1, "a")], "META_DATA_CAPTURE": capture})
    )
    assert [(found.rank, found.rank_source, found.world_size) for found in head.ranks] == [(3, "environment", 8)]


def test_domains_marks_and_ranges_that_cross(tmp_path: Path) -> None:
    rows = [
        nvtx(-50, None, "ours", type_=75, domain=1),
        nvtx(-60, None, "agprof", type_=75, domain=2),
        nvtx(0, 10, "a", domain=1),
        nvtx(0, 10, "step 0", type_=60, domain=2),
        nvtx(5, 15, "crosses", type_=60),
        nvtx(3, None, "point", type_=34),
        nvtx(4, None, "never ended"),
        nvtx(6, 7, None, textId=1),
    ]
    (trace,) = read(tmp_path, {"NVTX_EVENTS": rows, "StringIds": strings("registered")}).values()
    found = dict(
        zip(named(trace, "cpu"), trace.table("cpu").select("start_ns", "duration_ns", "thread").rows(), strict=True)
    )
    assert found == {
        "ours:a": (EPOCH_NS, 10, 10),
        "step 0": (EPOCH_NS, 10, None),
        "crosses": (EPOCH_NS + 5, 10, None),
        "point": (EPOCH_NS + 3, 0, 10),
        "registered": (EPOCH_NS + 6, 1, 10),
    }
    assert trace.meta.left_out == {"no time": 1}


COMM, REDUCE = 16_777_218, 16_777_220
SCHEMAS = [
    {"domainId": 1, "schemaId": COMM, "type": 18, "name": "NCCL communicator ID", "offset": None},
    {"domainId": 1, "schemaId": COMM, "type": 5, "name": "No. of ranks", "offset": 8},
    {"domainId": 1, "schemaId": COMM, "type": 5, "name": "Rank", "offset": 12},
    {"domainId": 1, "schemaId": REDUCE, "type": 18, "name": "NCCL communicator ID", "offset": None},
    {"domainId": 1, "schemaId": REDUCE, "type": 22, "name": "Message size [bytes]", "offset": 8},
]  # fmt: skip


def nccl(start: int, end: int, name: str, schema: int, body: bytes, pid: int = 10) -> Any:
    return nvtx(start, end, name, domain=1, pid=pid, binaryData=payload(1, schema, body))


def test_nccl_payloads_give_rank_group_and_size_and_the_kernel_that_they_are_of(tmp_path: Path) -> None:
    torn = nvtx(90, 99, "ncclAllReduce", domain=1, binaryData=payload(1, REDUCE, b"\x00" * 16)[:-4])
    foreign = nvtx(90, 99, "ncclAllReduce", domain=1, binaryData=payload(1, 77, b"\x00" * 16))
    rows = [
        nccl(0, 10, "ncclCommInitRank", COMM, struct.pack("<Qiiii", 2**63 + 5, 4, 3, 0, 0)),
        nccl(20, 40, "ncclAllReduce", REDUCE, struct.pack("<QQ", 2**63 + 5, 4096)),
        nccl(50, 60, "ncclAllGather", REDUCE, struct.pack("<QQ", 2**63 + 5, 100)),
        nccl(70, 80, "ncclReduceScatter", REDUCE, struct.pack("<QQ", 2**63 + 5, 100)),
        torn,
        foreign,
    ]
    traces = read(
        tmp_path,
        {
            "StringIds": strings("ncclDevKernel_AllReduce", "cudaLaunchKernelExC_v11060"),
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(45, 48, 1, correlation=6)],
            "CUPTI_ACTIVITY_KIND_RUNTIME": [call(25, 30, 2, correlation=6)],
            "NVTX_PAYLOAD_SCHEMA_ENTRIES": SCHEMAS,
            "NVTX_EVENTS": rows,
        },
    )
    assert list(traces) == [3]
    assert traces[3].meta.world_size == 4
    told = traces[3].table(
        "comm_args", "op", "group", "group_size", "dtype", "elements_in", "elements_out", "correlation"
    )
    group = str(2**63 + 5)
    assert told.rows() == [
        ("all_reduce", group, 4, "Byte", 4096, 4096, 6),
        ("all_gather", group, 4, "Byte", 100, 400, None),
        ("reduce_scatter", group, 4, "Byte", 400, 100, None),
    ]


def test_metrics_and_memory_use(tmp_path: Path) -> None:
    use = {"globalPid": process(10), "deviceId": 0, "address": 4096, "memKind": 2}
    traces = read(
        tmp_path,
        {
            "StringIds": strings("k"),
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1)],
            "TARGET_INFO_GPU_METRICS": [{"typeId": 512, "metricId": 3, "metricName": "SM Active [Throughput %]"}],
            "GPU_METRICS": [{"timestamp": t, "typeId": 512, "metricId": 3, "value": v} for t, v in ((1, 50), (2, 75))],
            "CUDA_GPU_MEMORY_USAGE_EVENTS": [
                use | {"start": 1, "bytes": 100, "memoryOperationType": 0},
                use | {"start": 2, "bytes": 100, "memoryOperationType": 1},
            ],
        },
    )
    assert named(traces[0], "counters") == ["SM Active [Throughput %]"] * 2
    assert traces[0].table("counters", "time_ns", "value").rows() == [(EPOCH_NS + 1, 50.0), (EPOCH_NS + 2, 75.0)]
    assert traces[0].table("memory_events")["bytes"].to_list() == [100, -100]


def test_whole_graphs_and_nodes_of_graphs(tmp_path: Path) -> None:
    graph = kernel(10, 20, 0) | {"graphId": 4}
    traces = read(
        tmp_path,
        {
            "StringIds": strings("k"),
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1, graphNodeId=77), kernel(6, 8, 1, graphNodeId=0)],
            "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [graph],
        },
    )
    assert named(traces[0], "gpu") == ["k", "k", "CUDA graph 4"]
    assert traces[0].table("gpu")["graph_node"].to_list() == [77, None, None]
    assert any("CUDA graphs" in note for note in traces[0].meta.notes)


def test_devices_by_process(tmp_path: Path) -> None:
    (trace,) = read(
        tmp_path,
        {
            "StringIds": strings("k"),
            "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1)],
            "TARGET_INFO_GPU": [{"id": 5, "name": "NVIDIA H100", "totalMemory": 80 * 2**30, "smCount": 132}],
            "TARGET_INFO_CUDA_DEVICE": [{"gpuId": 5, "cudaId": 0, "pid": 10}],
        },
    ).values()
    assert trace.meta.devices == ({"id": 0, "name": "NVIDIA H100", "totalGlobalMem": 80 * 2**30, "numSms": 132},)


def test_a_session_without_a_date_and_one_in_wall_time(tmp_path: Path) -> None:
    tables = {"NVTX_EVENTS": [nvtx(5, 9, "a")]}
    (trace,) = read(tmp_path, tables, epoch_ns=None).values()
    assert trace.meta.first_ns == 5
    assert nsys.NO_EPOCH in trace.meta.notes
    export = [{"name": "EXPORT_PARAM_TIME_NORMALIZE", "value": "true"}]
    file = write_export(tmp_path / "y.sqlite", {**tables, "META_DATA_EXPORT": export})
    (trace,) = imported(file, tmp_path / "run2").values()
    assert trace.meta.first_ns == 5


def test_what_can_not_be_right_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        kernel(0, 5, 1),
        kernel(9, 8, 1),
        kernel(10, None, 1),  # type: ignore[arg-type]
        kernel(10**18, 10**18 + 1, 1),
        kernel("x", 10, 1),  # type: ignore[arg-type]
        kernel(2.5, 10, 1),  # type: ignore[arg-type]
    ]
    (trace,) = read(
        tmp_path,
        {
            "StringIds": strings("k"),
            "CUPTI_ACTIVITY_KIND_KERNEL": rows,
            "ANALYSIS_DETAILS": [{"duration": 100, "stopTime": 100}],
        },
    ).values()
    assert trace.table("gpu").height == 1
    assert trace.meta.left_out == {"no time": 3, "negative duration": 1, "outside the session": 1}


def test_host_events_that_cross_are_said(tmp_path: Path) -> None:
    (trace,) = read(tmp_path, {"NVTX_EVENTS": [nvtx(0, 10, "a"), nvtx(5, 2000, "b"), nvtx(6, 8, "c")]}).values()
    assert any(note.startswith("1 host events cross") for note in trace.meta.notes)


@pytest.mark.parametrize("tables", [{}, {"StringIds": strings("k")}, {"NVTX_EVENTS": []}, {"OTHER": [{"start": 1}]}])
def test_an_export_with_nothing_to_use_says_what_it_holds(tmp_path: Path, tables: dict[str, Any]) -> None:
    file = write_export(tmp_path / "x.sqlite", tables)
    with pytest.raises(
        TraceError, match=r"holds no GPU activity, NVTX range or CUDA call; its tables are .*START_TIME"
    ):
        nsys.peek(file)
