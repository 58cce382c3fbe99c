"""GPU and host: the sampler's curves, and what they mean in the steady part of the run."""

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import polars as pl

from agprof.analysis.curves import Points, curve, with_gaps
from agprof.analysis.statistics import median_figure
from agprof.analysis.view import View
from agprof.model.figure import Curve, Kpi
from agprof.model.format import format_value, percent
from agprof.model.system_answers import SystemAnswer

MAX_POINTS = 2000
MAX_POINTS_IN_ALL = 60_000


@dataclass(frozen=True, slots=True)
class _Source:
    """A column of a sampler's table as a curve; values are multiplied by `factor` to come into the base unit."""

    column: str
    label: str
    unit: str
    factor: float = 1.0


_PROCESS = (_Source("cpu_cores", "CPU", "cores"), _Source("rss_bytes", "RSS", "bytes"))
_HOST = (
    _Source("cpu_ratio", "CPU", "ratio"),
    _Source("memory_used_bytes", "memory", "bytes"),
    _Source("swap_used_bytes", "swap", "bytes"),
    _Source("network_sent_bytes_per_s", "network sent", "bytes/s"),
    _Source("network_received_bytes_per_s", "network received", "bytes/s"),
    _Source("loopback_bytes_per_s", "loopback", "bytes/s"),
    _Source("disk_read_bytes_per_s", "disk read", "bytes/s"),
    _Source("disk_write_bytes_per_s", "disk write", "bytes/s"),
)
_GPU = (
    _Source("utilization_ratio", "utilization", "ratio"),
    _Source("memory_busy_ratio", "memory busy", "ratio"),
    _Source("memory_used_bytes", "memory", "bytes"),
    _Source("power_mw", "power", "W", 1e-3),
    _Source("sm_clock_mhz", "SM clock", "Hz", 1e6),
    _Source("temperature_c", "temperature", "°C"),
)


def analyse_system(view: View) -> SystemAnswer:
    """The system section."""
    figures = _figures(view)
    return SystemAnswer(sentence=_sentence(view, figures), curves=_curves(view), figures=figures)


