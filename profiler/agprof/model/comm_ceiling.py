"""What `agprof bench-comm` measured of the links between ranks: kept beside `peak.json`, and in run folders.

The alpha-beta model: a collective over n ranks takes t(S) = alpha + beta S, S the total bytes of nccl-tests. `alpha`
is the latency that is paid however little is sent, 1 / beta the algorithm bandwidth that large messages approach.
"""

from dataclasses import dataclass

COMM_CEILING_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CommPoint:
    """One size of one operation."""

    bytes: int
    """Total bytes S as nccl-tests defines it."""
    repeats: int
    median_ns: int
    """Of the slowest rank's time per call."""
    low_ns: int
    high_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaBeta:
    """t = alpha + beta S, fitted with relative weights (each size counts alike)."""

    alpha_ns: float
    alpha_error_ns: float
    """Standard error."""
    beta_ns_per_byte: float
    beta_error_ns_per_byte: float
    relative_rms: float
    """Root mean square of (measured - fitted) / fitted: what a prediction is off by."""
    worst: float
    """Largest |measured - fitted| / fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommCurve:
    """One operation over one group of ranks."""

    op: str
    """all_reduce | all_gather | reduce_scatter | broadcast | all_to_all"""
    group_size: int
    nodes: int
    """That the group spans."""
    points: tuple[CommPoint, ...]
    fit: AlphaBeta | None
    """None with fewer than three sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommCeiling:
    """One session of `agprof bench-comm`."""

    version: int
    backend: str
    """gloo | nccl | ..."""
    device_type: str
    device_name: str
    ranks: int
    nodes: int
    setup: str | None
    """Name of the setup of the workload file, where one was given."""
    link: str
    """What joins the nodes, in words: `loopback`, `emulated 1gbit 1ms`, `eth0`."""
    measured_realtime_ns: int
    torch_version: str
    curves: tuple[CommCurve, ...]
