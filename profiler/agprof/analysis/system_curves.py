"""The curves of GPUs, host and processes. Their labels are those that `SystemAnswer.curves` lists."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from agprof.analysis.curves import Points
from agprof.analysis.decimation import Grid, averaged, decimated, was_decimated
from agprof.analysis.system_samples import Samples, many_nodes, prefix, with_gaps_marked
from agprof.model.figure import Curve

MOST_POINTS = 2000
"""Of one curve."""
LEAST_POINTS = 32
POINTS_IN_ALL = 90_000
"""Of all curves together; shared equally."""
CORE_POINTS_IN_ALL, CORE_POINTS, MOST_CORES = 40_000, 240, 2048


@dataclass(frozen=True, slots=True)
class Source:
    """A column of a sampler's table as a curve; values are multiplied by `factor` to come into the base unit."""

    column: str
    label: str
    unit: str
    factor: float = 1.0
    sparse: bool = False
    """Read less often than its row is written: a missing value is no gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Curves from one table: which columns, of which owner."""

    rows: pl.DataFrame
    """With `node`, `at_ns` and the keys, sorted by them."""
    keys: tuple[str, ...]
    sources: tuple[Source, ...]


PROCESS = (
    Source("cpu_cores", "CPU", "cores"),
    Source("rss_bytes", "RSS", "bytes"),
    Source("pss_bytes", "PSS", "bytes", sparse=True),
    Source("cpu_wait_ratio", "CPU wait", "ratio"),
)
LOADERS = (
    Source("loader_cpu_cores", "loaders CPU", "cores"),
    Source("loaders", "loaders", "1"),
)
"""Of the rows of a rank's children only."""
HOST = (
    Source("cpu_ratio", "host CPU", "ratio"),
    Source("iowait_ratio", "iowait", "ratio"),
    Source("steal_ratio", "steal", "ratio"),
    Source("cpu_pressure_ratio", "CPU pressure", "ratio"),
    Source("memory_pressure_ratio", "memory pressure", "ratio"),
    Source("io_pressure_ratio", "IO pressure", "ratio"),
    Source("memory_used_bytes", "host memory", "bytes"),
    Source("swap_used_bytes", "host swap", "bytes"),
    Source("swap_in_bytes_per_s", "swap in", "bytes/s"),
    Source("swap_out_bytes_per_s", "swap out", "bytes/s"),
    Source("network_sent_bytes_per_s", "network sent", "bytes/s"),
    Source("network_received_bytes_per_s", "network received", "bytes/s"),
    Source("loopback_bytes_per_s", "loopback", "bytes/s"),
    Source("disk_read_bytes_per_s", "disk read", "bytes/s"),
    Source("disk_write_bytes_per_s", "disk write", "bytes/s"),
    Source("cgroup_memory_bytes", "cgroup memory", "bytes"),
    Source("cgroup_memory_limit_bytes", "cgroup memory limit", "bytes"),
    Source("cgroup_throttled_ratio", "CPU quota used up", "ratio"),
)
GPU = (
    Source("utilization_ratio", "utilization", "ratio"),
    Source("memory_busy_ratio", "memory busy", "ratio"),
    Source("power_mw", "power", "W", 1e-3),
    Source("sm_clock_mhz", "SM clock", "Hz", 1e6),
    Source("memory_clock_mhz", "memory clock", "Hz", 1e6),
    Source("nvlink_sent_bytes_per_s", "NVLink sent", "bytes/s"),
    Source("nvlink_received_bytes_per_s", "NVLink received", "bytes/s"),
)
GPU_OLD = (
    Source("memory_used_bytes", "memory", "bytes"),
    Source("temperature_c", "temperature", "°C"),
)
"""Columns of gpu_samples in earlier recordings, which had no gpu_states."""
GPU_ACTIVITY = (
    Source("sm_ratio", "SM activity", "ratio"),
    Source("tensor_ratio", "tensor activity", "ratio"),
    Source("dram_ratio", "DRAM activity", "ratio"),
)
GPU_PCIE = (
    Source("pcie_sent_bytes_per_s", "PCIe sent", "bytes/s"),
    Source("pcie_received_bytes_per_s", "PCIe received", "bytes/s"),
)
"""Counters of gpu_samples where the driver has them, else GPM's rates in gpu_activity."""
GPU_STATES = (
    *GPU_OLD,
    Source("memory_total_bytes", "memory total", "bytes"),
    Source("power_limit_mw", "power limit", "W", 1e-3),
    Source("memory_temperature_c", "memory temperature", "°C"),
)
INTERFACE = (
    Source("sent_bytes_per_s", "sent", "bytes/s"),
    Source("received_bytes_per_s", "received", "bytes/s"),
)


