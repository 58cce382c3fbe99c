"""What the sampler saw of each rank's CPU, GPU and node during the steady steps, one figure per rank or node."""

from collections.abc import Mapping, Sequence
from statistics import median

import polars as pl

from agprof.analysis.system_samples import inside, steady_window, timed
from agprof.analysis.view import View
from agprof.model.system_answers import GpuMapping

Values = Mapping[int, float]

_WORDS = {
    "cpu_wait": "CPU",
    "sm_clock_mhz": "GPU clock",
    "heat": "heat",
    "memory_pressure": "memory",
    "network_errors": "network",
}


class Resources:
    """Figures by name: of ranks cpu_wait, cpu_cores, switches (per second), sm_clock_mhz, heat (share of the time); of
    nodes memory_pressure and network_errors."""

    def __init__(self, view: View, mapping: Sequence[GpuMapping]) -> None:
        self._node_of = view.node_of
        self._window = steady_window(view)
        self._of_ranks = {**_of_processes(self._steady(view, "process_samples")), **self._of_gpus(view, mapping)}
        self._of_nodes = self._of_hosts(view)

    def _steady(self, view: View, table: str) -> pl.DataFrame:
        return inside(timed(view, table), self._window)

    def against_others(self, name: str, rank: int) -> tuple[float | None, float | None]:
        """The rank's figure, and the median of the other ranks'; None where it is not known."""
        values = self._of_ranks.get(name, {})
        others = [value for other, value in values.items() if other != rank]
        return values.get(rank), median(others) if others else None

    def against_other_nodes(self, name: str, rank: int) -> tuple[float | None, float | None]:
        """The figure of the rank's node, and the median of the other nodes'."""
        values, node = self._of_nodes.get(name, {}), self._node_of.get(rank, 0)
        others = [value for other, value in values.items() if other != node]
        return values.get(node), median(others) if others else None

    def known(self, rank: int) -> list[str]:
        """What of the rank could be compared with others."""
        pairs = {name: self.against_others(name, rank) for name in self._of_ranks}
        pairs |= {name: self.against_other_nodes(name, rank) for name in self._of_nodes}
        return [word for name, word in _WORDS.items() if name in pairs and None not in pairs[name]]

    def _of_gpus(self, view: View, mapping: Sequence[GpuMapping]) -> dict[str, Values]:
        rank_of = {(row.node, row.gpu): row.rank for row in mapping if row.gpu is not None}
        samples = self._steady(view, "gpu_samples")
        if not rank_of or not samples.height:
            return {}
        seen = samples.group_by("node", "gpu").agg(
            pl.col("sm_clock_mhz").median(),
            thermal=pl.col("throttled_thermal_ns").sum(),
            counted=pl.col("throttled_thermal_ns").count(),
            span=pl.col("at_ns").max() - pl.col("at_ns").min(),
        )
        clocks, heat = {}, {}
        for row in seen.iter_rows(named=True):
            rank = rank_of.get((row["node"], row["gpu"]))
            if rank is None:
                continue
            if row["sm_clock_mhz"] is not None:
                clocks[rank] = float(row["sm_clock_mhz"])
            if row["counted"] and row["span"]:
                heat[rank] = row["thermal"] / row["span"]
        return {"sm_clock_mhz": clocks, "heat": heat}

    def _of_hosts(self, view: View) -> dict[str, Values]:
        pressure = self._steady(view, "host_samples").group_by("node").agg(pl.col("memory_pressure_ratio").mean())
        network = self._steady(view, "network_samples").filter(pl.col("kind").is_in(["ethernet", "infiniband"]))
        errors = network.drop_nulls("errors").group_by("node").agg(pl.col("errors").sum())
        return {
            "memory_pressure": {node: value for node, value in pressure.iter_rows() if value is not None},
            "network_errors": {node: float(value) for node, value in errors.iter_rows()},
        }


def _of_processes(samples: pl.DataFrame) -> dict[str, Values]:
    """Means of the ranks' own processes."""
    columns = {
        "cpu_wait": "cpu_wait_ratio",
        "cpu_cores": "cpu_cores",
        "switches": "involuntary_switches_per_s",
    }
    rows = samples.filter(pl.col("role") == "rank").drop_nulls("rank")
    means = rows.group_by("rank").agg(pl.col(column).mean().alias(name) for name, column in columns.items())
    return {
        name: {rank: value for rank, value in means.select("rank", name).iter_rows() if value is not None}
        for name in columns
    }
