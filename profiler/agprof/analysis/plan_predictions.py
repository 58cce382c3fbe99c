"""The plan of a job beside what its run measured."""

from collections.abc import Iterator, Sequence
from itertools import groupby, product
from math import comb, prod

from agprof.model.compute_answers import ComputeAnswer, FlopsWay
from agprof.model.format import format_value
from agprof.model.memory_answers import MemoryAccount, Prediction
from agprof.model.plan_answers import MicroStepPlan, PlanAnswer

MAX_MIXES = 10_000
WORTH_A_ROW = 0.01
"""Share of the peak from which a part is compared."""
_COMPARED = {
    "parameters": "parameters",
    "gradients": "gradients and communication buckets",
    "master_weights": "master weights",
    "optimizer_states": "optimizer states",
    "activations": "activations and temporary tensors",
}
_TOGETHER = {"temporary": "activations", "buckets": "gradients"}
"""Parts that are compared in one: gradients in a bucket are views of it."""


def predict(
    plan: PlanAnswer, compute: ComputeAnswer | None, accounts: Sequence[MemoryAccount]
) -> tuple[Prediction, ...]:
    """Rows for the report: parameters, FLOPs of the profile step of rank 0, and memory at the highest peak of a rank.

    On a CPU the plan's device is the host, so both of a rank's spaces are added up on either side. A plan that was made
    of a run's own account predicts nothing.
    """
    if plan.basis == "run":
        return ()
    return tuple(_predictions(plan, compute, accounts))


def _predictions(
    plan: PlanAnswer, compute: ComputeAnswer | None, accounts: Sequence[MemoryAccount]
) -> Iterator[Prediction]:
    mix: tuple[float, ...] | None = None
    if compute is not None:
        yield _row("parameters", "1", plan.model.params, compute.params.value)
        yield _row("trained parameters", "1", plan.model.trainable_params, compute.trainable_params.value)
        counted = next((way for way in compute.ways if way.way == "counted" and way.scope == "step"), None)
        if counted is not None and counted.total.value:
            mix = nearest_mix(plan.micro_steps, counted.total.value)
            yield from _flops(plan, counted, mix)
    yield from _memory(plan, accounts, mix)


def _row(label: str, unit: str, predicted: float, measured: float | None, note: str = "") -> Prediction:
    ratio = predicted / measured if measured else None
    return Prediction(label=label, unit=unit, predicted=predicted, measured=measured, ratio=ratio, note=note)


def _flops(plan: PlanAnswer, counted: FlopsWay, mix: tuple[float, ...] | None) -> Iterator[Prediction]:
    expected = plan.as_written
    total = expected.forward_flops + expected.backward_flops
    if mix is not None:
        words = ", ".join(f"{count:g} x {kind.name}" for kind, count in zip(plan.micro_steps, mix, strict=True))
        kinds = list(zip(plan.micro_steps, mix, strict=True))
        note = f"chance decides between kinds of micro-step; nearest to the profile step: {words}"
        forward = sum(count * kind.forward_flops for kind, count in kinds)
        backward = sum(count * kind.backward_flops for kind, count in kinds)
        yield _row("forward FLOPs per step, as chance fell", "FLOP", forward, counted.forward.value, note)
        yield _row("backward FLOPs per step, as chance fell", "FLOP", backward, counted.backward.value, note)
        yield _row("FLOPs per step, as chance fell", "FLOP", forward + backward, counted.total.value, note)
        yield _row("FLOPs per step, expected value", "FLOP", total, counted.total.value)
        return
    yield _row("forward FLOPs per step", "FLOP", expected.forward_flops, counted.forward.value)
    yield _row("backward FLOPs per step", "FLOP", expected.backward_flops, counted.backward.value)
    if expected.recomputed_flops or counted.recomputed.value:
        yield _row("recomputed FLOPs per step", "FLOP", expected.recomputed_flops, counted.recomputed.value)
    yield _row("FLOPs per step", "FLOP", total, counted.total.value)


