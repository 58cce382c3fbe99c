"""`agprof peak`: which measurements it starts, what it prints and keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agprof.cli.main import main
from agprof.errors import LaunchError
from agprof.launch import host, peak
from agprof.model.ceilings import BandwidthCeiling, MeasuredCeiling, ProductCeiling

CEILING = MeasuredCeiling(
    device_type="cpu",
    device_name="some CPU",
    threads=1,
    measured_realtime_ns=1,
    torch_version="2.13.0",
    quick=False,
    products=(
        ProductCeiling(dtype="float32", flops_per_second=1e11, low=9e10, high=1.1e11, shape=(8, 8, 8), repeats=20),
        ProductCeiling(dtype="bfloat16", flops_per_second=2e11, low=1e11, high=2.2e11, shape=(8, 8, 8), repeats=20),
    ),
    bandwidth=BandwidthCeiling(kind="copy", bytes_per_second=2e10, low=1e10, high=3e10, array_bytes=2**27, repeats=9),
)


class Measurements:
    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None, float]] = []
        self.no_gpu = False

    def __call__(self, *, device: str, threads: int | None, seconds: float, **_rest: Any) -> MeasuredCeiling:
        self.asked.append((device, threads, seconds))
        if device == "cuda" and self.no_gpu:
            raise LaunchError("the measurement failed: torch sees no CUDA device here")
        cpu_share = 0.25 if threads == 4 else 0.99
        return replace(CEILING, device_type=device, threads=threads, cpu_share=cpu_share)  # type: ignore[arg-type]


@pytest.fixture
def measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measurements:
    found = Measurements()
    monkeypatch.setenv("AGPROF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peak, "measure", found)
    monkeypatch.setattr(host, "usable_cores", lambda: 4)
    monkeypatch.setattr(host, "has_gpu", lambda: False)
    return found


def run(*options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["peak", *options])
    return int(str(ended.value.code))


def test_a_cpu_is_measured_with_one_thread_and_with_all_cores(
    measurements: Measurements, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert [asked[:2] for asked in measurements.asked] == [("cpu", 1), ("cpu", 4)]
    assert sum(seconds for _, _, seconds in measurements.asked) <= 60
    printed = capsys.readouterr()
    assert "  float32       100 GFLOP/s   90.0 GFLOP/s to 110 GFLOP/s, n = 20, 8 x 8 x 8" in printed.out
    assert "  memory          20.0 GB/s   10.0 GB/s to 30.0 GB/s, n = 9, copy of 128 MiB" in printed.out
    assert "note: single measurements of bfloat16 lie more than 30% apart" in printed.out
    assert "note: the measurement got 25% of its cores' time: measure again when idle" in printed.out
    assert "the CPU with 4 threads: about" in printed.err
    assert {file.parent for file in tmp_path.rglob("*.json")} == {tmp_path / "cache" / "peaks"}
    assert [kept.threads for kept in peak.kept({"AGPROF_CACHE": str(tmp_path / "cache")})] == [1, 4]


def test_threads_are_what_was_asked_for_and_quick_is_quick(measurements: Measurements) -> None:
    assert run("--threads", "2", "--threads", "2", "--threads", "8", "--quick") == 0
    assert [asked[:2] for asked in measurements.asked] == [("cpu", 2), ("cpu", 8)]
    assert sum(seconds for _, _, seconds in measurements.asked) <= 6


def test_a_gpu_comes_first_and_a_cpu_where_torch_sees_none(
    measurements: Measurements, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "has_gpu", lambda: True)
    assert run() == 0
    measurements.no_gpu = True
    assert run() == 0
    assert "torch sees no CUDA device here; measuring the CPU" in capsys.readouterr().err
    assert [asked[:2] for asked in measurements.asked] == [("cuda", None), ("cuda", None), ("cpu", 1), ("cpu", 4)]
    assert run("--device", "cuda") == LaunchError.exit_code


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--device", "tpu"), "must be auto, cpu or cuda"),
        (("--device", "cuda", "--threads", "2"), "has no effect on a GPU"),
        (("--threads", "0"), "threads"),
    ],
)
def test_what_is_wrong_is_said(
    measurements: Measurements, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], rule: str
) -> None:
    assert run(*options) == 2
    assert rule in capsys.readouterr().err
    assert not measurements.asked
