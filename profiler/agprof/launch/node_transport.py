"""Ways to an agent on each node: namespaces of this machine, ssh, srun. Pure: argv of what holds the conversation."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agprof.launch.doctor_cluster import LOCAL_NAMES, NO_FOLDER, NO_PYTHON, SSH_CONNECT_TIMEOUT_S
from agprof.launch.node_agent import SLURM
from agprof.launch.node_plan import NodePlan

_MODULE = ("-P", "-m", "agprof.launch.node_agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCommand:
    """A process whose stdin and stdout lead to the agents of some nodes."""

    nodes: tuple[int, ...]
    argv: tuple[str, ...]


Transport = Callable[[Sequence[NodePlan]], tuple[AgentCommand, ...]]


def in_namespaces(command: Callable[[int, Sequence[str]], list[str]], python: str) -> Transport:
    """Nodes of `emulate.EmulatedNodes`; `command` is its method."""

    def commands(plans: Sequence[NodePlan]) -> tuple[AgentCommand, ...]:
        return tuple(
            AgentCommand(
                nodes=(plan.number,), argv=tuple(command(plan.number, [python, *_MODULE, str(plan.number)]))
            )
            for plan in plans
        )  # fmt: skip

    return commands


def over_ssh(ssh: Sequence[str], python: str, folder: Path) -> Transport:
    """One ssh session per node, but none for `localhost`. `folder`: where the agents start, the same on all nodes."""

    def argv(plan: NodePlan) -> tuple[str, ...]:
        if plan.host in LOCAL_NAMES:
            return (python, *_MODULE, str(plan.number))
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_CONNECT_TIMEOUT_S}", "-T"]
        return (*ssh, *options, plan.host, remote_command(folder, python, plan.number))

    return lambda plans: tuple(AgentCommand(nodes=(plan.number,), argv=argv(plan)) for plan in plans)


def remote_command(folder: Path, python: str, number: int) -> str:
    """The shell's command on a node; its exit codes tell what is missing there."""
    program = shlex.quote(python)
    return (
        f"cd {shlex.quote(str(folder))} || exit {NO_FOLDER}; test -x {program} || exit {NO_PYTHON}; "
        f"exec {program} {shlex.join([*_MODULE, str(number)])}"
    )


def by_srun(srun: Sequence[str], python: str) -> Transport:
    """One task per node under a single srun, which hands stdin to all tasks and merges their lines.

    `srun` is the program with options that say which nodes. An agent takes its number from SLURM_NODEID.
    """

    def commands(plans: Sequence[NodePlan]) -> tuple[AgentCommand, ...]:
        count = str(len(plans))
        options = ["--nodes", count, "--ntasks", count, "--ntasks-per-node", "1", "--kill-on-bad-exit=0", "--wait=0"]
        argv = (*srun, *options, python, *_MODULE, SLURM)
        return (AgentCommand(nodes=tuple(plan.number for plan in plans), argv=argv),)

    return commands


def why_it_ended(plan: NodePlan, code: int | None, said: str, *, folder: Path, python: str) -> str:
    """Why a way to a node ended before its agent said a word, and what to do."""
    if code == NO_FOLDER:
        return f"there is no folder {folder} on {plan.host}: nodes have the same paths (`agprof doctor --hostfile`)"
    if code == NO_PYTHON:
        return f"there is no Python at {python} on {plan.host}: nodes have the same paths (`agprof doctor --hostfile`)"
    last = said.strip().splitlines()[-1:] or [f"it ended with {code} and said nothing"]
    return last[0]
