"""Memory that really runs out, below a real `agprof run`: the job ends as it would without us, and the report says why.

The address space is limited by the script itself. A cgroup of its own is made only where AGPROF_TEST_CGROUP=1 allows
it: the kernel then really kills the rank.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agprof.store import layout
from agprof.store.memory_limits import cgroup
from agprof.store.reader import read_run

SCRIPT = Path(__file__).parent / "scripts" / "out_of_memory.py"
MIB = 2**20


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGPROF_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def run(command: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment(), cwd=cwd)


def profiled(out: Path, *options: str, prefix: tuple[str, ...] = ()) -> tuple[int, Path, dict[str, Any]]:
    """Exit code, run folder and report of the script under agprof."""
    command = [sys.executable, "-m", "agprof", "run", "--plain", "--out", str(out), "--name", "oom", "--"]
    done = run([*prefix, *command, sys.executable, str(SCRIPT), *options], out.parent)
    (folder,) = out.iterdir()
    report = json.loads((folder / layout.REPORT_JSON).read_text())
    return done.returncode, folder, report


def error_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if re.match(r"(RuntimeError|MemoryError|numpy\S*Error): ", line)]
    return line


LIMIT = ("--address-space", str(800 * MIB), "--batch", "256", "--grow", "6")


def test_a_failing_allocation_ends_the_job_as_it_would_without_us(tmp_path: Path) -> None:
    plain = run([sys.executable, str(SCRIPT), *LIMIT], tmp_path)
    assert plain.returncode == 1
    code, folder, report = profiled(tmp_path / "runs", *LIMIT)
    assert code == plain.returncode
    printed = layout.rank_log(folder, 0, "stderr").read_text()
    assert error_line(printed) == error_line(plain.stderr), "the same allocation fails, with the same words"
    losses = [line for line in plain.stdout.splitlines() if line.startswith("step")]
    with_us = [
        line for line in layout.rank_log(folder, 0, "stdout").read_text().splitlines() if line.startswith("step")
    ]
    assert with_us == losses
    assert 2 <= len(losses) <= 10

    found = report["memory"]["oom"]
    wanted = int(re.search(r"allocate (\d+) bytes", error_line(printed))[1])  # type: ignore[index]
    assert found["wanted_bytes"] == wanted
    assert (found["rank"], found["space"], found["certainty"], found["step"]) == (0, "host", "known", len(losses))
    assert found["phase"] in ("forward", "backward")
    assert found["limit_bytes"] == int(re.search(r"limit (\d+)", layout.rank_log(folder, 0, "stdout").read_text())[1])  # type: ignore[index]
    assert "ran out of host memory" in found["sentence"]
    account = found["account"]
    parts = sum(part["bytes"] for part in account["parts"])
    assert parts == pytest.approx(account["total"]["value"], abs=1), "the account of the moment closes"
    assert found["allocations"][0]["bytes"] >= wanted / 4
    assert any("micro-batch" in change for change, _gives in found["would_fit"])
    assert report["findings"][0]["key"] == "out-of-memory"
    assert "out of host memory" in report["identity"]["status_sentence"]
    assert "ran out of host memory" in (folder / layout.REPORT_HTML).read_text()
    assert read_run(folder).tables["faults"].rows() == []


def test_numpy_outside_of_any_phase(tmp_path: Path) -> None:
    """An error that no phase saw: the hook for uncaught ones sees it. numpy's text is rounded, and its error is not."""
    options = ("--numpy", "--steps", "3", "--address-space", str(8000 * MIB))
    plain = run([sys.executable, str(SCRIPT), *options], tmp_path)
    code, folder, report = profiled(tmp_path / "runs", *options)
    assert code == plain.returncode == 1
    assert error_line(layout.rank_log(folder, 0, "stderr").read_text()) == error_line(plain.stderr)
    assert report["memory"]["oom"]["wanted_bytes"] == 8 * 10**12


@pytest.mark.slow
def test_a_loop_that_catches_it_goes_on(tmp_path: Path) -> None:
    options = (*LIMIT, "--catch", "--steps", "6")
    plain = run([sys.executable, str(SCRIPT), *options], tmp_path)
    code, folder, report = profiled(tmp_path / "runs", *options)
    assert code == plain.returncode == 0
    times = plain.stdout.count("caught")
    assert layout.rank_log(folder, 0, "stdout").read_text().count("caught") == times >= 1
    found = report["memory"]["oom"]
    assert found["caught"] == times
    assert found["sentence"].endswith("and went on.")
    assert report["identity"]["status"] == "finished"
    (finding,) = [row for row in report["findings"] if row["key"].startswith("out-of-memory")]
    assert finding["key"] == "out-of-memory-caught"


# -- a real kill by the kernel -----------------------------------------------------------------------------------------


@pytest.fixture
def small_cgroup() -> Iterator[tuple[str, ...]]:
    """A command prefix that runs what follows in a cgroup of 1 GiB, below the one that this test runs in."""
    if os.environ.get("AGPROF_TEST_CGROUP") != "1":
        pytest.skip("makes a cgroup on this machine: AGPROF_TEST_CGROUP=1 in the environment allows it")
    found = cgroup()
    if found is None:
        pytest.skip("there is no memory cgroup to be seen")
    folder = found[0] / f"agprof-test-{os.getpid()}"
    try:
        folder.mkdir()
        name = next(n for n in ("memory.max", "memory.limit_in_bytes") if (folder / n).exists())
        (folder / name).write_text(str(1024 * MIB))
    except (OSError, StopIteration) as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no cgroup with a memory limit can be made here: {error!r}")
    try:
        yield "sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh"
    finally:
        folder.rmdir()


def test_a_rank_that_the_kernel_kills(tmp_path: Path, small_cgroup: tuple[str, ...]) -> None:
    code, folder, report = profiled(tmp_path / "runs", "--batch", "256", "--grow", "6", prefix=small_cgroup)
    outcome = json.loads((folder / layout.OUTCOME).read_text())
    assert code == 137
    assert outcome["memory"]["cgroup_kills"] >= 1
    assert (outcome["memory"]["limit"], outcome["memory"]["limit_bytes"]) == ("cgroup", 1024 * MIB)
    found = report["memory"]["oom"]
    assert (found["certainty"], found["rank"], found["limit_bytes"]) == ("known", 0, 1024 * MIB)
    assert "was killed by the kernel" in found["sentence"]
    assert "out of memory (cgroup limit 1.00 GiB)" in found["sentence"]
    assert "by the kernel, out of memory (cgroup limit 1.00 GiB)" in report["identity"]["status_sentence"]
    assert report["findings"][0]["key"] == "out-of-memory"
