"""A node at a glance while it runs: the sampler's newest rows, folded into one small state for `agprof top`.

For the display only; the report's figures come from `analysis.system`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agprof.model.tables import BY_NAME

SPARK = 60
"""Newest values kept for a small curve."""
STALE_NS = 10_000_000_000
"""A value older than this, against the newest of the node, is no longer shown."""

_NAMES = {name: tuple(column.name for column in table.columns) for name, table in BY_NAME.items()}
_GPU_TABLES = frozenset({"gpus", "gpu_samples", "gpu_states", "gpu_activity", "gpu_health"})


@dataclass(slots=True)
class Latest:
    """The newest value of each column that had one, with its time."""

    time_ns: int = 0
    _values: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def take(self, row: Mapping[str, Any]) -> None:
        """Take in a row, by column; a column that was not measured loses its value."""
        time_ns = row.get("time_ns")
        time_ns = time_ns if isinstance(time_ns, int) else self.time_ns
        self.time_ns = max(self.time_ns, time_ns)
        for name, value in row.items():
            if value is None:
                self._values.pop(name, None)
            else:
                self._values[name] = (time_ns, value)

    def get(self, name: str) -> Any:
        """The value; None when it was not measured, or not for a while."""
        time_ns, value = self._values.get(name, (0, None))
        return None if time_ns and self.time_ns - time_ns > STALE_NS else value

    def number(self, name: str) -> float | None:
        """The same when it is a number."""
        value = self.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(slots=True)
class LiveGpu:
    """What the display shows of one GPU."""

    node: int
    gpu: int
    latest: Latest = field(default_factory=Latest)
    utilization: deque[float | None] = field(default_factory=lambda: deque(maxlen=SPARK))
    _throttled: deque[tuple[int, int, int]] = field(default_factory=lambda: deque(maxlen=SPARK))
    """(time, ns held down for power, for heat) of the newest samples."""

    def fold(self, table: str, row: Mapping[str, Any]) -> None:
        """Take in a row of one of the GPU's tables."""
        if table == "gpu_samples":
            # These two stand in gpu_states now, and are None here.
            row = {name: value for name, value in row.items() if name not in ("memory_used_bytes", "temperature_c")}
            self.utilization.append(row.get("utilization_ratio"))
            power, thermal = row.get("throttled_power_ns"), row.get("throttled_thermal_ns")
            if power is not None or thermal is not None:
                self._throttled.append((row["time_ns"], power or 0, thermal or 0))
        self.latest.take({name: value for name, value in row.items() if name != "gpu"})

    def throttled_shares(self) -> tuple[float, float] | None:
        """Share of the recent time with clocks held down for (power, heat); None before two samples tell."""
        if len(self._throttled) < 2 or (span := self._throttled[-1][0] - self._throttled[0][0]) <= 0:
            return None
        # The first sample's time lies before the span.
        later = list(self._throttled)[1:]
        return sum(power for _, power, _ in later) / span, sum(thermal for _, _, thermal in later) / span


@dataclass(slots=True)
class LiveTree:
    """CPU and memory of a rank's processes, or of the monitored command (rank None)."""

    rank: int | None
    own: Latest = field(default_factory=Latest)
    workers: Latest = field(default_factory=Latest)


@dataclass(slots=True)
class LiveNode:
    """What the display shows of one node. Feed it with `fold`."""

    node: int
    host_name: str = ""
    host: Latest = field(default_factory=Latest)
    cpu: deque[float | None] = field(default_factory=lambda: deque(maxlen=SPARK))
    gpus: dict[int, LiveGpu] = field(default_factory=dict)
    trees: dict[int | None, LiveTree] = field(default_factory=dict)
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Field -> (state, reason) where it is not ok."""
    tenants: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    """(GPU, pid) -> (when seen, name) of processes that are not the run's."""
    events: deque[tuple[int, int | None, str, int | None]] = field(default_factory=lambda: deque(maxlen=8))
    """(time, GPU, kind, code), newest last."""
    newest_ns: int = 0

    def fold(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Take in rows of one table; those that the display does not show are ignored."""
        names = _NAMES.get(table)
        if names is None:
            return
        for values in rows:
            row = dict(zip(names, values, strict=False))
            if isinstance(time_ns := row.get("time_ns"), int):
                self.newest_ns = max(self.newest_ns, time_ns)
            if table in _GPU_TABLES and isinstance(number := row.get("gpu"), int):
                self.gpus.setdefault(number, LiveGpu(self.node, number)).fold(table, row)
            elif table == "host_samples":
                self.host.take(row)
                self.cpu.append(row.get("cpu_ratio"))
            elif table == "process_samples":
                tree = self.trees.setdefault(row["rank"], LiveTree(row["rank"]))
                (tree.own if row["role"] == "rank" else tree.workers).take(row)
            elif table == "sampler_state":
                self._fold_state(row)
            elif table == "gpu_processes":
                if row["owner"] == "other":
                    self.tenants[row["gpu"], row["pid"]] = (row["time_ns"], str(row["name"] or f"process {row['pid']}"))
            elif table == "gpu_events":
                self.events.append((row["time_ns"], row["gpu"], str(row["kind"]), row["code"]))

    def _fold_state(self, row: Mapping[str, Any]) -> None:
        if row["state"] == "ok":
            self.states.pop(str(row["field"]), None)
        else:
            self.states[str(row["field"])] = (str(row["state"]), str(row["reason"]))
