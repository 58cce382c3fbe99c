"""Exported, then imported again, the spans are the same; and the file keeps the rules of the viewers that open it."""

import gzip
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
from chrome_rules import read_checked
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scene_runs import COLLECTIVE, COUNTER_ROW, CPU_ROW, GPU_ROW, MEGABYTE, MEMORY_ROW, NASTY, SPAN, run_of

from agprof.errors import TraceError
from agprof.exporters import chrome, scenes
from agprof.exporters.pace import Pace
from agprof.importers.folder import import_files
from agprof.importers.kineto import import_file
from agprof.model.trace_tables import CpuKind
from agprof.store import layout
from agprof.store.reader import Run, read_run
from agprof.store.traces import RankTrace
from synthetic import EPOCH_NS, build_run

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
"""A case writes three files and reads two of them again."""


def exported(run: Run, folder: Path) -> dict[int | None, Path]:
    """The file of each rank, under None the one of all."""
    folder.mkdir(exist_ok=True)
    whole, *others = chrome.export(run, folder, lambda line: None)
    return {None: whole, **{int(path.name[5:10]): path for path in others}}


def imported(file: Path, folder: Path, rank: int) -> RankTrace:
    folder.mkdir(exist_ok=True)
    (folder / layout.MANIFEST).write_text("{}")
    import_file(file, folder, rank)
    return read_run(folder).traces[rank]


def annotations(trace: RankTrace) -> Counter[tuple[str, int, int]]:
    rows = trace.table("cpu").filter(pl.col("kind") == int(CpuKind.ANNOTATION))
    names = trace.names()
    return Counter((names[n], start, d) for n, start, d in rows.select("name", "start_ns", "duration_ns").iter_rows())


def expected_spans(run: Run, rank: int) -> Counter[tuple[str, int, int]]:
    """Name, wall time and duration of a rank's spans and collectives, told from the tables row by row."""
    clock = next(s.header["clock"] for s in run.streams if s.scope == "rank" and s.number == rank)
    wall = clock["realtime_ns"] - clock["monotonic_ns"]
    found: Counter[tuple[str, int, int]] = Counter()
    for span in run.tables["spans"].filter(pl.col("rank") == rank).iter_rows(named=True):
        found[span["name"], span["start_ns"] + wall, span["end_ns"] - span["start_ns"]] += 1
    for call in run.tables["collectives"].filter(pl.col("rank") == rank).iter_rows(named=True):
        seen = call["async_op"] and call["end_ns"] is not None
        end = call["end_ns"] if seen else call["issue_end_ns"]
        found[call["op"], call["start_ns"] + wall, end - call["start_ns"]] += 1
    return found


RANKS = st.fixed_dictionaries({0: st.lists(SPAN, max_size=12), 1: st.lists(SPAN, max_size=4)})
CALLS = st.fixed_dictionaries({0: st.lists(COLLECTIVE, max_size=6), 1: st.just([])})


TRACE = st.fixed_dictionaries(
    {
        "gpu": st.lists(GPU_ROW, max_size=12),
        "cpu": st.lists(CPU_ROW, min_size=1, max_size=12),
        "memory_events": st.lists(MEMORY_ROW, max_size=4),
        "counters": st.lists(COUNTER_ROW, max_size=4),
    }
)


def one(**values: Any) -> dict[str, Any]:
    return {"category": "range", "name": "a", "start_ns": 0, "duration_ns": 10, "thread": 1, **values}


ROWS_AT_A_TIME = st.sampled_from([1, 3, 32_768])
"""A file is written piece by piece; where the pieces end must not show."""


@FEW
@given(spans=RANKS, calls=CALLS, rows=ROWS_AT_A_TIME)
@example(spans={0: [one(name=name) for name in (*NASTY, MEGABYTE, MEGABYTE)], 1: []}, calls={0: [], 1: []}, rows=9)
@example(
    spans={0: [one(start_ns=n, duration_ns=60 - n % 7) for n in range(50)], 1: [one()]}, calls={0: [], 1: []}, rows=7
)
def test_spans_come_back_with_name_start_and_duration_to_the_nanosecond(
    tmp_path_factory: pytest.TempPathFactory, spans: dict[int, list[dict[str, Any]]], calls: Any, rows: int
) -> None:
    folder = tmp_path_factory.mktemp("chrome")
    with run_of(spans, calls) as run, patch.object(scenes, "_CHUNK_ROWS", rows):
        files = exported(run, folder / "out")
        for rank in spans:
            expected = expected_spans(run, rank)
            metadata, _ = read_checked(files[rank])
            assert metadata["distributedInfo"] == {"rank": rank, "world_size": 2}
            if expected:
                assert annotations(imported(files[rank], folder / f"again-{rank}", rank)) == expected
        _, events = read_checked(files[None])
        assert sum(event["ph"] == "X" for event in events) == sum(
            sum(expected_spans(run, rank).values()) for rank in spans
        )


