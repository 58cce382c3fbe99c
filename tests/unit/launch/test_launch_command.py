"""A command is run as it stands, and its own exit code is the job's."""

import os
import sys
from pathlib import Path

from agprof.config.workload import Workload
from agprof.launch.execute import execute
from agprof.launch.plan import BOOTSTRAP_PATH, LaunchPlan, plan_launch


def plan(run_dir: Path, *command: str, environ: dict[str, str] | None = None, **more) -> LaunchPlan:
    (run_dir / "ranks").mkdir(parents=True, exist_ok=True)
    return plan_launch(
        Workload.model_validate({"name": "x", "command": list(command), "monitor": {"enabled": False}}),
        run_dir=run_dir,
        base_dir=run_dir,
        environ={"PATH": os.environ["PATH"]} if environ is None else environ,
        python=sys.executable,
        cores=2,
        master_port=1,
        cwd=run_dir,
        **more,
    )


def test_nothing_of_the_command_or_its_environment_is_rewritten(tmp_path):
    environ = {"PATH": "/usr/bin", "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "9", "AGPROF_RANK_PID": "7"}
    made = plan(tmp_path, "torchrun", "--x", "t.py", environ=environ, same_environment=False)
    assert made.argv == ("torchrun", "--x", "t.py")
    assert made.ranks is None and made.master_port is None
    assert {name: made.env[name] for name in ("PATH", "RANK", "WORLD_SIZE", "MASTER_PORT")} == {
        name: environ[name] for name in ("PATH", "RANK", "WORLD_SIZE", "MASTER_PORT")
    }
    assert "OMP_NUM_THREADS" not in made.env and "TORCH_EXTENSIONS_DIR" not in made.env
    assert "AGPROF_RANK_PID" not in made.env
    assert made.env["AGPROF_FOREIGN"] == "open"
    assert made.env["PYTHONPATH"] == str(BOOTSTRAP_PATH)


def test_beside_our_interpreter_its_folder_and_cache_are_used(tmp_path):
    made = plan(tmp_path, "python", extensions_dir=Path("/cache"))
    assert made.env["PATH"].startswith(str(Path(sys.executable).parent))
    assert made.env["TORCH_EXTENSIONS_DIR"] == "/cache"


def test_the_commands_code_is_passed_on_and_no_rank_is_said(tmp_path):
    outcome = execute(plan(tmp_path, "sh", "-c", "exit 5"), tmp_path)
    assert (outcome.exit_code, outcome.reason) == (5, "failed")
    assert any("no rank was found" in note for note in outcome.notes)


def test_a_command_that_kills_itself(tmp_path):
    outcome = execute(plan(tmp_path, "sh", "-c", "kill -9 $$"), tmp_path)
    assert (outcome.exit_code, outcome.reason, outcome.signal) == (137, "killed", "SIGKILL")


RANKS = """
import os, subprocess, sys, time
ranks = [
    subprocess.Popen(["sh", "-c", f"sleep 0.5; exit {code}"], env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"})
    for rank, code in enumerate((0, 6))
]
time.sleep(1.5)  # so that there is time to see how they ended
sys.exit(CODE)
"""


def test_a_failed_rank_is_named_and_the_commands_own_code_stays(tmp_path):
    outcome = execute(plan(tmp_path, sys.executable, "-c", RANKS.replace("CODE", "9")), tmp_path)
    assert (outcome.exit_code, outcome.reason) == (9, "failed")
    assert [(failure.rank, failure.exit_code) for failure in outcome.failures] == [(1, 6)]


def test_a_command_that_forgives_its_ranks_has_finished(tmp_path):
    outcome = execute(plan(tmp_path, sys.executable, "-c", RANKS.replace("CODE", "0")), tmp_path)
    assert (outcome.exit_code, outcome.reason, outcome.failures) == (0, "finished", ())
    assert "rank 1 ended with exit code 6, and the command with 0" in outcome.notes
