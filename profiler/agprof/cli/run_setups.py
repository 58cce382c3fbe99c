"""`agprof run --setup`: a workload on its node setups, one run after the other, and the comparison at the end."""

import shlex
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


def run_in_turns(
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
    _compare(folder, jobs, runs, console)
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


def _compare(folder: Path, jobs: Sequence["SetupJob"], runs: Sequence["SweepRun"], console: "Console") -> None:
    """Write the comparison of what ran into `folder` and print it and where it is; else, where the runs are."""
    from rich.text import Text

    from agprof.errors import AgprofError

    # By setup, in the order given: the first is what the others are compared with.
    found = {
        job.name: [folder / run.answers.identity.run_id for run in runs if run.answers and run.values[0] == job.name]
        for job in jobs
    }
    page = folder
    if sum(bool(paths) for paths in found.values()) > 1:
        paths = [path for some in found.values() for path in some]
        try:
            page = _write_comparison(paths, folder, console)
        except AgprofError as error:
            print(f"the comparison could not be written: {error}", file=sys.stderr, flush=True)
            print(f"the data is kept: agprof compare {shlex.join(map(str, paths))}", file=sys.stderr, flush=True)
    console.print(Text(str(page)), soft_wrap=True)


def _write_comparison(runs: Sequence[Path], folder: Path, console: "Console") -> Path:
    from rich.text import Text

    from agprof.analysis.compare_summary import summary_lines
    from agprof.cli.compare import COMPARE_HTML, COMPARE_JSON, compare_folders

    plain = not console.is_terminal or console.is_dumb_terminal
    if plain:
        print(f"comparing {len(runs)} runs", file=sys.stderr, flush=True)
    answer = compare_folders(runs, console, plain=plain, out=folder)
    for line in summary_lines(answer, width=min(console.width, 100)):
        console.print(Text(line), soft_wrap=True)
    page = folder / COMPARE_HTML
    return page if page.exists() else folder / COMPARE_JSON
