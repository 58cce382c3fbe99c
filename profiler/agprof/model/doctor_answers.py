"""What `agprof doctor` says of the nodes: one line per thing looked at, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "warning", "problem"]
"""note: worth knowing, nothing to do; warning: works, but slower or with less to see; problem: a job will fail."""
Topic = Literal["software", "GPU", "instruments", "host", "clock", "storage", "network", "cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    key: str
    """Stable: `shm`, `torch`, `nvml-fields` ..."""
    topic: Topic
    title: str
    status: Status
    found: str
    """What is, in figures."""
    advice: str = ""
    """What to do; empty when there is nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChecks:
    """One node."""

    host: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that is not the same on all nodes."""

    key: str
    title: str
    status: Status
    values: tuple[tuple[str, tuple[str, ...]], ...]
    """(value, nodes that have it), the most common first."""
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorAnswer:
    """All that was found."""

    nodes: tuple[NodeChecks, ...]
    cluster: tuple[Check, ...] = ()
    """Of the nodes together: ssh, ports, slots, clocks. Empty without a hostfile."""
    differences: tuple[Difference, ...] = ()

    def count(self, status: Status) -> int:
        """How many lines have this status."""
        lines = [check.status for node in self.nodes for check in node.checks]
        lines += [check.status for check in self.cluster] + [difference.status for difference in self.differences]
        return lines.count(status)
