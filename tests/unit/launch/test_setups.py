"""Where a setup's nodes are: addresses, allocation, link in words, what to do when one can't be reached."""

import os
import socket
import stat
from pathlib import Path

import pytest

from agprof.config.load import parse_workload
from agprof.config.setup_choice import SetupJob, choose_setups
from agprof.errors import ConfigError, LaunchError
from agprof.launch import setups, slurm
from agprof.launch.node_plan import plan_nodes
from agprof.launch.prepare_nodes import describe_nodes
from agprof.launch.setups import (
    cores_of_a_node,
    has_nodes,
    hostfile_addresses,
    link_words,
    not_reached_hint,
    slurm_addresses,
)
from agprof.launch.site import planned_site


def job(section: str, launch: str = "ranks_per_node: 2") -> SetupJob:
    text = f"name: x\nmodule: a.b\nlaunch: {{{launch}}}\nsetups: {{s: {{{section}}}}}\n"
    return choose_setups(parse_workload(text, Path("/nowhere")).workload, ["s"])[0]


@pytest.fixture
def no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are those of the hostfile, and nobody's resolver is asked."""
    monkeypatch.setattr(setups, "_real_name", lambda name, ssh: name.rpartition("@")[2])
    known = {"alpha": "10.1.0.1", "beta": "10.1.0.2"}
    monkeypatch.setattr(setups, "_resolved", known.get)


@pytest.mark.parametrize(
    ("section", "nodes", "expected"),
    [
        ("", 1, "one node, no link"),
        ("emulate: {rate: 1gbit, delay: 1ms}", 2, "emulated link, 1gbit, 1ms each way"),
        ("emulate: true", 2, "emulated link, rate not shaped"),
        ("hostfile: h, interface: ib0", 2, "the network between nodes of a hostfile, interface ib0"),
        ("nodes: 4, slurm: {}", 4, "the network between nodes of Slurm"),
    ],
)
def test_the_link_in_words(section: str, nodes: int, expected: str) -> None:
    assert link_words(job(section).setup, nodes) == expected
    assert has_nodes(job(section).setup) == (nodes > 1)


@pytest.mark.usefixtures("no_ssh")
def test_nodes_of_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("root@alpha slots=2\nbeta slots=4\ngamma slots=1\n")
    nodes = hostfile_addresses(job("hostfile: h"), tmp_path)
    assert [(node.host, node.address, node.ranks) for node in nodes] == [
        ("root@alpha", "10.1.0.1", 2),
        ("beta", "10.1.0.2", 4),
        ("gamma", "gamma", 1),
    ], "slots are the ranks, and a name that nobody here knows stays for the nodes to resolve"
    nodes = hostfile_addresses(job("hostfile: h, ranks_per_node: 1"), tmp_path)
    assert [node.ranks for node in nodes] == [1, 1, 1]
    with pytest.raises(ConfigError, match="gives gamma 1 slots; raise slots="):
        hostfile_addresses(job("hostfile: h, ranks_per_node: 2"), tmp_path)
    with pytest.raises(ConfigError, match=r"nodes is 2, and .*h names 3; leave nodes out"):
        hostfile_addresses(job("hostfile: h, nodes: 2"), tmp_path)


@pytest.mark.usefixtures("no_ssh")
def test_localhost_among_others_is_called_by_the_address_they_see(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("localhost slots=1\nbeta slots=1\n")
    local, other = hostfile_addresses(job("hostfile: h"), tmp_path)
    assert other.address == "10.1.0.2"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.1.0.2", 9))
        except OSError:
            pytest.skip("this machine has no way to any other")
        assert local.address == probe.getsockname()[0] != "127.0.0.1"
    (tmp_path / "h").write_text("localhost slots=1\n")
    assert hostfile_addresses(job("hostfile: h"), tmp_path)[0].address == "127.0.0.1"


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_an_alias_is_what_ssh_takes_it_for(tmp_path: Path) -> None:
    program(tmp_path, "ssh", 'test "$3" = -G && echo user me && echo hostname 10.3.0.7')
    (tmp_path / "h").write_text("worker slots=1\n")
    (node,) = hostfile_addresses(job(f"hostfile: h, ssh: '{tmp_path}/ssh -p 2222'"), tmp_path)
    assert (node.host, node.address) == ("worker", "10.3.0.7")


@pytest.fixture
def scontrol(tmp_path: Path) -> dict[str, str]:
    """An environment as in an allocation of three nodes."""
    program(tmp_path, "scontrol", '[ "$*" = "show hostnames n[1-3]" ] && printf "n1\\nn2\\nn3\\n"')
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-3]"}


