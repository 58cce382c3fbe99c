"""Real launchers with a small torch.distributed program: codes are passed on, ends come in time."""

import os
import sys
import time
from pathlib import Path

import pytest

from agprof.config.workload import Workload
from agprof.launch import host, processes
from agprof.launch.execute import execute
from agprof.launch.folder import create_run_folder, write_manifest
from agprof.launch.plan import plan_launch
from agprof.launch.supervisor import Deadlines
from agprof.model.outcome import Outcome

PROGRAM = """
import os, signal, sys, time
import torch, torch.distributed as dist
mode = sys.argv[-1]
dist.init_process_group("gloo")
total = torch.ones(4)
dist.all_reduce(total)
assert total[0].item() == dist.get_world_size() == 2
if mode == "bound":
    assert len(os.sched_getaffinity(0)) < os.cpu_count()
if dist.get_rank() == 1:
    if mode == "exit":
        os._exit(7)
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
elif mode == "exit":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    before = set(processes.descendants(os.getpid()))
    yield
    assert set(processes.descendants(os.getpid())) <= before


def run(folder: Path, launcher: str, mode: str, *, bind_cores: bool = False, module: bool = False) -> Outcome:
    (folder / "program.py").write_text(PROGRAM)
    workload = Workload.model_validate(
        {
            "name": "small",
            **({"module": "program"} if module else {"script": "program.py"}),
            # `--m` and `--log` abbreviate several options of both launchers.
            "args": ["--m", "1", "--log", mode],
            "launch": {"launcher": launcher, "ranks_per_node": 2, "bind_cores": bind_cores},
            "profile": {"level": "off"},
            "monitor": {"enabled": False},
        }
    )
    run_dir = create_run_folder(folder / "runs", workload.name)
    plan = plan_launch(
        workload,
        run_dir=run_dir,
        base_dir=folder,
        environ={**os.environ, "OMP_NUM_THREADS": "1"},
        python=sys.executable,
        cores=2,
        master_port=host.free_port(),
        cwd=folder,
    )
    write_manifest(run_dir, workload, plan)
    outcome = execute(plan, run_dir, deadlines=Deadlines(failure_s=2.0))
    assert (run_dir / "outcome.json").is_file()
    return outcome


@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
def test_two_ranks_run_to_their_end(tmp_path, module):
    outcome = run(tmp_path, "torchrun", "well", module=module)
    assert (outcome.reason, outcome.exit_code, outcome.failures) == ("finished", 0, ())


@pytest.mark.system("numactl")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_deepspeed_binds_ranks_to_cores(tmp_path):
    outcome = run(tmp_path, "deepspeed", "bound", bind_cores=True, module=True)
    assert (outcome.reason, outcome.exit_code) == ("finished", 0)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_failing_ranks_code_is_passed_on_though_the_other_ignores_sigterm(tmp_path, launcher):
    outcome = run(tmp_path, launcher, "exit")
    assert (outcome.reason, outcome.exit_code) == ("failed", 7)
    first, other = outcome.failures
    assert (first.rank, first.exit_code, first.stopped) == (1, 7, False)
    assert (other.rank, other.signal, other.stopped) == (0, "SIGKILL", True)
    assert first.ended_realtime_ns is not None
    assert time.time_ns() - first.ended_realtime_ns < 10 * 10**9


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_killed_rank_is_137(tmp_path, launcher):
    outcome = run(tmp_path, launcher, "killed")
    assert (outcome.reason, outcome.exit_code, outcome.signal) == ("killed", 137, "SIGKILL")
    assert outcome.failures[0].rank == 1


def test_a_script_with_an_error_at_once(tmp_path):
    (tmp_path / "broken.py").write_text("import sys; sys.exit('no such option')\n")
    workload = Workload.model_validate(
        {"name": "x", "script": "broken.py", "profile": {"level": "off"}, "monitor": {"enabled": False}}
    )
    run_dir = create_run_folder(tmp_path / "runs", "x")
    plan = plan_launch(
        workload, run_dir=run_dir, base_dir=tmp_path, environ=os.environ, python=sys.executable, cores=1,
        master_port=host.free_port(), cwd=tmp_path,
    )  # fmt: skip
    outcome = execute(plan, run_dir)
    assert (outcome.reason, outcome.exit_code) == ("failed", 1)
    assert "no such option" in (run_dir / "launcher.log").read_text()
