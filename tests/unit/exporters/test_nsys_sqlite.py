"""The nsys-shaped SQLite holds what the run holds, with domains, categories and payloads."""

import sqlite3
from contextlib import closing

import pytest

from agprof.exporters import nsys_sqlite
from agprof.exporters.lanes import FIRST_PID, processes
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.reader import read_run
from agprof.store.traces import TraceMeta, TraceWriter, write_meta
from runs_of_rows import MONOTONIC_NS, REALTIME_NS, run_of
from synthetic import EPOCH_NS, build_run

VM = 1 << 48


def silent(_: str) -> None:
    pass


def rows(file, query):
    with closing(sqlite3.connect(file)) as database:
        return database.execute(query).fetchall()


RANGES = """
SELECT e.globalTid >> 24 & 0xFFFFFF, d.text, c.text, s.value, e.start, e.end, e.int64Value
FROM NVTX_EVENTS e JOIN StringIds s ON s.id = e.textId
JOIN NVTX_EVENTS d ON d.eventType = 75 AND d.domainId = e.domainId AND d.globalTid >> 24 = e.globalTid >> 24
JOIN NVTX_EVENTS c ON c.eventType = 33 AND c.domainId = e.domainId AND c.category = e.category
                   AND c.globalTid >> 24 = e.globalTid >> 24
WHERE e.eventType = 59
"""


@pytest.fixture
def run(tmp_path):
    return read_run(build_run(tmp_path / "run", async_ops=True))


def test_every_range_with_domain_category_and_payload(run, tmp_path):
    nsys_sqlite.write(run, tmp_path / "x.sqlite", silent)
    found = rows(tmp_path / "x.sqlite", RANGES)
    ((epoch,),) = rows(tmp_path / "x.sqlite", "SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME")
    assert epoch == EPOCH_NS
    wanted = [
        (process.pid, lane.domain, category, name, start - epoch, end - epoch, payload)
        for process in processes(run)
        for lane in process.lanes
        for category, name, start, end, payload in lane.spans.iter_rows()
    ]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    bytes_ = sum(payload for *_, category, _, _, _, payload in found if category == "communication")
    assert bytes_ == run.tables["collectives"]["bytes"].sum()


def test_processes_and_threads_are_named(run, tmp_path):
    nsys_sqlite.write(run, tmp_path / "x.sqlite", silent)
    assert [pid for (pid,) in rows(tmp_path / "x.sqlite", "SELECT pid FROM PROCESSES")] == [FIRST_PID, FIRST_PID + 1]
    names = rows(tmp_path / "x.sqlite", "SELECT value FROM ThreadNames JOIN StringIds ON id = nameId")
    assert {"steps", "phases and ranges", "communication", "waits"} <= {name for (name,) in names}


def test_a_name_with_a_nul_is_whole(tmp_path):
    step = {"rank": 0, "step": 0, "start_ns": MONOTONIC_NS, "end_ns": MONOTONIC_NS + 5, "thread": 1}
    span = step | {"span": 0, "category": "range", "name": 'before\0after "quoted" \''}
    nsys_sqlite.write(run_of(tmp_path / "r", 1, {"spans": [span]}), tmp_path / "x.sqlite", silent)
    assert ('before after "quoted" \'',) in rows(tmp_path / "x.sqlite", "SELECT value FROM StringIds")


