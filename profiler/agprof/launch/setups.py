"""Where the ranks of a setup run: the addresses of its nodes, what their link is called, and what is missing for it."""

import os
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from agprof.config.setup_choice import SetupJob
from agprof.config.setups import SetupSection
from agprof.errors import ConfigError, LaunchError
from agprof.launch import slurm
from agprof.launch.emulate import INTERFACE, EmulatedNodes
from agprof.launch.hostfile import Host, read_hostfile
from agprof.launch.node_plan import NodeAddress

_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_SSH_TIMEOUT_S = 10.0
_DISCARD_PORT = 9


def has_nodes(setup: SetupSection) -> bool:
    """Whether it needs agents on nodes; else the job runs here, as without a setup."""
    return setup.hostfile is not None or setup.slurm is not None or setup.emulate is not None


def link_words(setup: SetupSection, nodes: int) -> str:
    """The way between the nodes, for people: `emulated link, 1gbit, 1ms each way`."""
    if setup.emulate is not None:
        rate, delay = setup.emulate.rate, setup.emulate.delay
        parts = [*([rate] if rate else ["rate not shaped"]), *([f"{delay} each way"] if delay else [])]
        return f"emulated link, {', '.join(parts)}"
    if nodes <= 1:
        return "one node, no link"
    way = "Slurm" if setup.slurm is not None else "a hostfile"
    return f"the network between nodes of {way}" + (f", interface {setup.interface}" if setup.interface else "")


def ssh_words(setup: SetupSection) -> tuple[str, ...]:
    """The command that reaches a node. Raises ConfigError when it can't be taken apart."""
    try:
        words = tuple(shlex.split(setup.ssh))
    except ValueError as error:
        raise ConfigError(f"ssh: {setup.ssh!r:.80} can't be taken apart: {error}") from None
    if not words:
        raise ConfigError("ssh: is empty; give the command that reaches a node, as in ssh: ssh -p 2222")
    return words


def hostfile_path(setup: SetupSection, base_dir: Path) -> Path:
    return base_dir / str(setup.hostfile)


def emulated_addresses(job: SetupJob, emulated: EmulatedNodes) -> tuple[NodeAddress, ...]:
    return tuple(
        NodeAddress(
            host=node.host,
            address=node.address,
            ranks=job.workload.launch.ranks_per_node,
            interface=job.setup.interface or INTERFACE,
        )
        for node in emulated.nodes
    )


def hostfile_addresses(job: SetupJob, base_dir: Path) -> tuple[NodeAddress, ...]:
    """The nodes of the hostfile. Raises ConfigError where it and the setup contradict one another."""
    setup = job.setup
    path = hostfile_path(setup, base_dir)
    hosts = read_hostfile(path)
    if "nodes" in setup.model_fields_set and setup.nodes != len(hosts):
        raise ConfigError(f"setup {job.name}: nodes is {setup.nodes}, and {path} names {len(hosts)}; leave nodes out")
    for host in hosts:
        if setup.ranks_per_node is not None and setup.ranks_per_node > host.slots:
            raise ConfigError(
                f"setup {job.name}: ranks_per_node is {setup.ranks_per_node}, and {path} gives {host.name} "
                f"{host.slots} slots; raise slots=, or lower ranks_per_node"
            )
    addresses = _addresses(hosts, ssh_words(setup))
    return tuple(
        NodeAddress(
            host=host.name, address=address, ranks=setup.ranks_per_node or host.slots, interface=setup.interface
        )
        for host, address in zip(hosts, addresses, strict=True)
    )


def slurm_addresses(job: SetupJob, environ: Mapping[str, str] | None = None) -> tuple[NodeAddress, ...]:
    """The first nodes of the allocation. Raises LaunchError outside of one, or when it has too few."""
    setup = job.setup
    hosts = slurm.allocated_hosts(environ)
    if not hosts:
        raise LaunchError(
            f"setup {job.name} runs inside an allocation of Slurm's ({slurm.IN_ALLOCATION} is not set here): "
            "`--dry-run` writes the file to submit with sbatch"
        )
    if len(hosts) < setup.nodes:
        raise LaunchError(f"setup {job.name} has {setup.nodes} nodes, and the allocation {len(hosts)}; ask for more")
    return tuple(
        NodeAddress(
            host=host,
            address=_resolved(host) or host,
            ranks=job.workload.launch.ranks_per_node,
            interface=setup.interface,
        )
        for host in hosts[: setup.nodes]
    )


def _addresses(hosts: Sequence[Host], ssh: Sequence[str]) -> tuple[str, ...]:
    """By which the nodes reach one another, as far as it is known here: an address, else the name."""
    found = {}
    for host in hosts:
        name = host.name.rpartition("@")[2]
        if name not in _LOCAL:
            alias = _real_name(host.name, ssh)
            found[host.name] = _resolved(name) or _resolved(alias) or alias
    others = list(found.values())
    return tuple(found.get(host.name) or (_own_address(others[0]) if others else "127.0.0.1") for host in hosts)


def _real_name(name: str, ssh: Sequence[str]) -> str:
    """What ssh's own configuration takes a name for; nothing is connected."""
    bare = name.rpartition("@")[2]
    try:
        done = subprocess.run(
            [*ssh, "-G", name], capture_output=True, text=True, timeout=_SSH_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return bare
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    return next((value.strip() for key, _, value in lines if key == "hostname" and value.strip()), bare)


def _resolved(name: str) -> str | None:
    """An address that is not this machine's loopback: as Debian's /etc/hosts has it, a node's own name is that."""
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    addresses = [str(info[4][0]) for info in sorted(infos, key=lambda info: info[0] != socket.AF_INET)]
    outside = [address for address in addresses if not address.startswith("127.") and address != "::1"]
    if outside:
        return outside[0]
    return _own_address(None) if addresses and name == socket.gethostname() else None


def _own_address(towards: str | None) -> str:
    """This machine's address on the way to another one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards or "192.0.2.1", _DISCARD_PORT))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def cores_of_a_node(setup: SetupSection, nodes: int, here: int) -> int:
    """Cores that the ranks of one node share: emulated nodes share those of this machine."""
    return max(1, here // nodes) if setup.emulate is not None else here


def not_reached_hint(setup: SetupSection, base_dir: Path) -> str | None:
    """What to do when a node can't be reached; None where there is nothing to look at."""
    if setup.hostfile is None:
        return None
    ssh = "" if setup.ssh == "ssh" else f" --ssh {shlex.quote(setup.ssh)}"
    shown = os.path.relpath(hostfile_path(setup, base_dir))
    return f"agprof doctor --hostfile {shlex.quote(shown)}{ssh} says what is wrong with each node"
