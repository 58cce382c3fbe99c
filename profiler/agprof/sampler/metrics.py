"""Which columns of the node's tables Prometheus is given, under which names.

Names follow Prometheus' conventions (https://prometheus.io/docs/practices/naming): base units (seconds, bytes, watts,
joules, hertz, celsius), the unit in the name, `_total` behind a counter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agprof.model.tables import BY_NAME
from agprof.sampler.loop import TierName

Kind = Literal["gauge", "counter", "sum"]
"""sum: the column is a change since the row before; the metric counts it up from the sampler's start."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column as a metric."""

    name: str
    """Without the `agprof_` in front and without `_total`."""
    column: str
    factor: float = 1.0
    kind: Kind = "gauge"
    labels: tuple[tuple[str, str], ...] = ()
    """More labels, of the metric itself."""
    doc: str = ""
    """Instead of the column's own."""
    sparse: TierName | None = None
    """Read less often than the rest of its table: the tier at whose pace it is; None: in every row."""


@dataclass(frozen=True, slots=True)
class Source:
    """One table: its tier, the columns that tell its rows apart, and its metrics."""

    table: str
    tier: TierName
    keys: tuple[str, ...]
    metrics: Sequence[Metric]


_POWER = "power at an instant, or averaged over 1 s where the GPU tells no other"
_THROTTLED = "time with clocks held down, by cause: power, thermal, other"


def _throttled(cause: str) -> Metric:
    labels = (("cause", cause),)
    return Metric("gpu_throttled_seconds", f"throttled_{cause}_ns", 1e-9, "sum", labels, _THROTTLED)