def system_curves(tables: Samples) -> tuple[tuple[Curve, ...], tuple[Curve, ...], str | None]:
    """All curves, those of the cores, and what was left out of them (None: nothing)."""
    view = tables.view
    series = [found for found in _all_series(tables) if found.rows.height]
    grid = _grid(series)
    several = many_nodes(view)
    curves = [*(curve for found in series for curve in _curves(found, grid, several)), *_constants(tables, several)]
    cores, cores_cut = _cores(tables, several)
    cut = [grid.sentence] if any(_is_cut(found, grid) for found in series) else []
    return _in_order(curves), cores, " ".join([*cut, *cores_cut]) or None


def _all_series(tables: Samples) -> Iterator[Series]:
    states = tables.of("gpu_states", "gpu")
    samples, activity = tables.of("gpu_samples", "gpu"), tables.of("gpu_activity", "gpu")
    counted = samples[GPU_PCIE[0].column].null_count() < samples.height
    gpu = (*GPU, *(GPU_PCIE if counted else ()), *(() if states.height else GPU_OLD))
    yield Series(rows=samples, keys=("gpu",), sources=gpu)
    yield Series(rows=activity, keys=("gpu",), sources=(*GPU_ACTIVITY, *(() if counted else GPU_PCIE)))
    yield Series(rows=states, keys=("gpu",), sources=GPU_STATES)
    processes = tables.of("process_samples", "rank", "role")
    yield Series(rows=processes, keys=("rank", "role"), sources=PROCESS)
    loaders = processes.filter((pl.col("role") == "worker") & (pl.col("loaders").max().over("node", "rank") > 0))
    yield Series(rows=loaders, keys=("rank", "role"), sources=LOADERS)
    yield Series(rows=tables.of("host_samples"), keys=(), sources=HOST)
    yield Series(rows=_busy_interfaces(tables), keys=("interface",), sources=INTERFACE)


def _busy_interfaces(tables: Samples) -> pl.DataFrame:
    """Samples of a node's interfaces where more than one carries traffic: the node's sum says the rest."""
    rows = tables.of("network_samples", "interface").filter(pl.col("kind") != "loopback")
    traffic = pl.sum_horizontal("sent_bytes_per_s", "received_bytes_per_s").max()
    busy = rows.group_by("node", "interface").agg(most=traffic).filter(pl.col("most") > 0)
    several = busy.filter(pl.len().over("node") > 1)
    return rows.join(several, on=["node", "interface"], how="semi", maintain_order="left")


def _known(series: Series) -> list[Source]:
    """Columns that hold anything."""
    return [source for source in series.sources if series.rows[source.column].null_count() < series.rows.height]


