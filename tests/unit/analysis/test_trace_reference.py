"""Real traces: our time breakdown is exact, and HTA's own figures come out under `--compat hta`."""

import gzip
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.trace import analyse_traces
from agprof.analysis.trace_hta import hta_values
from agprof.importers.kineto import import_file
from agprof.model.trace_answers import TraceAnswer, TraceBreakdown
from agprof.store.traces import RankTrace, read_traces

SETS = (
    "v100_train_rank1of2", "v100_ns_timestamps", "cpu_only_rank34", "alexnet_small", "cuda_event_sync",
    "cuda_event_sync_multi_stream", "simple_add", "triton_example", "mi250_rocm62", "no_gpu_rank", "a100_nccl_args",
    "h100_qwen_0.5b", "b200_eager_rank0of8_multimem", "torch_compile_triton", "v100_resnet50_old_categories",
    "dlrm_8ranks_v100", "sampled_128rank_job",
)  # fmt: skip
MULTIMEM_NS = 2_119_548
"""What the 73 multimem_all_reduce_kernel of the B200 trace take; the reference counts them as compute."""
Number = int | float
BUSY = {"kernel", "gpu_memcpy", "gpu_memset", "Kernel", "Memcpy", "Memset"}


@pytest.fixture(scope="module", params=SETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def files(name: str, traces_dir: Path) -> dict[int, Path]:
    single = traces_dir / f"{name}.json.gz"
    if single.is_file():
        return {0: single}
    return {int(file.name[4]): file for file in sorted((traces_dir / name).glob("rank*.json.gz"))}


@pytest.fixture(scope="module")
def traces(files: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, RankTrace]:
    run = tmp_path_factory.mktemp("run")
    for rank, file in files.items():
        import_file(file, run, rank, processes=1)
    return read_traces(run)


@pytest.fixture(scope="module")
def reference(name: str, traces_dir: Path) -> dict[str, Any]:
    found = json.loads((traces_dir / "reference.json").read_text())["traces"]
    return found.get(name) or found[f"{name}.json.gz"]


@pytest.fixture(scope="module")
def answer(traces: dict[int, RankTrace]) -> TraceAnswer:
    found = analyse_traces(traces)
    assert found is not None
    return found


def _check_sum(row: TraceBreakdown) -> None:
    exposed = row.exposed_communication_ns + row.exposed_memcpy_ns + row.exposed_memset_ns + row.exposed_other_ns
    assert row.compute_ns + exposed + row.idle_ns == row.window_ns
    assert sum(row.idle_by_cause_ns.values()) == row.idle_ns
    assert min(row.idle_by_cause_ns.values()) >= 0


def _busy(spans: list[tuple[Number, Number]]) -> Number:
    """Union of intervals, the plain way."""
    total: Number = 0
    reach: Number | None = None
    for start, end in sorted(spans):
        if reach is None or start > reach:
            total, reach = total + end - start, end
        elif end > reach:
            total, reach = total + end - reach, end
    return total


def _device_events(file: Path) -> list[tuple[str, Decimal, Decimal]]:
    """Name, begin and duration in µs of what keeps the device busy, as the file's digits say."""
    whole = json.loads(gzip.decompress(file.read_bytes()), parse_float=Decimal, parse_int=Decimal)
    events = whole if isinstance(whole, list) else whole["traceEvents"]
    return [(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") in BUSY and e.get("ph") == "X"]


def _expected(events: Sequence[tuple[str, Number, Number]]) -> dict[str, Number]:
    """The reference's definitions (communication: nccl...Kernel), in the unit of the times."""
    everything = [(start, end) for _, start, end in events]
    compute = [(s, e) for n, s, e in events if not n.startswith(("nccl", "Mem", "dma", "Copy"))]
    communication = [(s, e) for n, s, e in events if n.startswith("nccl")]
    window = max(e for _, e in everything) - min(s for s, _ in everything)
    busy, computing, talking = _busy(everything), _busy(compute), _busy(communication)
    either = _busy(compute + communication)
    return {
        "window": window,
        "idle": window - busy,
        "compute": computing,
        "rest": busy - computing,
        "communication": talking,
        "overlapped": computing + talking - either,
    }


def _exact(file: Path) -> dict[str, Number]:
    events = [(n, int(ts * 1000), int((ts + dur) * 1000)) for n, ts, dur in _device_events(file)]
    return _expected(events)


def test_breakdown_is_exact(name: str, files: dict[int, Path], answer: TraceAnswer) -> None:
    """To the nanosecond, by another way of computing, from the file's own digits."""
    rows = {row.rank: row for row in answer.windows}
    for rank, file in files.items():
        if not _device_events(file):
            assert rank not in rows
            continue
        row, want = rows[rank], _exact(file)
        _check_sum(row)
        multimem = MULTIMEM_NS if name.startswith("b200") else 0
        assert row.window_ns == want["window"]
        assert row.idle_ns == want["idle"]
        assert row.compute_ns == want["compute"] - multimem
        assert row.communication_ns == want["communication"] + multimem
        assert row.overlapped_communication_ns == want["overlapped"]


def test_breakdown_is_the_reference(
    name: str, files: dict[int, Path], answer: TraceAnswer, reference: dict[str, Any]
) -> None:
    """`exact_full`. It was made from binary floats of microseconds, which near 1.7e15 are quarters: from such floats
    the same arithmetic gives the reference, and from the file's digits it gives ours (test above). Where the file has
    whole microseconds the two are one."""
    full = reference["exact_full"]
    if full is None:
        assert not answer.windows
        return
    for row in answer.windows:
        want = full[str(row.rank)]
        events = [(n, float(ts), float(ts) + float(dur)) for n, ts, dur in _device_events(files[row.rank])]
        from_floats = _expected(events)
        for key, figure in (("window", "kernel"), ("idle", "idle"), ("compute", "compute"), ("communication", "comm")):
            assert from_floats[key] == pytest.approx(want[figure], abs=0.0011)
        multimem = MULTIMEM_NS if name.startswith("b200") else 0
        if all(start.is_integer() and end.is_integer() for _, start, end in events):
            assert row.window_ns == want["kernel"] * 1000
            assert row.idle_ns == want["idle"] * 1000
            assert row.compute_ns == want["compute"] * 1000
            assert row.communication_ns == want["comm"] * 1000
        if want["overlap_pct"] is not None and not multimem:
            assert row.overlap_ratio is not None
            assert 100 * row.overlap_ratio == pytest.approx(want["overlap_pct"], abs=0.0051)


def test_hta_definitions_are_htas(traces: dict[int, RankTrace], reference: dict[str, Any]) -> None:
    """Time breakdown to 0.01 µs and overlap to 0.01 points, wherever HTA 0.5 has a value."""
    found = hta_values(traces)
    breakdown = reference["hta_temporal_breakdown"]
    if isinstance(breakdown, list):
        assert sorted(found) == [row["rank"] for row in breakdown]
        for row in breakdown:
            got = found[row["rank"]]
            assert got.idle_us == pytest.approx(row["idle_time(us)"], abs=0.01)
            assert got.compute_us == pytest.approx(row["compute_time(us)"], abs=0.01)
            assert got.non_compute_us == pytest.approx(row["non_compute_time(us)"], abs=0.01)
            assert got.kernel_us == pytest.approx(row["kernel_time(us)"], abs=0.01)
    for row in reference["hta_comm_comp_overlap"]:
        want = row["comp_comm_overlap_pctg"]
        ratio = found[row["rank"]].overlap_ratio if row["rank"] in found else None
        assert (ratio is None) == (want is None)
        assert want is None or 100 * ratio == pytest.approx(want, abs=0.0051)


def test_hta_definitions_in_the_answer(traces: dict[int, RankTrace], reference: dict[str, Any]) -> None:
    answer = analyse_traces(traces, compat="hta")
    assert answer is not None
    assert answer.definitions == "hta"
    breakdown = reference["hta_temporal_breakdown"]
    if not isinstance(breakdown, list):
        assert not answer.windows
        if breakdown["error"].startswith("AssertionError"):
            assert "HTA 0.5 has no answer for rank 0" in answer.sentence
        return
    for row, want in zip(answer.windows, breakdown, strict=True):
        _check_sum(row)
        assert row.idle_ns == want["idle_time(us)"] * 1000
        assert row.compute_ns == want["compute_time(us)"] * 1000
        assert row.window_ns == want["kernel_time(us)"] * 1000


def test_htas_definitions_without_its_errors(traces: dict[int, RankTrace], reference: dict[str, Any]) -> None:
    """The reference's `exact`: HTA's last-step rule and names on unrounded times of real device rows."""
    found = hta_values(traces, rounded=False, by_category=True)
    for rank, want in (reference["exact"] or {}).items():
        got = found[int(rank)]
        assert got.activities == want["n"]
        whole = all(float(want[key]).is_integer() for key in ("idle", "compute", "kernel"))
        slack = 0.0 if whole else 0.25 * 2 * got.activities**0.5
        assert got.kernel_us == pytest.approx(want["kernel"], abs=0 if whole else 0.252)
        assert got.idle_us == pytest.approx(want["idle"], abs=slack)
        assert got.compute_us == pytest.approx(want["compute"], abs=slack)
        assert got.communication_us == pytest.approx(want["comm"], abs=slack)
        assert (got.overlap_ratio is None) == (want["overlap_pct"] is None)


def test_steps_are_marked_and_add_up(answer: TraceAnswer) -> None:
    for row in answer.steps:
        _check_sum(row)
    for rank in {row.rank for row in answer.steps}:
        rows = [row for row in answer.steps if row.rank == rank]
        ends = [row.start_ns + row.window_ns for row in rows]
        assert all(end <= row.start_ns for end, row in zip(ends, rows[1:], strict=False))


def test_what_is_communication(name: str, answer: TraceAnswer) -> None:
    libraries = {row.library for row in answer.kernels if row.kind == "communication"}
    want = {
        "b200_eager_rank0of8_multimem": {"nccl", "symmetric memory"},
        "v100_train_rank1of2": {"nccl"},
        "a100_nccl_args": {"nccl"},
        "dlrm_8ranks_v100": {"nccl"},
        "sampled_128rank_job": {"nccl"},
    }
    assert libraries == want.get(name, set())
    assert not answer.unclassified


def test_kernels_have_their_own_extremes(name: str, answer: TraceAnswer) -> None:
    for row in answer.kernels:
        assert row.min_ns <= row.mean_ns <= row.max_ns <= row.sum_ns
    if name == "v100_train_rank1of2":  # HTA says max = min = mean = 67,774 µs
        row = next(row for row in answer.kernels if row.name.startswith("void at::native::vectorized_elementwise_k"))
        assert (row.count, row.max_ns) == (5005, 364_000)


def test_stragglers_of_real_ranks(name: str, answer: TraceAnswer) -> None:
    named = [row.rank for row in answer.stragglers if row.is_straggler]
    assert named == ([7] if name == "dlrm_8ranks_v100" else [])
    if (
        name == "dlrm_8ranks_v100"
    ):  # TraceLens: rank 7 last in 62.5 % of 8 collectives, rank 5 in 25 %, rank 4 in 12.5 %
        assert [row.last_share for row in answer.stragglers] == [0, 0, 0, 0, 0.125, 0.25, 0, 0.625]
