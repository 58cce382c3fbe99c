"""The process groups: which ranks, how much they move, and what they are for, where something tells it."""

import re
from dataclasses import dataclass
from typing import Any

import polars as pl

from agprof.analysis.comm_calls import group_ranks
from agprof.analysis.comm_matrix import batch
from agprof.analysis.view import View
from agprof.model.comm_answers import GroupRow, Parallelism
from agprof.model.format import format_value, percent

NEAR = 0.05
"""A sum of elements within this of a multiple of the trained parameters is one of gradients."""
PER_LAYER = 2
"""All-reduces in the forward of a micro-step from which they are taken for those of layers."""
LEAST_BYTES = 1024
"""Smaller ones are losses and counts."""
_NAMED: tuple[tuple[Parallelism, str], ...] = (
    ("data", r"(?:^|[^a-z])(?:dp|ddp|fsdp|data|replicate|shard|dp_shard|dp_replicate)(?:[^a-z]|_parallel|$)"),
    ("tensor", r"(?:^|[^a-z])(?:tp|tensor|tensor_model)(?:[^a-z]|_parallel|$)"),
    ("pipeline", r"(?:^|[^a-z])(?:pp|pipeline|pipeline_model|pipe)(?:[^a-z]|_parallel|$)"),
)
"""How jobs name groups: a device mesh's dimension (`mesh_dp 3`), Megatron's descriptions."""
_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """What one group does in a steady step of one of its ranks."""

    name: str
    ranks: tuple[int, ...]
    calls: pl.DataFrame
    rank_steps: int
    micro_steps: float
    """Of one step."""
    trained: int | None
    """Parameters that a rank trains."""

    def of(self, *ops: str, caller: str | None = None) -> pl.DataFrame:
        rows = self.calls.filter(pl.any_horizontal(pl.col("op").str.starts_with(op) for op in ops))
        return rows if caller is None else rows.filter(pl.col("caller") == caller)


def group_rows(view: View, calls: pl.DataFrame) -> tuple[GroupRow, ...]:
    """One row per group whose ranks are known and that was used in a steady step, by bytes, largest first."""
    lines = group_ranks(view)
    steps = dict(view.steady.group_by("rank").len().iter_rows())
    micro = view.steady["micro_steps"].mean()
    rows = []
    for (line, name), own in calls.drop_nulls("line").group_by("line", "group", maintain_order=True):
        ranks = lines[int(str(line))]
        use = _Use(
            name=str(name),
            ranks=ranks,
            calls=own,
            rank_steps=sum(steps.get(rank, 0) for rank in ranks),
            micro_steps=max(1.0, micro if isinstance(micro, float) else 1.0),
            trained=_count(view.facts.get(ranks[0], {}).get("model.trainable_params")),
        )
        kind, evidence = _kind(use, view.fact("dist.world_size"))
        rows.append(
            GroupRow(
                group=use.name,
                ranks=ranks,
                nodes=len({view.node_of.get(rank, 0) for rank in ranks}),
                kind=kind,
                evidence=evidence,
                bytes_per_step=float(own["bytes"].sum()) / max(1, use.rank_steps),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.bytes_per_step, row.ranks, row.group)))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _kind(use: _Use, world: Any) -> tuple[Parallelism, str]:
    """The first that is told; never guessed from the ranks' numbers alone."""
    for judge in (_named, _pipeline, _gradients, _layers):
        found = judge(use)
        if found is not None:
            return found
    if len(use.ranks) == world:
        return "all", "it holds all ranks, and nothing that it moves tells what for"
    return "other", "nothing that it moves tells what it is for"


def _named(use: _Use) -> tuple[Parallelism, str] | None:
    named = [kind for kind, pattern in _NAMED if re.search(pattern, use.name.lower())]
    return (named[0], f"the job named it `{use.name[:60]}`") if len(named) == 1 else None


def _pipeline(use: _Use) -> tuple[Parallelism, str] | None:
    """Most of what it moves goes from a rank to its neighbours in the group."""
    direct = use.of("send", "recv")
    moved, straight = int(use.calls["own_bytes"].sum()), int(direct["own_bytes"].sum())
    if straight <= 0.5 * moved:
        return None
    place = {rank: at for at, rank in enumerate(use.ranks)}
    pairs = {(rank, peer) for rank, peer in _peers(direct) if rank in place and peer in place}
    n = len(use.ranks)
    if not pairs or any((place[a] - place[b]) % n not in (1, n - 1) for a, b in pairs):
        return None
    return "pipeline", f"{percent(straight / moved)} of its bytes go point to point, between neighbours only"


def _peers(direct: pl.DataFrame) -> set[tuple[int, int]]:
    found = set()
    for rank, peers in direct.select("rank", "peers").drop_nulls().unique().iter_rows():
        if peers.isdecimal():
            found.add((rank, int(peers)))
        found |= {(rank, peer) for way in "><" for peer, _ in batch(peers, way)}
    return found


def _gradients(use: _Use) -> tuple[Parallelism, str] | None:
    """Reductions of as many elements as a rank trains parameters, once a step or once a micro-step.

    ZeRO reduces in backward or in the optimizer's step; what is reduced in forward is no gradient.
    """
    if use.trained is None or not use.rank_steps:
        return None
    reduced = use.of("all_reduce", "reduce_scatter", "reduce").filter(pl.col("caller") != "forward")
    item = pl.col("dtype").replace_strict(_ITEM_BYTES, default=None, return_dtype=pl.Int64)
    elements = reduced.select((pl.col("bytes") / item).sum()).item() / use.rank_steps
    for times in sorted({1.0, use.micro_steps}):
        if abs(elements - times * use.trained) <= NEAR * times * use.trained:
            often = "a step" if times == 1.0 else "a micro-step"
            return "data", (
                f"it reduces {format_value(elements / times, '1')} elements {often} outside forward: as many as "
                f"the {use.trained:,} parameters that a rank trains"
            )
    return None


def _layers(use: _Use) -> tuple[Parallelism, str] | None:
    """Several all-reduces (or reduce-scatters, with sequence parallelism) in each forward: partial sums of layers."""
    sums = use.of("all_reduce", "reduce_scatter", caller="forward").filter(pl.col("bytes") >= LEAST_BYTES)
    passes = use.rank_steps * use.micro_steps
    each = sums.height / passes if passes else 0.0
    if each < PER_LAYER:
        return None
    return "tensor", f"{format_value(each, '1')} reductions in the forward of each micro-step: partial sums of layers"