def _grid(series: Sequence[Series]) -> Grid:
    curves = sum(len(_known(found)) * found.rows.select("node", *found.keys).n_unique() for found in series)
    most = max(LEAST_POINTS, min(MOST_POINTS, POINTS_IN_ALL // max(1, curves)))
    times = [found.rows.select(low=pl.col("at_ns").min(), high=pl.col("at_ns").max()).row(0) for found in series]
    return Grid.over(min((low for low, _ in times), default=0), max((high for _, high in times), default=0), most)


def _is_cut(series: Series, grid: Grid) -> bool:
    longest = series.rows.group_by("node", *series.keys).len()["len"].max()
    return isinstance(longest, int) and was_decimated(longest, grid)


def _curves(series: Series, grid: Grid, several: bool) -> Iterator[Curve]:
    sources = _known(series)
    marked = with_gaps_marked(series.rows, *series.keys)
    for key, rows in marked.group_by("node", *series.keys, maintain_order=True):
        owner = dict(zip(("node", *series.keys), key, strict=True))
        for source in sources:
            points = _points(rows, source, grid)
            if any(value is not None for _, value in points):
                yield _curve(owner, source, points, several)


def _points(rows: pl.DataFrame, source: Source, grid: Grid) -> Points:
    values = rows.select("node", "at_ns", "gap_before", "step_ns", value=pl.col(source.column).cast(pl.Float64))
    if source.sparse:
        values = with_gaps_marked(values.drop_nulls("value").select("node", "at_ns", "value"))
    holes = values.filter("gap_before").select(
        at_ns=pl.col("at_ns") - pl.col("step_ns") // 2, value=pl.lit(None, dtype=pl.Float64)
    )
    values = values.select("at_ns", pl.col("value") * source.factor)
    if holes.height:
        values = pl.concat([values, holes]).sort("at_ns", maintain_order=True)
    return decimated(values, ["value"], grid)["value"]


def _curve(owner: dict[str, object], source: Source, points: Points, several: bool) -> Curve:
    node = int(str(owner["node"]))
    rank, gpu = owner.get("rank"), owner.get("gpu")
    if "role" in owner:
        who = "command" if rank is None else f"rank {rank}"
        middle = "" if owner["role"] == "rank" or source in LOADERS else "workers "
        label = f"{who} {middle}{source.label}"
    elif "gpu" in owner:
        label = f"{prefix(several, node)}GPU {gpu} {source.label}"
    elif "interface" in owner:
        label = f"{prefix(several, node)}interface {str(owner['interface'])[:40]} {source.label}"
    else:
        label = f"{prefix(several, node)}{source.label}"
    return Curve(
        label=label,
        unit=source.unit,
        x_ns=tuple(at_ns for at_ns, _ in points),
        y=tuple(value for _, value in points),
        rank=None if rank is None else int(str(rank)),
        node=node,
        gpu=None if gpu is None else int(str(gpu)),
    )


def _constants(tables: Samples, several: bool) -> Iterator[Curve]:
    """Memory and power limit of each GPU as `gpus` has them, where nothing newer was sampled."""
    view = tables.view
    if view.tables["gpu_states"].height:
        return
    limits = view.tables["gpus"].unique(["node", "gpu"], keep="last", maintain_order=True)
    ends = tables.of("gpu_samples", "gpu").group_by("node", "gpu", maintain_order=True).agg(
        begin=pl.col("at_ns").first(), end=pl.col("at_ns").last()
    )  # fmt: skip
    for row in ends.join(limits, on=["node", "gpu"], maintain_order="left").iter_rows(named=True):
        for source in (s for s in GPU_STATES if s.column in ("memory_total_bytes", "power_limit_mw")):
            if row[source.column] is not None and row["end"] > row["begin"]:
                value = row[source.column] * source.factor
                points = [(row["begin"], value), (row["end"], value)]
                yield _curve({"node": row["node"], "gpu": row["gpu"]}, source, points, several)


_SPREAD = ("power limit", "memory total", "memory temperature", "cgroup memory limit")
"""Quantities that say something only beside another."""


def _in_order(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """GPUs first, then ranks, then hosts; a limit behind all measured ones of its owner."""

    def order(item: tuple[int, Curve]) -> tuple[object, ...]:
        at, curve = item
        family = 0 if curve.gpu is not None else 1 if _is_of_processes(curve) else 2
        owner = (curve.node or 0, curve.gpu or 0) if family == 0 else (curve.rank if curve.rank is not None else -1, 0)
        return family, owner, curve.label.endswith(_SPREAD), at

    return tuple(curve for _, curve in sorted(enumerate(curves), key=order))


def _is_of_processes(curve: Curve) -> bool:
    return curve.rank is not None or curve.label.startswith("command ")


def _cores(tables: Samples, several: bool) -> tuple[tuple[Curve, ...], list[str]]:
    rows = tables.of("core_samples", "core").drop_nulls("busy_ratio")
    known = rows.select("node", "core").unique().sort("node", "core")
    if not known.height:
        return (), []
    kept = rows.join(known.head(MOST_CORES), on=["node", "core"], how="semi", maintain_order="left")
    stretches = max(20, min(CORE_POINTS, CORE_POINTS_IN_ALL // min(known.height, MOST_CORES)))
    curves = []
    cut = False
    for (node, core), samples in kept.group_by("node", "core", maintain_order=True):
        points = averaged(samples, "busy_ratio", stretches)
        cut = cut or samples.height > stretches
        source = Source("busy_ratio", f"core {core}", "ratio")
        curves.append(_curve({"node": node}, source, points, several))
    said = [f"Those of cores show means of {stretches} stretches."] if cut else []
    if known.height > MOST_CORES:
        said.append(f"Of {known.height:,} cores the first {MOST_CORES:,} are shown.")
    return tuple(curves), said
