"""The same training in several frameworks, sweeps over them, and all-reduce by hand, all on real ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agprof.importers.horovod import read_timeline

ROOT = Path(__file__).parents[2]
JOB = Path(__file__).with_name("frameworks_job.py")
HOROVOD_PYTHON = ROOT / ".venv-horovod" / "bin" / "python"
SOURCES = [str(ROOT / name) for name in ("profiler", "reports", "workloads")]

LARGEST_DIFFERENCE = 2e-6
"""Relative, of any loss. float32 rounds by 6e-8, and what differs between the frameworks is the order in which
gradients are divided, averaged and squared for the norm: some roundings per update, which 6 updates carry on. A missing
average over ranks or micro-steps would show in the third digit."""

Losses = dict[str, list[dict[str, list[float]]]]


def torchrun(ranks: int, *command: str, python: str = sys.executable, **more: str) -> list[dict[str, Any]]:
    """The JSON lines that the job prints."""
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(SOURCES)} | more
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run([*launcher, *command], env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def losses_of(lines: list[dict[str, Any]]) -> Losses:
    return {line["framework"]: line["ranks"] for line in lines}


@pytest.fixture(scope="module")
def losses() -> Losses:
    return losses_of(torchrun(2, str(JOB), "ddp", "fsdp2", "deepspeed", "ddp+ring"))


def difference(one: list[dict[str, list[float]]], other: list[dict[str, list[float]]]) -> dict[str, float]:
    """Per model the largest relative difference over all ranks and micro-steps."""
    found = {}
    for kind in one[0]:
        pairs = [
            (a, b)
            for ours, theirs in zip(one, other, strict=True)
            for a, b in zip(ours[kind], theirs[kind], strict=True)
        ]
        assert len(pairs) == 2 * 12, "2 ranks, 6 steps of 2 micro-steps"
        found[kind] = max(abs(a - b) / abs(a) for a, b in pairs)
    return found


@pytest.mark.parametrize("framework", ["fsdp2", "deepspeed", "ddp+ring"])
def test_losses_agree_but_for_the_order_of_sums(losses: Losses, framework: str) -> None:
    reference = losses["ddp"]
    if framework == "ddp+ring":
        reference = [{kind: rank[kind] for kind in ("bert", "gpt2")} for rank in reference]
    found = difference(reference, losses[framework])
    print(framework, found)
    assert max(found.values()) <= LARGEST_DIFFERENCE, found


def test_ranks_learn_from_different_data(losses: Losses) -> None:
    for ranks in losses.values():
        for kind in ranks[0]:
            assert ranks[0][kind] != ranks[1][kind]


def test_updates_matter_more_than_the_bound(losses: Losses) -> None:
    # a bound that a run without any update would keep proves nothing; AnomalyGPT's first two updates have a rate of 0
    alone = losses_of(torchrun(1, str(JOB), "ddp"))["ddp"][0]
    for kind in ("bert", "gpt2"):
        together = losses["ddp"][0][kind]
        assert together[0] == pytest.approx(alone[kind][0], rel=1e-6), "the same model and data at the start"
        assert abs(together[-1] - alone[kind][-1]) / abs(together[-1]) > 10 * LARGEST_DIFFERENCE, kind


def test_what_three_ways_to_all_reduce_send() -> None:
    command = ["-m", "agprof_workloads.frameworks.ring", "--elements", "4", "1001", "3", "--dtype", "int64", "float32"]
    lines = torchrun(4, *command)
    found = {(line["elements"], line["dtype"], line["algorithm"]): line for line in lines}
    assert len(found) == 3 * 2 * 3
    for dtype in ("int64", "float32"):
        ring, naive, driver = (found[4, dtype, name] for name in ("ring", "naive", "driver"))
        assert naive["elements in total"] == 48
        assert driver["elements in total"] == 24
        assert ring["elements per rank"] == ring["messages per rank"] == [6, 6, 6, 6]
        assert ring["elements in total"] == ring["messages in total"] == 24
        assert (naive["messages in total"], driver["messages in total"]) == (12, 6)
        assert driver["elements per rank"] == [12, 4, 4, 4], "the driver is the busiest"
    for (elements, dtype, name), line in found.items():
        p = 4
        assert line["elements in total"] == (p * (p - 1) if name == "naive" else 2 * (p - 1)) * elements
        # four numbers below 1000 in float32: their sum's last bit is 2.4e-4, and three additions round
        bound = 0 if dtype == "int64" else 3 * 2.5e-4
        assert line["largest difference from all_reduce"] <= bound, (elements, name)


def test_a_sweep_goes_on_after_a_failure_and_ends_in_one_table(tmp_path: Path) -> None:
    sets = ["args.steps=8", "profile.total_steps=8", "args.accumulation=1", "profile.profile_step=2"]
    command = [sys.executable, "-m", "agprof", "run", "gpt2", "--plain", "--out", str(tmp_path)]
    command += [word for item in sets for word in ("--set", item)]
    command += ["--sweep", "args.micro-batch=0,2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    (group,) = tmp_path.iterdir()
    assert group.name.startswith("gpt2-tiny-sweep-")
    rows = json.loads((group / "sweep.json").read_text())["rows"]
    assert [(row["values"], row["exit_code"]) for row in rows] == [(["0"], 2), (["2"], 0)]
    good = rows[1]
    assert good["step_time"]["value"] > 0
    assert good["communication_bytes"]["value"] == 4096 * 4, "DDP reduces LoRA's gradients once a step"
    assert good["communication_exposed"]["value"] > 0
    assert good["memory_peak"]["value"] > 1e8
    assert good["tokens_per_s"]["value"] > 0
    assert good["trainable_share"]["value"] == pytest.approx(4096 / 177_920)
    assert good["optimizer_state"]["value"] == 2 * 4096 * 4 + 4 * 4, "AdamW: two moments, and a counter per tensor"
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 4, "a head, its rule and a line per variant"
    assert "step time" in table[0]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["0", "2"]


@pytest.mark.skipif(not HOROVOD_PYTHON.exists(), reason="Horovod is not built here: `make horovod` builds it")
def test_horovod_agrees_and_leaves_a_timeline(losses: Losses, tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.json"
    found = losses_of(torchrun(2, str(JOB), "horovod", python=str(HOROVOD_PYTHON), HOROVOD_TIMELINE=str(timeline)))
    differences = difference(losses["ddp"], found["horovod"])
    print("horovod", differences)
    assert max(differences.values()) <= LARGEST_DIFFERENCE, differences
    rows = read_timeline(timeline)
    phases = {row.phase for row in rows}
    assert {"NEGOTIATE_ALLREDUCE", "ALLREDUCE", "GLOO_ALLREDUCE"} <= phases
    reduced = [row for row in rows if row.phase == "ALLREDUCE" and "lora_A" in row.tensor]
    assert len(reduced) == 2 * 6, "two layers, one all-reduce per update"
