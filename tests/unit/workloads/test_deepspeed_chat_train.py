"""The scripts in processes of their own, without DeepSpeed's C++ operators so that nothing is compiled."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from agprof_workloads.deepspeed_chat import chain, reward, rlhf, sft

SOURCES = [str(Path(sft.__file__).parents[2])]
PACKAGE = "agprof_workloads.deepspeed_chat"
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(cache: Path, stage: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    environment |= {"AGPROF_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*SOURCES, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, *launcher, "-m", f"{PACKAGE}.{stage}", "--no-native-ops", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_ppo_repeats_exactly(chat_cache: Path, tmp_path: Path) -> None:
    # the second run is other in what must not matter: that models are saved and speeds written
    choices: tuple[tuple[str, ...], ...] = (
        ("--loss-log", str(tmp_path / "a")),
        ("--loss-log", str(tmp_path / "b"), "--metrics", str(tmp_path / "m"), "--out", str(tmp_path / "out")),
    )
    usual = ("--iterations", "2", "--ema", "--unsupervised", "--answer-length", "8")
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda choice: start(chat_cache, "rlhf", *usual, *choice), choices))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    first, second = ((tmp_path / name).read_text().splitlines() for name in "ab")
    assert first == second
    # actor, critic and unsupervised, twice
    assert len(first) == 6
    assert all(math.isfinite(float(loss)) for loss in first)
    lines = runs[0].stdout.splitlines()
    assert "hybrid engine: off (its kernels for inference need a GPU)" in lines
    assert "HE containers: 0" in lines
    assert any("from random weights: no training went before" in line for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("iteration ")] == ["1/2", "2/2"]
    assert any(line.split() == ["as", "printed", "upstream", "corrected"] for line in lines)

    rows = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        assert set(row["phases"]) == {
            "data", "generate", "score/actor", "score/reference", "score/reward", "score/critic",
            "train/actor", "train/critic", "train/unsupervised", "ema",
        }  # fmt: skip
        assert 0.5 * row["e2e_s"] < sum(row["phases"].values()) <= row["e2e_s"]
        assert row["corrected"]["e2e_s"] == row["e2e_s"] > row["generate_s"]
        assert row["upstream"].keys() < row["corrected"].keys()
    saved = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("pytorch_model.bin")}
    assert saved == {f"step3-models/tiny/{name}/pytorch_model.bin" for name in ("actor", "critic", "actor_ema")}


def test_the_three_stages_in_a_row_on_two_ranks(chat_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--sft.steps", "3", "--reward.steps", "3", "--rlhf.iterations", "2", "--rlhf.answer-length", "8")
    logs = ("--out", str(out), "--loss-log", str(tmp_path / "log"), "--metrics", str(tmp_path / "metrics"))
    run = start(chat_cache, "chain", *flags, *logs, launcher=TWO_RANKS)
    assert run.returncode == 0, run.stderr
    log, other = ((tmp_path / name).read_text().splitlines() for name in ("log", "log.rank1"))
    assert len(log) == len(other) == 3 + 3 + 2 * 2
    assert log != other
    stages = [json.loads(line)["stage"] for line in (tmp_path / "metrics").read_text().splitlines()]
    assert stages == ["sft"] * 3 + ["reward"] * 3 + ["rlhf"] * 2
    # each line from one rank only, and stage 3 from what the others saved
    assert run.stdout.count("step 3/3") == 2
    assert f"from {out / 'actor-models' / 'tiny'}" in run.stdout
    assert f"from {out / 'reward-models' / 'tiny'}" in run.stdout
    assert run.stdout.count("held-out accuracy") == 2
    # as printed upstream, one rank's samples; corrected, all ranks'
    row = json.loads((tmp_path / "metrics").read_text().splitlines()[0])
    assert row["corrected"]["samples_per_s"] == pytest.approx(2 * row["upstream"]["samples_per_s"], rel=0.05)


def test_a_checkpoint_without_weights_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        rlhf.main(["--actor-dir", str(tmp_path)])
    assert str(stopped.value) == (
        f"deepspeed_chat.rlhf: --actor-dir {tmp_path}: has no pytorch_model.bin; "
        "give the folder that stage 1 (deepspeed_chat.sft) saved with --out"
    )


def test_full_size_needs_models() -> None:
    for stage, flag in ((sft, "--model-dir"), (reward, "--model-dir"), (rlhf, "--actor-dir")):
        with pytest.raises(ValueError, match=f"--preset full needs {flag}"):
            stage.check(stage.parse(["--preset", "full"]))


def test_presets_fill_in_what_was_not_given() -> None:
    assert sft.parse([]).max_length == 128
    full = rlhf.parse(["--preset", "full"])
    assert (full.actor_learning_rate, full.critic_learning_rate, full.warmup_steps) == (9.65e-6, 5e-6, 100)
    assert (full.prompt_length, full.answer_length, full.unsupervised_weight) == (256, 256, 27.8)
    assert reward.parse(["--preset", "full", "--dtype", "bf16"]).dtype == "bf16"
    assert sft.parse(["--local_rank=1"]).local_rank == 1


def test_wrong_numbers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sft.parse(["--steps", "0"])
    assert "--steps must be at least 1, not 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sft.parse(["--data-split", "1,2"])
    assert "must be three numbers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--generation-batch 4 must be a multiple of --train-batch 3"):
        rlhf.check(rlhf.parse(["--train-batch", "3"]))
    with pytest.raises(ValueError, match="--accumulation 30 is more than the 24 micro-steps"):
        rlhf.check(rlhf.parse(["--accumulation", "30"]))


def test_the_chain_hands_flags_to_their_stages() -> None:
    options = chain.parse(["--seed", "7", "--sft.steps", "5", "--reward.steps=6", "--rlhf.ema", "--data", "a", "b"])
    assert {stage: given.seed for stage, given in options.items()} == {"sft": 7, "reward": 7, "rlhf": 7}
    assert (options["sft"].steps, options["reward"].steps, options["rlhf"].ema) == (5, 6, True)
    assert options["rlhf"].data == [Path("a"), Path("b")]
    with pytest.raises(ValueError, match=r"--rlhf.actor-dir: the stages' folders are the chain's"):
        chain.parse(["--rlhf.actor-dir", "x"])
    with pytest.raises(SystemExit):
        chain.parse(["--steps", "5"])


@pytest.mark.parametrize("name", ["sft", "reward", "rlhf", "chain", "tiny"])
def test_presets_are_taken_by_their_scripts(name: str) -> None:
    preset = yaml.safe_load((Path(sft.__file__).parent / f"{name}.yaml").read_text())
    argv = []
    for flag, value in preset["args"].items():
        if value is not None and value is not False:
            argv += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    stage = {"sft": sft, "reward": reward, "rlhf": rlhf}.get(name, chain)
    assert preset["module"] == stage.__name__
    assert preset["launch"]["ranks_per_node"] == 2
    options = stage.parse(argv)
    steps = [
        getattr(given, "steps", None) or given.iterations
        for given in (options.values() if isinstance(options, dict) else [options])
    ]
    assert preset["profile"]["total_steps"] == sum(steps)
