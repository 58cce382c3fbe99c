"""The rank's stream made of a trace: steps, phases, micro-steps, ranges, collectives, memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.parts import step_parts
from agprof.importers.nesting import crossings
from agprof.importers.trace_steps import find_steps, step_in_progress
from agprof.importers.trace_stream import write_stream
from agprof.model.communication_kernels import Communication
from agprof.model.tables import PHASES
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.reader import Run, read_run
from agprof.store.traces import TraceMeta, TraceWriter, read_traces, write_meta

OP, ANNOTATION, RUNTIME = int(CpuKind.OP), int(CpuKind.ANNOTATION), int(CpuKind.RUNTIME)
Event = dict[str, Any]


def host(name: str, start: int, end: int, kind: int = ANNOTATION, thread: int | None = 1, **more: Any) -> Event:
    return {"name": name, "start_ns": start, "duration_ns": end - start, "kind": kind, "thread": thread, **more}


def stream_of(
    tmp_path: Path,
    cpu: Sequence[Event] = (),
    meta: TraceMeta | None = None,
    communication: Communication | None = None,
    **tables: Sequence[Event],
) -> Run:
    """The run of one rank whose trace has these rows."""
    (tmp_path / "ranks").mkdir(parents=True)
    writer = TraceWriter(tmp_path, 0)
    for table, rows in {"cpu": cpu, **tables}.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            values = {column: [row.get(column) for row in rows] for column in columns}
            if "name" in values:
                values["name"] = [writer.name(name) for name in values["name"]]
            writer.append(table, values)
    writer.close()
    write_meta(tmp_path, 0, meta or TraceMeta(format="kineto", source="x.json", first_ns=0))
    write_stream(tmp_path, read_traces(tmp_path)[0], node=0, world_size=None, communication=communication)
    return read_run(tmp_path)


def phases(run: Run) -> list[tuple[str, int, int]]:
    spans = run.tables["spans"].filter(pl.col("category") == "phase")
    return spans.select("name", "start_ns", "end_ns").sort("start_ns").rows()


def test_steps_of_the_profiler_come_before_all_others(tmp_path: Path) -> None:
    rows = [host("ProfilerStep#4", 0, 100), host("step 1", 0, 50), host("iteration 7", 0, 50),
            host("ProfilerStep#5", 100, 200)]  # fmt: skip
    assert stream_of(tmp_path, rows).tables["steps"].select("step", "start_ns", "end_ns").rows() == [
        (4, 0, 100),
        (5, 100, 200),
    ]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["step 0", "step 1"], [0, 1]),
        (["Iteration 10", "iteration: 11"], [10, 11]),
        (["train_step", "train_step"], [0, 1]),
        (["Step", "Step"], [0, 1]),
        (["stepping stone", "my step 3"], []),
    ],
)
def test_other_steps(tmp_path: Path, names: list[str], numbers: list[int]) -> None:
    rows = [host(name, number * 10, number * 10 + 10) for number, name in enumerate(names)]
    assert stream_of(tmp_path, rows).tables["steps"]["step"].to_list() == numbers


def test_steps_of_old_traces_are_operators(tmp_path: Path) -> None:
    rows = [host("ProfilerStep#4", 0, 100, OP), host("step 5", 0, 50, OP)]
    assert stream_of(tmp_path, rows).tables["steps"]["step"].to_list() == [4]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 200), st.integers(0, 60)), max_size=12))
def test_steps_never_overlap_and_no_number_comes_twice(rows: list[tuple[int, int, int]]) -> None:
    ranges = pl.DataFrame(
        [(f"ProfilerStep#{n}", "step", "ProfilerStep", a, a + d, 1) for n, a, d in rows],
        schema={"text": pl.String, "what": pl.String, "which": pl.String, "start_ns": pl.Int64, "end_ns": pl.Int64,
                "thread": pl.Int64},
        orient="row",
    ).sort("start_ns", "end_ns", descending=[False, True])  # fmt: skip
    steps = find_steps(ranges)
    assert steps["step"].is_unique().all()
    assert (steps["start_ns"].shift(-1) >= steps["end_ns"]).drop_nulls().all()
    assert steps.height == 0 or steps["start_ns"][0] == min(a for _, a, d in rows if d)


def test_the_step_in_progress() -> None:
    steps = pl.DataFrame({"step": [4, 5], "start_ns": [10, 20], "end_ns": [20, 30], "thread": [1, 1]})
    assert step_in_progress(steps, pl.Series([0, 10, 19, 20, 29, 30, 99])).to_list() == [4, 4, 4, 5, 5, 6, 6]


EVAL = "autograd::engine::evaluate_function: MmBackward0"


def test_forward_and_backward_from_autograds_own_events(tmp_path: Path) -> None:
    """Two micro-steps: forward on the main thread, backward on another; what autograd runs inside is its own."""
    rows = [
        host("ProfilerStep#1", 0, 1000),
        host("aten::to", 5, 9, OP),
        host("aten::mm", 10, 20, OP, sequence=1),
        host("aten::mm", 30, 40, OP, sequence=2),
        host(EVAL, 50, 60, OP, 2, sequence=2),
        host("aten::mm", 52, 58, OP, 2, sequence=9),
        host(EVAL, 60, 70, OP, 2, sequence=1),
        host("aten::mm", 80, 90, OP, sequence=3),
        host(EVAL, 100, 120, OP, 2, sequence=3),
        host("Optimizer.step#SGD.step", 130, 200),
    ]
    run = stream_of(tmp_path, rows)
    assert phases(run) == [
        ("forward", 10, 40),
        ("backward", 50, 70),
        ("forward", 80, 90),
        ("backward", 100, 120),
        ("optimizer", 130, 200),
    ]
    assert run.tables["spans"]["thread"].unique().to_list() == [1]
    assert run.tables["micro_steps"].select("step", "micro_step", "start_ns", "end_ns").rows() == [
        (1, 0, 0, 70),
        (1, 1, 70, 120),
    ]
    assert run.tables["steps"]["micro_steps"].to_list() == [2]
    assert run.tables["spans"]["micro_step"].to_list() == [0, 0, 1, 1, 2]


def test_backward_on_the_main_thread_with_recomputation_inside(tmp_path: Path) -> None:
    """On a CPU autograd runs on the calling thread; an operator inside of its event is no forward."""
    rows = [
        host("ProfilerStep#1", 0, 1000),
        host("aten::mm", 10, 20, OP, sequence=1),
        host(EVAL, 50, 90, OP, sequence=1),
        host("aten::mm", 55, 60, OP, sequence=5),
        host(EVAL, 90, 99, OP, sequence=0),
    ]
    assert phases(stream_of(tmp_path, rows)) == [("forward", 10, 20), ("backward", 50, 99)]


def test_phases_that_the_trace_names_count_and_passes_end_where_they_begin(tmp_path: Path) -> None:
    rows = [
        host("ProfilerStep#1", 0, 100),
        host("## forward ##", 10, 40),
        host("DistributedDataParallel.forward", 12, 38),
        host(EVAL, 50, 60, OP, 2),
        host("ProfilerStep#2", 100, 200),
        host(EVAL, 90, 130, OP, 2),
        host("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 110, 120),
    ]
    assert phases(stream_of(tmp_path, rows)) == [
        ("forward", 10, 40),
        ("forward", 12, 38),
        ("backward", 50, 100),
        ("data", 110, 120),
    ]


NAMES = ["aten::mm", EVAL, "Optimizer.step#SGD.step", "data", "mine", "ProfilerStep#1", "ProfilerStep#2"]
EVENTS = st.tuples(
    st.sampled_from(NAMES),
    st.integers(0, 300),
    st.integers(1, 80),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 1, 2]),
)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=25))
def test_the_parts_of_an_imported_step_add_up_to_it(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, int, int, int | None]]
) -> None:
    rows = [
        host(name, a, a + d, OP if "::" in name else ANNOTATION, thread, sequence=sequence)
        for name, a, d, thread, sequence in events
    ]
    tables = stream_of(tmp_path_factory.mktemp("run") / "r", rows).tables
    parts = step_parts(tables["steps"], tables["spans"], tables["collectives"], tables["waits"])
    for row in parts.iter_rows(named=True):
        assert all(row[phase] >= 0 for phase in PHASES)
        assert sum(row[phase] for phase in PHASES) == row["end_ns"] - row["start_ns"]


def test_micro_steps_that_agprof_wrote_itself(tmp_path: Path) -> None:
    rows = [host("step 4", 0, 100), host("micro-step 0", 0, 40), host("backward", 20, 35), host("micro-step 1", 40, 90),
            host("mine", 50, 60)]  # fmt: skip
    run = stream_of(tmp_path, rows)
    assert run.tables["micro_steps"].select("step", "micro_step", "start_ns", "end_ns").rows() == [
        (4, 0, 0, 40),
        (4, 1, 40, 90),
    ]
    assert run.tables["spans"].select("name", "micro_step").rows() == [("backward", 0), ("mine", 1)]


def test_ranges_with_their_depth_and_step(tmp_path: Path) -> None:
    rows = [
        host("ProfilerStep#1", 0, 100),
        host("outer", 10, 50),
        host("inner", 10, 20),
        host("other thread", 15, 30, thread=2),
        host("nccl:all_reduce", 30, 40),
        host("late", 100, 110),
        host("point", 60, 60),
        host("aten::mm", 60, 70, OP),
    ]
    spans = stream_of(tmp_path, rows).tables["spans"]
    assert spans.select("span", "name", "category", "step", "thread", "depth").rows() == [
        (0, "outer", "range", 1, 1, 0),
        (1, "inner", "range", 1, 1, 1),
        (2, "other thread", "range", 1, 2, 0),
        (3, "late", "range", 2, 1, 0),
    ]


def gpu(name: str, start: int, end: int, correlation: int | None = None, external: int | None = None) -> Event:
    return {"name": name, "start_ns": start, "duration_ns": end - start, "kind": int(GpuKind.KERNEL), "device": 0,
            "stream": 7, "correlation": correlation, "external_id": external}  # fmt: skip


def told(op: str, start: int, *, correlation: int | None = None, external: int | None = None, **more: Any) -> Event:
    return {"start_ns": start, "op": op, "correlation": correlation, "external_id": external, "group": "0",
            "group_size": 4, "dtype": "Float", **more}  # fmt: skip


def test_a_kernel_and_the_event_that_caused_it_are_one_collective(tmp_path: Path) -> None:
    run = stream_of(
        tmp_path,
        [
            host("record_param_comms", 10, 30, OP, external_id=5),
            host("cudaLaunchKernel", 15, 20, RUNTIME, correlation=9),
        ],
        gpu=[gpu("ncclDevKernel_AllReduce_Sum_f32", 40, 90, 9, 5)],
        comm_args=[
            told("all_reduce", 10, external=5, elements_in=100, elements_out=100),
            told("all_reduce", 40, correlation=9, external=5, elements_in=100, elements_out=100),
            told("wait", 95, external=6),
        ],
    )
    rows = run.tables["collectives"].select(
        "op", "group", "group_size", "bytes", "start_ns", "issue_end_ns", "end_ns", "caller"
    )
    assert rows.rows() == [("all_reduce", "0", 4, 400, 15, 20, 90, "other")]


@pytest.mark.parametrize(
    ("op", "into", "out", "expected"),
    [
        ("all_gather", 10, 40, 160),
        ("all_gather", 10, None, 160),
        ("reduce_scatter", 40, 10, 160),
        ("reduce_scatter", None, 10, 160),
        ("all_reduce", 10, 10, 40),
        ("broadcast", 10, 10, 40),
        ("all_reduce", None, None, None),
    ],
)
def test_bytes_are_those_of_nccl_tests(
    tmp_path: Path, op: str, into: int | None, out: int | None, expected: int | None
) -> None:
    rows = [told(op, 40, correlation=9, elements_in=into, elements_out=out)]
    run = stream_of(tmp_path, gpu=[gpu("ncclDevKernel_X", 40, 90, 9)], comm_args=rows)
    assert run.tables["collectives"]["bytes"].to_list() == [expected]


def test_kernels_of_nccl_without_a_word_on_size_and_group(tmp_path: Path) -> None:
    kernels = [gpu("ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)", 40, 90, 9), gpu("ampere_sgemm", 0, 9, 8),
               gpu("ncclDevKernel_ReduceScatter_Sum_f16", 95, 99)]  # fmt: skip
    launch = [host("cudaLaunchKernel", 15, 20, RUNTIME, correlation=9)]
    run = stream_of(tmp_path, launch, gpu=kernels)
    rows = run.tables["collectives"].select("op", "group", "group_size", "bytes", "start_ns", "issue_end_ns", "end_ns")
    assert rows.rows() == [
        ("all_reduce", "unknown", 0, None, 15, 20, 90),
        ("reduce_scatter", "unknown", 0, None, 95, 95, 99),
    ]


def test_communication_beyond_nccl_and_the_users_own(tmp_path: Path) -> None:
    """The same kernels as in the answers from the device trace."""
    names = ("void c10d::symmetric_memory::multimem_all_reduce_kernel<4>()", "mylib_ring", "hipblasLt_gemm")
    kernels = [gpu(name, 10 * number, 10 * number + 9, number + 1) for number, name in enumerate(names)]
    known = Communication.with_user({"mylib": "^mylib_"})
    assert stream_of(tmp_path / "a", gpu=kernels).tables["collectives"]["op"].to_list() == ["all_reduce"]
    run = stream_of(tmp_path / "b", gpu=kernels, communication=known)
    assert run.tables["collectives"]["op"].to_list() == ["all_reduce", "other"]


def test_collectives_of_the_host_alone(tmp_path: Path) -> None:
    run = stream_of(
        tmp_path,
        [host("record_param_comms", 10, 30, OP, external_id=5), host("## forward ##", 0, 50)],
        comm_args=[told("all_reduce", 10, external=5, elements_in=2, elements_out=2)],
    )
    rows = run.tables["collectives"].select("op", "bytes", "start_ns", "issue_end_ns", "end_ns", "thread", "caller")
    assert rows.rows() == [("all_reduce", 8, 10, 30, None, 1, "forward")]


def test_ranges_called_after_collectives_count_where_nothing_else_speaks_of_them(tmp_path: Path) -> None:
    rows = [host("all_reduce 2.25 KiB", 10, 30), host("gloo:all_gather", 40, 60, thread=2), host("reduce", 70, 80, OP)]
    run = stream_of(tmp_path / "a", rows)
    told_ = run.tables["collectives"].select("op", "start_ns", "issue_end_ns", "end_ns", "group_size", "bytes")
    assert told_.rows() == [("all_reduce", 10, 30, 30, 0, None), ("all_gather", 40, 40, 60, 0, None)]
    assert run.tables["spans"].height == 0
    run = stream_of(tmp_path / "b", rows, gpu=[gpu("ncclDevKernel_Broadcast", 40, 90)])
    assert run.tables["collectives"]["op"].to_list() == ["broadcast"]


def test_memory_at_the_end_of_steps(tmp_path: Path) -> None:
    events = [
        {"time_ns": t, "on_device": True, "device": 0, "bytes": b, "allocated_bytes": a, "reserved_bytes": 500}
        for t, b, a in ((10, 100, 100), (20, 200, 300), (30, -200, 100), (120, 50, 150))
    ]
    run = stream_of(tmp_path, [host("ProfilerStep#1", 0, 100), host("ProfilerStep#2", 100, 200)], memory_events=events)
    rows = run.tables["memory"].select(
        "step", "at", "time_ns", "allocated_bytes", "reserved_bytes", "allocated_peak_bytes"
    )
    assert rows.rows() == [(1, "step.end", 100, 100, 500, 300), (2, "step.end", 200, 150, 500, 150)]


def test_facts(tmp_path: Path) -> None:
    meta = TraceMeta(
        format="kineto", source="x", world_size=8, first_ns=0,
        devices=({"id": 0, "name": "A", "totalGlobalMem": 5}, {"id": 1, "name": "B"}),
    )  # fmt: skip
    run = stream_of(tmp_path, [host("DistributedDataParallel.forward", 0, 5)], meta, gpu=[gpu("k", 0, 5)])
    facts = dict(run.tables["facts"].select("key", "value").rows())
    assert facts == {
        "trace.format": '"kineto"', "trace.file": '"x"', "dist.world_size": "8", "device.type": '"cuda"',
        "device.name": '"A"', "device.memory_total_bytes": "5", "framework": '"ddp"',
    }  # fmt: skip


def test_an_empty_trace(tmp_path: Path) -> None:
    run = stream_of(tmp_path)
    assert {name for name, frame in run.tables.items() if frame.height} == {"facts"}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=12))
def test_crossings_are_found_exactly_where_two_events_cross(events: list[tuple[int, int]]) -> None:
    frame = pl.DataFrame(
        {"thread": [1] * len(events), "start_ns": [a for a, _ in events], "duration_ns": [d for _, d in events]},
        schema={"thread": pl.Int64, "start_ns": pl.Int64, "duration_ns": pl.Int64},
    )
    crossed = any(a < c < a + d < c + e for a, d in events for c, e in events)
    assert (crossings(frame) > 0) == crossed
