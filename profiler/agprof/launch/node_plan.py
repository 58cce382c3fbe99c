"""What is to be started on each node of a setup, as values. Pure: nothing is started or looked up.

A plan travels to its node as JSON (`node_agent`), and holds for whatever folder the node writes into (`moved_to`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agprof.config.workload import Workload
from agprof.launch.nsys import NsysHere
from agprof.launch.plan import LaunchPlan, launcher_argv, plan_launch
from agprof.model.settings import ENV_NODE, ENV_RUN_DIR, NSYS_GRACE_S

HOSTFILE = "hostfile"
"""Name of the hostfile for DeepSpeed, in the run folder of each node."""
DS_ENV_FILE = "ds_env"
"""Name of the file with the environment that DeepSpeed's runner passes on over ssh."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

# What a node that is reached over ssh would not have of the user's environment: names that explain speed or that
# Python and the libraries of a job look at.
_CARRIED = ("NCCL_", "GLOO_", "OMP_", "MKL_", "KMP_", "TORCH_", "PYTORCH_", "PYTHON", "HF_", "DS_", "MV2_", "UCX_",
            "MLFLOW_", "TOKENIZERS_", "CUDA_LAUNCH", "MALLOC_", "AGPROF_CACHE")  # fmt: skip

Through = Literal["agents", "deepspeed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """A node of a setup."""

    host: str
    """What it is called: by itself, or as ssh takes it."""
    address: str
    """By which the others reach it."""
    ranks: int
    """To be started there."""
    interface: str | None = None
    """Network interface between the nodes; None: the libraries choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What the agent of one node will start."""

    number: int
    """From 0."""
    nodes: int
    host: str
    address: str
    interface: str | None
    launcher: str
    argv: tuple[str, ...]
    """The launcher. Empty: another node's launcher starts the ranks here, and the agent only samples."""
    env: Mapping[str, str | None]
    """Changes to the node's own environment for launcher and ranks; None: removed."""
    cwd: Path
    run_dir: Path
    ranks: int
    first_rank: int
    world_size: int
    master_address: str
    master_port: int
    sampler_argv: tuple[str, ...] | None
    sampler_period_s: float = 1.0
    lost_after_s: float = 30.0
    """Silence after which a node is lost."""
    more_time_s: float = 0.0
    """That the job may take longer to end, where it has something to write then (nsys)."""
    starts_ranks: bool = True
    """False: the ranks are not below this launcher, which starts them over ssh."""
    files: Mapping[str, str] | None = None
    """Small text files that the launcher reads: name in the run folder -> text."""
    token: str = ""
    """Content of the coordinator's token file, by which a node knows that it sees the same run folder."""
    shortfall: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def moved_to(self, folder: Path) -> "NodePlan":
        """The same with another run folder on this node."""

        def moved(word: str) -> str:
            old = str(self.run_dir)
            return str(folder) + word[len(old) :] if word == old or word.startswith(f"{old}/") else word

        return replace(
            self,
            run_dir=folder,
            argv=tuple(map(moved, self.argv)),
            env={name: None if value is None else moved(value) for name, value in self.env.items()},
            sampler_argv=None if self.sampler_argv is None else tuple(map(moved, self.sampler_argv)),
        )

    def with_variable(self, name: str, value: str) -> "NodePlan":
        """The same with one more variable for the ranks, whichever way they are started."""
        files = self.files
        if files is not None and DS_ENV_FILE in files:
            files = {**files, DS_ENV_FILE: files[DS_ENV_FILE] + deepspeed_environment({name: value})}
        return replace(self, env={**self.env, name: value}, files=files)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the launcher on a node whose own is `environ`."""
        kept = {name: value for name, value in environ.items() if name not in self.env}
        return {**kept, **{name: value for name, value in self.env.items() if value is not None}}

    def launch_plan(self, environ: Mapping[str, str]) -> LaunchPlan:
        """As the launch on one node takes it."""
        return LaunchPlan(
            launcher=self.launcher,
            argv=self.argv,
            env=self.environment(environ),
            env_added=self.env,
            cwd=self.cwd,
            ranks=self.ranks if self.starts_ranks else 0,
            master_port=self.master_port,
            sampler_argv=self.sampler_argv,
            sampler_period_s=self.sampler_period_s,
            shortfall=self.shortfall,
            notes=self.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "cwd": str(self.cwd), "run_dir": str(self.run_dir)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "NodePlan":
        """Read what `to_dict` gave, also after a round through JSON. Raises TypeError or KeyError on anything else."""
        data = dict(value)
        data.update(cwd=Path(data["cwd"]), run_dir=Path(data["run_dir"]), argv=tuple(data["argv"]))
        data["sampler_argv"] = None if data["sampler_argv"] is None else tuple(data["sampler_argv"])
        for name in ("shortfall", "notes"):
            data[name] = tuple(data[name])
        return NodePlan(**data)


def plan_nodes(
    workload: Workload,
    nodes: Sequence[NodeAddress],
    *,
    run_dir: Path,
    base_dir: Path,
    environ: Mapping[str, str],
    python: str,
    cores: int,
    master_port: int,
    lost_after_s: float = 30.0,
    through: Through = "agents",
    cwd: Path | None = None,
    extensions_dir: Path | None = None,
    nsys: NsysHere | None = None,
    clock_port: int | None = None,
    ssh: Sequence[str] = ("ssh",),
) -> tuple[NodePlan, ...]:
    """Plan a launch on several nodes, node 0 first, which is where the ranks meet.

    `workload` is the job with what the setup says of launcher and environment already in it; how many ranks a node
    has is the nodes' word. `environ` is that of agprof, `cores` those that the ranks of one node may use. Nodes are
    taken to be alike: same paths, same Python. `clock_port`: node 0's sampler answers there to the others, which ask
    for its clock. `ssh`: the command that reaches a node, for DeepSpeed's own way. Raises ValueError for a job that is
    a command, that has no nodes, or that goes DeepSpeed's own way with another launcher.
    """
    if workload.command is not None:
        raise ValueError("a command starts its ranks itself, on its own node; a setup of nodes needs script or module")
    if not nodes:
        raise ValueError("a setup has at least one node")
    if through == "deepspeed" and workload.launch.launcher != "deepspeed":
        raise ValueError("`through: deepspeed` is the way of `launcher: deepspeed`; torchrun is started by agents")
    world_size = sum(node.ranks for node in nodes)
    plans: list[NodePlan] = []
    first = 0
    for number, node in enumerate(nodes):
        launch = workload.launch.model_copy(update={"ranks_per_node": node.ranks})
        single = plan_launch(
            workload.model_copy(update={"launch": launch}),
            run_dir=run_dir, base_dir=base_dir, environ=environ, python=python, cores=cores, master_port=master_port,
            cwd=cwd, extensions_dir=extensions_dir, nsys=nsys,
        )  # fmt: skip
        options = _options(workload, nodes, number, run_dir, master_port, through)
        plans.append(
            NodePlan(
                number=number,
                nodes=len(nodes),
                host=node.host,
                address=node.address,
                interface=node.interface,
                launcher=launch.launcher,
                argv=launcher_argv(workload, base_dir, python, options) if options is not None else (),
                env=_environment(single, node, number, environ, run_dir, through, ssh),
                cwd=single.cwd,
                run_dir=run_dir,
                ranks=node.ranks,
                first_rank=first,
                world_size=world_size,
                master_address=nodes[0].address,
                master_port=master_port,
                sampler_argv=_sampler(single, number, nodes[0].address, clock_port),
                sampler_period_s=single.sampler_period_s,
                lost_after_s=lost_after_s,
                more_time_s=NSYS_GRACE_S if single.nsys is not None else 0.0,
                starts_ranks=through == "agents",
                files=_files(single, nodes, number, environ, through, ssh),
                shortfall=single.shortfall if number == 0 else (),
                notes=single.notes if number == 0 else (),
            )
        )
        first += node.ranks
    return tuple(plans)


def _options(
    workload: Workload, nodes: Sequence[NodeAddress], number: int, run_dir: Path, port: int, through: Through
) -> list[str] | None:
    """The launcher's options on a node; None where it has no launcher."""
    master = nodes[0].address
    if workload.launch.launcher == "torchrun":
        return [
            f"--nnodes={len(nodes)}",
            f"--node-rank={number}",
            f"--nproc-per-node={nodes[number].ranks}",
            # Not c10d: it takes a node for the host of the store by names, which nodes may share.
            "--rdzv-backend=static",
            f"--master-addr={master}",
            f"--master-port={port}",
            f"--local-addr={nodes[number].address}",
        ]
    options = ["--hostfile", str(run_dir / HOSTFILE), "--master_addr", master, "--master_port", str(port)]
    if through == "agents":
        return [*options, "--no_ssh", "--node_rank", str(number)]
    # The check would ssh without the options that pdsh is given.
    return [*options, "--no_ssh_check", "--launcher", "pdsh"] if number == 0 else None


def _environment(
    single: LaunchPlan,
    node: NodeAddress,
    number: int,
    environ: Mapping[str, str],
    run_dir: Path,
    through: Through,
    ssh: Sequence[str],
) -> dict[str, str | None]:
    carried = {name: value for name, value in environ.items() if name.startswith(_CARRIED) and name in single.env}
    changes: dict[str, str | None] = {**carried, **single.env_added, ENV_RUN_DIR: str(run_dir)}
    if ENV_NODE in single.env:
        changes[ENV_NODE] = str(number)
    if node.interface is not None:
        for name in INTERFACE_VARIABLES:
            changes.setdefault(name, node.interface)
    if through == "deepspeed":
        changes["DS_ENV_FILE"] = str(run_dir / DS_ENV_FILE)
        # pdsh takes its words apart at blanks, whatever quotes say. A question for a password would hang unseen.
        options = [environ.get("PDSH_SSH_ARGS_APPEND", ""), *ssh[1:], "-o", "BatchMode=yes"]
        changes["PDSH_SSH_ARGS_APPEND"] = " ".join(filter(None, options))
    return changes


def _sampler(single: LaunchPlan, number: int, master: str, clock_port: int | None) -> tuple[str, ...] | None:
    if single.sampler_argv is None:
        return None
    argv = list(single.sampler_argv)
    argv[argv.index("--node") + 1] = str(number)
    if clock_port is not None:
        argv += ["--clock-serve" if number == 0 else "--clock-server", f"{master}:{clock_port}"]
    return tuple(argv)


def _files(
    single: LaunchPlan,
    nodes: Sequence[NodeAddress],
    number: int,
    environ: Mapping[str, str],
    through: Through,
    ssh: Sequence[str],
) -> dict[str, str] | None:
    if single.launcher != "deepspeed":
        return None
    files = {HOSTFILE: "".join(f"{node.host} slots={node.ranks}\n" for node in nodes)}
    if through == "deepspeed" and number == 0:
        changes = _environment(single, nodes[0], 0, environ, Path(single.env[ENV_RUN_DIR]), through, ssh)
        files[DS_ENV_FILE] = deepspeed_environment(changes)
    return files


def deepspeed_environment(changes: Mapping[str, str | None]) -> str:
    """The text of DS_ENV_FILE: what DeepSpeed's runner exports on every node.

    It puts a value with other characters than `A-Za-z0-9_@%+=:,./-` between double quotes and leaves what a shell
    would read there as it is (add_export of deepspeed.launcher.multinode_runner), and pdsh reads `%`. The number of
    the node is left out: it is the same text for all, and ranks take it from CROSS_RANK.
    """
    lines = []
    for name, value in sorted(changes.items()):
        if value is None or name in (ENV_NODE, "DS_ENV_FILE", "PDSH_SSH_ARGS_APPEND", "PYTHONPATH") or "\n" in value:
            continue
        escaped = "".join(f"\\{sign}" if sign in '"$`\\' else sign for sign in value).replace("%", "%%")
        lines.append(f"{name}={escaped}\n")
    return "".join(lines)


def to_line(plan: NodePlan) -> str:
    """The plan as one line of JSON."""
    return json.dumps(plan.to_dict(), separators=(",", ":"))
