"""Samplers as processes, of which one lives in a time namespace: a real kernel's own other clock."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from agprof.analysis.clocks import answer
from agprof.analysis.view import prepare
from agprof.model.clock_answers import ClockAnswer
from agprof.store.reader import read_run

AHEAD_S = 7200
TIME_NAMESPACE = ("unshare", "--time", "--monotonic", str(AHEAD_S), "--fork", "--kill-child")
"""Before a command: CLOCK_MONOTONIC shows two hours more to it."""


def has_time_namespaces() -> bool:
    try:
        return not subprocess.run([*TIME_NAMESPACE, "true"], capture_output=True, timeout=20, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def wait_for(what: Callable[[], bool], seconds: float = 4.5) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def sampler(run: Path, node: int, *options: str) -> list[str]:
    """The command of a node's sampler without NVML."""
    return [sys.executable, "-m", "agprof.sampler", "--run-dir", str(run), "--node", str(node), "--nvml", "off",
            "--period", "0.2", *options]  # fmt: skip


def sampled(run: Path, commands: Sequence[Sequence[str]]) -> ClockAnswer:
    """What is said of the clocks after two samplers have run until node 1 had its first burst."""
    started = [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]
    try:
        wait_for(lambda: _bursts(run) >= 1, 30)
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        codes = [process.wait(timeout=10) for process in started]
    assert codes == [0, 0]
    view = prepare(read_run(run))
    found = answer(view.clocks, view.origin_ns)
    assert found is not None
    return found


def _bursts(run: Path) -> int:
    """Rows of node 1 that are on the disk."""
    if not any(run.glob("nodes/node-*1.*")):
        return 0
    rows = read_run(run).tables["clocks"]
    return rows.filter(rows["node"] == 1).height