def test_nodes_of_an_allocation(scontrol: dict[str, str], monkeypatch: pytest.MonkeyPatch, no_ssh: None) -> None:
    monkeypatch.setenv("PATH", scontrol["PATH"])
    assert slurm.allocated_hosts(scontrol) == ("n1", "n2", "n3")
    nodes = slurm_addresses(job("nodes: 2, slurm: {}"), scontrol)
    assert [(node.host, node.ranks) for node in nodes] == [("n1", 2), ("n2", 2)]
    with pytest.raises(LaunchError, match="has 4 nodes, and the allocation 3; ask for more"):
        slurm_addresses(job("nodes: 4, slurm: {}"), scontrol)
    with pytest.raises(LaunchError, match=r"runs inside an allocation of Slurm's.*--dry-run"):
        slurm_addresses(job("nodes: 2, slurm: {}"), {})
    with pytest.raises(LaunchError, match=r"scontrol show hostnames 'other\[1\]'. failed"):
        slurm.allocated_hosts({**scontrol, "SLURM_JOB_NODELIST": "other[1]"})


def test_an_srun_step_names_its_nodes(scontrol: dict[str, str], monkeypatch: pytest.MonkeyPatch, no_ssh: None) -> None:
    for name, value in scontrol.items():
        monkeypatch.setenv(name, value)
    asked = job("nodes: 2, slurm: {gpus_per_node: 8, cpus_per_task: 16}")
    site = planned_site(asked, Path("/nowhere"))
    plans = plan_nodes(
        asked.workload, site.nodes, run_dir=Path("/run"), base_dir=Path("/w"), environ={}, python="/p", cores=4,
        master_port=2900,
    )  # fmt: skip
    (command,) = site.transport(plans)
    words = " ".join(command.argv)
    for option in (
        "--cpu-bind=none",
        "--nodelist=n1,n2",
        "--nodes 2",
        "--ntasks 2",
        "--gpus-per-node=8",
        "--cpus-per-task=16",
    ):
        assert option in words
    assert command.nodes == (0, 1)
    lines = describe_nodes(asked, plans, [command.argv] * 2)
    assert any("n2, n2, ranks 2 to 3" in line for line in lines)


@pytest.mark.parametrize(
    ("section", "said"),
    [("", True), ("cpus_per_task: 8", False), ("options: [--exclusive]", False), ("options: [--mem=0]", True)],
)
def test_one_core_for_all_ranks_is_said(section: str, *, said: bool) -> None:
    assert (slurm.few_cores_note(job(f"nodes: 2, slurm: {{{section}}}").setup) is not None) == said


def test_emulated_nodes_share_the_cores() -> None:
    assert cores_of_a_node(job("emulate: {nodes: 4}").setup, 4, 16) == 4
    assert cores_of_a_node(job("emulate: {nodes: 4}").setup, 4, 2) == 1
    assert cores_of_a_node(job("hostfile: h").setup, 4, 16) == 16


def test_what_to_do_when_a_node_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hint = not_reached_hint(job("hostfile: my hosts, ssh: ssh -p 2222").setup, tmp_path)
    assert hint == "agprof doctor --hostfile 'my hosts' --ssh 'ssh -p 2222' says what is wrong with each node"
    assert not_reached_hint(job("emulate: true").setup, tmp_path) is None
