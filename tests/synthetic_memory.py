"""Rows of a memory account for `synthetic.build_run`: parts of a ZeRO-2 run as its formulas have them, and a step's
curve."""

import json
from collections.abc import Iterator
from typing import Any, Protocol

MIB = 2**20
TRAINED, FROZEN = 234_567, 1_000_000
"""Of the facts `model.*` in `synthetic`."""
PEAK_MODULE = "llm.layers.1"
UNEXPLAINED = {"standing": 4_096, "peak": 150_000, "oom": 0}

Row = tuple[Any, ...]


class Rank(Protocol):
    """What is used of `synthetic`'s ranks."""

    number: int
    rows: dict[str, list[Row]]

    def add(self, table: str, *values: Any) -> None: ...


def standing_parts(ranks: int, item: int, offload: bool) -> dict[tuple[str, str, bool], int]:
    """(part, detail, is on the host) -> bytes. `item`: bytes of an element. Divided with the remainder left out."""
    shard = TRAINED // ranks
    parts = {
        ("parameters", "trainable", False): TRAINED * item,
        ("parameters", "frozen", False): FROZEN * item,
        ("optimizer_states", "exp_avg", offload): 4 * shard,
        ("optimizer_states", "exp_avg_sq", offload): 4 * shard,
        ("master_weights", "", offload): 4 * shard,
        ("buffers", "", False): 12_345,
    }
    if offload:
        parts |= {("gradients", "fp32", True): 4 * shard, ("buffers", "offload", True): item * shard}
        parts[("gradients", "accumulated", True)] = item * shard
    return parts


def peak_parts(ranks: int, item: int, offload: bool, rank: int) -> dict[tuple[str, str, bool], int]:
    """The same at the peak, in a backward; rank 1 holds a little more."""
    inside = {
        ("activations", "forward", False): 40 * MIB + rank * MIB,
        ("temporary", "backward", False): 3 * MIB,
        ("inputs", "batch", False): MIB // 2,
        ("buckets", "reduction", False): 50_000 * item,
    }
    if not offload:
        inside[("gradients", "", False)] = item * (TRAINED // ranks)
    return standing_parts(ranks, item, offload) | inside


def account_rows(
    step: int, at: str, parts: dict[tuple[str, str, bool], int], *, gpu: bool, unexplained: int | None = None
) -> Iterator[Row]:
    """Rows of `memory_parts`. On a CPU everything is the host's."""
    rest = UNEXPLAINED[at] if unexplained is None else unexplained
    for space in ("device", "host") if gpu else ("host",):
        here = {key: size for key, size in parts.items() if not gpu or key[2] == (space == "host")}
        if not here:
            continue
        fragmentation = 2 * MIB if space == "device" else 0
        total = sum(here.values()) + fragmentation + (rest if space == "device" or not gpu else 0)
        yield step, at, space, "total", "", total, None, "measured", "the allocator's own counter"
        for (part, detail, _on_host), size in here.items():
            elements = size // (2 if gpu and part == "parameters" else 4)
            yield step, at, space, part, detail, size, elements, "measured", "tensors that belong to modules"
        if fragmentation:
            yield step, at, space, "fragmentation", "", fragmentation, None, "measured", "reserved, in no tensor"


def add_account(rank: Rank, step: int, *, ranks: int, gpu: bool, offload: bool, hostile: str | None) -> None:
    """Everything that a rank writes of its profile step's memory; `hostile` stands wherever a name can."""
    item = 2 if gpu else 4
    standing, peak = standing_parts(ranks, item, offload), peak_parts(ranks, item, offload, rank.number)
    for at, parts in (("standing", standing), ("peak", peak)):
        for row in account_rows(step, at, parts, gpu=gpu):
            rank.add("memory_parts", *row)
    if hostile is not None:
        rank.add("memory_parts", step, "peak", "host", hostile, hostile, 10, None, hostile, hostile)
        rank.add("memory_parts", step, hostile, "host", "parameters", "", 10, None, "measured", "")
    _add_allocations(rank, step, gpu, hostile)
    _add_curve(rank, step, sum(standing.values()), sum(peak.values()), hostile)
    time_ns = rank.rows["steps"][-1][2]
    for key, value in (("phase", "backward"), ("module", hostile or PEAK_MODULE), ("method", "its own counter")):
        rank.add("facts", time_ns, f"memory.peak_{key}" if key != "method" else "memory.method", json.dumps(value))


def _add_allocations(rank: Rank, step: int, gpu: bool, hostile: str | None) -> None:
    space = "device" if gpu else "host"
    stack = "train.py:41 <module>\ntrain.py:30 main\nmodel.py:88 forward"
    for index in range(6):
        part, operation = ("parameters", "") if index % 3 == 0 else ("activations", "aten.mm.default")
        rank.add(
            "allocations", step, "peak", space, part, (10 - index) * MIB, f"2x{64 - index}x768", "float32",
            operation, hostile or f"llm.layers.{index % 2}", "forward", "" if index == 5 else hostile or stack,
        )  # fmt: skip


def _add_curve(rank: Rank, step: int, standing: int, peak: int, hostile: str | None) -> None:
    own = next((row for row in rank.rows.get("steps", []) if row[0] == step), None)
    if own is None:
        return
    begin, end = own[1], own[2]
    for index in range(101):
        high = 1 - abs(index - 55) / 55 if index <= 55 else max(0.0, 1 - (index - 55) / 20)
        phase = "forward" if index < 50 else "backward" if index < 80 else "optimizer"
        live = int(standing + (peak - standing) * high)
        rank.add("memory_curve", step, begin + (end - begin) * index // 100, live, phase, hostile or PEAK_MODULE)
