"""Plans of several nodes: what each launcher is told, which ranks are where, and what reaches them over ssh."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from agprof.config.workload import LaunchSection, Workload
from agprof.launch.node_plan import NodeAddress, NodePlan, deepspeed_environment, plan_nodes, to_line
from agprof.model.settings import ENV_NODE, ENV_RUN_DIR, ENV_SETTINGS, InstrumentSettings

NODES = (
    NodeAddress(host="a", address="10.0.0.1", ranks=2, interface="eth7"),
    NodeAddress(host="b", address="10.0.0.2", ranks=1, interface="eth7"),
)
RUN = Path("/runs/x")


def plan(launcher: str = "torchrun", environ: dict[str, str] | None = None, **more) -> tuple[NodePlan, ...]:
    workload = Workload(name="x", script="t.py", args=["--log", "1"], launch=LaunchSection(launcher=launcher))
    return plan_nodes(
        workload, NODES, run_dir=RUN, base_dir=Path("/w"), environ={"HOME": "/h", **(environ or {})},
        python="/py/bin/python", cores=4, master_port=5000, cwd=Path("/c"), **more,
    )  # fmt: skip


def option(words: tuple[str, ...], name: str) -> str:
    for at, word in enumerate(words[: words.index("--")]):
        if word == name:
            return words[at + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise AssertionError(f"no {name} in {words}")


def test_torchrun_is_told_its_node_and_where_node_0_is():
    first, second = plan()
    for number, node in enumerate((first, second)):
        assert option(node.argv, "--nnodes") == "2"
        assert option(node.argv, "--node-rank") == str(number)
        assert option(node.argv, "--master-addr") == "10.0.0.1"
        assert option(node.argv, "--master-port") == "5000"
        assert option(node.argv, "--rdzv-backend") == "static"
        assert node.env[ENV_NODE] == str(number)
        assert node.env["GLOO_SOCKET_IFNAME"] == node.env["NCCL_SOCKET_IFNAME"] == "eth7"
        assert node.argv[-3:] == ("/w/t.py", "--log", "1")
    assert (option(first.argv, "--nproc-per-node"), option(second.argv, "--nproc-per-node")) == ("2", "1")
    assert [(node.first_rank, node.ranks, node.world_size) for node in (first, second)] == [(0, 2, 3), (2, 1, 3)]


def test_threads_are_the_cores_of_a_node_by_the_ranks_that_it_has():
    assert [node.env["OMP_NUM_THREADS"] for node in plan()] == ["2", "4"]


def test_deepspeed_is_started_on_each_node_with_a_hostfile_of_all():
    for number, node in enumerate(plan("deepspeed")):
        assert "--no_ssh" in node.argv
        assert option(node.argv, "--node_rank") == str(number)
        assert option(node.argv, "--master_addr") == "10.0.0.1"
        assert node.files == {"hostfile": "a slots=2\nb slots=1\n"}
        assert option(node.argv, "--hostfile") == "/runs/x/hostfile"


def test_deepspeeds_own_way_over_ssh_starts_on_node_0_alone():
    first, second = plan("deepspeed", through="deepspeed")
    assert "--no_ssh_check" in first.argv
    assert "--no_ssh" not in first.argv
    assert second.argv == ()
    assert second.sampler_argv is not None
    assert first.env["DS_ENV_FILE"] == "/runs/x/ds_env"


def test_what_deepspeeds_runner_makes_of_the_environment_is_what_we_meant():
    changes = {"A": '{"x": "$HOME `id` \\ 100%"}', "B": "plain-1.0", "C": None, ENV_NODE: "0", "D": ""}
    script = ""
    for line in deepspeed_environment(changes).splitlines(keepends=True):
        # As its `add_export` and `get_cmd` do.
        name, value = line.split("=", maxsplit=1)
        value = value.strip()
        if not value.replace("-", "").replace(".", "").isalnum():
            value = f'"{value}"'
        script += f"export {name}={value}; "
    script = script.replace("%%", "%")  # pdsh
    printed = subprocess.run(
        ["sh", "-c", f'{script} printf "%s\\n" "$A" "$B" "${{C-none}}" "${{{ENV_NODE}-none}}" "${{D-none}}"'],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"},
    ).stdout.splitlines()  # fmt: skip
    assert printed == [changes["A"], "plain-1.0", "none", "none", ""]


def test_the_instruments_settings_survive_the_way_over_ssh():
    first, _ = plan("deepspeed", through="deepspeed")
    assert first.files is not None
    (line,) = [line for line in first.files["ds_env"].splitlines() if line.startswith(f"{ENV_SETTINGS}=")]
    (value,) = shlex.split(f'"{line.partition("=")[2]}"')
    assert InstrumentSettings.from_json(value).level == "default"
    assert f"{ENV_NODE}=" not in first.files["ds_env"]


def test_a_plan_travels_as_one_line():
    for node in plan("deepspeed", through="deepspeed"):
        line = to_line(node)
        assert "\n" not in line
        assert NodePlan.from_dict(json.loads(line)) == node


def test_the_samplers_number_and_clock():
    first, second = plan(clock_port=6000)
    assert first.sampler_argv is not None
    assert second.sampler_argv is not None
    assert first.sampler_argv[first.sampler_argv.index("--node") + 1] == "0"
    assert second.sampler_argv[second.sampler_argv.index("--node") + 1] == "1"
    assert first.sampler_argv[-2:] == ("--clock-serve", "10.0.0.1:6000")
    assert second.sampler_argv[-2:] == ("--clock-server", "10.0.0.1:6000")


def test_another_run_folder_is_put_everywhere():
    node = plan("deepspeed")[0].moved_to(Path("/local/x"))
    assert node.env[ENV_RUN_DIR] == "/local/x"
    assert option(node.argv, "--hostfile") == "/local/x/hostfile"
    assert node.sampler_argv is not None
    assert node.sampler_argv[node.sampler_argv.index("--run-dir") + 1] == "/local/x"
    assert str(RUN) not in to_line(node)


def test_the_environment_is_the_nodes_own_with_our_changes():
    node = plan(environ={"RANK": "7", "NCCL_DEBUG": "INFO", "SECRET": "s"})[1]
    env = node.environment({"RANK": "3", "HOME": "/there"})
    assert "RANK" not in env
    assert env["HOME"] == "/there"
    assert env["NCCL_DEBUG"] == "INFO"
    assert "SECRET" not in env


def test_a_command_has_no_nodes():
    workload = Workload(name="x", command=["true"])
    with pytest.raises(ValueError, match="a command starts its ranks itself"):
        plan_nodes(
            workload, NODES, run_dir=RUN, base_dir=Path("/w"), environ={}, python="p", cores=1, master_port=1
        )  # fmt: skip