def test_kernels_copies_and_calls_are_cupti_rows(tmp_path):
    folder = build_run(tmp_path / "run")
    writer = TraceWriter(folder, 0)
    kernel, copy, launch, op = map(
        writer.name, ("k<float>", "Memcpy HtoD (Pinned -> Device)", "cudaLaunchKernel", "aten::mm")
    )
    start = MONOTONIC_NS  # the clock of the rank's stream
    writer.append(
        "gpu",
        {
            "start_ns": [start + 10, start + 30],
            "duration_ns": [5, 6],
            "kind": [int(GpuKind.KERNEL), int(GpuKind.MEMCPY)],
            "device": [1, 1],
            "stream": [7, 8],
            "name": [kernel, copy],
            "correlation": [4, 5],
            "bytes": [None, 4096],
        },
    )
    writer.append(
        "cpu",
        {
            "start_ns": [start + 1, start],
            "duration_ns": [2, 9],
            "kind": [int(CpuKind.RUNTIME), int(CpuKind.OP)],
            "thread": [33, 33],
            "name": [launch, op],
            "correlation": [4, None],
        },
    )
    writer.close()
    write_meta(folder, 0, TraceMeta(format="kineto", source="x.json"))
    run = read_run(folder)
    nsys_sqlite.write(run, tmp_path / "x.sqlite", silent)
    ((epoch,),) = rows(tmp_path / "x.sqlite", "SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME")
    shift = EPOCH_NS - epoch
    pid = VM | FIRST_PID << 24
    assert rows(
        tmp_path / "x.sqlite",
        "SELECT start, end, deviceId, streamId, correlationId, globalPid, value FROM CUPTI_ACTIVITY_KIND_KERNEL "
        "JOIN StringIds ON id = demangledName",
    ) == [(shift + 10, shift + 15, 1, 7, 4, pid, "k<float>")]
    assert rows(
        tmp_path / "x.sqlite", "SELECT start, end, streamId, bytes, copyKind FROM CUPTI_ACTIVITY_KIND_MEMCPY"
    ) == [(shift + 30, shift + 36, 8, 4096, 1)]
    assert rows(
        tmp_path / "x.sqlite",
        "SELECT start, end, eventClass, globalTid, correlationId, value FROM CUPTI_ACTIVITY_KIND_RUNTIME "
        "JOIN StringIds ON id = nameId",
    ) == [(shift + 1, shift + 3, 0, pid | 33, 4, "cudaLaunchKernel")]
    # A report that nsys captured of the rank has its kernels already.
    nsys_sqlite.write(read_run(build_run(tmp_path / "other")), tmp_path / "captured.sqlite", silent)
    nsys_sqlite.extend(run, tmp_path / "captured.sqlite", silent, rank=0, epoch=epoch, domain="x ")
    assert not [row for row in rows(tmp_path / "captured.sqlite", RANGES) if "trace" in row[1]]
    assert not rows(tmp_path / "captured.sqlite", "SELECT * FROM sqlite_master WHERE name LIKE 'CUPTI%'")
    traced = [row for row in rows(tmp_path / "x.sqlite", RANGES) if row[1] == "trace"]
    assert [(row[2], row[3], row[4], row[5]) for row in traced] == [("op", "aten::mm", shift, shift + 9)]


def test_a_captured_database_is_extended_and_its_own_rows_stay(tmp_path):
    steps = [
        {"rank": rank, "step": n, "start_ns": MONOTONIC_NS + 10 * n, "end_ns": MONOTONIC_NS + 10 * n + 8}
        for rank in (0, 1)
        for n in range(4)
    ]
    run = run_of(tmp_path / "r", 2, {"steps": steps})
    captured = tmp_path / "captured.sqlite"
    nsys_sqlite.write(run_of(tmp_path / "empty", 1, {"steps": steps[:1]}), captured, silent)
    before = rows(captured, "SELECT * FROM NVTX_EVENTS")
    epoch = REALTIME_NS + 10
    nsys_sqlite.extend(run, captured, silent, rank=1, epoch=epoch, domain="run folder: ")
    assert rows(captured, "SELECT * FROM NVTX_EVENTS")[: len(before)] == before
    added = [row for row in rows(captured, RANGES) if row[1] == "run folder: agprof"]
    # Step 0 began before the capture did.
    assert [(row[0], row[3], row[4], row[5]) for row in added] == [
        (FIRST_PID + 1, "step 1", 0, 8),
        (FIRST_PID + 1, "step 2", 10, 18),
        (FIRST_PID + 1, "step 3", 20, 28),
    ]


def test_a_captured_database_without_any_range_is_extended_too(tmp_path):
    step = {"rank": 0, "step": 0, "start_ns": MONOTONIC_NS, "end_ns": MONOTONIC_NS + 8}
    captured = tmp_path / "captured.sqlite"
    with closing(sqlite3.connect(captured)) as database:
        # As a later nsys may have it: another column between ours.
        database.execute("CREATE TABLE PROCESSES (globalPid INTEGER, more TEXT, pid INTEGER, name TEXT)")
        database.commit()
    run = run_of(tmp_path / "r", 1, {"steps": [step]})
    nsys_sqlite.extend(run, captured, silent, rank=0, epoch=REALTIME_NS, domain="")
    assert [(row[3], row[4], row[5]) for row in rows(captured, RANGES)] == [("step 0", 0, 8)]
    assert rows(captured, "SELECT pid, name, more FROM PROCESSES") == [(FIRST_PID, "rank 00 (host)", None)]


def test_the_session_start_of_something_else_is_not_known(tmp_path):
    (tmp_path / "x.sqlite").write_bytes(b"no database")
    assert nsys_sqlite.session_start_ns(tmp_path / "x.sqlite") is None