def nearest_mix(kinds: Sequence[MicroStepPlan], measured_flops: float) -> tuple[float, ...] | None:
    """How many of each kind of micro-step a measured step most probably had; None where chance decides nothing.

    Kinds of one choice share the micro-steps that they have together; the mix nearest in FLOPs is taken.
    """
    by_choice = groupby(sorted(range(len(kinds)), key=lambda at: kinds[at].by_chance), lambda at: kinds[at].by_chance)
    choices = [list(members) for name, members in by_choice if name]
    if not choices:
        return None
    shapes = [(round(sum(kinds[at].per_step for at in members)), len(members)) for members in choices]
    if prod(comb(total + parts - 1, parts - 1) for total, parts in shapes) > MAX_MIXES:
        return None
    splits = [_splits(total, parts) for total, parts in shapes]
    best: tuple[float, tuple[float, ...]] | None = None
    for split in product(*splits):
        counts = [kind.per_step for kind in kinds]
        for members, numbers in zip(choices, split, strict=True):
            for at, number in zip(members, numbers, strict=True):
                counts[at] = float(number)
        flops = sum(
            count * (kind.forward_flops + kind.backward_flops) for kind, count in zip(kinds, counts, strict=True)
        )
        distance = abs(flops - measured_flops)
        if best is None or distance < best[0]:
            best = (distance, tuple(counts))
    return best[1] if best is not None else None


def _splits(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as a sum of `parts` numbers.

    >>> _splits(2, 2)
    [(0, 2), (1, 1), (2, 0)]
    """
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _splits(total - first, parts - 1)]


def _memory(plan: PlanAnswer, accounts: Sequence[MemoryAccount], mix: tuple[float, ...] | None) -> Iterator[Prediction]:
    peaks = [account for account in accounts if account.at == "peak" and account.total.value is not None]
    if not peaks:
        return
    ranks = {account.rank for account in peaks}
    measured = {rank: sum(a.total.value or 0 for a in peaks if a.rank == rank) for rank in ranks}
    rank = max(measured, key=lambda number: measured[number])
    row = plan.as_written
    where = f"rank {rank}, the profile step's peak"
    predicted, held = row.device_bytes + row.host_bytes, _data_set(peaks, rank)
    if spared := _spared_by_chance(plan, mix):
        yield _row("memory at the peak, as chance fell", "bytes", predicted - spared, measured[rank] - held, where)
    if held:
        note = f"{where}; without the data set that the job keeps in memory, which no plan knows"
        yield _row("memory at the peak, data set apart", "bytes", predicted, measured[rank] - held, note)
    of_it = f"; {format_value(held, 'bytes')} of it are the data set" if held else ""
    yield _row("memory at the peak", "bytes", predicted, measured[rank], f"{where}{of_it}")
    found: dict[str, float] = {}
    for account in peaks:
        for part in account.parts if account.rank == rank else ():
            name = _TOGETHER.get(part.part, part.part)
            found[name] = found.get(name, 0.0) + part.bytes
    planned: dict[str, float] = {}
    for planned_part in row.parts:
        name = _TOGETHER.get(planned_part.part, planned_part.part)
        planned[name] = planned.get(name, 0.0) + planned_part.bytes
    for name, label in _COMPARED.items():
        there, planned_bytes = found.get(name, 0.0), planned.get(name, 0.0)
        if there >= WORTH_A_ROW * measured[rank]:
            yield _row(f"{label} at the peak", "bytes", planned_bytes, there, where)
        elif planned_bytes >= WORTH_A_ROW * measured[rank]:
            note = f"{where}, at which there were none"
            yield _row(f"{label} at the peak", "bytes", planned_bytes, None, note)


def _spared_by_chance(plan: PlanAnswer, mix: tuple[float, ...] | None) -> float:
    """Bytes by which the peak is lower than planned because the kind that sets it did not occur."""
    if mix is None or not any(part.part == "activations" for part in plan.as_written.parts):
        return 0.0
    occurred = [kind.activation_bytes for kind, count in zip(plan.micro_steps, mix, strict=True) if count]
    return float(max(kind.activation_bytes for kind in plan.micro_steps) - max(occurred, default=0))


def _data_set(peaks: Sequence[MemoryAccount], rank: int) -> float:
    """Bytes of the tensors that the job's data sets keep."""
    parts = (part for account in peaks if account.rank == rank for part in account.parts if part.part == "inputs")
    return sum(size for part in parts for detail, size in part.details if detail == "dataset")