SOURCES: tuple[Source, ...] = (
    Source("gpu_samples", "fast", ("gpu",), (
        Metric("gpu_utilization_ratio", "utilization_ratio"),
        Metric("gpu_memory_busy_ratio", "memory_busy_ratio"),
        Metric("gpu_power_watts", "power_mw", 1e-3, doc=_POWER),
        Metric("gpu_power_average_watts", "power_average_mw", 1e-3, sparse="medium"),
        Metric("gpu_energy_joules", "energy_mj", 1e-3, "counter"),
        Metric("gpu_sm_clock_hertz", "sm_clock_mhz", 1e6),
        Metric("gpu_memory_clock_hertz", "memory_clock_mhz", 1e6),
        Metric("gpu_clock_event_reasons", "clock_event_reasons"),
        Metric("gpu_pcie_sent_bytes_per_second", "pcie_sent_bytes_per_s"),
        Metric("gpu_pcie_received_bytes_per_second", "pcie_received_bytes_per_s"),
        Metric("gpu_nvlink_sent_bytes_per_second", "nvlink_sent_bytes_per_s"),
        Metric("gpu_nvlink_received_bytes_per_second", "nvlink_received_bytes_per_s"),
        _throttled("power"), _throttled("thermal"), _throttled("other"),
    )),
    Source("gpu_states", "medium", ("gpu",), (
        Metric("gpu_memory_used_bytes", "memory_used_bytes"),
        Metric("gpu_memory_reserved_bytes", "memory_reserved_bytes"),
        Metric("gpu_memory_size_bytes", "memory_total_bytes"),
        Metric("gpu_temperature_celsius", "temperature_c"),
        Metric("gpu_memory_temperature_celsius", "memory_temperature_c"),
        Metric("gpu_power_limit_watts", "power_limit_mw", 1e-3),
    )),
    Source("gpu_activity", "medium", ("gpu",), (
        Metric("gpu_sm_active_ratio", "sm_ratio"),
        Metric("gpu_occupancy_ratio", "occupancy_ratio"),
        Metric("gpu_tensor_active_ratio", "tensor_ratio"),
        Metric("gpu_dram_active_ratio", "dram_ratio"),
    )),
    Source("gpu_health", "slow", ("gpu",), (
        Metric("gpu_ecc_corrected_errors", "ecc_corrected", kind="counter"),
        Metric("gpu_ecc_uncorrected_errors", "ecc_uncorrected", kind="counter"),
        Metric("gpu_remapped_rows_corrected", "remapped_rows_corrected"),
        Metric("gpu_remapped_rows_uncorrected", "remapped_rows_uncorrected"),
        Metric("gpu_row_remap_pending", "remap_pending"),
        Metric("gpu_row_remap_failed", "remap_failed"),
    )),
    Source("host_samples", "medium", (), (
        Metric("host_cpu_ratio", "cpu_ratio"),
        Metric("host_iowait_ratio", "iowait_ratio"),
        Metric("host_steal_ratio", "steal_ratio"),
        Metric("host_memory_used_bytes", "memory_used_bytes"),
        Metric("host_memory_size_bytes", "memory_total_bytes"),
        Metric("host_swap_used_bytes", "swap_used_bytes"),
        Metric("host_swap_in_bytes_per_second", "swap_in_bytes_per_s"),
        Metric("host_swap_out_bytes_per_second", "swap_out_bytes_per_s"),
        Metric("host_network_sent_bytes_per_second", "network_sent_bytes_per_s"),
        Metric("host_network_received_bytes_per_second", "network_received_bytes_per_s"),
        Metric("host_loopback_bytes_per_second", "loopback_bytes_per_s"),
        Metric("host_disk_read_bytes_per_second", "disk_read_bytes_per_s"),
        Metric("host_disk_write_bytes_per_second", "disk_write_bytes_per_s"),
        Metric("host_load1", "load_1m"),
        Metric("host_cpu_pressure_ratio", "cpu_pressure_ratio"),
        Metric("host_memory_pressure_ratio", "memory_pressure_ratio"),
        Metric("host_memory_stall_ratio", "memory_stall_ratio"),
        Metric("host_io_pressure_ratio", "io_pressure_ratio"),
        Metric("host_io_stall_ratio", "io_stall_ratio"),
        Metric("cgroup_memory_bytes", "cgroup_memory_bytes"),
        Metric("cgroup_memory_limit_bytes", "cgroup_memory_limit_bytes"),
        Metric("cgroup_cpu_limit_cores", "cgroup_cpu_limit_cores"),
        Metric("cgroup_throttled_ratio", "cgroup_throttled_ratio"),
        Metric("cgroup_oom_kills", "cgroup_oom_kills", kind="counter"),
        Metric("host_cpu_energy_joules", "cpu_energy_uj", 1e-6, "sum"),
        Metric("host_dram_energy_joules", "dram_energy_uj", 1e-6, "sum"),
    )),
    Source("core_samples", "slow", ("core",), (Metric("core_busy_ratio", "busy_ratio"),)),
    Source("network_samples", "medium", ("interface",), (
        Metric("network_sent_bytes_per_second", "sent_bytes_per_s"),
        Metric("network_received_bytes_per_second", "received_bytes_per_s"),
        Metric("network_errors", "errors", kind="sum"),
    )),
    Source("process_samples", "medium", ("rank", "role"), (
        Metric("process_count", "processes"),
        Metric("process_cpu_cores", "cpu_cores"),
        Metric("process_cpu_wait_ratio", "cpu_wait_ratio"),
        Metric("process_resident_memory_bytes", "rss_bytes"),
        Metric("process_proportional_memory_bytes", "pss_bytes", sparse="slow"),
        Metric("process_threads", "threads"),
        Metric("process_read_bytes_per_second", "read_bytes_per_s"),
        Metric("process_write_bytes_per_second", "write_bytes_per_s"),
        Metric("process_loaders", "loaders"),
        Metric("process_loader_cpu_cores", "loader_cpu_cores"),
    )),
)  # fmt: skip


def help_text(table: str, metric: Metric) -> str:
    """The meaning of the column, and what it is counted from."""
    doc = metric.doc or next(column.doc for column in BY_NAME[table].columns if column.name == metric.column)
    return f"{doc}; counted since the sampler's start" if metric.kind == "sum" else doc
