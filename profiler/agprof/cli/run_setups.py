"""`agprof run --setup`: a workload on its node setups, one run after the other, and the comparison at the end."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agprof.cli.run_sweep import make_folder, not_started, print_table, run_into, was_interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.config.setup_choice import SetupJob
    from agprof.model.sweep import SweepRun

MOST_REPEATS = 100

RunOne = Callable[["SetupJob", Path, Mapping[str, Any]], int]
"""Runs a job into a new folder below the given one, whose manifest gets the marks; returns the exit code."""


def run_setups(
    jobs: Sequence["SetupJob"], run_one: RunOne, *, name: str, repeats: int, out: Path, console: "Console"
) -> int:
    """Run every setup `repeats` times and compare; the first failure's exit code, or 0.

    A run that fails, or can't be started, does not keep the others from running. An interruption does.
    """
    from agprof.analysis.sweep import tabulate

    if len(jobs) == 1 and repeats == 1:
        return run_one(jobs[0], out, {"setup": jobs[0].name})
    folder = make_folder(out, f"{name}-setups")
    turns = interleaved(jobs, repeats)
    runs: list[SweepRun] = []
    try:
        for job, repeat in turns:
            if runs and was_interrupted(runs[-1]):
                break
            print(_progress(job, repeat, repeats), file=sys.stderr, flush=True)
            mark = {"setup": job.name, "repeat": repeat, "repeats": repeats, "series": folder.name}
            runs.append(run_into(folder, _values(job, repeat), partial(run_one, job, folder, mark)))
    finally:
        runs += [not_started(_values(job, repeat)) for job, repeat in turns[len(runs) :]]
        print_table(tabulate(("setup", "repeat"), runs), console)
    _compare(folder, runs, len(jobs), console)
    return next((run.exit_code for run in runs if run.exit_code), 0)


def interleaved(jobs: Sequence["SetupJob"], repeats: int) -> list[tuple["SetupJob", int]]:
    """A B, B A, A B ...: what drifts while they run (heat, neighbours) falls on every setup alike."""
    return [
        (job, repeat) for repeat in range(1, repeats + 1) for job in (jobs if repeat % 2 else tuple(reversed(jobs)))
    ]


def _values(job: "SetupJob", repeat: int) -> tuple[str, str]:
    return job.name, str(repeat)


def _progress(job: "SetupJob", repeat: int, repeats: int) -> str:
    return f"setup {job.name}" + (f", repeat {repeat} of {repeats}" if repeats > 1 else "")


def _compare(folder: Path, runs: Sequence["SweepRun"], setups: int, console: "Console") -> None:
    """Write the comparison of what ran and print where it is; without two sides to compare, where the runs are."""
    from rich.text import Text

    console.print(Text(str(folder)), soft_wrap=True)
