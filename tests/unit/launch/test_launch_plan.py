"""The plan is a pure function of the workload and what it is told of the machine."""

from pathlib import Path

import pytest

from agprof.config.workload import Workload
from agprof.launch.plan import BOOTSTRAP_PATH, LaunchPlan, describe, plan_launch
from agprof.model.settings import InstrumentSettings

RUN = Path("/runs/x")
PYTHON = "/venv/bin/python"


def plan(document: dict, environ: dict[str, str] | None = None, cores: int = 8, **more) -> LaunchPlan:
    workload = Workload.model_validate({"name": "x", "script": "train.py", **document})
    environ = {"PATH": "/usr/bin"} if environ is None else environ
    return plan_launch(
        workload,
        run_dir=RUN,
        base_dir=Path("/files"),
        environ=environ,
        python=PYTHON,
        cores=cores,
        master_port=29400,
        cwd=Path("/home/user"),
        **more,
    )


def test_torchrun_runs_one_static_node_through_our_own_wrapper():
    made = plan({"launch": {"ranks_per_node": 2}, "args": {"log": 3, "fast": True, "slow": False}})
    assert made.argv == (
        PYTHON, "-P", "-m", "agprof.launch.elastic",
        "--nnodes=1", "--node-rank=0", "--nproc-per-node=2", "--rdzv-backend=static",
        "--master-addr=127.0.0.1", "--master-port=29400",
        "--", "/files/train.py", "--log", "3", "--fast",
    )  # fmt: skip
    assert made.cwd == Path("/home/user")
    assert made.ranks == 2


def test_torchrun_runs_a_module():
    made = plan({"script": None, "module": "pkg.train"})
    assert made.argv[-3:] == ("--module", "--", "pkg.train")


def test_deepspeed_launcher_gets_its_count_and_port():
    launch = {"launcher": "deepspeed", "ranks_per_node": 2, "bind_cores": True}
    made = plan({"script": None, "module": "pkg.train", "launch": launch, "args": ["--lr", 0.1]})
    assert made.argv == (
        PYTHON, "-P", "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "29400",
        "--bind_cores_to_rank", "--module", "--", "pkg.train", "--lr", "0.1",
    )  # fmt: skip


@pytest.mark.parametrize(("word", "dashes"), [("--m", 2), ("--no", 2), ("--log", 1), ("--module", 1), ("--lr", 1)])
def test_arguments_that_deepspeeds_inner_launcher_would_call_ambiguous_are_shielded(word, dashes):
    made = plan({"launch": {"launcher": "deepspeed"}, "args": [word, "1"]})
    assert made.argv.count("--") == dashes


def test_the_bootstrap_comes_first_and_the_users_own_path_stays():
    made = plan({}, environ={"PATH": "/usr/bin", "PYTHONPATH": "/mine::/yours"})
    assert made.env["PYTHONPATH"] == f"{BOOTSTRAP_PATH}:/mine:/yours"
    assert plan({}).env["PYTHONPATH"] == str(BOOTSTRAP_PATH)


def test_settings_reach_the_ranks_as_they_stand_in_the_file():
    made = plan({"profile": {"level": "light", "profile_step": None, "total_steps": 20, "nvtx": False}})
    assert InstrumentSettings.from_json(made.env["AGPROF_SETTINGS"]) == InstrumentSettings(
        level="light", profile_step=None, total_steps=20, nvtx=False
    )
    assert made.env["AGPROF_RUN_DIR"] == "/runs/x"
    assert Path(made.env["AGPROF_HOME"], "agprof", "__init__.py").is_file()


def test_level_off_starts_the_job_without_a_bootstrap():
    made = plan({"profile": {"level": "off"}}, environ={"PATH": "/usr/bin", "PYTHONPATH": "/mine"})
    assert made.env["PYTHONPATH"] == "/mine"
    assert "AGPROF_SETTINGS" not in made.env
    assert "TORCH_FR_BUFFER_SIZE" not in made.env


@pytest.mark.parametrize(
    ("inside", "outside", "cores", "ranks", "threads"),
    [
        ({}, {}, 8, 2, "4"),
        ({}, {}, 2, 4, "1"),
        ({}, {"OMP_NUM_THREADS": "3"}, 8, 2, "3"),
        ({"OMP_NUM_THREADS": "5"}, {"OMP_NUM_THREADS": "3"}, 8, 2, "5"),
        ({}, {"OMP_NUM_THREADS": ""}, 8, 2, "4"),
    ],
)
def test_threads_are_cores_over_ranks_unless_said_otherwise(inside, outside, cores, ranks, threads):
    made = plan({"launch": {"ranks_per_node": ranks, "env": inside}}, environ=outside, cores=cores)
    assert made.env["OMP_NUM_THREADS"] == threads


def test_more_ranks_than_cores_are_noted():
    assert any("4 ranks share 2 cores" in note for note in plan({"launch": {"ranks_per_node": 4}}, cores=2).notes)