def _curves(view: View) -> tuple[Curve, ...]:
    process, host, gpu = (view.tables[name] for name in ("process_samples", "host_samples", "gpu_samples"))
    series = process.select("rank", "role").n_unique() * 2 + host["node"].n_unique() * 8
    most = max(50, min(MAX_POINTS, MAX_POINTS_IN_ALL // max(1, series + gpu.select("node", "gpu").n_unique() * 6)))
    curves: list[Curve | None] = []
    for (rank, role, node), rows in process.sort("rank", "role", "node", "time_ns").group_by(
        ["rank", "role", "node"], maintain_order=True
    ):
        middle = "" if role == "rank" else "workers "
        for source in _PROCESS:
            points = _points(view, rows, int(str(node)), source)
            label = f"rank {rank} {middle}{source.label}"
            curves.append(curve(label, source.unit, points, most, rank=int(str(rank)), node=int(str(node))))
    many = host["node"].n_unique() > 1 or gpu["node"].n_unique() > 1
    for (node,), rows in host.sort("node", "time_ns").group_by(["node"], maintain_order=True):
        prefix = f"node {node} " if many else ""
        for source in _HOST:
            name = source.label if source.column.startswith(("network", "loopback", "disk")) else f"host {source.label}"
            points = _points(view, rows, int(str(node)), source)
            curves.append(curve(prefix + name, source.unit, points, most, node=int(str(node))))
    for (node, number), rows in gpu.sort("node", "gpu", "time_ns").group_by(["node", "gpu"], maintain_order=True):
        prefix = f"node {node} " if many else ""
        for source in _GPU:
            points = _points(view, rows, int(str(node)), source)
            curves.append(curve(f"{prefix}GPU {number} {source.label}", source.unit, points, most, node=int(str(node))))
    return tuple(found for found in curves if found is not None)


def _points(view: View, rows: pl.DataFrame, node: int, source: _Source) -> Points:
    times = [view.since_origin(time_ns, node=node) for time_ns in rows["time_ns"].to_list()]
    values = [None if v is None else v * source.factor for v in rows[source.column].to_list()]
    return with_gaps(list(zip(times, values, strict=True)), longest_gap(times))


def longest_gap(times: list[int]) -> int:
    """A stretch between samples longer than this is a gap: three median periods; 0 when there are too few."""
    if len(times) < 3:
        return 0
    return int(3 * median(b - a for a, b in pairwise(times)))


def steady_samples(view: View, table: str) -> pl.DataFrame:
    """Samples that were taken between the begin of the first and the end of the last steady step (per node)."""
    steady = view.steady
    samples = view.tables[table]
    if not steady.height:
        return samples.clear()
    windows: dict[int, tuple[int, int]] = {}
    rows = steady.group_by("rank").agg(pl.col("start_ns").min(), pl.col("end_ns").max()).iter_rows()
    for rank, start, end in rows:
        begin, until = view.since_origin(start, rank=rank), view.since_origin(end, rank=rank)
        low, high = windows.get(0, (begin, until))
        windows[0] = (min(low, begin), max(high, until))
    low, high = windows[0]
    shift = pl.col("node").replace_strict(dict(view.shifts), default=0, return_dtype=pl.Int64)
    return samples.filter((pl.col("time_ns") + shift - view.origin_ns).is_between(low, high))


def _figures(view: View) -> tuple[Kpi, ...]:
    host, gpu = steady_samples(view, "host_samples"), steady_samples(view, "gpu_samples")
    process = steady_samples(view, "process_samples")
    own, workers = (process.filter(pl.col("role") == role) for role in ("rank", "worker"))
    kpis = [
        _kpi("host_cpu", "Host CPU busy", host, "cpu_ratio", "ratio"),
        _kpi("rank_cpu", "CPU per rank", own, "cpu_cores", "cores"),
        _kpi("worker_cpu", "CPU of a rank's workers", workers, "cpu_cores", "cores"),
        _kpi("host_memory", "Host memory in use", host, "memory_used_bytes", "bytes"),
        _kpi("network_sent", "Network sent", host, "network_sent_bytes_per_s", "bytes/s"),
        _kpi("loopback", "Loopback", host, "loopback_bytes_per_s", "bytes/s"),
        _kpi("disk_read", "Disk read", host, "disk_read_bytes_per_s", "bytes/s"),
    ]
    if gpu.height:
        kpis += [
            _kpi("gpu_utilization", "GPU utilization", gpu, "utilization_ratio", "ratio"),
            _kpi("gpu_power", "GPU power", gpu.with_columns(pl.col("power_mw") / 1000), "power_mw", "W"),
            _kpi("gpu_memory", "GPU memory in use", gpu, "memory_used_bytes", "bytes"),
        ]
    return tuple(kpis)


def _kpi(key: str, label: str, samples: pl.DataFrame, column: str, unit: str) -> Kpi:
    values = [float(value) for value in samples[column].drop_nulls().to_list()]
    reason = "no sample fell into the steady steps" if not samples.height else "not measured on this machine"
    figure = median_figure(values, unit, method=f"sampler, column {column}, samples in the steady steps", reason=reason)
    return Kpi(key=key, label=label, figure=figure)


def _sentence(view: View, figures: tuple[Kpi, ...]) -> str:
    if not any(view.tables[name].height for name in ("host_samples", "process_samples", "gpu_samples")):
        return "No sampler ran: nothing is known of GPU and host over time."
    values = {kpi.key: kpi.figure.value for kpi in figures}
    words = []
    if (busy := values.get("host_cpu")) is not None:
        words.append(f"the host's CPU is {percent(busy)} busy")
    if (cores := values.get("rank_cpu")) is not None:
        words.append(f"a rank uses {format_value(cores, 'cores')}")
    if (gpu := values.get("gpu_utilization")) is not None:
        words.append(f"the GPUs run a kernel {percent(gpu)} of the time")
    if not words:
        return "The sampler ran, but no sample fell into the steady steps."
    text = ", ".join(words)
    return f"In the steady steps {text}."
