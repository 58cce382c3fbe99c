"""From a workload to what will be started: argv and environment, as a value. Pure: nothing is started or looked up."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agprof.config.monitor import MonitorSection
from agprof.config.workload import Workload
from agprof.launch.nsys import NsysHere, nsys_run, nsys_settings
from agprof.launch.redact import redact_argv, redact_value
from agprof.model.settings import (
    ENV_FOREIGN,
    ENV_HOME,
    ENV_NODE,
    ENV_NSYS,
    ENV_NSYS_STARTED,
    ENV_PASS,
    ENV_RANK_PID,
    ENV_RUN_DIR,
    ENV_SETTINGS,
    ENV_UNDER_NSYS,
    FOREIGN_OPEN,
    InstrumentSettings,
    KinetoSettings,
    NsysRun,
)

COMMAND = "command"
"""Stands for the launcher in the plan of a command that starts its ranks itself."""
MASTER_ADDRESS = "127.0.0.1"
ENV_NO_DS_OPS = "AGPROF_NO_DS_OPS"
"""Set to 1: the instruments replace DeepSpeed's build of its shared-memory op by nothing (no compiler here)."""
FLIGHT_RECORDER_ENTRIES = 2000

_PACKAGE = Path(__file__).resolve().parents[1]
SOURCE_ROOT = _PACKAGE.parent
BOOTSTRAP_PATH = _PACKAGE / "instruments" / "bootstrap_path"

# What a launcher around agprof may have left; our own launcher sets them anew, and the bootstrap takes a process that
# has RANK for a rank.
_OWN = frozenset(
    {
        ENV_RANK_PID, ENV_NODE, ENV_RUN_DIR, ENV_SETTINGS, ENV_HOME, ENV_FOREIGN, ENV_PASS, ENV_NSYS, ENV_UNDER_NSYS,
        ENV_NSYS_STARTED,
    }
)  # fmt: skip
_OF_RANKS = _OWN | frozenset(
    {
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
        "ROLE_NAME", "ROLE_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT",
    }
)  # fmt: skip
_OF_LAUNCHERS = ("TORCHELASTIC_", "PET_")

