"""Builds run folders with plausible content, through the real stream writer, for tests of whatever reads them.

    build_run(path)                                     two ranks, twelve steps, every table filled
    build_run(path, ranks=64, steps=1000, fast=True)    large: few rows a step
    build_run(path, hostile=True)                       names from outside that try to break a page

Ranks run in lockstep as in real training: a collective ends on all ranks when the last one has entered it, so that a
straggler's delay shows as communication on the others. Deterministic for a seed.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agprof.model.ceilings import CEILING_VERSION, BandwidthCeiling, MeasuredCeiling, ProductCeiling
from agprof.model.outcome import Outcome, RankFailure
from agprof.model.tables import BY_NAME, SCHEMA_VERSION
from agprof.store import layout
from agprof.store.writer import StreamWriter
from synthetic_memory import add_account

MS = 1_000_000
MIB = 2**20
EPOCH_NS = 1_790_000_000_000_000_000
"""Wall time of the run's begin."""
BOOT_NS = 5_000_000_000_000
"""Monotonic time of the run's begin on node 0."""

HOSTILE = "</script><img src=x onerror=alert(1)>"
HOSTILE_NAMES = (HOSTILE, "\u2028\u2029line", "\u202ebidi\u202c", "nul\u0000byte", "'\"&<>{{ 7*7 }}", "long" * 2000)


@dataclass(kw_only=True)
class Spec:
    """What `build_run` builds; its keyword arguments are these fields."""

    ranks: int = 2
    steps: int = 12
    name: str = "synthetic"
    micro_steps: int = 2
    collectives: int = 12
    """All-reduces in the last backward of a step."""
    collective_bytes: int = 4 * MIB
    transfer_ms: float = 3.0
    data_ms: float = 2.0
    forward_ms: float = 40.0
    backward_ms: float = 60.0
    optimizer_ms: float = 20.0
    other_ms: float = 1.0
    jitter: float = 0.02
    warmup: tuple[float, ...] = (3.0, 1.4)
    """Factors on the first steps."""
    profile_step: int | None = 4
    warmup_steps: int | None = None
    """`profile.warmup_steps` of the workload file."""
    straggler: int | None = None
    """Rank whose own compute takes 1.5 times as long."""
    bimodal: bool = False
    """Every other step's forward takes 1.8 times as long."""
    leak_bytes: int = 0
    """Resident set growth per step."""
    async_ops: bool = False
    """Collectives are issued asynchronously and waited for at the end of the backward."""
    killed: int | None = None
    """Rank that was killed by SIGKILL; it writes `killed_at` whole steps, the others one more."""
    killed_at: int = 7
    missing: tuple[int, ...] = ()
    """Ranks that left no stream."""
    unseen: bool = False
    """The flight recorder saw more than our taps."""
    ledger: bool = True
    faults: bool = False
    gpus: int = 0
    """GPUs sampled, one a rank; also turns the ranks' device to a GPU with allocator figures."""
    sampler: bool = True
    nodes: int = 1
    hostile: bool = False
    nan_loss: bool = False
    tokens: bool = True
    omp_threads: int = 1
    cores: int = 2
    offload: bool = False
    framework: str = "deepspeed"
    counted: bool = True
    """The profile step wrote modules and operations."""
    account: bool = True
    """The profile step wrote a memory account."""
    ceiling: bool = False
    """`agprof peak` had measured the device (peak.json)."""
    device_name: str | None = None
    """Of GPUs, instead of an H200."""
    torn: int | None = None
    """Rank whose stream ends in the middle of a frame."""
    bare: bool = False
    """Neither run.json nor outcome.json: what a copied folder may look like."""
    fast: bool = False
    """One micro-step, four collectives, no ranges: for large runs."""
    rlhf: bool = False
    """Steps are PPO iterations: data, generate, four scores, the actor's training; then the critic's, and the EMA."""
    rlhf_ranges: bool = True
    """With `rlhf`: the training names its parts. Without, each part of a training is three pieces with gaps."""
    generations: int = 1
    """With `rlhf`: calls of generate in an iteration."""
    seed: int = 0