def test_the_flight_recorder_is_switched_on_for_the_default_level_only():
    assert plan({}).env["TORCH_FR_BUFFER_SIZE"] == "2000"
    assert "TORCH_FR_BUFFER_SIZE" not in plan({"profile": {"level": "light"}}).env
    assert "TORCH_FR_BUFFER_SIZE" not in plan({"profile": {"flight_recorder": False}}).env
    assert plan({}, environ={"TORCH_FR_BUFFER_SIZE": "7"}).env["TORCH_FR_BUFFER_SIZE"] == "7"
    assert "TORCH_FR_BUFFER_SIZE" not in plan({}, environ={"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}).env


def test_what_a_launcher_around_us_left_is_removed():
    left = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "AGPROF_RANK_PID": "77", "PET_NNODES": "4",
            "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "1", "HOME": "/home/user"}  # fmt: skip
    made = plan({}, environ=left)
    assert {name for name, value in made.env_added.items() if value is None} == set(left) - {"HOME"}
    assert not (set(left) - {"HOME"}) & set(made.env)
    assert made.env["HOME"] == "/home/user"


def test_env_added_is_exactly_the_difference():
    environ = {"PATH": "/usr/bin", "RANK": "1", "KEEP": "me", "MINE": "outside"}
    made = plan({"launch": {"env": {"MINE": "inside"}}}, environ=environ)
    rebuilt = {name: value for name, value in {**environ, **made.env_added}.items() if value is not None}
    assert rebuilt == dict(made.env)
    assert "KEEP" not in made.env_added
    assert made.env_added["MINE"] == "inside"


def test_the_interpreters_folder_comes_first_so_that_always_the_same_ninja_is_found():
    assert plan({}).env["PATH"] == "/venv/bin:/usr/bin"
    assert plan({}, environ={"PATH": "/usr/bin:/venv/bin:/bin"}).env["PATH"] == "/venv/bin:/usr/bin:/bin"


def test_compiled_ops_go_to_our_cache_unless_the_user_has_his_own():
    folder = Path("/cache/ops")
    assert plan({}, extensions_dir=folder).env["TORCH_EXTENSIONS_DIR"] == "/cache/ops"
    assert (
        plan({}, environ={"TORCH_EXTENSIONS_DIR": "/his"}, extensions_dir=folder).env["TORCH_EXTENSIONS_DIR"] == "/his"
    )


def test_without_ds_ops_tells_the_ranks():
    made = plan({}).without_ds_ops()
    assert made.env["AGPROF_NO_DS_OPS"] == made.env_added["AGPROF_NO_DS_OPS"] == "1"
    assert "AGPROF_NO_DS_OPS" not in plan({}).env


def test_output_stays_buffered_as_the_user_has_it():
    assert "PYTHONUNBUFFERED" not in plan({}).env


def test_the_sampler_is_planned_as_the_file_says():
    made = plan({"monitor": {"fast_period_s": 0.1, "period_s": 0.5, "slow_period_s": 10, "nvml": "off"}})
    assert made.sampler_argv == (
        PYTHON, "-P", "-m", "agprof.sampler", "--run-dir", "/runs/x", "--node", "0",
        "--fast-period", "0.1", "--period", "0.5", "--slow-period", "10.0", "--nvml", "off",
    )  # fmt: skip
    assert made.sampler_period_s == 0.5
    assert plan({"monitor": {"enabled": False}}).sampler_argv is None


def option_of(argv: tuple[str, ...] | None, name: str) -> str:
    assert argv is not None
    return argv[argv.index(name) + 1]


def test_no_tier_of_the_sampler_is_slower_than_the_next():
    quick = plan({"monitor": {"period_s": 0.1}}).sampler_argv
    assert [option_of(quick, f"--{tier}period") for tier in ("fast-", "", "slow-")] == ["0.1", "0.1", "5.0"]
    slow = plan({"monitor": {"period_s": 20}}).sampler_argv
    assert [option_of(slow, f"--{tier}period") for tier in ("fast-", "", "slow-")] == ["0.2", "20.0", "20.0"]


def test_prometheus_listens_on_the_loopback_unless_told_otherwise():
    assert "--prometheus-port" not in (plan({}).sampler_argv or ())
    argv = plan({"monitor": {"prometheus": 9109}}).sampler_argv
    assert (option_of(argv, "--prometheus-port"), option_of(argv, "--prometheus-host")) == ("9109", "127.0.0.1")
    argv = plan({"monitor": {"prometheus": {"port": 9110, "host": "0.0.0.0"}}}).sampler_argv
    assert (option_of(argv, "--prometheus-port"), option_of(argv, "--prometheus-host")) == ("9110", "0.0.0.0")


def test_the_callers_environment_is_not_changed():
    environ = {"PATH": "/usr/bin", "RANK": "1"}
    plan({}, environ=environ)
    assert environ == {"PATH": "/usr/bin", "RANK": "1"}


def test_dry_run_shows_command_and_environment_but_no_secret():
    environ = {"PATH": "/usr/bin", "RANK": "0"}
    secret = "hf_" + "a" * 30
    launch = {"ranks_per_node": 2, "env": {"WANDB_API_KEY": "abcdef"}}
    lines = describe(plan({"launch": launch, "args": {"note": secret, "hf-token": "zzz"}}, environ=environ))
    text = "\n".join(lines)
    assert "agprof.launch.elastic" in text
    assert "unset RANK" in text
    assert "RANK=1 LOCAL_RANK=1 WORLD_SIZE=2" in text
    assert "WANDB_API_KEY=[redacted]" in text
    for hidden in (secret, "zzz", "abcdef"):
        assert hidden not in text
