"""`kineto:` in a real run of two ranks: torch's profiler, its file, the run's tables and its report."""

import json
import subprocess
import sys

import polars as pl
import pytest

from agprof.model.trace_tables import CpuKind
from agprof.store import layout
from agprof.store.reader import Run, read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("kineto")
    settings = ["kineto.active=2", "kineto.first_step=2", "profile.profile_step=null", "args.steps=8"]
    command = [sys.executable, "-m", "agprof", "run", "gpt2", "--plain", "--out", str(out)]
    subprocess.run([*command, *(word for each in settings for word in ("--set", each))], check=True, timeout=240)
    (folder,) = out.iterdir()
    return read_run(folder)


def test_the_recorded_steps_stand_in_the_runs_own_tables_and_the_file_is_gone(run: Run) -> None:
    assert set(run.traces) == {0}
    assert not (run.path / layout.KINETO).exists()
    trace = run.traces[0]
    assert trace.meta.rank_source == "own capture"
    names = trace.names()
    steps = [names[row] for row in trace.table("cpu")["name"].to_list() if names[row].startswith("ProfilerStep#")]
    assert steps == ["ProfilerStep#3", "ProfilerStep#4"]


def test_captured_steps_are_left_out_of_the_statistics_on_every_rank(run: Run) -> None:
    steps = run.tables["steps"]
    for rank in (0, 1):
        profiled = steps.filter((pl.col("rank") == rank) & pl.col("profiled"))["step"].to_list()
        assert profiled == [2, 3, 4, 5], "prepared in 2, recorded in 3 and 4, written in 5"


def test_both_clocks_agree(run: Run) -> None:
    """The profiler's step is opened and closed at the same borders as ours: apart by what a few calls take."""
    trace = run.traces[0]
    cpu, names = trace.table("cpu"), trace.names()
    ours = {row["step"]: row for row in run.tables["steps"].filter(pl.col("rank") == 0).to_dicts()}
    for row in cpu.filter(pl.col("kind") == CpuKind.ANNOTATION).to_dicts():
        name = names[row["name"]]
        if name.startswith("ProfilerStep#"):
            step = ours[int(name.partition("#")[2])]
            assert 0 <= row["start_ns"] - step["start_ns"] < 2_000_000
            assert abs(row["start_ns"] + row["duration_ns"] - step["end_ns"]) < 2_000_000


def test_the_report_has_the_trace(run: Run) -> None:
    answers = json.loads((run.path / layout.REPORT_JSON).read_text())
    assert answers["trace"]["has_device"] is False
    assert answers["trace"]["quality"][0]["steps"] == 2
