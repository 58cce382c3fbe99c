"""A job on emulated nodes with real launchers: it ends well; a node that dies or is cut off ends it, and is named."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agprof.analysis.run import analyse
from agprof.config.setups import EmulateSection
from agprof.config.workload import Workload
from agprof.launch import processes
from agprof.launch.emulate import INTERFACE, EmulatedNodes, why_not
from agprof.launch.folder import create_run_folder, write_manifest
from agprof.launch.node_plan import NodeAddress, NodePlan, plan_nodes
from agprof.launch.node_transport import in_namespaces
from agprof.launch.nodes import execute_nodes
from agprof.model.answers import RunAnswers
from agprof.model.outcome import Outcome
from agprof.store.reader import read_run

# A linear model whose gradients are averaged; a file per rank says when it has made some steps.
PROGRAM = """
import os, sys, time
import torch, torch.distributed as dist
steps = int(sys.argv[sys.argv.index("--steps") + 1])
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
print("on", os.uname().nodename, flush=True)
for step in range(steps):
    model(torch.randn(8, 64)).square().mean().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= size
    optimizer.step()
    optimizer.zero_grad()
    if step == 2:
        open(os.path.join(os.environ["AGPROF_RUN_DIR"], f"up-{rank}"), "w").close()
    if steps > 100:
        time.sleep(0.05)
    if "--fail" in sys.argv and rank == 1 and step == 3:
        os._exit(7)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    if (problem := why_not()) is not None:
        pytest.skip(problem)
    before = set(processes.descendants(os.getpid()))
    yield
    marked = [pid for pid in processes.pids() if str(tmp_path) in processes.environment(pid).get("AGPROF_RUN_DIR", "")]
    assert marked == []
    assert set(processes.descendants(os.getpid())) <= before


@contextmanager
def two_nodes(
    folder: Path, *, launcher: str = "torchrun", steps: int = 5, lost_after_s: float = 20.0, fail: bool = False
) -> Iterator[tuple[EmulatedNodes, list[NodePlan], Path]]:
    (folder / "program.py").write_text(PROGRAM)
    workload = Workload.model_validate(
        {
            "name": "small",
            "script": "program.py",
            "args": {"steps": steps, "fail": fail},
            "launch": {"launcher": launcher},
            "profile": {"profile_step": None, "flight_recorder": False},
            "monitor": {"nvml": "off"},
        }
    )
    run_dir = create_run_folder(folder / "runs", workload.name)
    with EmulatedNodes(EmulateSection(nodes=2)) as nodes:
        plans = plan_nodes(
            workload,
            [NodeAddress(host=n.host, address=n.address, ranks=1, interface=INTERFACE) for n in nodes.nodes],
            run_dir=run_dir,
            base_dir=folder,
            environ={**os.environ, "AGPROF_NO_DS_OPS": "1"},
            python=sys.executable,
            cores=1,
            master_port=29500,
            lost_after_s=lost_after_s,
            cwd=folder,
            clock_port=29600,
        )
        write_manifest(run_dir, workload, plans[0].launch_plan(os.environ), nodes=plans)
        yield nodes, list(plans), run_dir


def execute(nodes: EmulatedNodes, plans: list[NodePlan], run_dir: Path, on_tick: Callable[[], None]) -> Outcome:
    return execute_nodes(plans, in_namespaces(nodes.command, sys.executable), run_dir, on_tick=on_tick)


class When:
    """Does something once, when both ranks have made steps; how long ago that was."""

    def __init__(self, action: Callable[[], None], *files: Path) -> None:
        self._action, self._files = action, files
        self._done_at = 0.0

    def __call__(self) -> None:
        if not self._done_at and all(file.exists() for file in self._files):
            self._done_at = time.monotonic()
            self._action()

    def ago_s(self) -> float:
        assert self._done_at, "the ranks never came so far"
        return time.monotonic() - self._done_at


def answers(run_dir: Path) -> RunAnswers:
    return analyse(read_run(run_dir))


