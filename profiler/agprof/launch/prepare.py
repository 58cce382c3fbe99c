"""Gathers what this machine adds to a workload, and plans the launch."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from agprof.config.workload import Workload
from agprof.errors import LaunchError
from agprof.launch import host, ops
from agprof.launch.nsight import HOW_TO_GET, find_nsys
from agprof.launch.nsys import NsysHere, sees_gpu
from agprof.launch.plan import LaunchPlan, plan_launch
from agprof.launch.programs import find_program


def prepare(
    workload: Workload,
    *,
    run_dir: Path,
    base_dir: Path,
    say: Callable[[str], None],
    build_ops: bool = True,
) -> LaunchPlan:
    """Plan the launch on this machine, with DeepSpeed's ops prebuilt where the job is likely to want them.

    `say` gets lines about what takes long. `build_ops=False` (--dry-run) builds and removes nothing. Raises
    LaunchError when a program or file that the launch needs is missing.
    """
    if workload.script is not None and not (base_dir / workload.script).is_file():
        raise LaunchError(f"script {base_dir / workload.script} is no file; `script` is relative to the workload file")
    if workload.command is None and not ops.is_installed("torch"):
        raise LaunchError("torch is not installed beside agprof; install it, or agprof into the job's environment")
    if workload.launch.launcher == "deepspeed" and not ops.is_installed("deepspeed"):
        raise LaunchError("`launch.launcher: deepspeed` needs the package deepspeed beside agprof; it is not installed")
    folder = host.extensions_dir(os.environ)
    program = None
    if workload.command is not None:
        program = find_program(workload.command[0], {**os.environ, **workload.launch.env}, how="agprof run --")
    nsys = nsys_here(workload)
    plan = plan_launch(
        workload,
        run_dir=run_dir,
        base_dir=base_dir,
        environ=os.environ,
        python=sys.executable,
        cores=host.usable_cores(),
        master_port=workload.launch.master_port or host.free_port(),
        extensions_dir=folder,
        same_environment=program is None or program.parent == Path(sys.executable).absolute().parent,
        nsys=nsys,
    )
    if workload.nsys is not None and nsys is None:
        missing = f"nsys was not found, and the ranks run without it: {HOW_TO_GET}"
        plan = replace(plan, shortfall=(*plan.shortfall, missing))
    if build_ops:
        for note in plan.shortfall:
            say(f"note: {note}")
    if workload.launch.bind_cores and not ops.has_program("numactl", plan.env):
        raise LaunchError("`launch.bind_cores` needs numactl on PATH; install the package numactl or leave it out")
    if not build_ops:
        return plan
    if "TORCH_EXTENSIONS_DIR" not in plan.env:
        return plan  # a command of another environment: its ops are its own
    used = Path(plan.env["TORCH_EXTENSIONS_DIR"])
    if not ops.wants_ops(workload, base_dir):
        ops.remove_stale_locks(used, say=say)
        return plan
    ready = ops.prepare_ops(used, environ=plan.env, say=say)
    for note in ready.notes:
        say(note)
    return plan.without_ds_ops() if ready.no_ds_ops else plan


def nsys_here(workload: Workload) -> NsysHere | None:
    """The nsys that the workload asks for; None when it asks for none, or there is none."""
    if workload.nsys is None:
        return None
    environ = {**os.environ, **workload.launch.env}
    program = find_nsys(environ)
    if program is None:
        return None
    return NsysHere(program=program.absolute(), gpu=sees_gpu(host.has_gpu(), environ))
