"""Slurm: the nodes of the allocation that agprof runs in, and the file by which one is asked for."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from agprof.config.setups import SetupSection
from agprof.errors import LaunchError

IN_ALLOCATION = "SLURM_JOB_NODELIST"
_TIMEOUT_S = 20.0


def allocated_hosts(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names of the nodes of the allocation; empty outside of one. Raises LaunchError when Slurm does not tell them."""
    environ = os.environ if environ is None else environ
    names = environ.get(IN_ALLOCATION, "")
    if not names:
        return ()
    argv = ["scontrol", "show", "hostnames", names]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env={**environ})
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchError(f"{IN_ALLOCATION} is set, but `{shlex.join(argv)}` failed: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise LaunchError(f"`{shlex.join(argv)}` failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return tuple(done.stdout.split())


def srun_words(setup: SetupSection, hosts: Sequence[str]) -> tuple[str, ...]:
    """srun with its options for a step on these nodes; how many nodes and tasks stands with the transport."""
    slurm = setup.slurm
    words = ["srun"]
    if hosts:
        words.append(f"--nodelist={','.join(hosts)}")
    # --overlap: the step shares the first node's cores and GPUs with agprof itself. --cpu-bind=none: a node's one task
    # is the agent of all its ranks, and must not be bound to one task's cores. --input=all is srun's default unless
    # the site has set SLURM_STDINMODE.
    words += ["--overlap", "--export=ALL", "--cpu-bind=none", "--unbuffered", "--input=all"]
    if slurm is not None and slurm.cpus_per_task is not None:
        words.append(f"--cpus-per-task={slurm.cpus_per_task}")
    if slurm is not None and slurm.gpus_per_node:
        words.append(f"--gpus-per-node={slurm.gpus_per_node}")
    return tuple(words)


def few_cores_note(setup: SetupSection) -> str | None:
    """What to say when Slurm would give each node's task a single core, as it does unless it is told more."""
    slurm = setup.slurm
    if slurm is None or slurm.cpus_per_task is not None or any("exclusive" in option for option in slurm.options):
        return None
    return (
        "slurm.cpus_per_task is not given: Slurm then gives a node's ranks one core; give it, or options: [--exclusive]"
    )


def sbatch_text(setup: SetupSection, *, name: str, cwd: Path, argv: Sequence[str]) -> str:
    """The file for `sbatch`: asks for the nodes of the setup, and runs agprof on the first of them."""
    slurm = setup.slurm
    if slurm is None:
        raise ValueError("the setup asks Slurm for nothing")
    options = [f"--job-name={name}", f"--nodes={setup.nodes}", "--ntasks-per-node=1", f"--time={slurm.time}"]
    if slurm.partition is not None:
        options.append(f"--partition={slurm.partition}")
    if slurm.account is not None:
        options.append(f"--account={slurm.account}")
    if slurm.cpus_per_task is not None:
        options.append(f"--cpus-per-task={slurm.cpus_per_task}")
    if slurm.gpus_per_node:
        options.append(f"--gpus-per-node={slurm.gpus_per_node}")
    options += slurm.options
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        # Slurm runs a copy of this file from a folder of its own.
        f"cd {shlex.quote(str(cwd))} || exit 1",
        f"exec {shlex.join(argv)}",
    ]
    return "\n".join(lines) + "\n"
