"""The answers from device traces (Kineto, Nsight Systems): part of `RunAnswers`. Definitions: docs/trace-analysis.md.

All times are integer nanoseconds; `start_ns` counts from the trace's origin, the earliest event of any rank. What was
not measured is None. An answer that the trace does not allow is None too, and `TraceQuality.notes` says why.
"""

from dataclasses import dataclass, field
from typing import Literal

KernelClass = Literal["compute", "communication", "memcpy", "memset"]

IdleCause = Literal["launch", "kernel wait", "synchronisation", "data", "unknown"]
"""launch: the host had not launched the next activity yet, or was in the call that did; kernel wait: it was launched,
and waited on the device (a dependency, or the launch's own latency); synchronisation: the host stood in a synchronising
call since before the gap, and then launched; data: the host stood in a data loader; unknown: the trace does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceBreakdown:
    """The device's time of one rank in one window. compute + exposed_* + idle == window, exactly."""

    rank: int
    step: int | None
    """Number of the profiler step; None for the whole window of the trace."""
    start_ns: int
    window_ns: int
    compute_ns: int
    """Union of compute kernels."""
    exposed_communication_ns: int
    """Communication while no compute kernel ran."""
    exposed_memcpy_ns: int
    """Copies while neither compute nor communication ran."""
    exposed_memset_ns: int
    """Memsets while nothing else ran."""
    idle_ns: int
    """Nothing ran."""
    communication_ns: int
    """Union of communication kernels."""
    overlapped_communication_ns: int
    """Of it, while a compute kernel ran."""
    overlap_ratio: float | None
    """overlapped over all communication; None without communication."""
    idle_by_cause_ns: dict[str, int]
    """Every IdleCause -> ns; they add up to idle_ns exactly."""
    exposed_other_ns: int = 0
    """Only with `definitions: hta`: what HTA counts as busy and is none of the above (synchronisation rows, rounding).
    It adds up with the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """All launches of one kernel (or copy, or memset) by name, over all ranks."""

    name: str
    kind: KernelClass
    library: str | None
    """Of communication: nccl, rccl, multimem, ..."""
    count: int
    sum_ns: int
    mean_ns: float
    min_ns: int
    max_ns: int
    share: float
    """Of the sum of all kernels, copies and memsets."""
    ranks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelGroup:
    """Device time by what caused it."""

    by: Literal["op", "module", "phase"]
    name: str
    count: int
    sum_ns: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCollectiveRow:
    """Communication kernels of one library, operation, group and size."""

    library: str
    op: str
    group: str | None
    group_size: int | None
    dtype: str | None
    bytes_per_call: int | None
    count: int
    """Over all ranks."""
    sum_ns: int
    mean_ns: float
    min_ns: int
    max_ns: int
    transfer_ns: float | None
    """Mean over matched calls of the shortest duration of any rank: what the transfer itself takes."""
    wait_ns: float | None
    """Mean over matched calls and ranks of duration - transfer: waiting for the last rank."""
    algorithm_bandwidth: float | None
    """Bytes per second: bytes_per_call / (transfer_ns where matched, else the median duration)."""
    bus_bandwidth: float | None
    """By nccl-tests' factor for the operation and the group's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRow:
    """How one rank's host feeds its device."""

    rank: int
    activities: int
    """Kernels, copies and memsets."""
    without_launch: int
    """Of them, those whose launch is not in the trace."""
    graph_kernels: int
    """Kernels launched by a CUDA graph."""
    delay_median_ns: int | None
    """From the begin of the launch call to the begin on the device."""
    delay_p95_ns: int | None
    delay_max_ns: int | None
    queue_mean: float | None
    """Activities launched and not yet begun, averaged over time."""
    queue_max: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStraggler:
    """How one rank stands in the collectives that could be matched across ranks."""

    rank: int
    collectives: int
    wait_ns: int
    """Time this rank's communication kernels waited for others."""
    last_share: float
    """Share of matched collectives to which this rank came last."""
    lateness_ns: float
    """Mean time it came after the rank before it, where it came last; 0 when it never did."""
    is_straggler: bool
    """True only where it delays the others by more than chance: see docs/trace-analysis.md."""
    caused_wait_ns: int = 0
    """Time that the other ranks, summed, waited in the collectives to which this rank came last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalSegment:
    """One piece of the critical path."""

    category: Literal["operator", "launch", "launch latency", "kernel", "communication", "memcpy", "synchronisation",
                      "host", "idle"]  # fmt: skip
    name: str
    start_ns: int
    duration_ns: int
    on_device: bool
    lane: int | None
    """Thread or stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPath:
    """The longest chain of dependent work through one rank's window; its segments tile the window."""

    rank: int
    step: int | None
    start_ns: int
    total_ns: int
    by_category_ns: dict[str, int]
    """They add up to total_ns."""
    slack_by_category_ns: dict[str, int]
    """Work of each category that lies off the path, in total."""
    least_slack_by_category_ns: dict[str, int] = field(default_factory=dict)
    """Per category of device activities: by how much the one off the path that is nearest to it could end later."""
    segments: tuple[CriticalSegment, ...]
    segments_left_out: int = 0
    """Shortest ones, when there are too many to carry."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMemory:
    """Allocated memory of one device over time, from the trace's memory events or a torch snapshot."""

    rank: int
    device: str
    """`cuda 0`, `host`."""
    peak_bytes: int
    peak_at_ns: int
    x_ns: tuple[int, ...]
    allocated_bytes: tuple[int | None, ...]
    reserved_bytes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLane:
    """One row of the time line: a stream of a device, or a thread of the host at one depth of nesting."""

    label: str
    group: Literal["host", "device"]
    depth: int
    start_ns: tuple[int, ...]
    """Since the window began, ascending."""
    duration_ns: tuple[int, ...]
    name: tuple[int, ...]
    """Index in TraceTimeline.names."""
    kind: tuple[int, ...]
    """Index in TraceTimeline.kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceTimeline:
    """A window of one rank, to be drawn: at most MAX_SLICES slices in all."""

    rank: int
    step: int | None
    start_ns: int
    window_ns: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    """compute, communication, memcpy, memset, operator, launch, annotation, python, synchronisation, other."""
    lanes: tuple[TraceLane, ...]
    note: str = ""
    """What is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuality:
    """How far one rank's trace can be trusted."""

    rank: int
    source: str
    format: str
    events: int
    left_out: dict[str, int]
    dropped_events: int | None
    truncated: str | None
    steps: int
    kernels_without_launch: int
    collectives_with_size: int
    collectives: int
    timestamp_unit: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAnswer:
    """What the devices did, from their traces."""

    sentence: str
    """The result in figures: where the device's time goes."""
    definitions: Literal["exact", "hta"]
    """exact: agprof's own; hta: those of HolisticTraceAnalysis 0.5 (`--compat hta`)."""
    has_device: bool
    """False when no rank's trace holds a device activity."""
    windows: tuple[TraceBreakdown, ...]
    """The whole window, one per rank that has device activities."""
    steps: tuple[TraceBreakdown, ...]
    kernels: tuple[KernelRow, ...]
    """By sum, largest first."""
    groups: tuple[KernelGroup, ...]
    collectives: tuple[TraceCollectiveRow, ...]
    communication_sentence: str
    unclassified: tuple[KernelRow, ...]
    """Kernels counted as compute whose names hint at communication: to be looked at, and named in the workload file."""
    launches: tuple[LaunchRow, ...]
    stragglers: tuple[TraceStraggler, ...]
    stragglers_sentence: str
    critical_path: CriticalPath | None
    critical_path_sentence: str
    memory: tuple[TraceMemory, ...]
    timeline: TraceTimeline | None
    quality: tuple[TraceQuality, ...]
    quality_sentence: str
