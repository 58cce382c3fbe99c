"""What `agprof doctor --hostfile` learned of the nodes together, before anybody judges it."""

from dataclasses import dataclass

from agprof.model.doctor_facts import NodeFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """A node's wall clock against that of the node where the doctor runs, by the exchange that took least."""

    offset_ns: int
    """Positive: the node's clock is ahead."""
    uncertainty_ns: int
    """Half of the shortest exchange's time: the offset can't be farther off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """One try to connect from a node to another."""

    source: str
    target: str
    """Name in the hostfile."""
    port: int
    address: str | None
    """The first that led there; None: none did."""
    failures: tuple[str, ...] = ()
    """`10.0.0.2: no answer within 5 s`, of the addresses before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One line of the hostfile."""

    name: str
    slots: int
    facts: NodeFacts | None
    error: str | None = None
    """Why there are no facts: what ssh or the node said."""
    kind: str | None = None
    """Of the error: name | refused | timeout | key | host key | folder | python | agprof | other"""
    skew: Skew | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """All nodes of a hostfile."""

    nodes: tuple[NodeReport, ...]
    reached: tuple[Reached, ...]
    master_port: int
    master_port_error: str | None
    """Why the first node can't listen on it; None: it can, or was not asked."""
    all_pairs: bool
    """Whether every node tried every other one; else all tried the first, and each the next one."""
