"""The formulas of model states for this run: its own stage beside the measured account, and the other stages."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agprof.analysis.identity import world_size
from agprof.analysis.view import View
from agprof.model.format import format_value
from agprof.model.memory_answers import Space, ZeroRow
from agprof.model.zero import (
    MODEL_STATES,
    PARTS,
    STAGES,
    Framework,
    ModelStates,
    Moment,
    StateBytes,
    element_bytes,
    held_memory,
    highest,
    paper_memory,
    with_stage,
)
from agprof.model.zero_estimators import Estimate, estimate_zero2, estimate_zero3

FRAMEWORKS: Mapping[str, Framework] = {
    "deepspeed": "deepspeed", "ddp": "ddp", "fsdp2": "fsdp2", "fsdp": "fsdp2", "plain": "plain", "horovod": "plain",
}  # fmt: skip
NAMES: Mapping[Framework, str] = {"deepspeed": "DeepSpeed", "ddp": "DDP", "fsdp2": "FSDP2", "plain": "one copy a rank"}
_ENGINE = re.compile(r"deepspeed\.engine\d+\.")
_ROOT = re.compile(r"model\d+\.params$")
VARIANTS = (
    *((stage, False, False) for stage in STAGES),
    *((stage, True, False) for stage in STAGES if stage),
    (3, True, True),
)
"""(stage, optimizer on the host, parameters on the host). Stage 0 has no offload: DeepSpeed moves nothing there."""


@dataclass(frozen=True, slots=True)
class Known:
    """The formulas' input for this run, or why there is none."""

    states: ModelStates | None
    reason: str = ""


def known_states(view: View, rank: int | None = None) -> Known:
    """From the facts of `rank`, or of the lowest rank that knows them."""

    def fact(key: str, default: Any = None) -> Any:
        own = view.facts.get(rank, {}) if rank is not None else {}
        return own[key] if key in own else view.fact(key, default)

    params, trainable = fact("model.params"), fact("model.trainable_params")
    if not _is_count(params) or not _is_count(trainable) or trainable > params or params == 0:
        return Known(None, "the run did not record the model's parameters")
    if _has_several_models(view):
        return Known(None, "the formulas are for one model, and this run trains or calls several")
    framework = FRAMEWORKS.get(str(fact("framework")))
    if framework is None:
        return Known(None, "what spreads the model over the ranks was not recorded")
    trained_bytes, frozen_bytes = _bytes_by_use(fact("model.params_by_dtype"), str(fact("model.dtype")))
    deepspeed = framework == "deepspeed"
    if deepspeed and fact("deepspeed.dtype") is not None:
        trained_bytes = element_bytes(str(fact("deepspeed.dtype")), trained_bytes)
    accumulation = fact("deepspeed.grad_accum_dtype") if deepspeed else None
    steps = fact("deepspeed.gradient_accumulation_steps")
    ranks = fact("deepspeed.data_parallel_size") if deepspeed else None
    return Known(
        ModelStates(
            trainable=trainable,
            frozen=params - trainable,
            stage=_stage(fact("deepspeed.zero_stage")) if deepspeed else 0,
            ranks=ranks if _is_count(ranks) and ranks else world_size(view) or max(1, len(view.ranks)),
            framework=framework,
            offload_optimizer=deepspeed and fact("deepspeed.offload_optimizer") is True,
            offload_param=deepspeed and fact("deepspeed.offload_param") is True,
            parameter_bytes=trained_bytes,
            frozen_bytes=frozen_bytes,
            accumulation_bytes=element_bytes(str(accumulation)) if accumulation is not None else None,
            accumulates=_is_count(steps) and steps > 1,
            persistent=_count(fact("deepspeed.persistent_params")) or 0,
            owned=_count(fact("deepspeed.owned_params")),
            bucket=_count(fact("deepspeed.reduce_bucket_size")) or 0,
            overlap_comm=fact("deepspeed.overlap_comm") is True,
        )
    )


def formula_bytes(states: ModelStates, moment: Moment, space: Space, *, is_cpu: bool) -> dict[str, float]:
    """Bytes by part where there is a formula. On a CPU the device is the host: both are one space."""
    held = held_memory(states, moment)
    told = {name: _in_space(held, name, space, is_cpu=is_cpu) for name in PARTS}
    if states.framework == "fsdp2" and moment != "standing":
        del told["parameters"], told["gradients"]  # how much is whole just then is not known
    if states.stage == 3 and moment == "backward" and states.persistent < states.trainable + states.frozen:
        del told["parameters"]  # it falls from the whole model to the partition while backward goes on
    keep = {name: value for name, value in told.items() if value or name in MODEL_STATES}
    if space == "host" and not is_cpu:
        keep = {name: value for name, value in keep.items() if value}
    return keep


def _in_space(held: StateBytes, name: str, space: Space, *, is_cpu: bool) -> float:
    part = held.part(name)
    if is_cpu:
        return part.total
    return part.device if space == "device" else part.host


def zero_rows(view: View, states: ModelStates) -> tuple[ZeroRow, ...]:
    """Every variant for this run's parameters, element types and ranks."""
    return tuple(_rows(view, states))


