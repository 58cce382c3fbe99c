"""A hostfile and ssh between two namespaces with an sshd in each: DeepSpeed's own launcher, and agents over ssh."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agprof.config.setups import EmulateSection
from agprof.launch import processes
from agprof.launch.emulate import EmulatedNodes, why_not
from agprof.model.outcome import Outcome
from agprof.store.reader import read_run

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
AGPROF = Path(sys.executable).with_name("agprof")

PROGRAM = """
import os, sys
import torch, deepspeed
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1))
config = {
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
    "zero_optimization": {"stage": 2},
}
deepspeed.init_distributed("gloo")
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
for _ in range(4):
    loss = engine(torch.randn(4, 64)).square().mean()
    engine.backward(loss)
    engine.step()
print("on", os.uname().nodename, "text", os.environ["TEXT"], sys.argv[-1], flush=True)
"""
DDP_PROGRAM = """
import os, sys
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(4)
dist.all_reduce(total)
assert total[0].item() == 2
print("on", os.uname().nodename, "text", os.environ["TEXT"], sys.argv[-1], flush=True)
dist.barrier()
dist.destroy_process_group()
"""
TEXT = 'a "b" $HOME `id` 5%'


@dataclass(frozen=True)
class Cluster:
    """Two nodes that reach one another by ssh, and a folder that both see."""

    nodes: EmulatedNodes
    folder: Path

    def run(self, *arguments: str, timeout_s: float = 170.0) -> subprocess.CompletedProcess[str]:
        """`agprof` on node 0."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "AGPROF_NO_DS_OPS": "1"}
        return subprocess.run(
            self.nodes.command(0, [str(AGPROF), *arguments]),
            capture_output=True, text=True, cwd=self.folder, env=env, timeout=timeout_s, check=False,
        )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if (problem := why_not()) is not None:
        pytest.skip(problem)
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no sshd on this machine: install openssh-server")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)
    before = set(processes.descendants(os.getpid()))
    with EmulatedNodes(EmulateSection(nodes=2), name="box") as nodes, ExitStack() as stack:
        for node in nodes.nodes:
            config = tmp_path / f"sshd_{node.number}"
            config.write_text(
                f"Port 22\nListenAddress {node.address}\nHostKey {tmp_path}/host\nPidFile none\nStrictModes no\n"
                f"AuthorizedKeysFile {tmp_path}/authorized\nPasswordAuthentication no\nUsePAM no\n"
                "KbdInteractiveAuthentication no\nMaxStartups 50\n"
            )
            daemon = subprocess.Popen(
                nodes.command(node.number, [SSHD, "-D", "-e", "-f", str(config)]), stderr=subprocess.DEVNULL
            )
            stack.callback(daemon.wait, 10)
            stack.callback(daemon.terminate)
        (tmp_path / "ssh_config").write_text(
            f"Host *\n IdentityFile {tmp_path}/user\n IdentitiesOnly yes\n StrictHostKeyChecking no\n"
            f" UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        )
        (tmp_path / "hosts").write_text("".join(f"{node.host} slots=1\n" for node in nodes.nodes))
        for node in nodes.nodes:
            _wait_for_ssh(nodes, tmp_path, node.host)
        yield Cluster(nodes, tmp_path)
    assert set(processes.descendants(os.getpid())) <= before


def _wait_for_ssh(nodes: EmulatedNodes, folder: Path, host: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        argv = nodes.command(0, ["ssh", "-F", f"{folder}/ssh_config", "-o", "BatchMode=yes", host, "hostname"])
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)


def write_workload(folder: Path, program: str, launcher: str, through: str) -> None:
    (folder / "program.py").write_text(program)
    (folder / "job.yaml").write_text(
        json.dumps(
            {
                "name": "job",
                "script": "program.py",
                "args": ["two words"],
                "launch": {"env": {"TEXT": TEXT}},
                "profile": {"profile_step": None},
                "monitor": {"nvml": "off"},
                "setups": {
                    "two": {
                        "hostfile": "hosts", "ssh": f"ssh -F {folder}/ssh_config", "launcher": launcher,
                        "through": through, "interface": "agpeth",
                    }
                },
            }
        )
    )  # fmt: skip


def check(cluster: Cluster, done: subprocess.CompletedProcess[str]) -> None:
    (run_dir,) = (cluster.folder / "runs").glob("job-two-*")
    log = (run_dir / "launcher.log").read_text() if (run_dir / "launcher.log").exists() else ""
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}\n{log[-3000:]}"
    outcome = Outcome.from_dict(json.loads((run_dir / "outcome.json").read_text()))
    assert outcome.reason == "finished"
    assert [(node.hostname, node.lost, node.files) for node in outcome.nodes] == [
        ("box0", None, "shared"),
        ("box1", None, "shared"),
    ]
    streams = {(s.header["kind"], s.header["node"], s.header["host"], s.header.get("rank")) for s in
               read_run(run_dir).streams}  # fmt: skip
    assert streams == {("rank", 0, "box0", 0), ("rank", 1, "box1", 1), ("node", 0, "box0", None),
                       ("node", 1, "box1", None)}  # fmt: skip
    for rank in (0, 1):
        said = (run_dir / "ranks" / f"rank-0000{rank}.stdout.log").read_text()
        assert f"on box{rank} text {TEXT} two words" in said


