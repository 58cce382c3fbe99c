"""Measured ceilings: measured in a process of their own, kept per device, copied into runs, read back."""

import json
from pathlib import Path

import pytest

from agprof.errors import LaunchError
from agprof.launch import host
from agprof.launch import peak as launch
from agprof.model.ceilings import BandwidthCeiling, MeasuredCeiling, ProductCeiling, read_ceiling
from agprof.store import layout
from agprof.store.reader import read_run


def ceiling(threads: int | None = 1, name: str = "some CPU", **changes: object) -> MeasuredCeiling:
    product = ProductCeiling(
        dtype="float32", flops_per_second=1e11, low=9e10, high=1.1e11, shape=(512, 512, 512), repeats=20
    )
    bandwidth = BandwidthCeiling(kind="triad", bytes_per_second=2e10, low=1e10, high=3e10, array_bytes=2**27, repeats=9)
    fields = {
        "device_type": "cpu" if threads else "cuda",
        "device_name": name,
        "threads": threads,
        "measured_realtime_ns": 1,
        "torch_version": "2.13.0",
        "quick": False,
        "products": (product,),
        "bandwidth": bandwidth,
    }
    return MeasuredCeiling(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AGPROF_CACHE": str(tmp_path / "cache")}


def test_json_and_back_is_the_same() -> None:
    for each in (ceiling(), ceiling(None), ceiling(bandwidth=None, products=()), ceiling(cpu_share=0.9)):
        assert read_ceiling(json.loads(json.dumps(each.to_dict()))) == each


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"version": 2}, "has version 2"),
        ({"device_type": "tpu"}, "device_type cpu or cuda"),
        ({"device_name": 7}, "no text device_name"),
        ({"threads": 0}, "no count threads"),
        ({"threads": True}, "no count threads"),
        ({"products": None}, "no list of products"),
        ({"products": [{"dtype": "float32"}]}, "without shape"),
        ({"products": [{"dtype": "x", "shape": [1, 1, 1], "flops_per_second": 0}]}, "no rate flops_per_second"),
        ({"products": [{"dtype": "x", "shape": [1, 1, 1], "flops_per_second": float("nan")}]}, "no rate"),
        ({"bandwidth": []}, "bandwidth that is not an object"),
    ],
)
def test_what_is_broken_is_said(change: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_ceiling(ceiling().to_dict() | change)
    with pytest.raises(ValueError, match="not an object"):
        read_ceiling([])


def test_each_device_and_number_of_threads_has_one_file(environ: dict[str, str]) -> None:
    for each in (ceiling(1), ceiling(2), ceiling(2, quick=True)):
        launch.keep(each, environ)
    assert {each.threads: each.quick for each in launch.kept(environ)} == {1: False, 2: True}


def test_a_busy_machine_does_not_spoil_what_an_idle_one_gave(environ: dict[str, str]) -> None:
    shares = []
    for share in (0.5, 0.6, 0.99, 0.7, 0.95):
        launch.keep(ceiling(1, cpu_share=share), environ)
        shares.append(launch.kept(environ)[0].cpu_share)
    assert shares == [0.5, 0.6, 0.99, 0.99, 0.95]
    assert launch.keep(ceiling(1, cpu_share=0.5), environ) is None


def test_other_cpus_of_a_shared_home_are_not_taken(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    launch.keep(ceiling(1), environ)
    monkeypatch.setattr(host, "cpu_flags", lambda: "avx1024")
    assert launch.kept(environ) == []


def test_gpus_are_taken_where_there_are_any(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    launch.keep(ceiling(None, "NVIDIA H200"), environ)
    launch.keep(ceiling(None, "../../NVIDIA\n<b>"), environ)
    monkeypatch.setattr(host, "has_gpu", lambda: False)
    assert launch.kept(environ) == []
    monkeypatch.setattr(host, "has_gpu", lambda: True)
    assert {each.device_name for each in launch.kept(environ)} == {"NVIDIA H200", "../../NVIDIA\n<b>"}
    assert {file.parent for file in Path(environ["AGPROF_CACHE"]).rglob("*.json")} == {launch.peaks_dir(environ)}


def test_files_that_can_not_be_read_count_as_none(environ: dict[str, str]) -> None:
    path = launch.keep(ceiling(1), environ)
    assert path is not None
    for text in ("", "[1]", "{", "[" * 100_000, "x" * (launch.MAX_FILE_BYTES + 1)):
        path.write_text(text)
        assert launch.kept(environ) == []


def test_a_cache_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="set AGPROF_CACHE"):
        launch.keep(ceiling(), {"AGPROF_CACHE": str(tmp_path / "file")})


def test_runs_take_the_ceilings_along(environ: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / layout.RANKS).mkdir(parents=True)
    (run / layout.MANIFEST).write_text("{}")
    launch.copy_into(run, environ)
    assert not (run / layout.PEAK).exists()
    assert read_run(run).ceilings == ()
    launch.keep(ceiling(1), environ)
    launch.copy_into(run, environ)
    assert read_run(run).ceilings == (ceiling(1),)
    assert not read_run(run).problems


def test_broken_ceilings_of_a_run_are_sentences(tmp_path: Path) -> None:
    (tmp_path / layout.MANIFEST).write_text("{}")
    (tmp_path / layout.PEAK).write_text(json.dumps({"ceilings": [{}, ceiling().to_dict(), 7]}))
    read = read_run(tmp_path)
    assert read.ceilings == (ceiling(),)
    assert read.problems == (
        "peak.json: ceiling 0 has version None; this agprof reads 1; left out",
        "peak.json: ceiling 2 is not an object; left out",
    )
    (tmp_path / layout.PEAK).write_text("{}")
    assert read_run(tmp_path).problems == ("peak.json has no list of ceilings",)


def measure(**changes: object) -> MeasuredCeiling:
    import os
    import sys

    given: dict[str, object] = {
        "device": "cpu", "threads": 1, "seconds": 0.1, "quick": True, "environ": os.environ, "python": sys.executable,
        "say": lambda _line: None,
    }  # fmt: skip
    return launch.measure(**(given | changes))  # type: ignore[arg-type]


def test_a_measurement_uses_the_threads_it_was_given() -> None:
    said: list[str] = []
    found = measure(say=said.append)
    assert found.threads == 1
    assert found.device_name == (host.cpu_model() or "CPU")
    assert {product.dtype for product in found.products} == {"float32", "bfloat16", "float16"}
    for product in found.products:
        assert product.low <= product.flops_per_second <= product.high
        assert 1e8 < product.flops_per_second < 1e13  # one core
    assert found.cpu_share is not None
    assert 0 < found.cpu_share < 1.1
    assert found.bandwidth is not None
    assert 1e8 < found.bandwidth.bytes_per_second < 1e12
    assert said == [
        "matrix products in float32", "matrix products in bfloat16", "matrix products in float16", "copies",
    ]  # fmt: skip


def test_a_measurement_that_fails_says_why() -> None:
    with pytest.raises(LaunchError, match="no CUDA device"):
        measure(device="cuda", threads=None)
    with pytest.raises(LaunchError, match="invalid float"):
        measure(seconds=_NoNumber())


class _NoNumber(float):
    def __format__(self, _spec: str) -> str:
        return "soon"
