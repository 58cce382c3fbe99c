"""`agprof report`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.model.answers import RunAnswers
    from agprof.model.trace_answers import TraceAnswer
    from agprof.store.reader import Run


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.json; the run folder.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No spinner.")] = False,
    compat: Annotated[
        Literal["hta"] | None,
        typer.Option(help="Break the devices' time down as another tool does: HolisticTraceAnalysis 0.5."),
    ] = None,
) -> None:
    """Write report.html and report.json of a run folder again.

    Works on every run folder: of a job that still runs, was killed, or came from another machine. What is missing is
    said in the report.
    """
    from rich.console import Console

    console = Console(highlight=False)
    answers = write_report(run, console, plain=plain or not console.is_terminal, out=out, compat=compat)
    print_summary(answers, out if out is not None else run, console)


def write_report(
    run: Path, console: "Console", *, plain: bool, out: Path | None = None, compat: Literal["hta"] | None = None
) -> "RunAnswers":
    """Read, analyse and write; returns the answers. Raises StoreError when the folder can't be read or written."""
    from agprof.errors import StoreError
    from agprof.exporters import report_json
    from agprof.store import layout
    from agprof_reports import run as html

    convert_captured(run, console, plain=plain)
    status = nullcontext() if plain else console.status(f"writing the report of {run.name}")
    with status:
        answers = analyse_folder(run, compat)
        target = out if out is not None else run
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / layout.REPORT_JSON).write_bytes(report_json.encode(answers))
            html.write(answers, target / layout.REPORT_HTML)
        except OSError as error:
            raise StoreError(
                f"{target} can't be written: {error.strerror}; name another folder with `agprof report {run} --out`"
            ) from error
    return answers


def convert_captured(run: Path, console: "Console", *, plain: bool) -> None:
    """Turn what torch's profiler wrote in the ranks into tables; what can't be is said and the report goes on."""
    from agprof.importers.captured import captured_files, convert_captured, keeps_files

    if not captured_files(run):
        return
    with nullcontext() if plain else console.status("reading the Kineto traces"):
        problems = convert_captured(run, keep=keeps_files(run))
    for problem in problems:
        print(problem, file=sys.stderr, flush=True)


def analyse_folder(run: Path, compat: Literal["hta"] | None = None) -> "RunAnswers":
    """The answers of a run folder. Raises StoreError, and ConfigError when its own pattern for kernels is none."""
    from agprof.store.reader import read_run

    return analyse_run(read_run(run), compat)


def analyse_run(folder: "Run", compat: Literal["hta"] | None = None) -> "RunAnswers":
    """The answers of a run folder that was read. Raises ConfigError when its own pattern for kernels is none."""
    import re

    from agprof.analysis.run import analyse
    from agprof.errors import ConfigError

    try:
        return analyse(folder, compat=compat, trace=_trace_answer(folder))
    except re.error as error:
        raise ConfigError(
            f"{folder.path}: a pattern of kernels.communication is no regular expression: {error}"
        ) from error


def _trace_answer(folder: "Run") -> "TraceAnswer | None":
    """What the run's device traces say: as it was kept beside them, else computed and kept."""
    from agprof import analysis
    from agprof.analysis.one_axis import on_one_axis
    from agprof.analysis.run import communication_patterns
    from agprof.analysis.trace import analyse_traces
    from agprof.model.answers import ANSWERS_VERSION
    from agprof.model.version import __version__
    from agprof.store import trace_cache

    if not folder.traces:
        return None
    patterns, traces = communication_patterns(folder), on_one_axis(folder).traces
    # What computes the answers is part of what they depend on: while it is being worked on, its version stays.
    code = sorted((file.name, file.stat().st_mtime_ns) for file in Path(analysis.__path__[0]).glob("trace*.py"))
    try:
        mark = trace_cache.fingerprint(folder.path, [__version__, ANSWERS_VERSION, sorted(patterns.items()), code])
    except OSError:
        return analyse_traces(traces, communication=patterns)  # the folder changes while it is read
    kept = trace_cache.read_answer(folder.path, mark)
    if kept is not None:
        return kept
    answer = analyse_traces(traces, communication=patterns)
    if answer is not None:
        try:
            trace_cache.keep_answer(folder.path, mark, answer)
        except OSError:
            pass  # a folder that can't be written costs the next report its time, nothing else
    return answer


def print_summary(answers: "RunAnswers", folder: Path, console: "Console") -> None:
    """The lines at the end of a run, and where the report is."""
    from rich.text import Text

    from agprof.analysis.summary import terminal_lines
    from agprof.store import layout

    for line in terminal_lines(answers, width=min(console.width, 80)):
        console.print(Text(line), soft_wrap=True)
    # The path stands alone on the last line, unbroken, so that it can be clicked and cut out.
    console.print(Text(str((folder / layout.REPORT_HTML).absolute())), soft_wrap=True)
