"""The nodes of a setup, made where they have to be made, and the way to the agents on them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agprof.config.setup_choice import SetupJob
from agprof.launch import slurm
from agprof.launch.emulate import EmulatedNodes
from agprof.launch.node_plan import NodeAddress
from agprof.launch.node_transport import Transport, by_srun, in_namespaces, over_ssh
from agprof.launch.setups import (
    emulated_addresses,
    hostfile_addresses,
    link_words,
    slurm_addresses,
    ssh_words,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a setup runs."""

    nodes: tuple[NodeAddress, ...]
    transport: Transport
    link: str
    """The way between the nodes, for people."""


@contextmanager
def open_site(job: SetupJob, base_dir: Path) -> Iterator[Site]:
    """The nodes, from here to the end of the block. Raises LaunchError and ConfigError where there are none."""
    if job.setup.emulate is None:
        yield _site(job, base_dir, None)
        return
    with EmulatedNodes(job.setup.emulate) as emulated:
        site = _site(job, base_dir, emulated)
        shaped = "" if emulated.shaped_by == "nothing" else f" (by {emulated.shaped_by})"
        yield Site(nodes=site.nodes, transport=site.transport, link=f"{site.link}{shaped}")


def planned_site(job: SetupJob, base_dir: Path) -> Site:
    """The same with nothing made or started. Nodes that Slurm has not given yet are called as the setup's numbers."""
    if job.setup.emulate is not None:
        return _site(job, base_dir, EmulatedNodes(job.setup.emulate))
    if job.setup.slurm is not None and not slurm.allocated_hosts():
        ranks = job.workload.launch.ranks_per_node
        nodes = tuple(
            NodeAddress(host=name, address=name, ranks=ranks, interface=job.setup.interface)
            for name in (f"NODE{number}" for number in range(job.setup.nodes))
        )
        return Site(
            nodes=nodes,
            transport=by_srun(slurm.srun_words(job.setup, ()), sys.executable),
            link=link_words(job.setup, len(nodes)),
        )
    return _site(job, base_dir, None)


def _site(job: SetupJob, base_dir: Path, emulated: EmulatedNodes | None) -> Site:
    setup = job.setup
    if emulated is not None:
        nodes, transport = emulated_addresses(job, emulated), in_namespaces(emulated.command, sys.executable)
    elif setup.slurm is not None:
        nodes = slurm_addresses(job)
        transport = by_srun(slurm.srun_words(setup, [node.host for node in nodes]), sys.executable)
    else:
        nodes = hostfile_addresses(job, base_dir)
        transport = over_ssh(ssh_words(setup), sys.executable, Path.cwd())
    return Site(nodes=nodes, transport=transport, link=link_words(setup, len(nodes)))