@FEW
@given(trace=TRACE, rows=ROWS_AT_A_TIME)
@example(
    trace={
        "gpu": [],
        "cpu": [{"start_ns": 0, "duration_ns": 0, "kind": 0, "thread": 0, "text": "a"}],
        "memory_events": [],
        "counters": [{"time_ns": 0, "text": "c", "value": value} for value in (1.7976931348623157e308, -1e300, 5e-324)],
    },
    rows=1,
)
def test_a_device_trace_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, trace: dict[str, list[dict[str, Any]]], rows: int
) -> None:
    folder = tmp_path_factory.mktemp("chrome")
    gpu, cpu = trace["gpu"], trace["cpu"]
    with run_of({0: []}, trace=trace) as run, patch.object(scenes, "_CHUNK_ROWS", rows):
        files = exported(run, folder / "out")
        _, events = read_checked(files[0])
        read_checked(files[None])
        again = imported(files[0], folder / "again", 0)
        shift = EPOCH_NS - 5_000_000_000_000
        for table in trace:
            before, after = run.traces[0].table(table), again.table(table)
            before = before.with_columns(pl.col("start_ns" if "start_ns" in before.columns else "time_ns") + shift)
            assert before.sort(before.columns).equals(after.sort(after.columns)), table
        texts = run.traces[0].names()
        assert {again.names()[n] for t in ("gpu", "cpu") for n in again.table(t)["name"]} <= set(texts.values())
        launches = {row.get("correlation") for row in cpu if row["kind"] in (CpuKind.RUNTIME, CpuKind.DRIVER)} - {None}
        work = [row["correlation"] for row in gpu if row["kind"] <= 3 and row["correlation"] is not None]
        assert sum(event["ph"] == "s" for event in events) == len(launches & set(work))
        assert sum(event["ph"] == "f" for event in events) == sum(number in launches for number in work)


