"""`agprof run`."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.config.load import LoadedWorkload
    from agprof.config.setup_choice import SetupJob
    from agprof.model.outcome import Outcome
    from agprof.model.plan_answers import PlanAnswer


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
        return ["[OPTIONS]", "[WORKLOAD | -- COMMAND...]"]


def run(
    context: typer.Context,
    workload: Annotated[
        str | None, typer.Argument(help="YAML file, or a bundled workload (see `agprof workloads`).")
    ] = None,
    rest: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    out: Annotated[Path, typer.Option(help="Folder that the run folder is made in.")] = Path("agprof-runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run; the workload's when left out.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the file: dotted.key=value. Repeatable.", metavar="KEY=VALUE"),
    ] = None,
    sweeps: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help="Run once per value and compare; several: every combination. `framework` and `peft` stand for args.*.",
            metavar="KEY=V1,V2",
        ),
    ] = None,
    setups: Annotated[
        list[str] | None,
        typer.Option(
            "--setup", help="Run on this node setup of the file's `setups:`; several: compare them.", metavar="NAME"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Run each setup so often, in turns.", metavar="N")] = 1,
    nsys: Annotated[
        bool, typer.Option("--nsys", help="Run each rank under `nsys profile`; the same as --set nsys=true.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Plan memory and FLOPs first (`agprof plan`), for the report to compare.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the launch plan and start nothing.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live display.")] = False,
) -> int:
    """Run a training job under the profiler and write its report.

    The job is a WORKLOAD, or any command as it stands, behind `--`: agprof run -- torchrun --nproc-per-node 2 train.py

    The job's output, the data and the report go into a new folder NAME-TIME under --out. Ctrl-C ends the job, keeps
    the data and writes the report. Exit codes: the job's own, 128 + n when signal n killed it, 2 for a bad file or
    option, 3 when the job could not be started (docs/exit-codes.md).
    """
    from rich.console import Console

    given = [*(["nsys=true"] if nsys else []), *(sets or []), *([f"name={name}"] if name is not None else [])]
    command = context.meta.get(_COMMAND)
    console = Console(highlight=False)
    _check_options(setups, sweeps, repeats)
    if sweeps:
        from agprof.cli.run_sweep import dry_sweep, sweep

        def load(sets: Sequence[str]) -> "LoadedWorkload":
            return _load(workload, rest or [], command, [*given, *sets])

        if dry_run:
            return dry_sweep(load, lambda variant: print_plan(variant, out), sweeps)
        lines = plain or not console.is_terminal or console.is_dumb_terminal
        return sweep(
            load,
            lambda variant, folder: run_here(variant, folder, console, plain=lines, plan=plan),
            sweeps,
            out,
            console,
        )
    loaded = _load(workload, rest or [], command, given)
    for note in loaded.notes:
        say(f"note: {note}")
    lines = plain or not console.is_terminal or console.is_dumb_terminal
    if setups:
        from agprof.cli.run_nodes import dry_setups, run_on
        from agprof.cli.run_setups import run_in_turns
        from agprof.config.setup_choice import choose_setups

        jobs = choose_setups(loaded.workload, setups)
        if dry_run:
            return dry_setups(loaded, jobs, out, say=say)

        def run_one(job: "SetupJob", folder: Path, mark: Mapping[str, Any]) -> int:
            return run_on(loaded, job, folder, mark, console, plain=lines, plan=plan)

        return run_in_turns(jobs, run_one, name=loaded.workload.name, repeats=repeats, out=out, console=console)
    if dry_run:
        return print_plan(loaded, out)
    return run_here(loaded, out, console, plain=lines, plan=plan)


def _check_options(setups: Sequence[str] | None, sweeps: Sequence[str] | None, repeats: int) -> None:
    from agprof.errors import ConfigError

    if setups and sweeps:
        raise ConfigError("--setup and --sweep exclude one another; sweep one setup's keys with --set in several runs")
    if repeats > 1 and not setups:
        raise ConfigError("--repeats needs --setup NAME: the setups that are to be run in turns")


def _load(workload: str | None, rest: list[str], command: list[str] | None, sets: list[str]) -> "LoadedWorkload":
    """The job that the command line means: exactly one of a workload and a command."""
    from agprof.config.command import load_command
    from agprof.config.load import load_workload
    from agprof.errors import ConfigError

    if workload is not None and (rest or _is_script(workload)):
        words = shlex.join([*(["python"] if _is_script(workload) else []), workload, *rest, *(command or [])])
        raise ConfigError(f"one workload at a time; a command stands behind `--`: agprof run -- {words}")
    if command is not None:
        if workload is not None:
            raise ConfigError(f"give a workload or a command, not both: {workload!r} stands before `--`")
        return load_command(command, sets)
    if workload is None:
        raise ConfigError("there is nothing to run; name a workload (`agprof workloads`), or a command behind `--`")
    return load_workload(workload, sets)


def _is_script(word: str) -> bool:
    return word.endswith(".py")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_plan(loaded: "LoadedWorkload", out: Path) -> int:
    from agprof.launch.folder import name_run
    from agprof.launch.plan import describe
    from agprof.launch.prepare import prepare

    run_dir = out.absolute() / name_run(loaded.workload.name, 0).replace("19700101T000000Z", "TIME")
    plan = prepare(loaded.workload, run_dir=run_dir, base_dir=loaded.base_dir, say=say, build_ops=False)
    print("\n".join(describe(plan)))
    return 0


def run_here(
    loaded: "LoadedWorkload",
    out: Path,
    console: "Console",
    *,
    plain: bool,
    plan: bool = False,
    mark: Mapping[str, Any] | None = None,
) -> int:
    """Run the job on this node into a new folder in `out`, with its report. `mark` goes into the manifest."""
    from agprof.cli.plan import write as write_plan
    from agprof.cli.progress import Progress
    from agprof.launch import comm_bench, peak
    from agprof.launch.execute import execute
    from agprof.launch.folder import create_run_folder, remove_run_folder, write_manifest
    from agprof.launch.prepare import prepare

    workload = loaded.workload
    planned = plan_first(loaded) if plan else None
    run_dir = create_run_folder(out, workload.name)
    try:
        launch = prepare(workload, run_dir=run_dir, base_dir=loaded.base_dir, say=say)
    except BaseException:
        remove_run_folder(run_dir)  # nothing ran: an empty folder would only look like a lost run
        raise
    write_manifest(run_dir, workload, launch, mark=mark)
    if planned is not None:
        write_plan(planned, run_dir)
    peak.copy_into(run_dir)
    comm_bench.copy_into(run_dir)
    progress = Progress(
        run_dir,
        console=console,
        plain=plain,
        title=run_dir.name,
        total_steps=workload.profile.total_steps,
        expected_ranks=launch.ranks,
    )
    with progress:
        outcome = execute(launch, run_dir, on_tick=progress.tick)
    return conclude(outcome, run_dir, console, plain=plain, traces=workload.traces)


def conclude(outcome: "Outcome", run_dir: Path, console: "Console", *, plain: bool, traces: Sequence[str]) -> int:
    """Say how the job ended, write its report and traces; the exit code."""
    _print_failure(outcome, run_dir)
    _report(run_dir, console, plain=plain, traces=traces)
    return outcome.exit_code


def plan_first(loaded: "LoadedWorkload") -> "PlanAnswer":
    """What `agprof plan` says of the job on this machine. Raises ConfigError and LaunchError before anything ran."""
    from agprof.cli.plan import make
    from agprof.launch import host

    planned = make(loaded, device="gpu" if host.has_gpu() else "cpu", variants=False)
    say(f"plan: {planned.sentence}")
    return planned


def _print_failure(outcome: "Outcome", run_dir: Path) -> None:
    """Say how a broken job ended, with the last lines of the rank that broke it."""
    from agprof.store import layout

    for note in outcome.notes:
        say(f"note: {note}")
    if outcome.reason == "finished":
        return
    if outcome.reason == "interrupted":
        say(f"interrupted by {outcome.signal}; what was measured so far is kept")
        return
    if outcome.reason == "launch-failed" or not outcome.failures:
        say(f"the job ended with exit code {outcome.exit_code}; the end of {run_dir / layout.LAUNCHER_LOG}:")
        for line in _tail(run_dir / layout.LAUNCHER_LOG):
            say(f"  {line}")
        return
    cause = outcome.failures[0]
    how = f"killed by {cause.signal}" if cause.signal else f"ended with exit code {cause.exit_code}"
    say(f"rank {cause.rank} {how}; its last lines ({layout.rank_log(run_dir, cause.rank, 'stderr')}):")
    for line in cause.last_lines:
        say(f"  {line}")


def _tail(path: Path, lines: int = 15) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _report(run_dir: Path, console: "Console", *, plain: bool, traces: Sequence[str] = ()) -> None:
    """Write the report and the traces; when that fails, the data is there and the way to try again is printed."""
    from agprof.cli.report import print_summary, write_report
    from agprof.errors import AgprofError

    answers = None
    try:
        answers = write_report(run_dir, console, plain=plain)
    except AgprofError as error:
        say(f"the report could not be written: {error}\nthe data is kept: agprof report {run_dir}")
    if traces:
        _export(run_dir, traces)
    if answers is not None:
        print_summary(answers, run_dir, console)


def _export(run_dir: Path, traces: Sequence[str]) -> None:
    """Write the formats of `traces:`. Whatever fails is said; the job's exit code stays its own."""
    from agprof.cli.export import write_exports

    try:
        failures = write_exports(run_dir, traces)
    except Exception as error:  # the job is over and its report written: a fault here must not look like the job's
        failures = [f"{', '.join(traces)} could not be written: {type(error).__name__}: {error}"]
    for failure in failures:
        say(f"{failure}\nthe data is kept: agprof export {run_dir} --format {','.join(traces)}")
