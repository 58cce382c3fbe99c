"""Runs whose sampler's tables are known in closed form, of any length: built in whole columns, without a folder.

    system = SystemRun(seconds=60, gpus=2)                              steady figures, see the constants below
    system.where("gpu_samples", pl.col("gpu") == 1, power_mw=650_000)   change rows
    system.between("host_samples", 10, 20, cpu_ratio=1.0)               change rows of a stretch of seconds
    system.drop("host_samples", 30, 40)                                 nothing was sampled
    run = system.run()

Samples lie at 0, one period, two periods ... with nothing random. Rank r uses GPU r and steps once a second, the
first of its steps `warmup` ones. Every value of a GPU is the same at all times until a test changes it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from agprof.analysis.view import View, prepare
from agprof.model.tables import BY_NAME, TABLES
from agprof.store.reader import Run, Stream, schema

SECOND = 1_000_000_000
BOOT_NS = 5_000 * SECOND
EPOCH_NS = 1_790_000_000 * SECOND
GIB = 2**30

UTILIZATION, POWER_MW, LIMIT_MW, SM_CLOCK_MHZ, SM_CLOCK_MAX_MHZ = 0.9, 600_000, 700_000, 1_900, 1_980
MEMORY_USED, MEMORY_RESERVED, MEMORY_TOTAL = 60 * GIB, GIB // 2, 80 * GIB
TEMPERATURE_C = 60
HOST_CPU, HOST_MEMORY_USED, HOST_MEMORY_TOTAL = 0.5, 100 * GIB, 512 * GIB
CORES = 4

_GPU_SAMPLE = {
    "utilization_ratio": UTILIZATION, "memory_busy_ratio": 0.4, "power_mw": POWER_MW, "power_kind": "instant",
    "sm_clock_mhz": SM_CLOCK_MHZ, "memory_clock_mhz": 2_619, "clock_event_reasons": 0, "power_average_mw": POWER_MW,
    "pcie_sent_bytes_per_s": 1e9, "pcie_received_bytes_per_s": 2e9, "nvlink_sent_bytes_per_s": 1e11,
    "nvlink_received_bytes_per_s": 1.5e11, "throttled_power_ns": 0, "throttled_thermal_ns": 0, "throttled_other_ns": 0,
}  # fmt: skip
_GPU_STATE = {
    "memory_used_bytes": MEMORY_USED, "memory_reserved_bytes": MEMORY_RESERVED, "memory_total_bytes": MEMORY_TOTAL,
    "temperature_c": TEMPERATURE_C, "memory_temperature_c": 70, "power_limit_mw": LIMIT_MW,
}  # fmt: skip
_ACTIVITY = {"sm_ratio": 0.7, "occupancy_ratio": 0.3, "tensor_ratio": 0.4, "dram_ratio": 0.5}
_HEALTH = {"ecc_corrected": 3, "ecc_uncorrected": 0, "remap_pending": False, "remap_failed": False}
_HOST = {
    "cpu_ratio": HOST_CPU, "memory_used_bytes": HOST_MEMORY_USED, "memory_total_bytes": HOST_MEMORY_TOTAL,
    "swap_used_bytes": 0, "network_sent_bytes_per_s": 1e6, "network_received_bytes_per_s": 2e6,
    "loopback_bytes_per_s": 0.0, "disk_read_bytes_per_s": 1e7, "disk_write_bytes_per_s": 0.0, "load_1m": 2.0,
    "iowait_ratio": 0.0, "steal_ratio": 0.0, "cpu_pressure_ratio": 0.01, "memory_pressure_ratio": 0.0,
    "memory_stall_ratio": 0.0, "io_pressure_ratio": 0.0, "io_stall_ratio": 0.0, "swap_in_bytes_per_s": 0.0,
    "swap_out_bytes_per_s": 0.0, "cgroup_memory_bytes": 90 * GIB, "cgroup_throttled_ratio": 0.0, "cgroup_oom_kills": 0,
}  # fmt: skip
_INTERFACE = {"sent_bytes_per_s": 1e6, "received_bytes_per_s": 2e6, "errors": 0, "speed_bits_per_s": 25_000_000_000}
_PROCESS = {
    "processes": 1, "cpu_cores": 0.9, "rss_bytes": 10 * GIB, "threads": 20, "read_bytes_per_s": 0.0,
    "write_bytes_per_s": 0.0, "loaders": 0, "loader_cpu_cores": 0.0, "cpu_wait_ratio": 0.0,
}  # fmt: skip


@dataclass(kw_only=True)
class SystemRun:
    """See the module."""

    seconds: float = 60.0
    gpus: int = 2
    ranks: int | None = None
    """As many as GPUs, at least one."""
    step_s: float = 1.0
    data_s: float = 0.0
    """Of each step in phase `data`; the rest of it is in phase `forward`."""
    steps: bool = True
    fast_s: float = 0.2
    medium_s: float = 1.0
    slow_s: float = 5.0
    cores: int = CORES
    nodes: int = 1
    """Each with `gpus` GPUs and `ranks` ranks."""
    warmup: int = 2

    def __post_init__(self) -> None:
        self.per_node = max(1, self.gpus) if self.ranks is None else self.ranks
        self.attempts: dict[int, list[int]] = {node: [BOOT_NS] for node in range(self.nodes)}
        self.manifest: dict[str, Any] = {
            "ranks": self.per_node * self.nodes,
            "workload": {"profile": {"warmup_steps": self.warmup}},
        }
        self.outcome: dict[str, Any] | None = None
        self.frames: dict[str, pl.DataFrame] = {table.name: pl.DataFrame(schema=schema(table)) for table in TABLES}
        self._sampler()
        self._ranks()

    def where(self, table: str, condition: pl.Expr, **columns: Any) -> "SystemRun":
        """Set columns of the rows for which the condition holds. Values may be expressions."""
        frame = self.frames[table]
        values = {
            name: pl.when(condition)
            .then(value if isinstance(value, pl.Expr) else pl.lit(value, dtype=frame.schema[name]))
            .otherwise(pl.col(name))
            .cast(frame.schema[name])
            for name, value in columns.items()
        }
        self.frames[table] = frame.with_columns(**values)
        return self

    def between(self, table: str, begin_s: float, end_s: float, gpu: int | None = None, **columns: Any) -> "SystemRun":
        """Set columns of the rows in [begin, end)."""
        condition = in_seconds(begin_s, end_s)
        return self.where(table, condition if gpu is None else condition & (pl.col("gpu") == gpu), **columns)

    def drop(self, table: str, begin_s: float, end_s: float) -> "SystemRun":
        """Leave out the rows in [begin, end)."""
        self.frames[table] = self.frames[table].filter(~in_seconds(begin_s, end_s))
        return self

    def empty(self, *tables: str) -> "SystemRun":
        """Nothing was ever written to these tables."""
        for table in tables:
            self.frames[table] = self.frames[table].clear()
        return self

    def add(self, table: str, *, at_s: float = 0.0, **values: Any) -> "SystemRun":
        """Append a row; `at_s` is its time_ns where the table has one."""
        columns = schema(BY_NAME[table])
        if "time_ns" in columns:
            values = {"time_ns": BOOT_NS + int(at_s * SECOND), **values}
        values.setdefault(BY_NAME[table].scope, 0)
        self.frames[table] = pl.concat([self.frames[table], pl.DataFrame([values], schema=columns)])
        return self

    def restart(self, at_s: float, node: int = 0) -> "SystemRun":
        """A sampler was started again then."""
        self.attempts[node].append(BOOT_NS + int(at_s * SECOND))
        return self

    def run(self) -> Run:
        return Run(
            path=Path("run"),
            manifest=self.manifest,
            outcome=self.outcome,
            streams=tuple(self._streams()),
            tables=self.frames,
            problems=(),
        )

    def view(self) -> View:
        return prepare(self.run())

    def _times(self, period_s: float) -> pl.DataFrame:
        period = int(period_s * SECOND)
        count = int(self.seconds * SECOND) // period + 1
        times = pl.DataFrame({"time_ns": pl.int_range(BOOT_NS, BOOT_NS + count * period, period, eager=True)})
        return times.with_columns(period_ns=pl.lit(period)).join(_numbers("node", self.nodes), how="cross")

    def _fill(self, table: str, rows: pl.DataFrame, values: dict[str, Any]) -> None:
        columns = schema(BY_NAME[table])
        given = {name: pl.lit(value, dtype=columns[name]) for name, value in values.items()}
        absent = {name: pl.lit(None, dtype=kind) for name, kind in columns.items() if name not in rows.columns}
        filled = rows.with_columns(**{**absent, **given}).select(
            pl.col(name).cast(kind) for name, kind in columns.items()
        )
        keys = [name for name in ("node", "rank", "time_ns") if name in columns]
        self.frames[table] = filled.sort(*keys, maintain_order=True)

    def _sampler(self) -> None:
        gpus = _numbers("gpu", self.gpus)
        fast, medium, slow = (self._times(period) for period in (self.fast_s, self.medium_s, self.slow_s))
        self._fill("gpu_samples", fast.join(gpus, how="cross"), _GPU_SAMPLE)
        self._fill("gpu_states", medium.join(gpus, how="cross"), _GPU_STATE)
        self._fill("gpu_activity", medium.join(gpus, how="cross"), _ACTIVITY)
        self._fill("gpu_health", slow.join(gpus, how="cross"), _HEALTH)
        self._fill("host_samples", medium, _HOST)
        self._fill("core_samples", slow.join(_numbers("core", self.cores), how="cross"), {"busy_ratio": 0.5})
        self._fill(
            "network_samples", medium.with_columns(interface=pl.lit("eth0"), kind=pl.lit("ethernet")), _INTERFACE
        )
        roles = pl.DataFrame({"role": ["rank", "worker"]})
        ranks = _numbers("local", self.per_node)
        trees = medium.join(ranks, how="cross").join(roles, how="cross")
        trees = trees.with_columns(rank=pl.col("node") * self.per_node + pl.col("local")).drop("local")
        self._fill("process_samples", trees, _PROCESS)
        for node in range(self.nodes):
            for gpu in range(self.gpus):
                self.add(
                    "gpus", node=node, gpu=gpu, uuid=uuid_of(node, gpu), name="NVIDIA H100", power_limit_mw=LIMIT_MW,
                    memory_total_bytes=MEMORY_TOTAL, architecture="hopper", sm_clock_max_mhz=SM_CLOCK_MAX_MHZ,
                    power_limit_default_mw=LIMIT_MW, pci_bus_id=f"00000000:{gpu:02X}:00.0",
                )  # fmt: skip

    def _ranks(self) -> None:
        step = int(self.step_s * SECOND)
        count = int(self.seconds * SECOND) // step if self.steps else 0
        ranks = range(self.per_node * self.nodes)
        numbers = pl.DataFrame({"step": pl.int_range(count, eager=True)}).join(
            pl.DataFrame({"rank": list(ranks)}, schema={"rank": pl.Int64}), how="cross"
        )
        start = pl.col("step") * step + BOOT_NS
        rows = numbers.with_columns(
            start_ns=start, end_ns=start + step, micro_steps=pl.lit(1), profiled=pl.lit(value=False)
        )
        self._fill("steps", rows, {})
        self.frames["steps"] = self.frames["steps"].sort("rank", "step")
        data, end = int(self.data_s * SECOND), step
        for name, begin, until in (("data", 0, data), ("forward", data, end)):
            if until > begin:
                spans = numbers.with_columns(
                    span=2 * pl.col("step") + int(name == "forward"), micro_step=pl.lit(0), start_ns=start + begin,
                    end_ns=start + until, thread=pl.lit(1), depth=pl.lit(0),
                )  # fmt: skip
                filled = self.frames["spans"]
                self._fill("spans", spans, {"category": "phase", "name": name})
                self.frames["spans"] = pl.concat([filled, self.frames["spans"]]).sort("rank", "span")
        if self.gpus:
            for rank in ranks:
                node, local = divmod(rank, self.per_node)
                for key, value in (("device.type", '"cuda"'), ("device.uuid", f'"{uuid_of(node, local % self.gpus)}"')):
                    self.add("facts", rank=rank, key=key, value=value)

    def _streams(self) -> list[Stream]:
        clock = {"realtime_ns": EPOCH_NS, "monotonic_ns": BOOT_NS}
        some = Stream(
            path=Path("x"), scope="rank", number=0, attempt=0, header={}, ended="clean", damage=None, unread_bytes=0
        )
        world = self.per_node * self.nodes
        ranks = [
            replace(some, number=rank, header={
                "rank": rank, "world_size": world, "node": rank // self.per_node, "clock": clock, "host": "h",
            })
            for rank in range(world)
        ]  # fmt: skip
        nodes = [
            replace(some, scope="node", number=node, attempt=attempt, header={
                "node": node, "clock": {"realtime_ns": EPOCH_NS + began - BOOT_NS, "monotonic_ns": began},
            })
            for node, attempts in self.attempts.items()
            for attempt, began in enumerate(attempts)
        ]  # fmt: skip
        return [*(ranks if self.steps else []), *nodes]


def uuid_of(node: int, gpu: int) -> str:
    return f"GPU-{node:04x}{gpu:04x}-4a1c-9d2e-77aa-0123456789ab"


def in_seconds(begin_s: float, end_s: float) -> pl.Expr:
    """Rows whose time lies in [begin, end) since the run began."""
    at = pl.col("time_ns") - BOOT_NS
    return (at >= int(begin_s * SECOND)) & (at < int(end_s * SECOND))


def _numbers(name: str, count: int) -> pl.DataFrame:
    return pl.DataFrame({name: list(range(count))}, schema={name: pl.Int64})
