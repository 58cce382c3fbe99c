"""Answers on GPUs and host, from the sampler's tables: what the report's section `system` draws."""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Curve, Figure, Kpi

MappedBy = Literal["uuid", "pci bus id", "CUDA_VISIBLE_DEVICES", "only GPU"]
Owner = Literal["rank", "child", "other", "not visible"]
ThrottleKind = Literal["power", "thermal", "hardware", "application clocks", "sync boost", "other"]


COMPUTES_ON_CPU = "the rank computes on the CPU"
"""Reason of a rank that has no GPU, and needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMapping:
    """Which of its node's GPUs a rank uses. Never guessed: where it is not certain, `gpu` is None with the reason."""

    rank: int
    node: int
    gpu: int | None
    """NVML index on the node."""
    by: MappedBy | None
    """The evidence."""
    reason: str | None = None
    """Why it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One GPU over the steady steps (whole run where there are none), peaks and errors over the whole run.

    Figures that were not measured say why.
    """

    node: int
    gpu: int
    name: str | None
    uuid: str | None
    ranks: tuple[int, ...]
    """Ranks that use it; empty: none, or not known."""
    mig: bool
    utilization: Figure
    """Share of time in which a kernel ran; not the share of the GPU in use."""
    sm: Figure
    tensor: Figure
    dram: Figure
    """From GPM; without it None with the reason."""
    memory_peak: Figure
    memory_total: Figure
    power: Figure
    power_limit: Figure
    temperature_max: Figure
    sm_clock: Figure
    sm_clock_max: Figure
    throttled_power: Figure
    """Share of the time; from the driver's counters of time where it has them, else from the share of samples."""
    throttled_thermal: Figure
    energy: Figure
    """Over the whole run, J."""
    pcie: Figure
    nvlink: Figure
    """Sent and received together, bytes/s."""
    ecc_uncorrected: Figure
    """In this run."""
    xids: int
    """XID events in this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleSpan:
    """A stretch in which the clocks of a GPU were held down, for the ribbon under its clock's curve."""

    node: int
    gpu: int
    start_ns: int
    end_ns: int
    """Since the run's origin, as the curves."""
    kind: ThrottleKind
    reasons: tuple[str, ...]
    """In words: `software power cap`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """The memory of one GPU at its fullest, and who held it. Parts and `unexplained` sum to `used`."""

    node: int
    gpu: int
    used: Figure
    """NVML's total, without the driver's reserve."""
    reserved: Figure
    """The driver's own."""
    total: Figure
    ranks: tuple[tuple[int, Figure, Figure], ...]
    """(rank, reserved by its allocator, what its process holds beyond that by NVML: context, libraries, NCCL)."""
    others: Figure
    """Processes that are no rank's."""
    unexplained: Figure
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTenant:
    """A process on a GPU that does not belong to the run."""

    node: int
    gpu: int
    pid: int
    owner: Owner
    name: str | None
    peak_bytes: Figure
    start_ns: int
    end_ns: int
    """First and last sight, since the run's origin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvent:
    """An XID or the like."""

    node: int
    gpu: int | None
    time_ns: int
    """Since the run's origin."""
    kind: str
    code: int | None
    meaning: str
    """In words, with what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceRow:
    """One network interface over the steady steps."""

    node: int
    interface: str
    kind: str
    sent: Figure
    received: Figure
    speed: Figure
    """bytes/s."""
    errors: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """A field that could not be read for some time or at all."""

    node: int
    field: str
    state: str
    """retry | unsupported | slowed"""
    reason: str
    since_ns: int
    until_ns: int | None
    """Since the run's origin; None: until the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerGap:
    """A stretch in which a node was not sampled: its sampler was stopped, killed and started again."""

    node: int
    start_ns: int
    end_ns: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemAnswer:
    """GPU and host."""

    sentence: str
    curves: tuple[Curve, ...]
    """Labels are owner and quantity. Owners: `rank 0`, `rank 0 workers`, `host`, `GPU 0` (its number also in `gpu`);
    with several nodes `node 1 host CPU`, `node 1 GPU 0 power`, `node 1 network sent`. The report knows of a GPU
    `utilization`, `SM activity`, `tensor activity`, `DRAM activity`, `memory busy`, `memory`, `memory total`, `power`,
    `power limit`, `temperature`, `memory temperature`, `SM clock`, `memory clock`, `PCIe sent`, `PCIe received`,
    `NVLink sent`, `NVLink received`; of a host `host CPU`, `host memory`, `host swap`, `CPU pressure`, `memory
    pressure`, `IO pressure`, `network sent`, `network received`, `loopback`, `disk read`, `disk write`. Others get a
    chart of their own."""
    figures: tuple[Kpi, ...]
    decimation: str | None = None
    """What was left out of the curves: `One point for each 43 s; the lowest and highest of each stretch are kept.`"""
    gpus: tuple[GpuRow, ...] = ()
    mapping: tuple[GpuMapping, ...] = ()
    throttles: tuple[ThrottleSpan, ...] = ()
    memory: tuple[GpuMemory, ...] = ()
    tenants: tuple[GpuTenant, ...] = ()
    events: tuple[GpuEvent, ...] = ()
    interfaces: tuple[InterfaceRow, ...] = ()
    cores: tuple[Curve, ...] = ()
    """Busy ratio of each core of each node; label `core 3`."""
    not_measured: tuple[NotMeasured, ...] = ()
    gaps: tuple[SamplerGap, ...] = ()
