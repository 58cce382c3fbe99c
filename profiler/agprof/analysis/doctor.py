"""Judges what `agprof doctor` read: is a node fit for training and for being measured, and what is to be done?

Pure: facts in, checks out. A threshold stands beside the reason for it. Nothing is judged that was not read.
"""

from collections.abc import Callable, Iterable

from agprof.analysis import doctor_cluster as cluster
from agprof.analysis import doctor_host as host
from agprof.analysis import doctor_instruments as instruments
from agprof.analysis import doctor_software as software
from agprof.model.doctor_answers import Check, DoctorAnswer, NodeChecks
from agprof.model.doctor_cluster import ClusterFacts
from agprof.model.doctor_facts import NodeFacts

Judge = Callable[[NodeFacts], Iterable[Check]]

JUDGES: tuple[Judge, ...] = (
    software.python,
    software.agprof,
    software.torch,
    software.deepspeed,
    software.foreign_pynvml,
    software.driver,
    software.gpus,
    instruments.nvml_fields,
    instruments.host_fields,
    instruments.nsys,
    instruments.looking_at_others,
    instruments.cpu_counters,
    instruments.gpu_counters,
    host.limits,
    host.cores,
    host.memory,
    host.numa,
    host.shared_memory,
    host.topology,
    host.clock_source,
    host.clock_sync,
    host.places,
    host.network,
)
"""In the order of the page."""


def judge_node(facts: NodeFacts) -> NodeChecks:
    """All that can be said of one node."""
    return NodeChecks(host=facts.host, checks=tuple(check for judge in JUDGES for check in judge(facts)))


def judge(facts: NodeFacts) -> DoctorAnswer:
    """Of this machine alone."""
    return DoctorAnswer(nodes=(judge_node(facts),))


def judge_cluster(facts: ClusterFacts) -> DoctorAnswer:
    """Of all nodes of a hostfile. A node that could not be asked has no checks; `cluster` says why."""
    nodes = tuple(
        NodeChecks(host=node.name, checks=judge_node(node.facts).checks)
        for node in facts.nodes
        if node.facts is not None
    )
    return DoctorAnswer(nodes=nodes, cluster=cluster.judge_together(facts), differences=cluster.differences(facts))
