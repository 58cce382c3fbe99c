"""Plans the launch of a setup on its nodes, and shows it."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agprof.config.setup_choice import SetupJob
from agprof.errors import ConfigError, LaunchError
from agprof.launch import host
from agprof.launch.node_plan import NodeAddress, NodePlan, plan_nodes
from agprof.launch.plan import ENV_NO_DS_OPS
from agprof.launch.prepare import nsys_here, prepare
from agprof.launch.redact import redact_argv, redact_value
from agprof.launch.setups import cores_of_a_node, link_words, ssh_words


def prepare_nodes(
    job: SetupJob,
    nodes: Sequence[NodeAddress],
    *,
    run_dir: Path,
    base_dir: Path,
    say: Callable[[str], None],
    build_ops: bool = True,
) -> tuple[NodePlan, ...]:
    """The plans of all nodes, node 0 first. What this machine lacks is found here: nodes are taken to be alike.

    Raises LaunchError and ConfigError as `prepare` does.
    """
    workload = job.workload
    if workload.command is not None:
        raise ConfigError(f"setup {job.name}: a command starts its ranks itself; give a script or module")
    if job.setup.through == "deepspeed":
        _check_deepspeeds_way(job)
    here = prepare(workload, run_dir=run_dir, base_dir=base_dir, say=say, build_ops=build_ops)
    plans = plan_nodes(
        workload,
        nodes,
        run_dir=run_dir,
        base_dir=base_dir,
        environ=os.environ,
        python=sys.executable,
        cores=cores_of_a_node(job.setup, len(nodes), host.usable_cores()),
        master_port=here.master_port or host.free_port(),
        lost_after_s=job.setup.lost_after_s,
        through=job.setup.through,
        extensions_dir=host.extensions_dir(os.environ),
        nsys=nsys_here(workload),
        clock_port=host.free_port() if len(nodes) > 1 else None,
        ssh=ssh_words(job.setup),
    )
    first = replace(plans[0], shortfall=here.shortfall)
    plans = (first, *plans[1:])
    if ENV_NO_DS_OPS in here.env_added:
        plans = tuple(plan.with_variable(ENV_NO_DS_OPS, "1") for plan in plans)
    return plans


def _check_deepspeeds_way(job: SetupJob) -> None:
    if job.workload.launch.launcher != "deepspeed":
        raise ConfigError(f"setup {job.name}: `through: deepspeed` needs `launcher: deepspeed`; leave through out")
    if job.setup.hostfile is None:
        raise ConfigError(f"setup {job.name}: `through: deepspeed` needs a hostfile; leave through out")
    if ssh_words(job.setup)[0].rpartition("/")[2] != "ssh":
        raise ConfigError(f"setup {job.name}: with `through: deepspeed` pdsh calls ssh itself; `ssh` is `ssh OPTIONS`")
    if shutil.which("pdsh") is None:
        raise LaunchError("`through: deepspeed` needs pdsh on PATH; install the package pdsh, or leave through out")


def describe_nodes(job: SetupJob, plans: Sequence[NodePlan], ways: Sequence[Sequence[str]]) -> list[str]:
    """The plans in lines, for --dry-run. `ways`: by which command the agent of each node is started."""
    ranks = plans[0].world_size
    lines = [
        f"setup     {job.name}: {len(plans)} nodes, {ranks} ranks, {plans[0].launcher}",
        f"link      {link_words(job.setup, len(plans))}",
        f"meet at   {plans[0].master_address}:{plans[0].master_port}",
        f"cwd       {plans[0].cwd}",
    ]
    for plan, way in zip(plans, ways, strict=True):
        last = plan.first_rank + plan.ranks - 1
        which = f"rank {plan.first_rank}" if plan.ranks == 1 else f"ranks {plan.first_rank} to {last}"
        lines.append(f"node {plan.number}    {plan.host}, {plan.address}, {which}")
        lines.append(f"  agent     {shlex.join(redact_argv(way))}")
        command = shlex.join(redact_argv(plan.argv)) if plan.argv else "none: node 0's starts its ranks over ssh"
        lines.append(f"  command   {command}")
        if plan.sampler_argv is not None:
            lines.append(f"  sampler   {shlex.join(plan.sampler_argv)}")
        lines.append("  environment of its ranks, as agprof changes it:")
        for name, value in sorted(plan.env.items()):
            lines.append(f"    unset {name}" if value is None else f"    {name}={redact_value(name, value)}")
        lines.extend(f"note: {note}" for note in (*plan.notes, *plan.shortfall))
    return lines
