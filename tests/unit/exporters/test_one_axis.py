"""A run of several nodes is exported on one clock: each event where it was, with another clock under it."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from agprof.analysis.one_axis import on_one_axis
from agprof.exporters.formats import EXPORTERS
from agprof.store.reader import Run, read_run
from clock_rows import Clock, bursts, with_clock, with_pings
from synthetic import BOOT_NS, build_run

OTHER = Clock(offset_ns=-7_200_000_000_000, drift=2e-4)
ERROR_NS = 40_000
"""What half of the pings' ways and rounding leave open."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(build_run(tmp_path_factory.mktemp("axis") / "run", ranks=4, nodes=2, steps=6, gpus=1))


def _moved(plain: Run) -> Run:
    end = int(plain.tables["steps"].filter(pl.col("rank") == 0)["end_ns"].max())  # type: ignore[arg-type]
    return with_pings(with_clock(plain, OTHER), bursts(OTHER, [BOOT_NS, end]))


def _events(run: Run, folder: Path, said: list[str] | None = None) -> list[dict[str, Any]]:
    folder.mkdir()
    EXPORTERS["chrome"](run, folder, [].append if said is None else said.append)
    return list(json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"])


def test_the_chrome_trace_is_that_of_one_clock(plain: Run, tmp_path: Path) -> None:
    still, moved = _events(plain, tmp_path / "still"), _events(_moved(plain), tmp_path / "moved")

    def slices(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        found = [(e["pid"], str(e["tid"]), e["ts"], e["dur"], e["name"]) for e in events if e["ph"] == "X"]
        return sorted(found, key=lambda e: (e[0], e[1], round(e[2]), -e[3]))

    assert len(slices(still)) == len(slices(moved)) > 100
    for one, other in zip(slices(still), slices(moved), strict=True):
        assert (one[0], one[1], one[4]) == (other[0], other[1], other[4])
        assert other[2] == pytest.approx(one[2], abs=ERROR_NS / 1000)
        assert other[3] == pytest.approx(one[3], abs=ERROR_NS / 1000)


def test_parquet_keeps_the_nodes_own_times_and_tells_one_wall_time(plain: Run, tmp_path: Path) -> None:
    run = _moved(plain)
    for name, one in (("still", plain), ("moved", run)):
        (tmp_path / name).mkdir()
        EXPORTERS["parquet"](one, tmp_path / name, lambda line: None)
    for table in ("steps", "collectives", "host_samples", "gpu_samples"):
        still, moved = (
            pl.read_parquet(tmp_path / name / "parquet" / f"{table}.parquet") for name in ("still", "moved")
        )
        assert moved.drop("wall").equals(run.tables[table])
        apart = (moved["wall"].cast(pl.Int64) - still["wall"].cast(pl.Int64)).abs()
        assert apart.max() <= ERROR_NS  # type: ignore[operator]
        assert apart.max() > 0, "both nodes have one clock already"  # type: ignore[operator]


def test_all_ways_to_export_a_moved_run_work(plain: Run, tmp_path: Path) -> None:
    for name in ("nvtxt", "perfetto"):
        (tmp_path / name).mkdir()
        assert EXPORTERS[name](_moved(plain), tmp_path / name, lambda line: None)


def test_clocks_that_are_refused_are_told_of(plain: Run, tmp_path: Path) -> None:
    said: list[str] = []
    run = with_pings(with_clock(plain, OTHER), bursts(Clock(), [BOOT_NS, BOOT_NS + 10**9]))
    _events(run, tmp_path / "refused", said)
    assert any("can't be brought onto one axis" in line and "own wall clock" in line for line in said)


def test_runs_without_pings_are_left_as_they_are(plain: Run, tmp_path: Path) -> None:
    assert on_one_axis(plain) is plain
    one = read_run(build_run(tmp_path / "one", ranks=2))
    assert on_one_axis(one) is one