# Options of the process that deepspeed.launcher.runner starts in turn, without a `--` of its own.
_DEEPSPEED_INNER_OPTIONS = (
    "--node_rank", "--master_addr", "--master_port", "--world_info", "--module", "--no_python",
    "--enable_elastic_training", "--min_elastic_nodes", "--max_elastic_nodes", "--no_local_rank", "--save_pid",
    "--enable_each_rank_log", "--bind_cores_to_rank", "--bind_core_list", "--log_level", "--quiet",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What `execute` will start."""

    launcher: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The launcher's whole environment; every rank inherits it."""
    env_added: Mapping[str, str | None]
    """What differs from the environment agprof was called in; None: removed."""
    cwd: Path
    ranks: int | None
    """None: a command decides that itself, and the ranks tell when they are there."""
    master_port: int | None
    """None where a command chooses it."""
    sampler_argv: tuple[str, ...] | None
    sampler_period_s: float = 1.0
    """Of its tier that has something to write on every machine."""
    nsys: NsysRun | None = None
    """How each rank is put under nsys; None: it is not."""
    shortfall: tuple[str, ...] = ()
    """What was asked for and is not to be had here; the run's outcome says it too."""
    notes: tuple[str, ...] = ()

    def without_ds_ops(self) -> "LaunchPlan":
        """The same plan for a machine on which DeepSpeed's own CPU ops can't be had."""
        return replace(
            self,
            env={**self.env, ENV_NO_DS_OPS: "1"},
            env_added={**self.env_added, ENV_NO_DS_OPS: "1"},
            notes=(*self.notes, "DeepSpeed's own CPU ops are not used: no compiler and no prebuilt ops"),
        )

    def rank_environment(self, rank: int) -> dict[str, str]:
        """What the launcher itself adds for one rank."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": MASTER_ADDRESS,
            "MASTER_PORT": str(self.master_port),
        }


def plan_launch(
    workload: Workload,
    *,
    run_dir: Path,
    base_dir: Path,
    environ: Mapping[str, str],
    python: str,
    cores: int,
    master_port: int,
    cwd: Path | None = None,
    extensions_dir: Path | None = None,
    same_environment: bool = True,
    nsys: NsysHere | None = None,
) -> LaunchPlan:
    """Plan the launch of `workload` on this node.

    `base_dir` is the folder that `script` is relative to; `python` the interpreter of launcher and ranks;
    `extensions_dir` the cache of compiled DeepSpeed ops, used unless the user set TORCH_EXTENSIONS_DIR.
    `same_environment`: a command's program lies beside `python`, so that what holds for the one holds for the other.
    `nsys` is the nsys that `workload.nsys` asks for; None: the ranks run without it.
    """
    if workload.command is not None:
        return _plan_command(
            workload, run_dir=run_dir, environ=environ, python=python, cwd=cwd,
            extensions_dir=extensions_dir, same_environment=same_environment, nsys=nsys,
        )  # fmt: skip
    ranks = workload.launch.ranks_per_node
    notes: list[str] = []
    env = _environment(workload, environ, python=python, cores=cores, notes=notes)
    env[ENV_RUN_DIR] = str(run_dir)
    if workload.profile.level != "off":
        env.update(_instruments(workload, env, nsys))
    if extensions_dir is not None:
        env.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_dir))
    if workload.launch.bind_cores:
        notes.append("bind_cores: the deepspeed launcher sets OMP_NUM_THREADS to the cores it binds each rank to")
    return LaunchPlan(
        launcher=workload.launch.launcher,
        argv=_argv(workload, base_dir, python, master_port),
        env=env,
        env_added=_difference(environ, env),
        cwd=cwd if cwd is not None else Path.cwd(),
        ranks=ranks,
        master_port=master_port,
        sampler_argv=sampler_argv(workload.monitor, run_dir, python),
        sampler_period_s=workload.monitor.period_s,
        nsys=_nsys(workload, nsys),
        shortfall=_absent_ranks(workload, ranks),
        notes=tuple(notes),
    )


def _plan_command(
    workload: Workload,
    *,
    run_dir: Path,
    environ: Mapping[str, str],
    python: str,
    cwd: Path | None,
    extensions_dir: Path | None,
    same_environment: bool,
    nsys: NsysHere | None,
) -> LaunchPlan:
    """A command runs as it stands: nothing of its environment is taken away, and only what measuring needs is added."""
    env = {name: value for name, value in {**environ, **workload.launch.env}.items() if name not in _OWN}
    env[ENV_RUN_DIR] = str(run_dir)
    if workload.profile.level != "off":
        env.update(_instruments(workload, env, nsys))
        env[ENV_FOREIGN] = FOREIGN_OPEN
    if same_environment:
        env["PATH"] = _path_with(python, env)
        if extensions_dir is not None:
            env.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_dir))
    assert workload.command is not None
    return LaunchPlan(
        launcher=COMMAND,
        argv=tuple(workload.command),
        env=env,
        env_added=_difference(environ, env),
        cwd=cwd if cwd is not None else Path.cwd(),
        ranks=None,
        master_port=None,
        sampler_argv=sampler_argv(workload.monitor, run_dir, python),
        sampler_period_s=workload.monitor.period_s,
        nsys=_nsys(workload, nsys),
    )


def describe(plan: LaunchPlan) -> list[str]:
    """The plan in lines, for --dry-run. Values that look like secrets are redacted."""
    how = f"{plan.launcher}, {plan.ranks} ranks on this node"
    if plan.ranks is None:
        how = "the command itself; ranks are found by their environment"
    lines = [f"launcher  {how}", f"cwd       {plan.cwd}"]
    lines.append(f"command   {shlex.join(redact_argv(plan.argv))}")
    if plan.sampler_argv is not None:
        lines.append(f"sampler   {shlex.join(plan.sampler_argv)}")
    if plan.nsys is not None:
        which = "every rank" if plan.nsys.ranks is None else f"rank {', '.join(map(str, plan.nsys.ranks))}"
        lines.append(f"nsys      {shlex.join(plan.nsys.arguments)} ...   around {which}")
    lines.append("environment of every rank, as agprof changes it:")
    for name, value in sorted(plan.env_added.items()):
        lines.append(f"  unset {name}" if value is None else f"  {name}={redact_value(name, value)}")
    if plan.ranks is not None:
        lines.append("environment of each rank, as its launcher sets it:")
    for rank in range(plan.ranks or 0):
        lines.append("  " + " ".join(f"{name}={value}" for name, value in plan.rank_environment(rank).items()))
    lines.extend(f"note: {note}" for note in (*plan.notes, *plan.shortfall))
    return lines


def without_launchers(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a launcher, ours or another, has set for its ranks."""
    return {
        name: value for name, value in environ.items() if name not in _OF_RANKS and not name.startswith(_OF_LAUNCHERS)
    }


def _environment(
    workload: Workload, environ: Mapping[str, str], *, python: str, cores: int, notes: list[str]
) -> dict[str, str]:
    env = without_launchers({**environ, **workload.launch.env})
    if not env.get("OMP_NUM_THREADS"):
        # More threads than cores make ranks wait for one another by factors, not by percents.
        env["OMP_NUM_THREADS"] = str(max(1, cores // workload.launch.ranks_per_node))
    if cores < workload.launch.ranks_per_node:
        notes.append(f"{workload.launch.ranks_per_node} ranks share {cores} cores: they will take turns")
    env["PATH"] = _path_with(python, env)
    return env


def _path_with(python: str, env: Mapping[str, str]) -> str:
    # As activating the interpreter's environment would. It also decides which ninja is found: two versions of ninja
    # don't trust each other's logs, and each rebuilds every op that the other built.
    folder = str(Path(python).parent)
    return ":".join([folder, *(entry for entry in env.get("PATH", "").split(":") if entry and entry != folder)])


def _absent_ranks(workload: Workload, ranks: int) -> tuple[str, ...]:
    """What is to be captured of ranks that the run does not have."""
    told = []
    for key, section in (("kineto", workload.kineto), ("nsys", workload.nsys)):
        asked = (section.ranks or []) if section is not None else []
        absent = ", ".join(str(rank) for rank in asked if rank >= ranks)
        if absent:
            has = "rank 0 alone" if ranks == 1 else f"ranks 0 to {ranks - 1}"
            told.append(f"{key}.ranks names {absent}, and the run has {has}: nothing is captured of others")
    return tuple(told)


def _nsys(workload: Workload, here: NsysHere | None) -> NsysRun | None:
    return nsys_run(workload, here) if workload.nsys is not None and here is not None else None


def _instruments(workload: Workload, env: Mapping[str, str], nsys: NsysHere | None) -> dict[str, str]:
    profile = workload.profile
    settings = InstrumentSettings(
        level=profile.level,
        profile_step=profile.profile_step,
        nvtx=profile.nvtx,
        flight_recorder=profile.flight_recorder,
        total_steps=profile.total_steps,
        kineto=_kineto(workload),
        nsys=nsys_settings(workload, gpu=nsys.gpu) if nsys is not None else None,
    )
    users_path = [entry for entry in env.get("PYTHONPATH", "").split(":") if entry and Path(entry) != BOOTSTRAP_PATH]
    added = {
        ENV_SETTINGS: settings.to_json(),
        ENV_HOME: str(SOURCE_ROOT),
        ENV_NODE: "0",
        "PYTHONPATH": ":".join([str(BOOTSTRAP_PATH), *users_path]),
    }
    under = _nsys(workload, nsys)
    if under is not None:
        added[ENV_NSYS] = under.to_json()
    recorder_set = "TORCH_FR_BUFFER_SIZE" in env or "TORCH_NCCL_TRACE_BUFFER_SIZE" in env
    if profile.level == "default" and profile.flight_recorder and not recorder_set:
        added["TORCH_FR_BUFFER_SIZE"] = str(FLIGHT_RECORDER_ENTRIES)
    return added


def _kineto(workload: Workload) -> KinetoSettings | None:
    kineto = workload.kineto
    if kineto is None:
        return None
    return KinetoSettings(
        first_step=kineto.first_step,
        warmup=kineto.warmup,
        active=kineto.active,
        ranks=tuple(kineto.ranks),
        shapes=kineto.shapes,
        stacks=kineto.stacks,
        memory=kineto.memory,
    )


def _argv(workload: Workload, base_dir: Path, python: str, master_port: int) -> tuple[str, ...]:
    launch = workload.launch
    if launch.launcher == "torchrun":
        options = [
            "--nnodes=1",
            "--node-rank=0",
            f"--nproc-per-node={launch.ranks_per_node}",
            "--rdzv-backend=static",
            f"--master-addr={MASTER_ADDRESS}",
            f"--master-port={master_port}",
        ]
    else:
        options = ["--num_accelerators", str(launch.ranks_per_node), "--master_port", str(master_port)]
    return launcher_argv(workload, base_dir, python, options)


def launcher_argv(workload: Workload, base_dir: Path, python: str, options: Sequence[str]) -> tuple[str, ...]:
    """The launcher of `workload` with the options that say where the ranks are, in front of the program."""
    # -P keeps a user's torch.py or queue.py in the current directory out of the launcher; the ranks don't inherit it.
    # `--` keeps the program's own options from being taken for abbreviations of the launcher's.
    launch = workload.launch
    target = workload.module if workload.module is not None else str(base_dir / str(workload.script))
    program = [target, *workload.arguments()]
    module = ["--module"] if workload.module is not None else []
    if launch.launcher == "torchrun":
        return (python, "-P", "-m", "agprof.launch.elastic", *options, *module, "--", *program)
    bind = ["--bind_cores_to_rank"] if launch.bind_cores else []
    # The second `--` reaches the runner's child, as its first positional argument.
    dashes = ["--", "--"] if _ambiguous_for_deepspeed(program) else ["--"]
    return (python, "-P", "-m", "deepspeed.launcher.runner", *options, *bind, *module, *dashes, *program)


def _ambiguous_for_deepspeed(program: list[str]) -> bool:
    words = [word.partition("=")[0] for word in program if word.startswith("--")]
    return any(
        word not in _DEEPSPEED_INNER_OPTIONS and sum(option.startswith(word) for option in _DEEPSPEED_INNER_OPTIONS) > 1
        for word in words
    )


def sampler_argv(
    monitor: MonitorSection, run_dir: Path, python: str, *, root_pid: int | None = None
) -> tuple[str, ...] | None:
    """The sampler of this node; None where it is switched off. `root_pid`: a tree to sample that has no rank."""
    if not monitor.enabled:
        return None
    fast, medium, slow = monitor.periods_s()
    argv = [
        python, "-P", "-m", "agprof.sampler", "--run-dir", str(run_dir), "--node", "0",
        "--fast-period", str(fast), "--period", str(medium), "--slow-period", str(slow), "--nvml", monitor.nvml,
    ]  # fmt: skip
    if monitor.prometheus is not None:
        argv += ["--prometheus-port", str(monitor.prometheus.port), "--prometheus-host", monitor.prometheus.host]
    if root_pid is not None:
        argv += ["--root-pid", str(root_pid)]
    return tuple(argv)


def _difference(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    changed: dict[str, str | None] = {name: value for name, value in after.items() if before.get(name) != value}
    changed.update({name: None for name in before if name not in after})
    return changed
