"""RLHF, for real: the bundled workload, and a script of DeepSpeed-Chat's structure that knows nothing of agprof."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import pytest

from agprof.analysis.rlhf import iteration_parts, iterations, part_intervals
from agprof.analysis.view import prepare
from agprof.exporters import report_json
from agprof.model.answers import RlhfAnswer
from agprof.store.reader import read_run

SCRIPT = Path(__file__).parent / "ppo_script" / "main.py"
PARTS = [
    "data", "generate", "score/actor", "score/reference", "score/reward", "score/critic", "train/actor", "train/critic",
    "ema", "other",
]  # fmt: skip


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    result = subprocess.run(
        [sys.executable, "-m", *command], env=environment(), capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def only_run(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def losses(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("losses")]


def rlhf_of(folder: Path) -> RlhfAnswer:
    answers = report_json.decode((folder / "report.json").read_bytes())
    assert not answers.quality.problems
    assert answers.rlhf is not None
    for rank in answers.rlhf.ranks:
        assert sum(rank.parts_ns.values()) == pytest.approx(rank.iteration_ns)
    assert '<section id="rlhf"' in (folder / "report.html").read_text()
    return answers.rlhf


@pytest.mark.parametrize("options", [(), pytest.param(("--unsupervised",), marks=pytest.mark.slow)])
def test_a_script_of_deepspeed_chats_structure_is_understood_and_computes_the_same(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    plain = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT), *options)
    command = ("torchrun", "--standalone", "--nproc-per-node", "2", str(SCRIPT), *options)
    run("agprof", "run", "--plain", "--out", str(tmp_path), "--", *command)
    folder = only_run(tmp_path)
    log = (folder / "ranks" / "rank-00000.stdout.log").read_text()
    assert losses(log) == losses(plain.stdout)
    assert len(losses(log)) == 10
    answer = rlhf_of(folder)
    extra = ["train/unsupervised"] if options else []
    assert [part.name for part in answer.parts] == [*PARTS[:8], *extra, *PARTS[8:]]
    assert answer.iterations == 10
    calls = {part.name: part.calls_per_iteration for part in answer.parts}
    assert calls == {**dict.fromkeys([*PARTS, *extra], 1.0), "other": 0.0}
    generation = answer.generation
    assert (generation.batch.value, generation.prompt_tokens.value, generation.new_tokens.value) == (4, 8, 16)
    collectives = {part.name: part.collectives_per_iteration for part in answer.parts}
    assert collectives["train/actor"] > 0
    assert collectives["train/critic"] > 0
    assert collectives["generate"] == 0
    assert [flaw.applies for flaw in answer.flaws] == [False, bool(options), False, True]
    batch = next(metric for metric in answer.metrics if metric.key == "batch")
    assert (batch.upstream.value, batch.corrected.value) == (2 if options else 8, 8)
    assert all(metric.corrected.value for metric in answer.metrics)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_bundled_workload_agrees_with_its_own_metrics(tmp_path: Path) -> None:
    """Both measure the same ranges of the same iterations; they read the clock at slightly different places."""
    metrics, out = tmp_path / "metrics.jsonl", tmp_path / "runs"
    run("agprof", "run", "deepspeed_chat/rlhf", "--plain", "--out", str(out), "--set", f"args.metrics={metrics}")
    folder = only_run(out)
    answer = rlhf_of(folder)
    assert [part.name for part in answer.parts] == PARTS
    assert answer.iterations == 24
    own = rows(metrics)
    view = prepare(read_run(folder))
    parts = part_intervals(view.tables["spans"])
    first = iterations(view, parts).filter(pl.col("rank") == 0)
    measured = iteration_parts(first, parts)
    for name in PARTS[:-1]:
        times = measured.filter(pl.col("name") == name).sort("iteration")["ns"].to_list()
        apart = [abs(ns / 1e9 - row["phases"][name]) for ns, row in zip(times, own, strict=True)]
        assert median(apart) < 0.3e-3, name
    apart = [abs(ns / 1e9 - row["e2e_s"]) for ns, row in zip(first["duration_ns"].to_list(), own, strict=True)]
    # what agprof's iteration has besides: printing the line of the iteration before
    assert median(apart) < 10e-3
    ours = {metric.key: metric for metric in answer.metrics}
    # work, which is rate times time, has no noise in it; answers that are too short are left out of some iterations
    columns = {"upstream": ("train", "generate", "e2e"), "corrected": ("train", "generate", "score", "e2e")}
    for column, keys in columns.items():
        for key in keys:
            work = max(row[column][f"{key}_tflops"] * row[column][f"{key}_s"] for row in own) * 1e12
            time, rate = (getattr(ours[f"{key}_{what}"], column).value for what in ("time", "flops"))
            assert rate * time / 1e9 == pytest.approx(work), (column, key)