def test_every_part_of_a_run_is_in_the_trace(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", hostile=True, gpus=2, async_ops=True, nodes=2, ranks=4, rlhf=False))
    files = exported(run, tmp_path / "out")
    metadata, events = read_checked(files[None])
    assert metadata["agprof"]["merged_ranks"] == 4 and metadata["baseTimeNanoseconds"] == EPOCH_NS
    kinds = Counter(event["args"]["category"] for event in events if event["ph"] == "X")
    assert kinds["step"] == run.tables["steps"].height
    assert kinds["micro_step"] == run.tables["micro_steps"].height
    assert kinds["collective"] == run.tables["collectives"].height
    assert kinds["wait"] == run.tables["waits"].height
    assert sum(kinds[category] for category in ("phase", "range", "module")) == run.tables["spans"].height
    assert kinds["device"] == run.tables["device_spans"].height
    assert sum(event["ph"] == "i" for event in events) == run.tables["marks"].height
    calls = [event for event in events if event["ph"] == "X" and event["args"]["category"] == "collective"]
    assert {call["args"]["bytes"] for call in calls} == set(run.tables["collectives"]["bytes"])
    counters = {event["name"] + " " + next(iter(event["args"])) for event in events if event["ph"] == "C"}
    assert {
        "memory resident set (bytes)", "device memory allocated (bytes)", "CPU busy (%)", "network sent (bytes/s)",
        "GPU 0 utilisation busy (%)", "GPU 0 power power (W)", "GPU 1 memory used (bytes)",
        "GPU 1 temperature core (°C)",
    } <= counters  # fmt: skip


def test_ranks_of_nodes_whose_clocks_differ_share_the_wall_time(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", ranks=2, nodes=2))
    _, events = read_checked(exported(run, tmp_path / "out")[None])
    firsts = [event["ts_ns"] for event in events if event["name"] == "step 0"]
    assert firsts == [0, 0]


def no_nsys(report: Path, sqlite: Path) -> Path:
    raise AssertionError("no report is here")


def test_the_folder_of_all_files_is_imported_as_the_ranks_and_the_viewers_file_alone_is_refused(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", ranks=2, async_ops=True))
    files = exported(run, tmp_path / "out")
    again = read_run(import_files([tmp_path / "out"], tmp_path / "again", name="again", export_report=no_nsys))
    assert sorted(again.traces) == [0, 1]
    assert again.tables["steps"].height == run.tables["steps"].height
    with pytest.raises(TraceError, match=r"holds 2 ranks on one timeline.*import the folder chrome"):
        import_files([files[None]], tmp_path / "alone", name="alone", export_report=no_nsys)


@pytest.mark.parametrize(
    "options",
    [{"bare": True}, {"torn": 0}, {"killed": 1}, {"missing": (1,)}, {"rlhf": True}, {"sampler": False, "gpus": 1}],
    ids=str,
)
def test_runs_that_ended_badly_are_exported_as_far_as_they_came(tmp_path: Path, options: dict[str, Any]) -> None:
    run = read_run(build_run(tmp_path / "run", hostile=True, **options))
    files = exported(run, tmp_path / "out")
    for file in files.values():
        _, events = read_checked(file)
    _, events = read_checked(files[None])
    assert sum(event["name"].startswith("step ") for event in events) == run.tables["steps"].height > 0


def test_a_long_export_says_how_far_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    always = partial(Pace, period_s=0.0)
    with run_of({0: [one(), one(start_ns=20)]}) as run, patch.object(chrome, "Pace", always):
        chrome.export(run, tmp_path, said.append)
    assert said[0] == "chrome: events written: 2"


def test_a_run_without_anything_gives_an_empty_trace(tmp_path: Path) -> None:
    with run_of({}) as run:
        _, events = read_checked(exported(run, tmp_path / "out")[None])
    assert [event["ph"] for event in events] == ["M"]


def test_slices_without_a_possible_time_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    with run_of({0: [one(duration_ns=-5), one(start_ns=2**62), one()]}) as run:
        chrome.export(run, tmp_path, said.append)
    assert [line for line in said if "not in the trace" in line] == [
        "2 events are not in the trace: no time, or a negative or impossible duration"
    ]


def test_the_rules_that_files_are_held_to_can_be_broken(tmp_path: Path) -> None:
    """A checker that accepts everything would make every test above pass."""
    good = [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "ts": 0, "args": {"name": "p"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "ts": 0, "args": {"name": "t"}},
        {"ph": "X", "name": "a", "cat": "c", "pid": 1, "tid": 2, "ts": 0, "dur": 10, "args": {}},
    ]

    def checked(*more: dict[str, Any]) -> None:
        file = tmp_path / "trace.json.gz"
        file.write_bytes(gzip.compress(json.dumps({"traceEvents": [*good, *more]}).encode()))
        read_checked(file)

    slice_ = good[2]
    checked({**slice_, "ts": 10}, {**slice_, "ts": 2, "dur": 8})
    for broken in (
        {**slice_, "ts": 5},
        {**slice_, "tid": 3},
        {**slice_, "dur": -1},
        {**slice_, "ts": 20.0001},
        {"ph": "s", "name": "f", "cat": "f", "id": 1, "pid": 1, "tid": 2, "ts": 3},
    ):
        with pytest.raises(AssertionError):
            checked(broken)


REAL = ("v100_train_rank1of2", "a100_nccl_args", "h100_qwen_0.5b", "b200_eager_rank0of8_multimem", "mi250_rocm62",
        "cuda_event_sync_multi_stream", "triton_example", "cpu_only_rank34", "no_gpu_rank")  # fmt: skip


def test_what_an_import_made_of_a_trace_is_for_viewers_alone(tmp_path: Path, traces_dir: Path) -> None:
    """Else every round of export and import would add steps, phases and collectives to the trace."""
    given = traces_dir / "a100_nccl_args.json.gz"
    first = read_run(import_files([given], tmp_path / "first", name="first", export_report=no_nsys))
    assert first.tables["collectives"].height and first.tables["steps"].height
    exported(first, tmp_path / "out")
    again = read_run(import_files([tmp_path / "out"], tmp_path / "again", name="again", export_report=no_nsys))
    ((rank, before),) = first.traces.items()
    for table in before.tables:
        one, two = before.table(table), again.traces[rank].table(table)
        if table == "names":
            one, two = one.unique("name"), two.unique("name")
        assert one.sort(one.columns).equals(two.sort(two.columns)), table
    for table in ("steps", "spans", "collectives"):
        assert first.tables[table].equals(again.tables[table]), table


@pytest.mark.parametrize("name", REAL)
def test_real_traces_come_back_as_they_were(tmp_path: Path, traces_dir: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    before = imported(traces_dir / f"{name}.json.gz", tmp_path / "run", 1)
    files = exported(read_run(tmp_path / "run"), tmp_path / "out")
    read_checked(files[None])
    after = imported(files[1], tmp_path / "again", 1)
    for table in before.tables:
        one, two = before.table(table), after.table(table)
        if table == "names":
            one, two = one.unique("name"), two.unique("name")
        assert one.sort(one.columns).equals(two.sort(two.columns)), table
