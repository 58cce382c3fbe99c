"""Whose energy is known: the curve of each GPU and of each host, and which of them the run uses."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from agprof.analysis.energy_curve import EnergyCurve, gpu_curve, host_curve
from agprof.analysis.gpu_mapping import node_gpus, physical
from agprof.analysis.view import View
from agprof.model.system_answers import GpuMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSource:
    """A whole GPU and what is known of its energy."""

    node: int
    gpu: int
    name: str | None
    curve: EnergyCurve | None
    """None: it was sampled less than twice."""
    in_run: bool


def gpu_sources(view: View, mapping: Sequence[GpuMapping]) -> tuple[list[GpuSource], list[str]]:
    """All GPUs in order, and notes on how those of the run were told. MIG instances have no power of their own."""
    used, notes = _used(view, mapping)
    listed = node_gpus(view)
    instances = {(node, row.gpu) for node, rows in listed.items() for row in rows if row.mig_parent is not None}
    names = {(node, row.gpu): row.name for node, rows in listed.items() for row in rows}
    curves = _gpu_curves(view)
    found = sorted({*names, *curves} - instances)
    sources = [
        GpuSource(
            node=node, gpu=gpu, name=names.get((node, gpu)), curve=curves.get((node, gpu)),
            in_run=node in used.whole_nodes or (node, gpu) in used.gpus,
        )
        for node, gpu in found
    ]  # fmt: skip
    return sources, notes


@dataclass(frozen=True, slots=True)
class _Used:
    gpus: set[tuple[int, int]]
    whole_nodes: set[int]
    """Nodes of which all GPUs count, since it is not known which of them the run uses."""


def _used(view: View, mapping: Sequence[GpuMapping]) -> tuple[_Used, list[str]]:
    listed = node_gpus(view)
    used = _Used(set(), set(view.tables["gpu_samples"]["node"].unique()) - {row.node for row in mapping})
    notes: list[str] = []
    for row in mapping:
        if row.gpu is not None:
            whole = physical(listed.get(row.node, []), row.gpu)
            used.gpus.add((row.node, whole))
            if whole != row.gpu:
                note = f"GPU {whole} of node {row.node} whole, although the run uses MIG instances of it"
                notes.extend([note] if note not in notes else [])
        elif view.facts.get(row.rank, {}).get("device.type") != "cpu" and row.node not in used.whole_nodes:
            used.whole_nodes.add(row.node)
            notes.append(f"all of node {row.node}, since which of them rank {row.rank} uses is not known")
    return used, notes


def _gpu_curves(view: View) -> dict[tuple[int, int], EnergyCurve]:
    curves = {}
    is_instant = pl.col("power_kind") == "instant"
    samples = view.tables["gpu_samples"].select(
        "node",
        "gpu",
        "time_ns",
        "energy_mj",
        instant=pl.when(is_instant).then("power_mw"),
        average=pl.coalesce("power_average_mw", pl.when(is_instant.not_().fill_null(True)).then("power_mw")),
    )
    for (node, gpu), unordered in samples.group_by(["node", "gpu"], maintain_order=True):
        rows = unordered if unordered["time_ns"].is_sorted() else unordered.sort("time_ns", maintain_order=True)
        rows = rows.filter((pl.col("time_ns") != pl.col("time_ns").shift(-1)).fill_null(True))
        readings = (rows[name].cast(pl.Float64).to_numpy() for name in ("energy_mj", "instant", "average"))
        curve = gpu_curve(rows["time_ns"].to_numpy(), *readings)
        if curve is not None:
            curves[int(str(node)), int(str(gpu))] = curve
    return curves


def host_sources(view: View) -> dict[int, EnergyCurve]:
    """Node -> energy of its CPU packages, and of their memory where it is told apart."""
    rows = (
        view.tables["host_samples"]
        .filter((pl.col("cpu_energy_uj") >= 0) & (pl.col("dram_energy_uj").fill_null(0) >= 0))
        .select("node", "time_ns", "period_ns", uj=pl.col("cpu_energy_uj") + pl.col("dram_energy_uj").fill_null(0))
        .unique(["node", "time_ns"], keep="last")
        .sort("node", "time_ns")
    )
    curves = {}
    for (node,), own in rows.group_by(["node"], maintain_order=True):
        joules = [value / 1e6 for value in own["uj"].to_list()]
        curve = host_curve(own["time_ns"].to_list(), own["period_ns"].to_list(), joules)
        if curve is not None:
            curves[int(str(node))] = curve
    return curves
