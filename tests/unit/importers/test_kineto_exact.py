"""Every event of every real trace, to the nanosecond, against Python's json and decimals; how times are read."""

import subprocess
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.importers import kineto_share, kineto_window
from agprof.importers.kineto import import_file, peek
from agprof.importers.kineto_time import array_ns, exact_ns
from kineto_files import expected_rows, loaded, only_trace, rows_of, unpacked

FILES = (
    "a100_nccl_args", "alexnet_small", "b200_eager_rank0of8_multimem", "cpu_only_rank34", "cuda_event_sync",
    "cuda_event_sync_multi_stream", "h100_qwen_0.5b", "mi250_rocm62", "no_gpu_rank", "simple_add",
    "torch_compile_triton", "triton_example", "v100_ns_timestamps", "v100_resnet50_old_categories",
    "v100_train_rank1of2", "dlrm_8ranks_v100/rank3", "sampled_128rank_job/rank1",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_event_of_a_real_trace_is_read_exactly(traces_dir: Path, tmp_path: Path, name: str) -> None:
    file = traces_dir / f"{name}.json.gz"
    whole = loaded(unpacked(file))
    meta = import_file(file, tmp_path, 0)
    assert rows_of(only_trace(tmp_path)) == expected_rows(whole)
    assert meta.truncated is None
    assert meta.left_out == {}
    assert sum(meta.events.values()) == len(whole["traceEvents"])


@pytest.mark.parametrize("chunk", [700, 5_000, 40_000])
@pytest.mark.parametrize("processes", [1, 2])
def test_where_the_file_is_cut_changes_nothing(
    traces_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, processes: int
) -> None:
    file = traces_dir / "mi250_rocm62.json.gz"
    plain = tmp_path / "plain.json"
    plain.write_bytes(unpacked(file))
    expected = expected_rows(loaded(plain.read_bytes()))
    if processes == 1:  # another process has its own constant; there only the sharing is tested
        monkeypatch.setattr(kineto_window, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(kineto_window, "_BEYOND_BYTES", 64)
    for number, each in enumerate((plain, file)):
        import_file(each, tmp_path / str(number), 3, processes=processes)
        assert rows_of(only_trace(tmp_path / str(number))) == expected


def test_two_processes_read_what_one_reads(traces_dir: Path, tmp_path: Path) -> None:
    file = traces_dir / "v100_resnet50_old_categories.json.gz"
    metas = [import_file(file, tmp_path / str(n), 0, processes=n) for n in (1, 2)]
    assert metas[0] == metas[1]
    one, two = (rows_of(only_trace(tmp_path / str(n))) for n in (1, 2))
    assert one == two


def test_ranks_are_found_without_reading_the_events(traces_dir: Path) -> None:
    assert peek(traces_dir / "v100_train_rank1of2.json.gz").rank == 1
    head = peek(traces_dir / "cpu_only_rank34.json.gz")
    assert (head.rank, head.world_size, head.host) == (34, 300, "twshared16453.15.atn5.facebook.com")
    assert peek(traces_dir / "mi250_rocm62.json.gz").rank is None


def decimals(digits: int, most: int) -> st.SearchStrategy[str]:
    return st.builds(
        lambda whole, part: f"{whole}.{part:0{digits}d}",
        st.integers(-most, most),
        st.integers(0, 10**digits - 1),
    )


@given(st.lists(decimals(3, 2**43 - 2), min_size=1))
def test_a_double_holds_three_decimals_below_2_to_the_43(texts: list[str]) -> None:
    found = array_ns([float(text) for text in texts])
    assert found is not None
    assert found.tolist() == [int(Decimal(text) * 1000) for text in texts]


@given(st.lists(decimals(3, 2**62 // 1000), min_size=1))
def test_beyond_that_doubles_are_refused_and_decimals_are_exact(texts: list[str]) -> None:
    if any(abs(Decimal(text)) >= 2**43 for text in texts):
        assert array_ns([float(text) for text in texts]) is None
    assert [exact_ns(Decimal(text)) for text in texts] == [int(Decimal(text) * 1000) for text in texts]


@given(st.lists(decimals(6, 2**33), min_size=1))
def test_digits_below_a_nanosecond_are_rounded_half_to_even(texts: list[str]) -> None:
    expected = [int((Decimal(text) * 1000).to_integral_value(ROUND_HALF_EVEN)) for text in texts]
    assert [exact_ns(Decimal(text)) for text in texts] == expected
    found = array_ns([float(text) for text in texts])
    assert found is None or found.tolist() == expected


@given(st.lists(st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.none(), st.text(), st.booleans())))
def test_an_array_of_times_is_exact_or_refused(values: list[object]) -> None:
    found = array_ns(list(values))
    if found is not None and not any(isinstance(value, bool) for value in values):
        assert found.tolist() == [
            int((Decimal(str(value)) * 1000).to_integral_value(ROUND_HALF_EVEN)) for value in values
        ]


@pytest.mark.parametrize("value", [None, True, "", "x", "nan", "1e99", 2**70, [], Decimal("NaN"), Decimal("Infinity")])
def test_what_is_no_time_is_none(value: object) -> None:
    assert exact_ns(value) is None


def test_a_helping_process_that_dies_costs_no_event(
    traces_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(job: kineto_share.Job) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["false"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    monkeypatch.setattr(kineto_share, "start_helper", dead)
    file = traces_dir / "dlrm_8ranks_v100" / "rank3.json.gz"
    assert import_file(file, tmp_path, 0, processes=2).truncated is None
    assert rows_of(only_trace(tmp_path)) == expected_rows(loaded(unpacked(file)))
