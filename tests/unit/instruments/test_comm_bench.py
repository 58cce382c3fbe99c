"""The measurement of collectives: sizes, when it stops, what it leaves out. One rank stands for all here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from agprof.instruments import comm_bench
from agprof.instruments.comm_bench import Bench, expected_ns, sizes
from agprof.model.comm_ceiling import OPS


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Bench(torch, dist, torch.device("cpu"))
    dist.destroy_process_group()


def test_sizes_grow_by_the_factor_and_end_with_the_most() -> None:
    assert sizes(1024, 1024) == (1024,)
    assert sizes(1024, 4096, 2) == (1024, 2048, 4096)
    assert sizes(1024, 5000) == (1024, 4096, 5000)


def test_the_next_size_is_expected_along_the_slope() -> None:
    flat = [{"bytes": 1000, "median_ns": 500}, {"bytes": 4000, "median_ns": 500}]
    assert expected_ns(flat, 16000) == 500
    steep = [{"bytes": 1000, "median_ns": 1500}, {"bytes": 4000, "median_ns": 4500}]
    assert expected_ns(steep, 16000) == 16500
    faster = [{"bytes": 1000, "median_ns": 900}, {"bytes": 4000, "median_ns": 500}]
    assert expected_ns(faster, 16000) == 500


@pytest.mark.parametrize("op", OPS)
def test_each_operation_is_measured_at_its_total_bytes(bench: Bench, op: str) -> None:
    points = bench.curve(op, (1024, 4096, 16384), deadline=0.0)  # no time: three sizes all the same
    assert [point["bytes"] for point in points] == [1024, 4096, 16384]
    for point in points:
        assert 0 < point["low_ns"] <= point["median_ns"] <= point["high_ns"]
        assert point["repeats"] == comm_bench.LEAST_REPEATS


def test_without_time_no_fourth_size_is_begun(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(bench.curve("broadcast", (1024, 4096, 16384, 65536), deadline=0.0)) == 3
    assert "no time for 65,536 bytes" in capsys.readouterr().out


def test_sizes_beyond_the_memory_are_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comm_bench, "_available_bytes", lambda: 10_000.0)
    points = bench.curve("all_gather", (1024, 4096), deadline=float("inf"))
    assert [point["bytes"] for point in points] == [1024]
    assert "do not fit into the memory" in capsys.readouterr().out


def test_an_operation_that_the_backend_lacks_gives_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks(*_args: Any) -> None:
        raise RuntimeError("ProcessGroup does not support alltoall_base")

    monkeypatch.setattr(dist, "all_to_all_single", lacks)
    assert bench.curve("all_to_all", (1024, 4096), deadline=float("inf")) == []
    assert "this backend can't do it" in capsys.readouterr().out


def test_buffers_are_freed_between_sizes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    make = bench._zeros

    def watched(elements: int) -> Any:
        assert all(reference() is None for reference in alive if elements > 300)
        tensor = make(elements)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(bench, "_zeros", watched)
    bench.curve("all_reduce", (1024, 4096, 16384), deadline=0.0)
    assert len(alive) == 3
    assert all(reference() is None for reference in alive)


def test_unknown_operations_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["comm_bench", "--ops", "all_reduce,warp"])
    with pytest.raises(SystemExit):
        comm_bench._options()
    assert "'warp'" in capsys.readouterr().err
