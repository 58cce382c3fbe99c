"""What a plan says of nsys, which processes it makes ranks, and what is told of it after the run."""

import json
from pathlib import Path

import pytest

from agprof.config.workload import Workload
from agprof.launch.nsys import NsysHere, collect_reports, is_undecided, sees_gpu, stands_above
from agprof.launch.plan import LaunchPlan, describe, plan_launch
from agprof.model.settings import InstrumentSettings, NsysRun, NsysSettings

NSYS = Path("/opt/nsys/bin/nsys")
ALWAYS = ("--sample=none", "--cpuctxsw=none")


def plan(document: dict, *, gpu: bool = False, here: bool = True, **environ: str) -> LaunchPlan:
    workload = Workload.model_validate({"name": "x", "script": "train.py", **document})
    return plan_launch(
        workload,
        run_dir=Path("/runs/x"),
        base_dir=Path("/files"),
        environ={"PATH": "/usr/bin", **environ},
        python="/venv/bin/python",
        cores=8,
        master_port=29400,
        cwd=Path("/home/user"),
        nsys=NsysHere(program=NSYS, gpu=gpu) if here else None,
    )


def told(made: LaunchPlan) -> NsysSettings | None:
    return InstrumentSettings.from_json(made.env["AGPROF_SETTINGS"]).nsys


def test_without_a_gpu_a_range_of_ours_says_what_to_capture():
    made = plan({"nsys": True})
    assert made.nsys == NsysRun.from_json(made.env["AGPROF_NSYS_RUN"])
    assert made.nsys is not None and made.nsys.arguments == (
        str(NSYS), "profile", "--trace=nvtx,osrt", *ALWAYS,
        "--capture-range=nvtx", "--nvtx-capture=agprof.capture@agprof", "--capture-range-end=stop", "--wait=primary",
    )  # fmt: skip
    assert told(made) == NsysSettings(by="nvtx", first_step=5, steps=3)


def test_with_a_gpu_the_profiler_api_does():
    made = plan({"nsys": {"first_step": 2, "steps": 4}}, gpu=True)
    assert made.nsys is not None and made.nsys.arguments == (
        str(NSYS), "profile", "--trace=cuda,nvtx,osrt,cublas,cudnn", *ALWAYS,
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--wait=primary",
    )  # fmt: skip
    assert told(made) == NsysSettings(by="cuda", first_step=2, steps=4)


def test_the_range_also_where_cuda_is_not_traced():
    made = plan({"nsys": {"trace": ["nvtx"]}}, gpu=True)
    assert made.nsys is not None and "--capture-range=nvtx" in made.nsys.arguments
    assert told(made) == NsysSettings(by="nvtx")


def test_a_whole_life_is_captured_without_a_range():
    made = plan({"nsys": {"steps": None, "args": ["--kill=none"], "ranks": [1], "timeout_s": 5}})
    assert made.nsys is not None
    assert made.nsys.arguments == (str(NSYS), "profile", "--trace=nvtx,osrt", *ALWAYS, "--wait=primary", "--kill=none")
    assert (made.nsys.includes(0), made.nsys.includes(1), made.nsys.timeout_s) == (False, True, 5)
    assert (told(made) or NsysSettings()).by == "whole"


@pytest.mark.parametrize("document", [{}, {"launch": {"launcher": "deepspeed"}}, {"script": None, "command": ["sh"]}])
def test_the_launchers_command_line_stays_as_it_is(document):
    with_nsys, without = plan({**document, "nsys": True}), plan(document)
    assert with_nsys.argv == without.argv
    assert set(with_nsys.env) - set(without.env) == {"AGPROF_NSYS_RUN"}
    assert any(line.startswith(f"nsys      {NSYS} profile") for line in describe(with_nsys))


def test_without_nsys_on_the_machine_the_plan_is_that_of_a_run_without_it():
    made = plan({"nsys": True}, here=False)
    assert made.nsys is None and "AGPROF_NSYS_RUN" not in made.env
    assert told(made) is None


@pytest.mark.parametrize("key", ["kineto", "nsys"])
def test_ranks_that_the_run_does_not_have_are_said(key):
    launch = {"launch": {"ranks_per_node": 2}}
    assert plan({key: {"ranks": [0, 1]}, **launch}).shortfall == ()
    (told_,) = plan({key: {"ranks": [1, 2, 7]}, **launch}).shortfall
    assert told_ == f"{key}.ranks names 2, 7, and the run has ranks 0 to 1: nothing is captured of others"
    assert "has rank 0 alone" in plan({key: {"ranks": [1]}}).shortfall[0]


def test_what_an_outer_run_left_is_removed():
    made = plan({}, AGPROF_UNDER_NSYS="rank", AGPROF_NSYS_RUN="{}", AGPROF_NSYS_STARTED="/x")
    assert not [name for name in made.env if "NSYS" in name]


def test_hidden_gpus_are_none():
    assert sees_gpu(True, {}) and sees_gpu(True, {"CUDA_VISIBLE_DEVICES": "0"})
    assert not sees_gpu(False, {})
    assert not sees_gpu(True, {"CUDA_VISIBLE_DEVICES": ""}) and not sees_gpu(True, {"CUDA_VISIBLE_DEVICES": "-1"})


def test_only_the_rank_itself_counts_as_the_rank():
    run = NsysRun(arguments=("nsys",), ranks=(0,), timeout_s=1).to_json()
    rank = {"RANK": "0", "AGPROF_NSYS_RUN": run}
    assert is_undecided(rank), "it will become the holder"
    assert is_undecided({**rank, "AGPROF_UNDER_NSYS": "holder"})
    assert not is_undecided({**rank, "AGPROF_UNDER_NSYS": "rank"})
    assert not is_undecided({**rank, "AGPROF_UNDER_NSYS": "failed"}), "it runs without nsys"
    assert not is_undecided({**rank, "RANK": "1"}), "not one of those"
    assert not is_undecided({"RANK": "0"})
    assert not is_undecided({"RANK": "0", "AGPROF_NSYS_RUN": "{"})
    assert stands_above({"RANK": "0"}) and not stands_above({"RANK": "0", "AGPROF_UNDER_NSYS": "holder"})
    assert not stands_above({})


def test_notes_tell_cost_reports_and_problems(tmp_path):
    folder = tmp_path / "nsys"
    folder.mkdir()
    row = {"rank": 0, "report": "rank-00000.nsys-rep", "started_ns": 0, "rank_started_ns": 200_000_000,
           "rank_ended_ns": 10**9, "ended_ns": 3 * 10**9, "problem": None}  # fmt: skip
    (folder / "rank-00000.json").write_text(json.dumps(row))
    (folder / "rank-00001.json").write_text(json.dumps({**row, "rank": 1, "rank_started_ns": 300_000_000}))
    (folder / "rank-00002.json").write_text(json.dumps({"rank": 2, "report": None, "problem": "no luck"}))
    (folder / "rank-00003.json").write_text("{")
    (folder / ".rank-00003.77.nsys-rep").write_text("half")
    cost, secrets, problem = collect_reports(tmp_path)
    assert cost == "nsys held 2 ranks; it took at most 300 ms before a rank began and 2.00 s after its end"
    assert "2 nsys reports" in secrets and "environment" in secrets
    assert problem == "rank 2: no luck"
    assert not list(folder.glob(".*"))
    assert collect_reports(tmp_path / "elsewhere") == []