def test_two_nodes_run_to_the_end_and_are_two(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as (nodes, plans, run_dir):
        outcome = execute(nodes, plans, run_dir, lambda: None)
    assert (outcome.reason, outcome.exit_code, outcome.notes) == ("finished", 0, ())
    assert [(node.hostname, node.address) for node in outcome.nodes] == [("node0", "10.77.0.1"), ("node1", "10.77.0.2")]
    assert socket.gethostname() not in ("node0", "node1")
    run = read_run(run_dir)
    told = {
        (stream.header["kind"], stream.header["node"], stream.header["host"], stream.header.get("rank"))
        for stream in run.streams
    }
    assert told == {("rank", 0, "node0", 0), ("rank", 1, "node1", 1), ("node", 0, "node0", None),
                    ("node", 1, "node1", None)}  # fmt: skip
    for rank in (0, 1):
        assert f"on node{rank}" in (run_dir / "ranks" / f"rank-0000{rank}.stdout.log").read_text()
    asked = run.tables["clocks"].filter(node=1)
    assert set(asked["reference_node"]) == {0}
    assert asked.height >= 2  # at the start and at the end
    said = analyse(run)
    assert (said.identity.nodes, said.identity.world_size, said.identity.status) == (2, 2, "finished")
    assert (said.quality.ranks_present, said.quality.ranks_expected) == (2, 2)


def test_killing_all_of_one_node_ends_the_job_and_names_it(tmp_path: Path) -> None:
    with two_nodes(tmp_path, steps=100_000) as (nodes, plans, run_dir):

        def kill() -> None:
            listed = ["ip", "netns", "pids", nodes.nodes[1].namespace]
            for pid in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass

        act = When(kill, run_dir / "up-0", run_dir / "up-1")
        outcome = execute(nodes, plans, run_dir, act)
        assert act.ago_s() < 15
    assert (outcome.reason, outcome.exit_code) == ("node-lost", 6)
    assert outcome.nodes[0].lost is None
    assert outcome.nodes[1].lost is not None
    said = answers(run_dir)
    assert said.identity.status == "failed"
    assert said.identity.status_sentence.startswith("node 1 (node1, 10.77.0.2) was lost: ")
    assert "Node 1 (node1, 10.77.0.2) was lost" in " ".join(said.quality.problems)
    assert said.quality.ranks_present == said.quality.ranks_expected == 2  # what rank 1 wrote before is there


@pytest.mark.slow
def test_cutting_the_link_ends_the_job_on_both_nodes_and_names_one(tmp_path: Path) -> None:
    with two_nodes(tmp_path, steps=100_000, lost_after_s=3.0) as (nodes, plans, run_dir):
        act = When(lambda: nodes.cut(1), run_dir / "up-0", run_dir / "up-1")
        outcome = execute(nodes, plans, run_dir, act)
        # 3 s of silence, 1 s for others to tell, SIGTERM, 2 s to SIGKILL, and the samplers' end.
        assert 3 < act.ago_s() < 15
    assert (outcome.reason, outcome.exit_code) == ("node-lost", 6)
    words = "node 1 (node1, 10.77.0.2) was lost: nothing was heard for 3 s over the network of the job"
    assert outcome.notes[0] == words
    assert answers(run_dir).identity.status_sentence.startswith(words)
    assert [node.lost is not None for node in outcome.nodes] == [False, True]


@pytest.mark.slow
def test_a_node_with_a_disk_of_its_own_sends_its_files(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as (nodes, plans, run_dir):
        plans[1] = plans[1].moved_to(tmp_path / "disk of node 1" / run_dir.name)
        outcome = execute(nodes, plans, run_dir, lambda: None)
    assert (outcome.reason, outcome.exit_code) == ("finished", 0)
    assert [node.files for node in outcome.nodes] == ["shared", "partly"]  # `up-1` is no file of agprof's
    assert not list((tmp_path / "disk of node 1").iterdir())
    said = answers(run_dir)
    assert (said.quality.ranks_present, said.quality.ranks_expected, said.identity.nodes) == (2, 2, 2)
    assert (run_dir / "nodes" / "node-00001.launcher.log").is_file()


@pytest.mark.slow
def test_a_node_whose_files_never_came_is_n_of_m_ranks(tmp_path: Path) -> None:
    with two_nodes(tmp_path, steps=100_000) as (nodes, plans, run_dir):
        other = tmp_path / "disk of node 1" / run_dir.name
        plans[1] = plans[1].moved_to(other)

        def kill() -> None:
            for pid in processes.descendants(os.getpid()):
                if processes.environment(pid).get("AGPROF_NODE") == "1":
                    os.kill(pid, signal.SIGKILL)
            agents = [
                pid for pid in processes.descendants(os.getpid()) if command(pid).endswith(b"node_agent\x001\x00")
            ]
            os.kill(agents[0], signal.SIGKILL)

        outcome = execute(nodes, plans, run_dir, When(kill, run_dir / "up-0", other / "up-1"))
    assert outcome.exit_code != 0
    assert [node.files for node in outcome.nodes] == ["shared", "missing"]
    said = answers(run_dir)
    assert (said.quality.ranks_present, said.quality.ranks_expected) == (1, 2)
    assert said.quality.sentence.startswith("1 of 2 ranks is here")
    assert "None of the files of node 1 (node1) came into the run folder." in said.quality.problems


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_rank_that_fails_on_one_node_ends_the_job_with_its_code(tmp_path: Path, launcher: str) -> None:
    with two_nodes(tmp_path, launcher=launcher, steps=100_000, fail=True) as (nodes, plans, run_dir):
        outcome = execute(nodes, plans, run_dir, lambda: None)
    assert (outcome.reason, outcome.exit_code) == ("failed", 7)
    assert (outcome.failures[0].rank, outcome.failures[0].exit_code) == (1, 7)
    assert [node.lost for node in outcome.nodes] == [None, None]
    sentence = answers(run_dir).identity.status_sentence
    assert sentence.startswith("rank 1 ended ")
    assert sentence.endswith(": exit code 7")


@pytest.mark.slow
def test_deepspeeds_launcher_on_each_node(tmp_path: Path) -> None:
    with two_nodes(tmp_path, launcher="deepspeed") as (nodes, plans, run_dir):
        outcome = execute(nodes, plans, run_dir, lambda: None)
    assert (outcome.reason, outcome.exit_code) == ("finished", 0)
    assert answers(run_dir).quality.ranks_present == 2