@dataclass
class _Rank:
    number: int
    node: int
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    now: int = 0
    spans: int = 0

    @property
    def thread(self) -> int:
        return 1000 + self.number

    def add(self, table: str, *values: Any) -> None:
        self.rows.setdefault(table, []).append(values)

    def span(self, step: int, micro: int, category: str, name: str, start: int, end: int, depth: int) -> None:
        self.add("spans", self.spans, step, micro, category, name, start, end, self.thread, depth)
        self.spans += 1


def build_run(path: Path, **options: Any) -> Path:
    """Write a run folder at `path` (made here, must not exist) and return it. Options: the fields of `Spec`."""
    spec = Spec(**options)
    if spec.fast:
        spec.micro_steps, spec.collectives = 1, 4
    random_ = random.Random(spec.seed)
    (path / layout.RANKS).mkdir(parents=True)
    (path / layout.NODES).mkdir()
    ranks = [_Rank(number, number * spec.nodes // spec.ranks, now=BOOT_NS) for number in range(spec.ranks)]
    for rank in ranks:
        _facts(spec, rank)
    for step in range(spec.steps):
        alive = [rank for rank in ranks if not _is_dead(spec, rank, step)]
        if spec.killed is not None and step > spec.killed_at:
            break
        (_rlhf_step if spec.rlhf else _step)(spec, alive, step, random_)
    for rank in ranks:
        _end_of_rank(spec, rank)
        if rank.number not in spec.missing:
            _write_rank(spec, path, rank)
    end = max((rank.now for rank in ranks), default=BOOT_NS)
    if spec.sampler:
        for node in range(spec.nodes):
            _write_node(spec, path, node, end, random_)
    if not spec.bare:
        _write_json(path / layout.MANIFEST, _manifest(spec, path))
        _write_json(path / layout.OUTCOME, _outcome(spec, end))
    if spec.ceiling:
        _write_json(path / layout.PEAK, {"version": CEILING_VERSION, "ceilings": [_ceiling(spec).to_dict()]})
    return path


def write_stream(
    path: Path, header: dict[str, Any], rows: dict[str, Iterable[tuple[Any, ...]]], ended: str | None = "clean"
) -> None:
    """Write one stream: rows by table, in column order; no end record when `ended` is None."""
    writer = StreamWriter(path, header)
    for table, values in rows.items():
        pending = writer.rows(table)
        for row in values:
            pending(row)
    writer.flush()
    if ended is not None:
        writer.close(ended)


def row(table: str, **values: Any) -> tuple[Any, ...]:
    """A row in column order; columns left out are None."""
    return tuple(values.get(column.name) for column in BY_NAME[table].columns)


def rank_header(rank: int, world_size: int, node: int = 0, host: str = "node-a") -> dict[str, Any]:
    skew = node * 7_000_000_000_000
    return {
        "kind": "rank",
        "rank": rank,
        "local_rank": rank,
        "world_size": world_size,
        "node": node,
        "host": host,
        "pid": 4000 + rank,
        "schema_version": SCHEMA_VERSION,
        "agprof_version": "0.1.0",
        "clock": {"realtime_ns": EPOCH_NS, "monotonic_ns": BOOT_NS + skew, "boottime_ns": BOOT_NS + skew},
        "python": "3.11.9",
        "argv": ["train.py", "--preset", "tiny"],
    }


def _is_dead(spec: Spec, rank: _Rank, step: int) -> bool:
    return rank.number == spec.killed and step >= spec.killed_at


def _step(spec: Spec, ranks: list[_Rank], step: int, random_: random.Random) -> None:
    factor = spec.warmup[step] if step < len(spec.warmup) and spec.steps > len(spec.warmup) else 1.0
    profiled = step == spec.profile_step
    starts = {rank.number: rank.now for rank in ranks}
    micro_starts = dict(starts)
    losses: dict[int, list[float]] = {rank.number: [] for rank in ranks}
    for micro in range(spec.micro_steps):
        for rank in ranks:
            _data_and_forward(spec, rank, step, micro, factor * (2.0 if profiled else 1.0), random_)
        _backward(spec, ranks, step, micro, factor, random_)
        for rank in ranks:
            loss = float("nan") if spec.nan_loss and step % 3 == 1 else 4.0 / (1 + step) + 0.01 * rank.number
            losses[rank.number].append(loss)
            tokens = 512 if spec.tokens else None
            unpadded = _unpadded(spec, 1)
            rank.add("micro_steps", step, micro, micro_starts[rank.number], rank.now, loss, 4, tokens, unpadded)
            micro_starts[rank.number] = rank.now
    _optimizer(spec, ranks, step, random_)
    for rank in ranks:
        rank.now += int(spec.other_ms * MS)
        mean = sum(losses[rank.number]) / max(1, len(losses[rank.number]))
        tokens = 512 * spec.micro_steps if spec.tokens else None
        counts = (4 * spec.micro_steps, tokens, profiled, _unpadded(spec, spec.micro_steps))
        rank.add("steps", step, starts[rank.number], rank.now, spec.micro_steps, mean, *counts)
        _memory(spec, rank, step, spec.micro_steps - 1, "step.end", 900)


def _unpadded(spec: Spec, micro_steps: int) -> int | None:
    return 400 * micro_steps if spec.tokens else None


def _spread(spec: Spec, rank: _Rank, milliseconds: float, factor: float, random_: random.Random) -> int:
    slow = 1.5 if rank.number == spec.straggler else 1.0
    return int(milliseconds * MS * factor * slow * (1 + spec.jitter * random_.random()))


def _data_and_forward(spec: Spec, rank: _Rank, step: int, micro: int, factor: float, random_: random.Random) -> None:
    start = rank.now
    rank.now += int(spec.data_ms * MS * factor * (1 + spec.jitter * random_.random()))
    rank.span(step, micro, "phase", "data", start, rank.now, 0)
    rank.now += 50_000
    start = rank.now
    mode = 1.8 if spec.bimodal and step % 2 else 1.0
    duration = _spread(spec, rank, spec.forward_ms / spec.micro_steps, factor * mode, random_)
    if not spec.fast:
        name = HOSTILE_NAMES[step % len(HOSTILE_NAMES)] if spec.hostile else "text_tower"
        rank.span(step, micro, "range", name, start + duration // 10, start + duration // 2, 1)
    rank.now += duration
    rank.span(step, micro, "phase", "forward", start, rank.now, 0)
    _memory(spec, rank, step, micro, "forward.end", 1100)


def _collective(
    spec: Spec, ranks: list[_Rank], step: int, micro: int, op: str, size: int, caller: str, random_: random.Random
) -> None:
    done = max(rank.now for rank in ranks) + int(spec.transfer_ms * MS * (1 + 0.05 * random_.random()))
    for rank in ranks:
        start, end = rank.now, done + random_.randrange(2000)
        base = (step, micro, op, "default_pg", spec.ranks, size, "float32")
        tail = ("wrapper", rank.thread, caller)
        if spec.async_ops:
            rank.now = start + 20_000
            rank.add("collectives", *base, True, start, rank.now, end, max(0, end - rank.now), *tail)
            rank.add("waits", step, op, rank.now, max(rank.now, end), rank.thread)
        else:
            rank.add("collectives", *base, False, start, end, end, 0, *tail)
        rank.now = max(rank.now, end)


def _backward(spec: Spec, ranks: list[_Rank], step: int, micro: int, factor: float, random_: random.Random) -> None:
    starts = {rank.number: rank.now for rank in ranks}
    pieces = spec.collectives if micro == spec.micro_steps - 1 and spec.ranks > 1 else 0
    for rank in ranks:
        rank.now += _spread(spec, rank, spec.backward_ms / spec.micro_steps, factor, random_)
    for _ in range(pieces):
        _collective(spec, ranks, step, micro, "all_reduce", spec.collective_bytes, "backward", random_)
    for rank in ranks:
        rank.span(step, micro, "phase", "backward", starts[rank.number], rank.now, 0)
        _memory(spec, rank, step, micro, "backward.end", 1000)


def _optimizer(spec: Spec, ranks: list[_Rank], step: int, random_: random.Random) -> None:
    starts = {rank.number: rank.now for rank in ranks}
    for rank in ranks:
        rank.now += _spread(spec, rank, spec.optimizer_ms, 1.0, random_)
    micro = spec.micro_steps - 1
    if spec.ranks > 1 and not spec.fast:
        _collective(spec, ranks, step, micro, "all_gather", 2 * spec.collective_bytes, "optimizer", random_)
    for rank in ranks:
        rank.span(step, micro, "phase", "optimizer", starts[rank.number], rank.now, 0)
        _memory(spec, rank, step, micro, "optimizer.end", 950)


RLHF_MS = {
    "data": 2, "generate": 60, "score/actor": 5, "score/reference": 6, "score/reward": 3, "score/critic": 4,
    "train/actor": 30, "train/critic": 20, "ema": 5,
}  # fmt: skip
"""Duration of each part; of a training, 2 ms less are covered when it comes in pieces."""
RLHF_MIB = {"score/actor": 700, "generate": 800, "train/actor": 1100, "train/critic": 950}


def _rlhf_step(spec: Spec, ranks: list[_Rank], step: int, random_: random.Random) -> None:
    """An optimizer step of the actor begins with what came after the last one: the critic's training and the EMA."""
    starts = {rank.number: rank.now for rank in ranks}
    if step:
        _rlhf_part(spec, ranks, step, "train/critic", random_)
        _rlhf_part(spec, ranks, step, "ema", random_)
    for _ in range(spec.generations):
        for name in ("data", "generate", "score/actor", "score/reference", "score/reward", "score/critic"):
            _rlhf_part(spec, ranks, step, name, random_)
    for rank in ranks:
        rank.now += int(spec.other_ms * MS)
    _rlhf_part(spec, ranks, step, "train/actor", random_)
    for rank in ranks:
        rank.add("micro_steps", step, 0, starts[rank.number], rank.now, 1.0, 4, 96, None)
        rank.add("steps", step, starts[rank.number], rank.now, 1, 1.0, 4, 96, step == spec.profile_step, None)
    if step == spec.steps - 1:
        _rlhf_part(spec, ranks, step + 1, "train/critic", random_)
        _rlhf_part(spec, ranks, step + 1, "ema", random_)


def _rlhf_part(spec: Spec, ranks: list[_Rank], step: int, name: str, random_: random.Random) -> None:
    begins = {rank.number: rank.now for rank in ranks}
    trains = name.startswith("train/")
    for rank in ranks:
        rank.now += _spread(spec, rank, RLHF_MS[name], 1.0, random_)
    if trains and len(ranks) > 1:
        _collective(spec, ranks, step, 0, "all_reduce", spec.collective_bytes, "backward", random_)
    for rank in ranks:
        begin, end = begins[rank.number], rank.now
        if name == "data":
            rank.span(step, 0, "phase", "data", begin, end, 0)
            continue
        if name == "generate":
            rank.add("generations", step, begin, end, 4, 40, 24)
        if not trains or spec.rlhf_ranges:
            rank.span(step, 0, "range", name, begin, end, 0)
            rank.span(step, 0, "range", "inner", begin + MS, end - MS, 1)
        else:
            third = (end - begin) // 3
            for piece in (0, 1, 2):
                until = end if piece == 2 else begin + (piece + 1) * third - MS
                rank.span(step, 0, "range", name, begin + piece * third, until, 0)
        phase = "backward" if trains else "forward"
        rank.span(step, 0, "phase", phase, begin + MS, end - MS, 1)
        if name in RLHF_MIB:
            _memory(spec, rank, step, 0, f"{phase}.end", RLHF_MIB[name])


def _memory(spec: Spec, rank: _Rank, step: int, micro: int, at: str, mib: int) -> None:
    rss = mib * MIB + step * spec.leak_bytes
    device = (rss * 8, rss * 9, 1200 * MIB * 8) if spec.gpus else (None, None, None)
    rank.add("memory", step, micro, at, rank.now, rss, 1200 * MIB + step * spec.leak_bytes, *device)


def _facts(spec: Spec, rank: _Rank) -> None:
    gas = spec.micro_steps
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": gas,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 50_000, "allgather_bucket_size": 50_000},
    }
    facts: dict[str, Any] = {
        "torch.version": "2.13.0",
        "device.name": spec.device_name or ("NVIDIA H200" if spec.gpus else "CPU"),
        "device.type": "cuda" if spec.gpus else "cpu",
        "framework": spec.framework,
        "model.params": 1_234_567,
        "model.trainable_params": 234_567,
        "model.dtype": "bfloat16" if spec.gpus else "float32",
        "model.params_by_dtype": {"bfloat16" if spec.gpus else "float32": [1_234_567, 234_567]},
        "model.largest_layer_params": 400_000,
        "omp_num_threads": spec.omp_threads,
        "cpu.affinity": list(range(spec.cores)),
        "dist.backend": "nccl" if spec.gpus else "gloo",
        "dist.world_size": spec.ranks,
    }
    if spec.framework == "deepspeed":
        facts |= {
            "deepspeed.version": "0.19.8",
            "deepspeed.zero_stage": 2,
            "deepspeed.offload_optimizer": spec.offload,
            "deepspeed.offload_param": False,
            "deepspeed.data_parallel_size": spec.ranks,
            "deepspeed.reduce_bucket_size": 50_000,
            "deepspeed.gradient_accumulation_steps": gas,
            "deepspeed.config": config,
        }
    if spec.rlhf:
        for role, layers, hidden in (("actor", 2, 64), ("critic", 2, 32)):
            size = {"layers": layers, "hidden": hidden, "vocab": 512, "params": 100_000, "lora_dim": 0}
            size |= {"dtype": "bfloat16", "declared_dtype": "bfloat16", "gradient_checkpointing": False}
            facts |= {f"rlhf.{role}.{key}": value for key, value in size.items()}
    if spec.gpus:
        facts["device.uuid"] = _gpu_uuid(rank.node, _local(spec, rank) % spec.gpus)
    if spec.hostile:
        facts["device.name"] = HOSTILE
    for key, value in facts.items():
        rank.add("facts", BOOT_NS, key, json.dumps(value))


def _local(spec: Spec, rank: _Rank) -> int:
    """Number of the rank on its node."""
    return rank.number - next(n for n in range(spec.ranks) if n * spec.nodes // spec.ranks == rank.node)


def _gpu_uuid(node: int, gpu: int) -> str:
    return f"GPU-{node:04x}{gpu:04x}-1d2e-4f50-8a6b-0123456789ab"


MODULE_LEAVES: dict[str, tuple[str, int, int, float, float, float, int]] = {
    "vision": ("Trunk", 400_000, 0, 1e9, 0.0, 0.0, 4 * MS),
    "text": ("Tower", 334_567, 0, 2e9, 0.0, 0.0, 6 * MS),
    "llm.layers.0.attn": ("Attention", 100_000, 50_000, 0.5e9, 0.6e9, 0.1e9, 2 * MS),
    "llm.layers.0.mlp": ("MLP", 150_000, 67_000, 1e9, 1.1e9, 0.0, 2 * MS),
    "llm.layers.1.attn": ("Attention", 100_000, 50_000, 0.5e9, 0.6e9, 0.1e9, 2 * MS),
    "llm.layers.1.mlp": ("MLP", 150_000, 67_567, 1e9, 1.1e9, 0.0, 2 * MS),
}
"""Type, parameters, trained ones, forward, backward and recomputed FLOPs of a micro-step, forward's ns."""
MODULE_TYPES = {
    "": "Model",
    "llm": "Llama",
    "llm.layers": "ModuleList",
    "llm.layers.0": "Block",
    "llm.layers.1": "Block",
}
FLOPS_PER_BYTE = 50.0


def _modules(spec: Spec, rank: _Rank) -> None:
    """Rank 0 writes the tree, whose leaves do all the work, and the operations, whose sums are the root's."""
    if rank.number:
        return
    paths = dict.fromkeys(".".join(leaf.split(".")[:n]) for leaf in MODULE_LEAVES for n in range(leaf.count(".") + 2))
    for order, path in enumerate(sorted(paths, key=lambda path: list(paths).index(path))):
        inside = [leaf for leaf in MODULE_LEAVES if not path or leaf == path or leaf.startswith(f"{path}.")]
        sums = [sum(MODULE_LEAVES[leaf][at] for leaf in inside) for at in range(1, 7)]
        _module(spec, rank, order, path, sums)
    if spec.hostile:
        rank.add("modules", *row(
            "modules", step=spec.profile_step, root=0, path=HOSTILE, parent="", depth=1, type=HOSTILE_NAMES[4],
            order=99, params=10, trainable_params=10,
        ))  # fmt: skip
    _operations(spec, rank)


def _module(spec: Spec, rank: _Rank, order: int, path: str, sums: list[float]) -> None:
    params, trainable, forward, backward, again, ns = sums[0], sums[1], *(n * spec.micro_steps for n in sums[2:])
    leaf = MODULE_LEAVES.get(path)
    type_ = HOSTILE if spec.hostile and path == "text" else leaf[0] if leaf else MODULE_TYPES[path]
    attention = 0.1 * (forward + backward)
    bytes_ = (forward / FLOPS_PER_BYTE, backward / FLOPS_PER_BYTE)
    times = (int(ns), int(backward / 50), int(again / 50)) if not spec.gpus else (None, None, None)
    modelled = (forward, 1.01 * backward)
    parent = None if not path else path.rpartition(".")[0]
    place = (spec.profile_step, 0, path, parent, path.count(".") + 1 if path else 0, type_, order, int(params))
    calls = (spec.micro_steps, spec.micro_steps if again else 0)
    rank.add("modules", *place, int(trainable), *calls, forward, backward, again, attention, *modelled, *bytes_, *times)


def _operations(spec: Spec, rank: _Rank) -> None:
    dtype = "bfloat16" if spec.gpus else "float32"
    for name, at in (("forward", 3), ("backward", 4), ("recomputed", 5)):
        flops = sum(leaf[at] for leaf in MODULE_LEAVES.values()) * spec.micro_steps
        for kind, share in (("matmul", 0.9), ("attention", 0.1)):
            ns = None if spec.gpus else int(flops * share / 60)
            moved = flops * share / FLOPS_PER_BYTE
            rank.add("operations", spec.profile_step, name, kind, dtype, 40, flops * share, moved, ns)
    rank.add("operations", spec.profile_step, "forward", "other", dtype, 412, 0.0, None, None if spec.gpus else 9 * MS)
    causal = 0.1 * spec.micro_steps * sum(leaf[3] + leaf[4] for leaf in MODULE_LEAVES.values())
    facts = {
        "compute.causal_attention_flops": causal,
        "compute.update_flops": 0,
        "compute.deepspeed_forward_flops": 6e9,
        "compute.first_micro_step_forward_flops": 6e9,
        "compute.first_micro_step_backward_flops": 3.4e9,
    }
    for key, value in facts.items():
        rank.add("facts", BOOT_NS + 1, key, json.dumps(value))


def _memory_account(spec: Spec, rank: _Rank) -> None:
    step = spec.profile_step
    if spec.account and step is not None and any(row[0] == step for row in rank.rows.get("steps", ())):
        add_account(
            rank, step, ranks=spec.ranks, gpu=spec.gpus > 0, offload=spec.offload,
            hostile=HOSTILE if spec.hostile else None,
        )  # fmt: skip


def _end_of_rank(spec: Spec, rank: _Rank) -> None:
    _memory_account(spec, rank)
    if spec.counted and spec.profile_step is not None and spec.steps > spec.profile_step:
        _modules(spec, rank)
    if spec.ledger and rank.number != spec.killed and spec.ranks > 1:
        seen: dict[str, int] = {}
        for call in rank.rows.get("collectives", []):
            seen[call[2]] = seen.get(call[2], 0) + 1
        for op, count in seen.items():
            more = 5 if spec.unseen and op == "all_reduce" else 0
            size = spec.collective_bytes * count
            rank.add("ledger", "default_pg", op, count + more, count, size, size, True)
        if spec.unseen:
            rank.add("ledger", "default_pg", "barrier", 3, 0, None, None, False)
    if spec.faults:
        error = HOSTILE if spec.hostile else "AttributeError: no attribute 'foo'"
        rank.add("faults", BOOT_NS + MS, "flops", "profile step", error, 3)
    rank.add("marks", BOOT_NS + 10 * MS, 0, "user", HOSTILE if spec.hostile else "epoch 0")
    rank.add("cost", BOOT_NS + 100 * MS, 2 * MS, 500, 40_000, 7 if spec.faults else 0)


def _write_rank(spec: Spec, path: Path, rank: _Rank) -> None:
    host = HOSTILE if spec.hostile else f"node-{'abcdefgh'[rank.node % 8]}"
    shift = rank.node * 7_000_000_000_000
    rows = rank.rows if not shift else _shift_rows(rank.rows, shift)
    file = layout.rank_stream(path, rank.number)
    header = rank_header(rank.number, spec.ranks, rank.node, host)
    write_stream(file, header, rows, None if rank.number == spec.killed else "clean")  # type: ignore[arg-type]
    if rank.number == spec.torn:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) - 5])


