"""A forecast from an emulated 1 Gbit/s link, held against runs over 200 Mbit/s and on four nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agprof.launch.emulate import why_not

SCRIPT = Path(__file__).parent / "scripts" / "ddp_bytes.py"
REPEATS = 3
OFF = 0.15
SETUPS = {
    "gigabit": "{ranks_per_node: 1, emulate: {nodes: 2, rate: 1gbit}}",
    "slow": "{ranks_per_node: 1, emulate: {nodes: 2, rate: 200mbit}}",
    "four": "{ranks_per_node: 1, emulate: {nodes: 4, rate: 1gbit}}",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


def agprof(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "agprof", *words]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=environ, cwd=folder
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_slower_link_and_more_nodes_are_forecast_to_15_percent(tmp_path: Path) -> None:
    lines = [
        "name: bytes",
        f"script: {SCRIPT}",
        "args: {steps: 16}",
        'launch: {launcher: torchrun, ranks_per_node: 1, env: {OMP_NUM_THREADS: "1"}}',
        "profile: {total_steps: 16}",
        "setups:",
        *(f"  {name}: {setup}" for name, setup in SETUPS.items()),
    ]
    (tmp_path / "bytes.yaml").write_text("\n".join(lines) + "\n")
    chosen = [word for name in SETUPS for word in ("--setup", name)]
    agprof(tmp_path, "run", "bytes.yaml", *chosen, "--repeats", str(REPEATS), "--out", "runs", "--plain")
    runs = {name: sorted(tmp_path.glob(f"runs/*/bytes-{name}-*")) for name in SETUPS}
    assert {name: len(found) for name, found in runs.items()} == dict.fromkeys(SETUPS, REPEATS)
    answer = json.loads(agprof(tmp_path, "forecast", "--json", *(str(run) for found in runs.values() for run in found)))
    checked = [row for row in answer["rows"] if row["measured"] is not None]
    assert [(row["nodes"], row["ranks"]) for row in checked] == [(2, 2), (4, 4)]
    for row in checked:
        assert row["predicted"]["value"] == pytest.approx(row["measured"]["value"], rel=OFF), answer
