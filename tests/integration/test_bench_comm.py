"""agprof bench-comm between two real ranks, and a run that keeps what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agprof.launch import comm_bench as launch
from agprof.launch.comm_bench import kept

pytestmark = pytest.mark.slow


def agprof(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agprof", "bench-comm", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environ)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"AGPROF_CACHE": str(tmp_path / "cache")}


def test_two_ranks_are_measured_fitted_and_kept(environ: dict[str, str]) -> None:
    done = agprof(environ, "--quick", "--most-bytes", "1M", "--seconds", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    (ceiling,) = kept(environ)
    assert (ceiling.backend, ceiling.ranks, ceiling.nodes, ceiling.link) == ("gloo", 2, 1, launch.LOOPBACK)
    curves = {curve.op: curve for curve in ceiling.curves}
    assert set(curves) == {"all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"}
    for curve in curves.values():
        assert [point.bytes for point in curve.points][:3] == [1024, 16384, 262144]
        assert curve.fit is not None
        assert curve.fit.alpha_ns + curve.fit.beta_ns_per_byte * 2**20 > 1000  # no network moves 1 MiB in a microsecond
    assert "all_reduce of 1,024 bytes" in done.stderr
    assert "busbw" in done.stdout


def test_the_measurement_of_a_backend_that_is_not_there_says_why(environ: dict[str, str]) -> None:
    done = agprof(environ, "--backend", "mpi", "--op", "broadcast", "--quick")
    assert done.returncode != 0
    assert "the measurement failed: mpi on cpu" in done.stderr
    assert kept(environ) == []


def test_ceilings_are_json_that_others_can_read(environ: dict[str, str]) -> None:
    done = agprof(environ, "--quick", "--most-bytes", "256K", "--op", "broadcast", "--ranks", "3", "--seconds", "5")
    assert done.returncode == 0, done.stderr
    (file,) = launch.kept_dir(environ).iterdir()
    value = json.loads(file.read_text())
    assert value["ranks"] == 3
    assert [point["bytes"] % 12 for point in value["curves"][0]["points"]] == [0, 0, 0]  # whole elements of each rank
