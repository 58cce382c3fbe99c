"""One run of a setup: here, or on its nodes; and what `--dry-run` shows of it."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.config.load import LoadedWorkload
    from agprof.config.setup_choice import SetupJob
    from agprof.launch.node_plan import NodePlan
    from agprof.launch.node_transport import AgentCommand
    from agprof.launch.plan import LaunchPlan
    from agprof.model.outcome import Outcome


def run_on(
    loaded: "LoadedWorkload",
    job: "SetupJob",
    out: Path,
    mark: Mapping[str, Any],
    console: "Console",
    *,
    plain: bool,
    plan: bool = False,
) -> int:
    """Run a setup into a new folder in `out`, with its report; the exit code. Raises LaunchError and ConfigError."""
    from dataclasses import replace

    from agprof.cli.run import run_here
    from agprof.launch.setups import has_nodes, link_words

    there = replace(loaded, workload=job.workload)
    if not has_nodes(job.setup):
        marked = {**mark, "link": link_words(job.setup, 1), "setup_section": _section(job)}
        return run_here(there, out, console, plain=plain, plan=plan, mark=marked)
    return _run_on_nodes(there, job, out, mark, console, plain=plain, plan=plan)


def _section(job: "SetupJob") -> dict[str, Any]:
    from agprof.launch.redact import redact_tree

    section: dict[str, Any] = redact_tree(job.setup.model_dump(mode="json", exclude_defaults=True))
    return section


def _run_on_nodes(
    loaded: "LoadedWorkload",
    job: "SetupJob",
    out: Path,
    mark: Mapping[str, Any],
    console: "Console",
    *,
    plain: bool,
    plan: bool,
) -> int:
    from agprof.cli.plan import write as write_plan
    from agprof.cli.progress import Progress
    from agprof.cli.run import conclude, plan_first, say
    from agprof.launch import comm_bench, peak
    from agprof.launch.folder import create_run_folder, remove_run_folder, write_manifest
    from agprof.launch.nodes import execute_nodes
    from agprof.launch.prepare_nodes import prepare_nodes
    from agprof.launch.site import open_site

    planned = plan_first(loaded) if plan else None
    with open_site(job, loaded.base_dir) as site:
        run_dir = create_run_folder(out, job.workload.name)
        try:
            plans = prepare_nodes(job, site.nodes, run_dir=run_dir, base_dir=loaded.base_dir, say=say)
        except BaseException:
            remove_run_folder(run_dir)
            raise
        marked = {**mark, "link": site.link, "setup_section": _section(job)}
        write_manifest(run_dir, job.workload, _changes_only(plans[0]), nodes=plans, mark=marked)
        if planned is not None:
            write_plan(planned, run_dir)
        peak.copy_into(run_dir)
        comm_bench.copy_into(run_dir)
        progress = Progress(
            run_dir,
            console=console,
            plain=plain,
            title=run_dir.name,
            total_steps=job.workload.profile.total_steps,
            expected_ranks=plans[0].world_size,
        )
        with progress:
            outcome = _execute(
                lambda: execute_nodes(plans, site.transport, run_dir, on_tick=progress.tick), job, loaded
            )
    return conclude(outcome, run_dir, console, plain=plain, traces=job.workload.traces)


def _changes_only(plan: "NodePlan") -> "LaunchPlan":
    """Node 0's launch, for the manifest: what it is given for nodes that don't have it is no change where it is."""
    from dataclasses import replace

    launch = plan.launch_plan(os.environ)
    changes = {name: value for name, value in launch.env_added.items() if os.environ.get(name) != value}
    return replace(launch, env_added=changes)


def _execute(run: Callable[[], "Outcome"], job: "SetupJob", loaded: "LoadedWorkload") -> "Outcome":
    from agprof.errors import LaunchError
    from agprof.launch.setups import not_reached_hint

    try:
        return run()
    except LaunchError as error:
        hint = not_reached_hint(job.setup, loaded.base_dir)
        if hint is None or "agprof doctor" in str(error):
            raise
        raise LaunchError(f"{error}; {hint}") from error


def dry_setups(loaded: "LoadedWorkload", jobs: Sequence["SetupJob"], out: Path, *, say: Callable[[str], None]) -> int:
    """Print what each setup would start on each node; nothing is started. For Slurm a file for sbatch is written."""
    from dataclasses import replace

    from agprof.cli.run import print_plan
    from agprof.launch.folder import name_run
    from agprof.launch.prepare_nodes import describe_nodes, prepare_nodes
    from agprof.launch.setups import has_nodes
    from agprof.launch.site import planned_site

    for number, job in enumerate(jobs):
        if number:
            print()
        if not has_nodes(job.setup):
            print(f"setup     {job.name}: this node")
            print_plan(replace(loaded, workload=job.workload), out)
            continue
        site = planned_site(job, loaded.base_dir)
        run_dir = out.absolute() / name_run(job.workload.name, 0).replace("19700101T000000Z", "TIME")
        plans = prepare_nodes(job, site.nodes, run_dir=run_dir, base_dir=loaded.base_dir, say=say, build_ops=False)
        print("\n".join(describe_nodes(job, plans, _ways(plans, site.transport(plans)))))
        if job.setup.slurm is not None:
            _sbatch(loaded, job, out)
    return 0


def _ways(plans: Sequence["NodePlan"], commands: Sequence["AgentCommand"]) -> list[Sequence[str]]:
    by_node = {node: command.argv for command in commands for node in command.nodes}
    return [by_node[plan.number] for plan in plans]


def _sbatch(loaded: "LoadedWorkload", job: "SetupJob", out: Path) -> None:
    """Write the file for sbatch here, but never over one that says something else, and print it."""
    from agprof.errors import LaunchError
    from agprof.launch.slurm import few_cores_note, sbatch_text

    argv = [sys.executable, "-m", "agprof", "run", loaded.reference, "--setup", job.name, "--out", str(out), "--plain"]
    for item in loaded.sets:
        argv += ["--set", item]
    text = sbatch_text(job.setup, name=job.workload.name, cwd=Path.cwd(), argv=argv)
    path = Path(f"{job.workload.name}.sbatch")
    try:
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise LaunchError(f"{path} is there and says something else; move it away, or submit it as it is")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"{path} can't be written: {error.strerror or error}") from error
    print(f"sbatch    {shlex.join(['sbatch', str(path)])}, with {path}:")
    for line in text.splitlines():
        print(f"  {line}")
    if note := few_cores_note(job.setup):
        print(f"note: {note}")
