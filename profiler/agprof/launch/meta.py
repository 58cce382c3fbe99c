"""Starts the process of planning (`agprof.instruments.plan`) in the job's environment and reads what it counts."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agprof.config.workload import Workload
from agprof.errors import ConfigError, LaunchError
from agprof.launch import host
from agprof.launch.plan import SOURCE_ROOT, without_launchers
from agprof.model.plan_json import decoded
from agprof.model.plan_measure import PlannedDevice, Scenario

MODULE = "agprof.instruments.plan"
MAX_LINE_BYTES = 16 * 2**20
LAST_LINES = 8
HOW_TO_ADD = (
    "the workload names no function that builds its model without data; add `plan: {model: package.module:function}` "
    "(docs/plan.md says what it returns)"
)


@dataclass(frozen=True, slots=True)
class Counted:
    """What the process of planning told."""

    scenarios: tuple[Scenario, ...]
    notes: tuple[str, ...]


def count_on_meta(
    workload: Workload,
    *,
    base_dir: Path,
    device: PlannedDevice,
    ranks: int,
    variants: bool,
    budget_s: float,
    say: Callable[[str], None],
) -> Counted:
    """Count `workload` without data. `say` is told what is being done.

    Raises ConfigError when the model function is missing or wrong, LaunchError when the process ended otherwise.
    """
    if workload.plan is None:
        raise ConfigError(HOW_TO_ADD)
    function = workload.plan.model
    request = {
        "function": function,
        "arguments": workload.arguments(),
        "folder": str(_folder(workload, base_dir)),
        "device": device,
        "ranks": ranks,
        "variants": variants,
        "budget_s": budget_s,
        "processes": max(1, min(2, host.usable_cores())),
    }
    with tempfile.TemporaryFile() as output:
        process, lines = _start(request, workload, output)
        try:
            scenarios, notes, problem, is_printed = _read(lines, say)
        except BaseException:
            process.kill()
            raise
        finally:
            lines.close()
            code = process.wait()
        if problem is not None:
            raise ConfigError(f"plan.model {function}: {problem}{_tail(output) if is_printed else ''}")
        if code != 0 or not scenarios:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise LaunchError(f"the process that builds the model {how}{_tail(output)}")
    return Counted(tuple(scenarios), tuple(notes))


def _folder(workload: Workload, base_dir: Path) -> Path:
    """What a script finds first when it imports; a module's is the folder that agprof was called in."""
    return (base_dir / workload.script).parent if workload.script is not None else Path.cwd()


def _start(
    request: Mapping[str, Any], workload: Workload, output: IO[bytes]
) -> tuple["subprocess.Popen[bytes]", IO[bytes]]:
    reading, writing = os.pipe()
    env = without_launchers({**os.environ, **workload.launch.env})
    env["OMP_NUM_THREADS"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in (str(SOURCE_ROOT), env.get("PYTHONPATH")) if entry)
    command = (sys.executable, "-P", "-m", MODULE, json.dumps(request), str(writing))
    try:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, pass_fds=(writing,))
    except OSError as error:
        os.close(reading)
        raise LaunchError(f"the process that builds the model can't be started: {error}") from error
    finally:
        os.close(writing)
    return process, os.fdopen(reading, "rb")


def _read(lines: IO[bytes], say: Callable[[str], None]) -> tuple[list[Scenario], list[str], str | None, bool]:
    scenarios: list[Scenario] = []
    notes: list[str] = []
    for told in _messages(lines):
        if "error" in told:
            return scenarios, notes, str(told["error"]), bool(told.get("printed"))
        if "progress" in told:
            say(str(told["progress"]))
        elif "note" in told:
            notes.append(str(told["note"]))
        elif "scenario" in told:
            scenarios.append(decoded(Scenario, told["scenario"], "scenario"))
    return scenarios, notes, None, False


def _messages(lines: IO[bytes]) -> Iterator[dict[str, Any]]:
    while line := lines.readline(MAX_LINE_BYTES):
        try:
            told = json.loads(line)
        except ValueError:
            continue  # the process was ended in the middle of a line
        if isinstance(told, dict):
            yield told


def _tail(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - 8192))
    lines = output.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