@pytest.mark.slow
@pytest.mark.system("pdsh")
def test_deepspeeds_own_launcher_with_a_hostfile(cluster: Cluster) -> None:
    write_workload(cluster.folder, PROGRAM, "deepspeed", "deepspeed")
    done = cluster.run("run", "job.yaml", "--setup", "two", "--out", "runs", "--plain")
    check(cluster, done)
    (run_dir,) = (cluster.folder / "runs").glob("job-two-*")
    assert "--launcher pdsh" in " ".join(json.loads((run_dir / "run.json").read_text())["argv"])
    assert "pdsh -S -f" in (run_dir / "launcher.log").read_text()


@pytest.mark.slow
def test_agents_over_ssh(cluster: Cluster) -> None:
    write_workload(cluster.folder, DDP_PROGRAM, "torchrun", "agents")
    check(cluster, cluster.run("run", "job.yaml", "--setup", "two", "--out", "runs", "--plain"))


@pytest.mark.slow
def test_a_node_without_an_sshd_is_named_and_nothing_starts(cluster: Cluster) -> None:
    write_workload(cluster.folder, DDP_PROGRAM, "torchrun", "agents")
    (cluster.folder / "hosts").write_text("box0 slots=1\n10.77.0.99 slots=1\n")
    done = cluster.run("run", "job.yaml", "--setup", "two", "--out", "runs", "--plain")
    assert done.returncode == 3, done.stderr
    assert "node 1 (10.77.0.99, 10.77.0.99) can't be reached: ssh: connect to host 10.77.0.99" in done.stderr
    assert "agprof doctor --hostfile hosts" in done.stderr


HANGS = """
import os, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
open(f"up-{dist.get_rank()}", "w").close()
if dist.get_rank() == 1 and os.path.exists("fail"):
    time.sleep(0.5)
    raise SystemExit(5)
time.sleep(600)
"""


def ranks_of(folder: Path) -> list[int]:
    """Ranks and launchers of the test's runs, wherever they hang in the tree of processes."""
    return [
        pid
        for pid in processes.pids()
        if str(folder) in (variables := processes.environment(pid)).get("AGPROF_RUN_DIR", "") and "RANK" in variables
    ]


@pytest.mark.slow
@pytest.mark.system("pdsh")
@pytest.mark.parametrize("how", ["a rank fails", "Ctrl-C"])
def test_deepspeeds_own_way_leaves_no_rank_behind(cluster: Cluster, how: str) -> None:
    write_workload(cluster.folder, HANGS, "deepspeed", "deepspeed")
    if how == "a rank fails":
        (cluster.folder / "fail").touch()
    argv = cluster.nodes.command(0, [str(AGPROF), "run", "job.yaml", "--setup", "two", "--out", "runs", "--plain"])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "AGPROF_NO_DS_OPS": "1"}
    with subprocess.Popen(argv, cwd=cluster.folder, env=env, stderr=subprocess.PIPE, text=True) as agprof:
        stopwatch = threading.Timer(200, agprof.kill)
        stopwatch.start()
        deadline = time.monotonic() + 120
        while not all((cluster.folder / f"up-{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < deadline and agprof.poll() is None, "the ranks never came up"
            time.sleep(0.05)
        if how == "Ctrl-C":
            agprof.send_signal(signal.SIGINT)
        _, said = agprof.communicate()
        stopwatch.cancel()
    (run_dir,) = (cluster.folder / "runs").glob("job-two-*")
    outcome = Outcome.from_dict(json.loads((run_dir / "outcome.json").read_text()))
    wanted = ("interrupted", 130) if how == "Ctrl-C" else ("failed", 5)
    assert (outcome.reason, outcome.exit_code) == wanted, said
    assert ranks_of(cluster.folder) == []
