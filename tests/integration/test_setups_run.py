"""`agprof run --setup one-node --setup two-nodes`: real ranks on both, and a comparison that explains the step time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agprof.exporters import compare_json
from agprof.launch.emulate import why_not
from agprof.model.compare_answers import CompareAnswer, Waterfall

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no emulated nodes here: {why_not()}")

# 4 MB of gradients to be averaged at each step: 160 ms at 200 Mbit/s, a few at the speed of one machine's memory. The
# rank says where it is as any program on the node would find out.
PROGRAM = """
import os, socket
import torch, torch.distributed as dist

dist.init_process_group("gloo")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((os.environ["MASTER_ADDR"], 9))
    print("address", probe.getsockname()[0], "on", os.uname().nodename, flush=True)
torch.manual_seed(0)
model = torch.nn.Linear(1000, 1000, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(8):
    model(torch.randn(8, 1000)).square().mean().backward()
    dist.all_reduce(model.weight.grad)
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
"""
TRANSFER = ("communication.bytes", "communication.bandwidth", "communication.latency")
WORKLOAD = """
name: small
script: program.py
launch: {env: {OMP_NUM_THREADS: "1"}}
profile: {profile_step: null, flight_recorder: false, total_steps: 8}
monitor: {nvml: "off"}
setups:
  one-node: {ranks_per_node: 2}
  two-nodes: {ranks_per_node: 1, emulate: {nodes: 2, rate: 200mbit, delay: 1ms}, env: {WHERE: far}}
"""


def run(folder: Path, *words: str, timeout_s: float) -> tuple[Path, CompareAnswer, str]:
    """The folder of all runs, the comparison, and what was said on stderr."""
    command = [sys.executable, "-P", "-m", "agprof", "run", *words, "--out", str(folder / "runs")]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = Path(done.stdout.splitlines()[-1])
    assert page.is_file()
    return page.parent, compare_json.decode((page.parent / "compare.json").read_bytes()), done.stderr


def only(folder: Path, setup: str) -> Path:
    (found,) = folder.glob(f"*-{setup}-*")
    return found


def places(run_dir: Path) -> list[tuple[str, str]]:
    """Address and host name of each rank, by its own word."""
    found = []
    for log in sorted((run_dir / "ranks").glob("*.stdout.log")):
        words = next(line for line in log.read_text().splitlines() if line.startswith("address ")).split()
        found.append((words[1], words[3]))
    return found


def adds_up(waterfall: Waterfall) -> bool:
    """To the last nanosecond: the parts are whole numbers of the unit."""
    parts = sum(int(part.change) for part in waterfall.parts)
    whole = all(float(part.change).is_integer() for part in waterfall.parts)
    return whole and parts == int(waterfall.candidate) - int(waterfall.baseline)


def changes(waterfall: Waterfall) -> dict[str, float]:
    """By group of parts."""
    groups: dict[str, float] = {}
    for part in waterfall.parts:
        groups[part.group] = groups.get(part.group, 0.0) + part.change
    return groups


def step_time(answer: CompareAnswer) -> Waterfall:
    return next(waterfall for waterfall in answer.waterfalls if waterfall.quantity == "step time")


def test_a_slow_link_is_told_from_everything_else(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "w.yaml").write_text(WORKLOAD)
    folder, answer, said = run(tmp_path, "w.yaml", "--setup", "one-node", "--setup", "two-nodes", timeout_s=150)
    assert "setup one-node\n" in said
    assert "setup two-nodes\n" in said

    one, two = only(folder, "one-node"), only(folder, "two-nodes")
    assert len({host for _, host in places(one)}) == 1
    assert places(two) == [("10.77.0.1", "node0"), ("10.77.0.2", "node1")]
    manifest = json.loads((two / "run.json").read_text())
    assert (manifest["setup"], manifest["repeat"], manifest["series"]) == ("two-nodes", 1, folder.name)
    assert (manifest["nodes"], manifest["ranks"]) == (2, 2)
    assert manifest["link"].startswith("emulated link, 200mbit, 1ms each way")
    assert [(node["host"], node["address"], node["ranks"]) for node in manifest["node_list"]] == [
        ("node0", "10.77.0.1", 1),
        ("node1", "10.77.0.2", 1),
    ]
    assert manifest["environment_changes"]["WHERE"] == "far"
    assert "PYTHONUNBUFFERED" not in manifest["environment_changes"], "it is what the user has here"
    assert json.loads((one / "run.json").read_text())["nodes"] == 1

    assert [side.label for side in answer.sides] == ["one-node", "two-nodes"]
    assert [(side.ranks, side.nodes) for side in answer.sides] == [(2, 1), (2, 2)]
    assert answer.sides[1].hosts == ("node0", "node1")
    assert answer.baseline == 0
    waterfall = step_time(answer)
    assert all(adds_up(one_of) for one_of in answer.waterfalls)
    difference, groups = waterfall.candidate - waterfall.baseline, changes(waterfall)
    # 4 MB at 200 Mbit/s take 160 ms; between two processes of one machine no more than 60.
    assert groups["communication"] > 100e6, waterfall.sentence
    assert groups["communication"] > difference / 2, waterfall.sentence


@pytest.mark.slow
def test_anomalygpt_on_one_node_and_on_two(tmp_path: Path) -> None:
    """The bundled setups: the same two ranks; the second over 1 Gbit/s with 1 ms each way."""
    names = ["--setup", "one-node", "--setup", "two-nodes"]
    folder, answer, _ = run(tmp_path, "anomalygpt", *names, "--repeats", "2", timeout_s=900)
    assert [side.label for side in answer.sides] == ["one-node", "two-nodes"]
    assert [len(side.runs) for side in answer.sides] == [2, 2]
    assert len(answer.sides[0].hosts) == 1
    assert answer.sides[1].hosts == ("node0", "node1")
    for repeat in folder.glob("*-two-nodes-*"):
        nodes = json.loads((repeat / "run.json").read_text())["node_list"]
        assert [node["address"] for node in nodes] == ["10.77.0.1", "10.77.0.2"]
    assert all(adds_up(waterfall) for waterfall in answer.waterfalls)
    waterfall = step_time(answer)
    if (load := os.getloadavg()[0]) > 2 * (os.cpu_count() or 1):
        pytest.skip(f"other programs keep this machine busy (load {load:.0f}): their share of a step is no constant")
    transfer = sum(part.change for part in waterfall.parts if part.key in TRANSFER)
    # Seven all-reduces and a gather a step, each over the link and back again: at least 2 ms more each.
    assert transfer > 8 * 2e6, waterfall.sentence
    assert changes(waterfall)["communication"] > (waterfall.candidate - waterfall.baseline) / 2, waterfall.sentence
