"""`agprof plan WORKLOAD`: the whole way, on small models of a user's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from agprof.cli.main import main
from agprof.model.plan_json import plan_from_dict

WORKLOAD = """
name: mine
script: train.py
args: {width: 64}
launch: {ranks_per_node: 2}
plan: {model: mine_plan:model}
"""
PLAN = """
import torch
from torch import nn

def model(arguments, asked):
    width = int(arguments[arguments.index("--width") + 1])
    rows = asked.get("micro_batch", 1024)
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(width, width, bias=False), nn.Dropout(0.1), nn.Linear(width, 1, bias=False))

    def micro_step():
        x = torch.zeros(rows, width)
        loss = module(x.to("cuda" if asked["device"] == "cuda" else "cpu")).mean()
        print("loss", loss.item(), loss.cpu().tolist(), bool(loss > 0), float(loss))
        return loss

    return {
        "module": module,
        "micro_steps": [{"name": "rows", "per_step": 3, "run": micro_step}],
        "can_change": ["micro_batch"],
        "framework": "ddp",
        "accumulation": 3,
        "micro_batch": rows,
        "optimizer": "adamw",
    }
"""
ROWS = 1024
PRODUCTS = 2 * ROWS * (64 * 64 + 64)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(WORKLOAD)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "mine_plan.py").write_text(PLAN)
    return tmp_path / "mine.yaml"


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    value: dict[str, Any] = json.loads(out)
    return value


def test_a_users_own_model(capsys, mine):
    value = planned(capsys, str(mine), "--device", "cpu")
    plan = plan_from_dict(value)
    assert (plan.model.params, plan.ranks, plan.accumulation, plan.framework) == (64 * 64 + 64, 2, 3, "ddp")
    assert plan.as_written.forward_flops == 3 * PRODUCTS
    # the weights' gradients, and one for what the first layer gave the second
    assert plan.as_written.backward_flops == 3 * (PRODUCTS + 2 * ROWS * 64)
    parts = {part.part: part.bytes for part in plan.as_written.parts}
    weights = 4 * (64 * 64 + 64)
    assert parts["parameters"] == parts["gradients"] == parts["buckets"] == weights
    assert parts["optimizer_states"] == 2 * weights
    by_label = {row.label: row for row in plan.rows}
    assert by_label["micro-batch 2048"].forward_flops == 2 * plan.as_written.forward_flops
    assert by_label["micro-batch 2048"].device_bytes > plan.as_written.device_bytes
    assert by_label["micro-batch 512"].forward_flops == plan.as_written.forward_flops / 2
    assert plan.notes == (
        "4 values that the job reads back in its micro-steps were taken as 1",
        "of ZeRO-1, ZeRO-2, ZeRO-3 1.86 GiB are DeepSpeed's bucket, made whole for any model (`reduce_bucket_size`)",
    )
    assert "of memory at the peak and makes" in plan.sentence


def test_a_job_that_refuses_its_arguments_says_why(capsys, mine):
    script = "import argparse\n\ndef model(arguments, asked):\n    argparse.ArgumentParser().parse_args(arguments)\n"
    (mine.parent / "mine_plan.py").write_text(script)
    code, _, err = run(capsys, str(mine), "--set", "args.nosuch=3")
    assert code == 2
    assert "ended the process with 2 instead of returning a model; its last lines:" in err
    assert "unrecognized arguments:" in err


def test_a_gpus_dropout_keeps_a_byte_and_a_cpus_a_whole_element(capsys, mine):
    on_gpu, on_cpu = (
        plan_from_dict(planned(capsys, str(mine), "--device", device, "--budget", "0")) for device in ("gpu", "cpu")
    )
    saved = on_cpu.micro_steps[0].activation_bytes - on_gpu.micro_steps[0].activation_bytes
    assert saved == ROWS * 64 * (4 - 1)


def test_the_table_is_for_people(capsys, mine):
    code, out, _ = run(capsys, str(mine), "--budget", "0", "--ranks", "4", "--set", "args.width=32")
    assert code == 0
    assert "1,056 parameters, 1,056 trained: as written each of 4 ranks needs" in out
    assert "ZeRO-3 + offload of all" in out
    assert "left out, as the time of --budget was over: micro-batch 2048" in out
    assert "fits GB" in out


@pytest.mark.parametrize(
    ("plan", "code", "message"),
    [
        ("def model(arguments, asked): return 3", 2, "plan.model mine_plan:model: returned 3, not a mapping"),
        ("import os\nprint('last words', flush=True)\nos._exit(9)", 3, "ended with exit code 9; its last lines:"),
    ],
)
def test_a_wrong_function_ends_with_one_message(capsys, mine, plan, code, message):
    (mine.parent / "mine_plan.py").write_text(plan)
    ended, out, err = run(capsys, str(mine))
    assert ended == code
    assert message in err
    assert err.count("error: ") == 1
    assert out == ""
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no-such-workload"], 2, "no such file"),
        (["anomalygpt", "--set", "plan=null"], 2, "add `plan: {model: package.module:function}`"),
        (["anomalygpt", "--device", "tpu"], 2, "device"),
        (["anomalygpt", "--run", "no-such-run"], 4, "is not a run folder"),
        (["anomalygpt", "--ranks", "0"], 2, "--ranks"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_can_not_be_planned_ends_with_one_message(capsys, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    ended, _, err = run(capsys, *words)
    assert ended == code
    assert message in err
