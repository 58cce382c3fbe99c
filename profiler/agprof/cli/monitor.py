"""`agprof monitor`."""

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

if TYPE_CHECKING:
    from agprof.model.outcome import Outcome

_COMMAND = "agprof.command"


class CommandLine(typer.core.TyperCommand):
    """Takes what stands behind the first `--` as one command; options of agprof stand before it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "-- COMMAND..."]


def monitor(
    context: typer.Context,
    rest: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    out: Annotated[Path, typer.Option(help="Folder that the run folder is made in.")] = Path("agprof-runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run; the program's when left out.")] = None,
    period: Annotated[float, typer.Option(help="Seconds between samples.", min=0.05, max=60)] = 1.0,
    nvml: Annotated[Literal["auto", "off"], typer.Option(help="off: never ask the GPUs' driver.")] = "auto",
    no_report: Annotated[bool, typer.Option("--no-report", help="Keep the data and write no report.")] = False,
) -> int:
    """Run any command and sample what it uses.

    The host, the GPUs and the command's processes are sampled; nothing is put into the command, which keeps the
    terminal and the environment as they are: agprof monitor -- make -j8

    The data and the report go into a new folder NAME-TIME under --out; the summary goes to stderr. Exit codes: the
    command's own, 128 + n when signal n killed it, 2 for a bad option, 3 when it could not be started
    (docs/exit-codes.md).
    """
    import os
    import shlex

    from agprof.config.command import name_of_command
    from agprof.config.monitor import MonitorSection
    from agprof.config.names import run_name_problem
    from agprof.errors import ConfigError
    from agprof.launch.folder import create_run_folder, remove_run_folder, write_monitor_manifest
    from agprof.launch.monitor import run_monitored
    from agprof.launch.programs import find_program

    command = context.meta.get(_COMMAND)
    if rest:
        words = shlex.join([*rest, *(command or [])])
        raise ConfigError(f"a command stands behind `--`: agprof monitor -- {words}")
    if not command:
        raise ConfigError("there is nothing to run; write the command behind `--`: agprof monitor -- python train.py")
    if name is not None and (problem := run_name_problem(name)) is not None:
        raise ConfigError(f"--name {name}: {problem}")
    find_program(command[0], os.environ, how="agprof monitor --")
    name = name if name is not None else name_of_command(command)
    section = MonitorSection(period_s=period, nvml=nvml)
    run_dir = create_run_folder(out, name)
    try:
        write_monitor_manifest(run_dir, name, command, section)
        outcome = run_monitored(command, run_dir, section)
    except BaseException:
        _remove(run_dir)
        remove_run_folder(run_dir)  # nothing ran: an empty folder would only look like a lost run
        raise
    _say_what_happened(outcome)
    if no_report:
        print(run_dir, file=sys.stderr)
    else:
        _report(run_dir)
    return outcome.exit_code


def _remove(run_dir: Path) -> None:
    from agprof.store import layout

    (run_dir / layout.MANIFEST).unlink(missing_ok=True)


def _say_what_happened(outcome: "Outcome") -> None:
    for note in outcome.notes:
        print(f"note: {note}", file=sys.stderr)


def _report(run_dir: Path) -> None:
    """Write the report and say the summary; the command's own output has stdout for itself."""
    from rich.console import Console

    from agprof.cli.report import print_summary, write_report
    from agprof.errors import AgprofError

    console = Console(stderr=True, highlight=False)
    try:
        print_summary(write_report(run_dir, console, plain=not console.is_terminal), run_dir, console)
    except AgprofError as error:
        print(f"the report could not be written: {error}\nthe data is kept: agprof report {run_dir}", file=sys.stderr)
    except Exception:  # the command is over, and its exit code stays its own
        traceback.print_exc()
        print(
            f"agprof fault: the report could not be written\nThis is an error in agprof itself: please report it with "
            f"the text above.\nthe data is kept: {run_dir}",
            file=sys.stderr,
        )
