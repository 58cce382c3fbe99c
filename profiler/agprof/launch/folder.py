"""Makes the run folder and writes what is known before the job begins: `run.json` and `workload.yaml`."""

import json
import os
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from agprof.config.monitor import MonitorSection
from agprof.config.workload import Workload
from agprof.errors import LaunchError
from agprof.launch import host
from agprof.launch.node_plan import NodePlan
from agprof.launch.plan import LaunchPlan
from agprof.launch.redact import redact_argv, redact_tree, redact_value
from agprof.model.tables import SCHEMA_VERSION
from agprof.model.version import __version__
from agprof.store import layout

DEFAULT_OUT = Path("agprof-runs")
_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "accelerate", "numpy", "nvtx")
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "OMP_NUM_THREADS",
    "LD_PRELOAD",
    "TOKENIZERS_PARALLELISM",
)
_ENVIRONMENT_PREFIXES = (
    "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "OMP_", "MKL_", "KMP_", "DS_", "MALLOC_", "NVIDIA_VISIBLE",
    "HF_HUB_OFFLINE",
)  # fmt: skip
_MAX_SAME_SECOND = 1000


def name_run(name: str, realtime_ns: int) -> str:
    """NAME-20261121T095331Z: sorts by time within a name."""
    return f"{name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(realtime_ns // 10**9))}"


def create_run_folder(out: Path, name: str, *, realtime_ns: int | None = None) -> Path:
    """Create a folder that did not exist, under `out`, with `ranks/` and `nodes/` in it; its absolute path.

    Runs that begin in the same second get a number behind the time. Raises LaunchError.
    """
    base = name_run(name, time.time_ns() if realtime_ns is None else realtime_ns)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for attempt in range(_MAX_SAME_SECOND):
            folder = out.absolute() / (base if attempt == 0 else f"{base}-{attempt + 1}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            (folder / layout.RANKS).mkdir()
            (folder / layout.NODES).mkdir()
            return folder
    except OSError as error:
        raise _unwritable(out, error) from error
    raise LaunchError(f"{out} already holds {_MAX_SAME_SECOND} runs named {base}; give another --name")


def remove_run_folder(run_dir: Path) -> None:
    """Remove a folder that `create_run_folder` made and nothing was written into."""
    for folder in (run_dir / layout.RANKS, run_dir / layout.NODES, run_dir):
        with suppress(OSError):
            folder.rmdir()


def write_manifest(
    run_dir: Path,
    workload: Workload,
    plan: LaunchPlan,
    *,
    nodes: Sequence[NodePlan] = (),
    mark: Mapping[str, Any] | None = None,
    realtime_ns: int | None = None,
) -> None:
    """Write `run.json` and `workload.yaml`. `nodes`: those of a launch on several; `plan` is then node 0's.

    `mark` is added as it is: of which setup the run is, and which repeat in which series.

    Raises LaunchError when they can't be written.
    """
    manifest = describe_run(
        workload, plan, nodes=nodes, realtime_ns=time.time_ns() if realtime_ns is None else realtime_ns
    )
    manifest.update(mark or {})
    text = yaml.safe_dump(manifest["workload"], sort_keys=False, allow_unicode=True, width=120)
    try:
        write_json(run_dir / layout.MANIFEST, manifest)
        (run_dir / layout.WORKLOAD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(run_dir, error) from error


def write_monitor_manifest(
    run_dir: Path, name: str, command: Sequence[str], monitor: MonitorSection, *, realtime_ns: int | None = None
) -> None:
    """Write `run.json` of a command that is only sampled. Raises LaunchError when it can't be written."""
    argv = [displayable(word) for word in redact_argv(command)]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "agprof": __version__,
        "kind": layout.KIND_MONITOR,
        "name": name,
        "created_realtime_ns": time.time_ns() if realtime_ns is None else realtime_ns,
        "ranks": None,
        "nodes": 1,
        "launcher": layout.KIND_MONITOR,
        "argv": argv,
        "cwd": displayable(str(Path.cwd())),
        "environment_changes": {},
        "environment": {key: displayable(value) for key, value in environment_allowed(os.environ).items()},
        "workload": {"name": name, "command": argv, "monitor": monitor.model_dump(mode="json")},
        **_machine(Path.cwd()),
    }
    try:
        write_json(run_dir / layout.MANIFEST, manifest)
    except OSError as error:
        raise _unwritable(run_dir, error) from error


def displayable(text: str) -> str:
    """The text with bytes that are no UTF-8 written out as `\\udcff`: a command's words may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe_run(
    workload: Workload, plan: LaunchPlan, *, nodes: Sequence[NodePlan] = (), realtime_ns: int
) -> dict[str, Any]:
    """The manifest. Of the environment only an allow-list goes in, and what looks like a secret is redacted."""
    return {
        "schema_version": SCHEMA_VERSION,
        "agprof": __version__,
        "name": workload.name,
        "created_realtime_ns": realtime_ns,
        "ranks": nodes[0].world_size if nodes else plan.ranks,
        "nodes": len(nodes) or 1,
        "node_list": [
            {
                "number": node.number,
                "host": node.host,
                "address": node.address,
                "interface": node.interface,
                "ranks": node.ranks,
                "first_rank": node.first_rank,
            }
            for node in nodes
        ],
        "launcher": plan.launcher,
        "argv": redact_argv(plan.argv),
        "cwd": str(plan.cwd),
        "environment_changes": {
            name: None if value is None else redact_value(name, value) for name, value in sorted(plan.env_added.items())
        },
        "environment": environment_allowed(plan.env),
        "workload": _workload(workload),
        **_machine(plan.cwd),
    }


def _machine(folder: Path) -> dict[str, Any]:
    return {
        "host": {
            "hostname": socket.gethostname(),
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpu_model": host.cpu_model(),
            "cpu_count": os.cpu_count(),
            "usable_cores": host.usable_cores(),
        },
        "python": platform.python_version(),
        "packages": package_versions(),
        "git_commit": git_commit(folder),
    }


def _workload(workload: Workload) -> Any:
    tree = workload.model_dump(mode="json")
    if workload.command is not None:
        tree["command"] = redact_argv(workload.command)
    return redact_tree(tree)


def environment_allowed(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that explain a run's speed; nothing else of the environment is kept."""
    return {
        name: redact_value(name, value)
        for name, value in sorted(environ.items())
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str | None]:
    """Installed versions, read without importing; None: not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit(folder: Path) -> str | None:
    """The commit checked out in the repository that `folder` lies in, read from its files; None when there is none."""
    for parent in [folder, *folder.parents]:
        git = parent / ".git"
        try:
            if git.is_file():
                git = (parent / git.read_text(encoding="utf-8").partition("gitdir:")[2].strip()).resolve()
            if git.is_dir():
                return _head(git)
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _head(git: Path) -> str | None:
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return head or None
    reference = head.partition(":")[2].strip()
    common = git / "commondir"
    root = (git / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else git
    for folder in (git, root):
        loose = folder / reference
        if loose.is_file():
            return loose.read_text(encoding="utf-8").strip()
    packed = root / "packed-refs"
    if packed.is_file():
        for line in packed.read_text(encoding="utf-8").splitlines():
            commit, _, name = line.partition(" ")
            if name == reference:
                return commit
    return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a whole file or none. Raises OSError."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _unwritable(path: Path, error: OSError) -> LaunchError:
    where = error.filename if error.filename is not None else path
    return LaunchError(f"can't write the run folder: {where}: {error.strerror or error}; give another with --out DIR")