def _shift_rows(rows: dict[str, list[tuple[Any, ...]]], shift: int) -> dict[str, list[tuple[Any, ...]]]:
    """Move all times by the other node's clock."""
    moved = {}
    times = ("time_ns", "start_ns", "end_ns", "issue_end_ns")
    for table, values in rows.items():
        at = {i for i, column in enumerate(BY_NAME[table].columns) if column.name in times}
        moved[table] = [tuple(v + shift if i in at and v is not None else v for i, v in enumerate(r)) for r in values]
    return moved


def _write_node(spec: Spec, path: Path, node: int, end: int, random_: random.Random) -> None:
    shift = node * 7_000_000_000_000
    period = max(100 * MS, (end - BOOT_NS) // 400)
    rows: dict[str, list[tuple[Any, ...]]] = {"sampler_state": []}
    local = [rank for rank in range(spec.ranks) if rank * spec.nodes // spec.ranks == node]
    for index, time_ns in enumerate(range(BOOT_NS + shift, end + shift + 1, period)):
        busy = 0.8 + 0.1 * random_.random()
        host = (busy, 6000 * MIB, 16000 * MIB, 0, 1e5, 2e5, 4e7, 0.0, 1e6, 2.5)
        rows.setdefault("host_samples", []).append((time_ns, period, *host))
        for rank in local:
            process = (
                1,
                0.9 + 0.1 * random_.random(),
                1000 * MIB,
                900 * MIB if index % 10 == 0 else None,
                12,
                0.0,
                0.0,
            )
            rows.setdefault("process_samples", []).append((time_ns, period, rank, "rank", *process))
            worker = (2, 0.2, 300 * MIB, None, 4, 1e6, 0.0)
            rows["process_samples"].append((time_ns, period, rank, "worker", *worker))
        for gpu in range(spec.gpus):
            sample = (0.9, 0.4, 60_000 * MIB, 550_000, "instant", index * 60_000, 1830, 2619, 61, 0)
            rows.setdefault("gpu_samples", []).append((time_ns, gpu, *sample))
        if index % 20 == 0:
            state = (time_ns, "self", "ok", "", index * MS, 30 * MIB)
            rows["sampler_state"].append(state)
    rows["sampler_state"].append((BOOT_NS + shift, "gpu.energy", "unsupported", "no NVML on this node", None, None))
    for gpu in range(spec.gpus):
        name = HOSTILE if spec.hostile else "NVIDIA H200"
        bus = f"00000000:{gpu:02X}:00.0"
        rows.setdefault("gpus", []).append((gpu, _gpu_uuid(node, gpu), bus, name, 143_771 * MIB, 700_000, "570.1"))
    header = {
        "kind": "node",
        "node": node,
        "host": f"node-{'abcdefgh'[node % 8]}",
        "pid": 3999,
        "schema_version": SCHEMA_VERSION,
        "agprof_version": "0.1.0",
        "clock": {"realtime_ns": EPOCH_NS, "monotonic_ns": BOOT_NS + shift, "boottime_ns": BOOT_NS + shift},
        "period_s": period / 1e9,
    }
    write_stream(layout.node_stream(path, node), header, rows)  # type: ignore[arg-type]


def _manifest(spec: Spec, path: Path) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "agprof": "0.1.0",
        "name": HOSTILE if spec.hostile else spec.name,
        "created_realtime_ns": EPOCH_NS,
        "ranks": spec.ranks,
        "nodes": spec.nodes,
        "launcher": "torchrun",
        "argv": ["torchrun", "--nproc-per-node", str(spec.ranks), HOSTILE if spec.hostile else "train.py"],
        "cwd": f"/data/{path.name}",
        "environment_changes": {"OMP_NUM_THREADS": str(spec.omp_threads), "PYTHONHASHSEED": None},
        "environment": {"OMP_NUM_THREADS": str(spec.omp_threads)},
        "workload": {
            "name": spec.name,
            "description": HOSTILE if spec.hostile else "a made-up run",
            "script": "train.py",
            "args": {"preset": "tiny"},
            "launch": {"launcher": "torchrun", "ranks_per_node": spec.ranks // spec.nodes, "env": {}},
            "profile": {"level": "default", "profile_step": spec.profile_step, "warmup_steps": spec.warmup_steps},
            "monitor": {"enabled": spec.sampler, "period_s": 1.0},
        },
        "host": {"hostname": "node-a", "cpu_model": "made-up CPU", "cpu_count": 2, "usable_cores": spec.cores},
        "python": "3.11.9",
        "packages": {"torch": "2.13.0", "deepspeed": "0.19.8", "peft": None},
        "git_commit": None,
    }


CEILING_FLOPS_PER_SECOND, CEILING_BYTES_PER_SECOND = 8e11, 2e10


def _ceiling(spec: Spec) -> MeasuredCeiling:
    def product(dtype: str, factor: float) -> ProductCeiling:
        rate = CEILING_FLOPS_PER_SECOND * factor
        return ProductCeiling(
            dtype=dtype, flops_per_second=rate, low=0.9 * rate, high=1.1 * rate, shape=(1024, 1024, 1024), repeats=20
        )

    bandwidth = BandwidthCeiling(
        kind="triad", bytes_per_second=CEILING_BYTES_PER_SECOND, low=1e10, high=3e10, array_bytes=128 * MIB, repeats=9
    )
    return MeasuredCeiling(
        device_type="cuda" if spec.gpus else "cpu",
        device_name=spec.device_name or ("NVIDIA H200" if spec.gpus else "made-up CPU"),
        threads=None if spec.gpus else spec.omp_threads,
        measured_realtime_ns=EPOCH_NS,
        torch_version="2.13.0",
        quick=False,
        products=(product("float32", 1), product("bfloat16", 2)),
        bandwidth=bandwidth,
    )


def _outcome(spec: Spec, end: int) -> dict[str, Any]:
    failures = []
    if spec.killed is not None:
        failures.append(RankFailure(
            rank=spec.killed, local_rank=spec.killed, pid=4000 + spec.killed, exit_code=137, signal="SIGKILL",
            ended_realtime_ns=EPOCH_NS + end - BOOT_NS, stopped=False, last_lines=("Traceback", HOSTILE),
        ))  # fmt: skip
    return Outcome(
        exit_code=137 if failures else 0,
        reason="killed" if failures else "finished",
        started_realtime_ns=EPOCH_NS,
        ended_realtime_ns=EPOCH_NS + end - BOOT_NS,
        failures=tuple(failures),
    ).to_dict()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
