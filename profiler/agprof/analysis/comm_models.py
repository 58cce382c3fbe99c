"""What a collective costs by a model: hops and wire bytes, times the latency of a hop and the time of a byte.

    t = hops(op, n) a + wire(op, n) S b

S total bytes as nccl-tests defines them, n ranks. Rings for all-reduce, all-gather and reduce-scatter (Thakur,
Rabenseifner, Gropp 2005), n - 1 rounds of S / n for all-to-all, a binomial tree for broadcast with gloo and a pipelined
chain elsewhere. gloo does a reduce-scatter as an all-reduce of the whole buffer.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agprof.analysis.view import View
from agprof.config.setups import delay_ns, rate_bits_per_s
from agprof.model.alpha_beta import fit, predict_ns
from agprof.model.comm_ceiling import CommCeiling

PAYLOAD = 1448 / 1514
"""Of the bytes on a shaped link: TCP over IPv4 with time stamps in Ethernet frames of 1500 bytes and their 14."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins nodes, as far as it is known."""

    rate_bits_per_s: int | None = None
    """Each way; None: not known, or not limited."""
    delay_ns: int | None = None
    """One way."""
    emulated: bool = False
    words: str = ""

    @property
    def wire_ns_per_byte(self) -> float:
        """Least time of a payload byte at the link's rate; 0 where that is not known."""
        return 8e9 / (self.rate_bits_per_s * PAYLOAD) if self.rate_bits_per_s else 0.0


def hops(op: str, n: int, backend: str) -> int:
    """How often latency is paid one after the other; 0 for one rank.

    >>> hops("all_reduce", 4, "gloo"), hops("all_gather", 4, "nccl"), hops("broadcast", 4, "gloo")
    (6, 3, 2)
    """
    if n < 2:
        return 0
    kind = _kind(op, backend)
    if kind == "all_reduce":
        return 2 * (n - 1)
    if kind == "broadcast":
        return math.ceil(math.log2(n))
    return n - 1 if kind == "exchange" else 1


def wire(op: str, n: int, backend: str) -> float:
    """Bytes that the busiest link passes one way, over S; 0 for one rank.

    >>> wire("all_reduce", 4, "gloo"), wire("reduce_scatter", 4, "nccl"), wire("reduce_scatter", 4, "gloo")
    (1.5, 0.75, 1.5)
    """
    if n < 2 or op.startswith(("barrier", "monitored_barrier")):
        return 0.0
    kind = _kind(op, backend)
    if kind == "all_reduce":
        return 2 * (n - 1) / n
    if kind == "broadcast":
        return float(math.ceil(math.log2(n))) if backend == "gloo" else 1.0
    return (n - 1) / n if kind == "exchange" else 1.0


def _kind(op: str, backend: str) -> str:
    if op.startswith("all_reduce") or (op.startswith("reduce_scatter") and backend == "gloo"):
        return "all_reduce"
    if op.startswith(("reduce_scatter", "all_gather", "all_to_all", "gather", "scatter")):
        return "exchange"
    return "broadcast" if op.startswith(("broadcast", "reduce", "barrier", "monitored_barrier")) else "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """a and b of the ranks' network, and how well they fit."""

    hop_ns: float
    hop_error_ns: float
    """Standard error."""
    byte_ns: float
    """Per wire byte."""
    byte_error_ns: float
    off: float
    """Sum of |measured - fitted| over the sum of measured: large transfers weigh as they do in a step."""
    source: str
    """What it was fitted to, in words."""


Point = tuple[str, int, float, float]
"""Operation, ranks, total bytes, ns."""


def fit_network(points: Iterable[Point], backend: str, source: str) -> Network | None:
    """None for fewer than three sizes."""
    scaled = []
    for op, n, size, time in points:
        steps = hops(op, n, backend)
        if steps and size > 0 and time > 0:
            scaled.append((wire(op, n, backend) * size / steps, time / steps, steps))
    found = fit([(size, time) for size, time, _ in scaled])
    if found is None:
        return None
    misses = sum(steps * abs(time - predict_ns(found, size)) for size, time, steps in scaled)
    return Network(
        hop_ns=found.alpha_ns,
        hop_error_ns=found.alpha_error_ns,
        byte_ns=found.beta_ns_per_byte,
        byte_error_ns=found.beta_error_ns_per_byte,
        off=misses / sum(steps * time for _, time, steps in scaled),
        source=source,
    )


def ceiling_points(ceilings: Iterable[CommCeiling]) -> list[Point]:
    """The measured sizes of ceilings, all operations."""
    return [
        (curve.op, curve.group_size, point.bytes, point.median_ns)
        for ceiling in ceilings
        for curve in ceiling.curves
        for point in curve.points
    ]


def backend_of(view: View, device: str | None = None) -> str:
    """`gloo` or `nccl`, also where torch names one per device (`cpu:gloo,cuda:nccl`); "" where it is not known."""
    told = str(view.fact("dist.backend") or "")
    kind = device or str(view.fact("device.type") or "cpu")
    parts = dict(part.split(":", 1) for part in told.split(",") if ":" in part)
    return parts.get(kind, "") if parts else told


def nodes_of(view: View) -> int:
    nodes = view.run.manifest.get("nodes")
    if isinstance(nodes, int) and not isinstance(nodes, bool) and nodes > 0:
        return nodes
    return max(1, len(set(view.node_of.values())))


def link_of(view: View) -> Link:
    """The link between the run's nodes by its manifest. A text there that is no rate counts as not known."""
    words = view.run.manifest.get("link")
    section = view.run.manifest.get("setup_section")
    emulate = section.get("emulate") if isinstance(section, Mapping) else None
    return Link(
        rate_bits_per_s=_parsed(emulate, "rate", rate_bits_per_s),
        delay_ns=_parsed(emulate, "delay", delay_ns),
        emulated=isinstance(emulate, Mapping),
        words=words[:200] if isinstance(words, str) else "",
    )


def _parsed(section: Any, key: str, parse: Any) -> int | None:
    text = section.get(key) if isinstance(section, Mapping) else None
    try:
        return int(parse(text)) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None


def fitting_ceilings(view: View) -> tuple[CommCeiling, ...]:
    """The run's measured ceilings of its own backend, device, number of nodes and link; the largest group first."""
    backend, device, nodes, link = (
        backend_of(view),
        str(view.fact("device.type") or "cpu"),
        nodes_of(view),
        link_of(view),
    )
    found = [
        ceiling
        for ceiling in view.run.comm_ceilings
        if ceiling.backend == backend
        and ceiling.device_type == device
        and ceiling.nodes == nodes
        and (nodes == 1 or ceiling.link == link.words)
    ]
    return tuple(sorted(found, key=lambda ceiling: (-ceiling.ranks, -ceiling.measured_realtime_ns)))
