"""Hand-made answers about memory whose accounts close. Deterministic; no run is read."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from agprof.model.figure import Curve, Source
from agprof.model.memory_answers import (
    AllocationRow,
    MemoryAccount,
    MemoryAnswer,
    MemoryMoment,
    MemoryPart,
    OomAnswer,
    Prediction,
    RankMemory,
    Space,
    StepPhase,
    ZeroRow,
)
from sample_figures import GIB, MIB, MS, figure

STEP = (("data", 18), ("forward", 170), ("backward", 270), ("communication", 120), ("optimizer", 40))
"""Phases of the profile step in order, ms."""
PSI, FROZEN = 1_004_118, 8_210_090
_STANDING: dict[str, float] = {
    "parameters": 35.2 * MIB,
    "gradients": 2.0 * MIB,
    "optimizer_states": 4.1 * MIB,
    "master_weights": 2.1 * MIB,
    "buffers": 1.2 * MIB,
}
_WITHIN: dict[str, float] = {
    "gradients": 3.9 * MIB,
    "activations": 118.0 * MIB,
    "temporary": 21.0 * MIB,
    "buckets": 9.5 * MIB,
    "inputs": 4.8 * MIB,
}
_FORMULAS = {
    "parameters": 35.15 * MIB,
    "gradients": 3.83 * MIB,
    "optimizer_states": 4.0 * MIB,
    "master_weights": 2.0 * MIB,
}
_DETAILS = {
    "parameters": (("trainable", 3.9 * MIB), ("frozen", 31.3 * MIB)),
    "optimizer_states": (("exp_avg", 2.05 * MIB), ("exp_avg_sq", 2.05 * MIB)),
}  # fmt: skip


def account(
    parts: Mapping[str, float],
    *,
    rank: int = 0,
    at: MemoryMoment = "peak",
    space: Space = "host",
    unexplained: float = 6.0 * MIB,
    held_by: str = "",
) -> MemoryAccount:
    """Parts as given, and a total that leaves `unexplained`; whole bytes, so that the sum is exact."""
    held: dict[str, int] = {name: int(value) for name, value in parts.items()}
    total = sum(held.values()) + int(unexplained)
    held["unexplained"] = int(unexplained)
    return MemoryAccount(
        rank=rank,
        step=4,
        at=at,
        space=space,
        total=figure(float(total), "bytes", n=1, method="sum of torch's own allocation events"),
        parts=tuple(
            MemoryPart(
                part=name,
                bytes=float(value),
                share=value / total,
                source=_source(name),
                method="what no part claims" if name == "unexplained" else "walk over modules, engine and optimizer",
                details=_DETAILS.get(name, ()),
                formula_bytes=_FORMULAS.get(name),
            )
            for name, value in held.items()
        ),
        unexplained_bytes=float(int(unexplained)),
        held_by=held_by,
    )


def _source(part: str) -> Source:
    return "modelled" if part in ("context", "unexplained") else "measured"


def step_curve(rank: int, standing: float, top: float, seed: int = 5) -> Curve:
    """Live bytes over the profile step: they rise in forward, peak at the begin of backward, and fall."""
    rng = random.Random(seed + rank)
    edges = [0]
    for _, ms in STEP:
        edges.append(edges[-1] + ms)
    x, y = [], []
    for at in range(0, edges[-1] + 1, 2):
        if at < edges[1]:
            live = standing
        elif at < edges[2] + 20:
            live = standing + (top - standing) * (at - edges[1]) / (edges[2] + 20 - edges[1])
        elif at < edges[4]:
            live = top - (top - standing * 1.05) * (at - edges[2] - 20) / (edges[4] - edges[2] - 20)
        else:
            live = standing * (1.1 if at < edges[5] - 4 else 1.0)
        x.append(at * MS)
        y.append(live * (1 + 0.004 * rng.random()) if live < top else top)
    return Curve(label=f"rank {rank}", unit="bytes", x_ns=tuple(x), y=tuple(y), rank=rank)


def step_phases(ranks: int) -> tuple[StepPhase, ...]:
    rows = []
    for rank in range(ranks):
        at = 0
        for phase, ms in STEP:
            rows.append(StepPhase(rank=rank, phase=phase, begin_ns=at * MS, end_ns=(at + ms) * MS))
            at += ms
    return tuple(rows)


def zero_rows(stage: int = 2, ranks: int = 2, trainable: int = PSI, frozen: int = FROZEN) -> tuple[ZeroRow, ...]:
    """Stages 0-3 without and with offload of the optimizer, fp32 master weights and Adam."""
    rows = []
    for offload in (False, True):
        for number in range(4):
            split = [1.0 / ranks if number >= least else 1.0 for least in (1, 2, 3)]
            parameters = (2.0 * trainable + 2.0 * frozen) * split[2]
            gradients = 2.0 * trainable * split[1]
            master, states = 4.0 * trainable * split[0], 8.0 * trainable * split[0]
            moved = master + states if offload else 0.0
            estimated = number >= 2
            rows.append(
                ZeroRow(
                    stage=number,
                    offload_optimizer=offload,
                    offload_param=False,
                    is_this_run=number == stage and not offload,
                    parameters=parameters,
                    gradients=gradients,
                    master_weights=master,
                    optimizer_states=states,
                    device_total=parameters + gradients + master + states - moved,
                    host_total=moved,
                    deepspeed_device=2.0 * (trainable + frozen) + 18.0 * (trainable + frozen) / ranks
                    if estimated and not offload
                    else 2.0 * (trainable + frozen)
                    if estimated
                    else None,
                    deepspeed_host=max(4.0 * ranks, 16.0) * (trainable + frozen) * 1.5 if estimated else None,
                    method=f"2 x {trainable + frozen:,} + 2 x {trainable:,} + 12 x {trainable:,}, N = {ranks}",
                )
            )
    return tuple(rows)


def allocations(rank: int = 0, at: MemoryMoment = "peak", count: int = 24) -> tuple[AllocationRow, ...]:
    stack = (
        "train.py:212 <module>",
        "train.py:171 main",
        "model/anomalygpt.py:88 forward",
        "model/llama.py:240 forward",
        "torch/nn/functional.py:2134 softmax",
    )
    return tuple(
        AllocationRow(
            rank=rank,
            at=at,
            part="activations" if index % 3 else "parameters",
            bytes=int(24 * MIB / (1 + 0.35 * index)),
            shape=f"2x4x{128 - index}x768",
            dtype="float32",
            operation="aten::_softmax" if index % 3 else "",
            module=f"llm.layers.{index % 2}.self_attn",
            phase="forward",
            stack=stack if index % 4 else (),
        )
        for index in range(count)
    )


def memory_answer(
    ranks: int, curves: tuple[Curve, ...], *, unexplained: float = 6.0 * MIB, space: Space = "host"
) -> MemoryAnswer:
    """Standing and peak of every rank; rank 1 holds a little more."""
    accounts, steps = [], []
    for rank in range(ranks):
        more = 1.0 + 0.06 * (rank == 1) + 0.0004 * rank
        standing = account(_STANDING, rank=rank, at="standing", space=space, unexplained=1.5 * MIB)
        within = {**_STANDING, **{name: value * more for name, value in _WITHIN.items()}}
        peak = account(
            within, rank=rank, space=space, unexplained=unexplained,
            held_by="backward of step 4, in `llm.layers.1.self_attn`",
        )  # fmt: skip
        accounts.extend((standing, peak))
        steps.append(step_curve(rank, standing.total.value or 0.0, peak.total.value or 0.0))
    return MemoryAnswer(
        sentence="The peak is 1.30 GiB, on rank 1, at the end of backward in step 12; between steps 1.15 GiB stand.",
        kind="host" if space == "host" else "device",
        peak=figure(1_331 * MIB, "bytes"),
        ranks=tuple(
            RankMemory(
                rank=rank,
                peak=figure((1_272 + 60 * (rank == 1)) * MIB, "bytes", n=300),
                peak_at="the end of backward in step 12",
                standing_bytes=(1_180 + 60 * (rank == 1)) * MIB,
            )
            for rank in range(ranks)
        ),
        curves=curves,
        accounts=tuple(accounts),
        account_hint="",
        step_curves=tuple(steps),
        zero=zero_rows(ranks=ranks),
        zero_sentence="By the formulas this run's stage 2 holds 26.6 MB on each rank; stage 3 would hold half of it.",
        allocations=allocations(1 if ranks > 1 else 0),
        predictions=(
            Prediction(
                label="memory peak per rank", unit="bytes", predicted=201.0 * MIB, measured=208.0 * MIB,
                ratio=201 / 208, note="",
            ),
            Prediction(
                label="FLOPs per step", unit="FLOP", predicted=9.7e9, measured=9.69e9, ratio=9.7 / 9.69, note="",
            ),
            Prediction(
                label="host memory for offload", unit="bytes", predicted=12.0 * MIB, measured=None, ratio=None,
                note="this run does not offload",
            ),
        ),
        step_phases=step_phases(ranks),
    )  # fmt: skip


def peft_on_device() -> MemoryAnswer:
    """A LoRA run of seven billion frozen parameters on GPUs: context and fragmentation are parts of it."""
    standing = {
        "parameters": 13.6 * GIB, "gradients": 0.07 * GIB, "optimizer_states": 0.27 * GIB,
        "master_weights": 0.14 * GIB, "buffers": 0.01 * GIB, "context": 0.52 * GIB,
    }  # fmt: skip
    within = {
        **standing, "activations": 18.3 * GIB, "temporary": 1.9 * GIB, "buckets": 0.5 * GIB, "kv_cache": 2.2 * GIB,
        "fragmentation": 1.4 * GIB,
    }  # fmt: skip
    base = memory_answer(2, (), space="device")
    accounts = tuple(
        item
        for rank in range(2)
        for item in (
            account(standing, rank=rank, at="standing", space="device", unexplained=0.05 * GIB),
            account(within, rank=rank, space="device", unexplained=0.9 * GIB, held_by="backward, in `lm_head`"),
        )
    )  # fmt: skip
    return replace(
        base,
        kind="device",
        accounts=_without_formulas(accounts),
        step_curves=tuple(step_curve(rank, 14.7 * GIB, 39.8 * GIB) for rank in range(2)),
        zero=zero_rows(2, 2, 33_554_432, 6_738_415_616),
    )


def _without_formulas(accounts: tuple[MemoryAccount, ...]) -> tuple[MemoryAccount, ...]:
    """The formulas of the small run say nothing about a large one."""
    return tuple(
        replace(item, parts=tuple(replace(part, formula_bytes=None, details=()) for part in item.parts))
        for item in accounts
    )


def too_much_explained() -> MemoryAnswer:
    """Parts that say more than was measured."""
    return memory_answer(2, (), unexplained=-14.0 * MIB)


def out_of_memory(space: Space = "device") -> MemoryAnswer:
    """A run that ran out: of the device's memory, or killed by the kernel for the host's."""
    base = peft_on_device() if space == "device" else memory_answer(2, ())
    peak = next(item for item in base.accounts if item.at == "peak" and item.rank == 1)
    held = replace(peak, at="oom", step=7)
    device = space == "device"
    return replace(
        base,
        accounts=(*base.accounts, held) if device else base.accounts,
        oom=OomAnswer(
            sentence="Rank 1 ran out of memory in forward of step 7, in `lm_head`: it asked for 3.05 GiB while 39.8 of "
            "42.0 GiB were held, 46 % of it by activations."
            if device
            else "Rank 1 was killed for want of host memory at step 7: the limit of its group is 7.80 GiB.",
            rank=1,
            space=space,
            error="CUDA out of memory. Tried to allocate 3.05 GiB. GPU 1 has a total capacity of 42.00 GiB."
            if device
            else "oom_kill of memory.events rose from 0 to 1",
            step=7,
            phase="forward",
            module="lm_head" if device else "",
            wanted_bytes=int(3.05 * GIB) if device else None,
            limit_bytes=int(42 * GIB) if device else int(7.8 * GIB),
            account=held if device else None,
            allocations=allocations(1, "oom", 12) if device else (),
            would_fit=(
                ("activation checkpointing", "frees about 14.1 GiB: would fit"),
                ("`train_micro_batch_size_per_gpu: 1`", "frees about 9.2 GiB: would fit"),
                ("`zero_optimization.stage: 3`", "frees 6.8 GiB: would fit"),
                ("`offload_optimizer.device: cpu`", "frees 0.4 GiB: would not fit"),
            )
            if device
            else (),
        ),
    )  # fmt: skip


def curves(rng: random.Random, ranks: int, times: tuple[int, ...]) -> tuple[Curve, ...]:
    """Memory over the whole run."""
    drawn = []
    for rank in range(ranks):
        base = 1_180 + 60 * (rank == 1)
        y = tuple(
            (base + 90 * abs(math.sin(at / (187 * MS))) + rng.gauss(0, 3)) * MIB * (1 - 0.5 * math.exp(-at / 8e8))
            for at in times
        )
        drawn.append(Curve(label=f"rank {rank}", unit="bytes", x_ns=times, y=y, rank=rank))
    return tuple(drawn)


def hostile_memory(name: str, run_curves: tuple[Curve, ...]) -> MemoryAnswer:
    """`name` wherever a name from outside can stand, an error's text included."""
    found = out_of_memory()

    def renamed(rows: tuple[AllocationRow, ...]) -> tuple[AllocationRow, ...]:
        return tuple(
            replace(row, part=name, shape=name, dtype=name, operation=name, module=name, phase=name, stack=(name,))
            for row in rows
        )

    assert found.oom is not None
    return replace(
        found,
        sentence=name,
        zero_sentence=name,
        curves=tuple(replace(curve, label=name) for curve in run_curves),
        ranks=tuple(replace(row, peak_at=name) for row in found.ranks),
        accounts=tuple(
            replace(
                item,
                held_by=name,
                parts=tuple(replace(part, method=name, details=((name, part.bytes),)) for part in item.parts),
            )
            for item in found.accounts
        ),
        zero=tuple(replace(row, method=name) for row in found.zero),
        allocations=renamed(found.allocations),
        predictions=tuple(replace(row, label=name, note=name) for row in found.predictions),
        step_phases=tuple(replace(row, phase=name) for row in found.step_phases),
        oom=replace(
            found.oom,
            sentence=name,
            error=name,
            phase=name,
            module=name,
            allocations=renamed(found.oom.allocations),
            would_fit=((name, name),),
        ),
    )