def _rows(view: View, states: ModelStates) -> Iterator[ZeroRow]:
    base = replace(states, framework="deepspeed", state_bytes=None)
    for stage, optimizer, param in VARIANTS:
        there = with_stage(base, stage, offload_optimizer=optimizer, offload_param=param)
        if states.framework != "deepspeed" or stage != states.stage:
            there = replace(there, owned=None, persistent=there.persistent if stage == 3 else 0)
        held = highest(there)
        estimate = _estimate(view, there)
        yield ZeroRow(
            stage=stage,
            offload_optimizer=optimizer,
            offload_param=param,
            is_this_run=is_this_run(states, there),
            parameters=held.parameters.total,
            gradients=held.gradients.total,
            master_weights=held.master_weights.total,
            optimizer_states=held.optimizer_states.total,
            device_total=sum(held.part(name).device for name in MODEL_STATES),
            host_total=sum(held.part(name).host for name in (*MODEL_STATES, "buffers")),
            deepspeed_device=float(estimate.device) if estimate else None,
            deepspeed_host=float(estimate.host) if estimate else None,
            method=_method(there, held),
        )


def is_this_run(states: ModelStates, row: ModelStates) -> bool:
    """Whether the variant is the run's own; in stage 0 offload changes nothing."""
    if states.framework != "deepspeed" or states.stage != row.stage:
        return False
    if states.stage == 0:
        return True
    offload_param = states.offload_param and states.stage == 3
    return (states.offload_optimizer, offload_param) == (row.offload_optimizer, row.offload_param)


def _estimate(view: View, states: ModelStates) -> Estimate | None:
    """DeepSpeed's own word: every parameter trained and in 16 bits; the host's figure is for a whole node."""
    params = states.trainable + states.frozen
    nodes = max(1, len(set(view.node_of.values())))
    per_node = max(1, states.ranks // nodes)
    if states.stage == 2:
        offload = states.offload_optimizer
        return estimate_zero2(params, ranks_per_node=per_node, nodes=nodes, offload_optimizer=offload)
    largest = _count(view.fact("model.largest_layer_params"))
    if states.stage != 3 or largest is None:
        return None
    return estimate_zero3(
        params,
        largest,
        ranks_per_node=per_node,
        nodes=nodes,
        offload_optimizer=states.offload_optimizer,
        offload_param=states.offload_param,
    )


def _method(states: ModelStates, held: StateBytes) -> str:
    trained = f"{states.trainable:,} trained parameters of {states.parameter_bytes:g} B"
    frozen = f" and {states.frozen:,} frozen ones of {states.frozen_element_bytes:g} B" if states.frozen else ""
    paper = format_value(paper_memory(states).total, "bytes")
    words = [
        f"as DeepSpeed 0.19.8 holds it at the highest within a step, Adam, {trained}{frozen}, "
        f"{states.ranks:,} rank{'' if states.ranks == 1 else 's'}, without buckets",
        *held.notes,
        f"the ZeRO paper counts {paper}",
    ]
    return "; ".join(words)


def zero_sentence(states: ModelStates, rows: tuple[ZeroRow, ...]) -> str:
    """This run's row in words, and what the stages would change."""
    totals = {row: row.device_total + row.host_total for row in rows}
    own = next((row for row in rows if row.is_this_run), None)
    least = min(rows, key=lambda row: row.device_total)
    if own is None:
        held = highest(states)
        total = format_value(sum(held.part(name).total for name in MODEL_STATES), "bytes")
        words = f"By formula {NAMES[states.framework]} holds {total} of model states on each rank of this run"
    else:
        total = format_value(totals[own], "bytes")
        words = f"By formula this run's {_name(own)} holds {total} of model states on each rank"
        paper = paper_memory(states).total
        if abs(paper - totals[own]) > 0.02 * totals[own]:
            words += f" (the ZeRO paper counts {format_value(paper, 'bytes')})"
    if own is None or least.device_total < own.device_total:
        words += f"; {_name(least)} leaves least on the device, {format_value(least.device_total, 'bytes')}"
    return f"{words}."


def _name(row: ZeroRow) -> str:
    name = f"ZeRO-{row.stage}"
    if row.offload_param:
        return f"{name} with optimizer and parameters on the host"
    return f"{name} with the optimizer on the host" if row.offload_optimizer else name


def _bytes_by_use(by_dtype: Any, dtype: str) -> tuple[float, float]:
    """Mean bytes of a trained and of a frozen element."""
    default = element_bytes(dtype)
    sums = {"trained": [0.0, 0], "frozen": [0.0, 0]}
    for name, counts in by_dtype.items() if isinstance(by_dtype, Mapping) else ():
        if not isinstance(counts, list) or len(counts) != 2 or not all(map(_is_count, counts)):
            continue
        size = element_bytes(str(name), default)
        for use, count in (("trained", counts[1]), ("frozen", counts[0] - counts[1])):
            sums[use][0] += size * count
            sums[use][1] += count
    trained, frozen = (total / count if count else default for total, count in sums.values())
    return trained, frozen


def _has_several_models(view: View) -> bool:
    """Other roots with parameters (a loss has none), or a second engine."""
    keys = {key for facts in view.facts.values() for key in facts}
    if any(_ENGINE.match(key) for key in keys):
        return True
    return any(view.fact(key) for key in keys if _ROOT.match(key))


def _stage(value: Any) -> int:
    return value if _is_count(value) and value in STAGES else 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _count(value: Any) -> int | None:
    return value if _is_count(value) else None
