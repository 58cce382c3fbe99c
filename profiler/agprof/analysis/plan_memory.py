"""Memory per rank of a configuration: the formulas of `model.zero` and the activations that were counted.

The highest of a step is one of three moments. In backward the framework holds what `zero_memory(..., "backward")`
says, and beside it the activations. When ZeRO-2 reduces the last bucket the activations are gone, and a flat copy of
the bucket is there. In the optimizer's update torch's Adam makes temporary copies. Formulas: docs/plan.md.
"""

from dataclasses import dataclass, replace
from typing import cast

from agprof.model.plan_answers import ModelSize, PlanPart
from agprof.model.plan_measure import Job, MeasuredKind, PlannedDevice, Scenario
from agprof.model.zero import Framework, ModelStates, StateBytes, element_bytes, zero_memory

STATE_PARTS = ("parameters", "gradients", "master_weights", "optimizer_states", "buckets", "buffers")
FP32 = 4
STATES = {"sgd": 0, "adam": 2, "adamw": 2}
"""Values that an optimizer keeps per trained element."""
HELD_WHOLE = ("ddp", "plain")
"""Frameworks whose gradients are those that autograd makes."""


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Parts at the higher of the two moments."""

    parts: tuple[PlanPart, ...]
    notes: tuple[str, ...]

    def total(self, space: str) -> float:
        return sum(part.bytes for part in self.parts if part.space == space)


def model_states(scenario: Scenario) -> ModelStates:
    """What the formulas of ZeRO ask of a job."""
    job, size = scenario.job, scenario.size
    trainable_bytes, frozen_bytes = mean_element_bytes(size)
    if job.framework == "deepspeed":
        # DeepSpeed computes with one element type for all.
        frozen_bytes = frozen_bytes if size.frozen_params else trainable_bytes
    return ModelStates(
        trainable=size.trainable_params,
        frozen=size.frozen_params,
        stage=job.zero_stage,
        ranks=job.ranks,
        framework=cast(Framework, job.framework),
        offload_optimizer=job.offload_optimizer,
        offload_param=job.offload_param,
        parameter_bytes=trainable_bytes,
        frozen_bytes=frozen_bytes,
        state_bytes=0.0 if STATES[job.optimizer] == 0 else None,
        accumulates=job.accumulation > 1,
        persistent=scenario.small_params,
        gathered=scenario.group_params if job.framework == "fsdp2" else None,
        bucket=job.bucket_elements,
        overlap_comm=False,
    )


def mean_element_bytes(size: ModelSize) -> tuple[float, float]:
    """Of trained and of frozen elements."""
    trained = sum(trainable * element_bytes(dtype) for dtype, _, trainable in size.by_dtype)
    frozen = sum((params - trainable) * element_bytes(dtype) for dtype, params, trainable in size.by_dtype)
    mean_trained = trained / size.trainable_params if size.trainable_params else FP32
    return mean_trained, frozen / size.frozen_params if size.frozen_params else mean_trained


def peak_memory(scenario: Scenario, device: PlannedDevice) -> PeakMemory:
    states = model_states(scenario)
    moments = [_in_backward(scenario, states), _in_update(scenario, states, device)]
    if states.framework == "deepspeed" and states.stage == 2:
        moments.append(_in_reduction(scenario, states))
    return max(moments, key=lambda peak: peak.total("device"))


def _in_backward(scenario: Scenario, states: ModelStates) -> PeakMemory:
    held = zero_memory(states, "backward")
    kind = max(scenario.kinds, key=lambda kind: kind.activation_bytes)
    activations = float(kind.activation_bytes)
    how = f"counted on the meta device: highest of {kind.name}, {kind.peak_at}"
    parts = _state_parts(held, "in backward")
    if _starts_without_gradients(states):
        gradients = 0.0
        if states.framework in HELD_WHOLE or states.stage == 0:
            # The first gradients come when the activations go: their common peak was counted.
            kind = max(scenario.kinds, key=lambda kind: kind.activation_and_gradient_bytes)
            gradients = max(0.0, kind.activation_and_gradient_bytes - activations)
            how += "; gradients as far as they are there by then"
        parts = [part if part.part != "gradients" else replace(part, bytes=gradients) for part in parts]
    parts += _job_parts(scenario, kind)
    parts.append(PlanPart(part="activations", space="device", bytes=activations, method=how))
    return PeakMemory(tuple(parts), held.notes)


def _starts_without_gradients(states: ModelStates) -> bool:
    """The only backward pass of a step; stages 1 and 2 gather its gradients when it is over, stage 3 has a place."""
    return not states.accumulates and states.stage < 3 and not states.offload_optimizer


def _in_reduction(scenario: Scenario, states: ModelStates) -> PeakMemory:
    """deepspeed/runtime/zero/stage_1_and_2.py, allreduce_and_scatter: a bucket is made one flat tensor of its own."""
    held = zero_memory(states, "backward")
    parts = _state_parts(held, "in backward")
    if _starts_without_gradients(states):
        parts = [part for part in parts if part.part != "gradients"]
    parts += _job_parts(scenario, max(scenario.kinds, key=lambda kind: kind.input_bytes))
    copied = min(states.trainable, states.bucket) * states.parameter_bytes
    method = "the flat copy of a bucket that is reduced"
    parts.append(PlanPart(part="buckets", space="device", bytes=copied, method=method))
    return PeakMemory(tuple(parts), held.notes)


def _in_update(scenario: Scenario, states: ModelStates, device: PlannedDevice) -> PeakMemory:
    held = zero_memory(states, "update")
    parts = _state_parts(held, "in the optimizer's update")
    kind = max(scenario.kinds, key=lambda kind: kind.input_bytes)
    parts += _job_parts(scenario, kind)
    copies = _update_copies(scenario, states, device)
    if copies:
        space = "host" if states.offload_optimizer and states.stage else "device"
        method = "modelled: torch's Adam makes copies while it updates (docs/plan.md)"
        parts.append(PlanPart(part="temporary", space=space, bytes=copies, method=method))  # type: ignore[arg-type]
    return PeakMemory(tuple(parts), held.notes)


def _update_copies(scenario: Scenario, states: ModelStates, device: PlannedDevice) -> float:
    """torch.optim.Adam: a square root of the second moments, and what it is divided by."""
    job = scenario.job
    if job.optimizer_kernel == "fused" or STATES[job.optimizer] == 0:
        return 0.0
    flat = states.framework == "deepspeed" and (states.stage >= 1 or states.is_mixed)
    whole = states.trainable / (states.ranks if states.stage >= 1 or states.framework == "fsdp2" else 1)
    per_element = FP32 if states.framework == "deepspeed" else states.parameter_bytes
    if device == "gpu":
        return whole * per_element  # all tensors at once (foreach): one list of roots
    if flat:
        return 2 * whole * per_element  # the partition is one tensor: its root, and that divided
    shards = states.ranks if states.framework == "fsdp2" else 1
    return scenario.update_copies / shards * per_element  # one tensor after the other


def _state_parts(held: StateBytes, when: str) -> list[PlanPart]:
    parts = []
    for name in STATE_PARTS:
        amount = held.part(name)
        for space, size in (("device", amount.device), ("host", amount.host)):
            if size:
                method = f"formula of the framework, {when}"
                parts.append(PlanPart(part=name, space=space, bytes=size, method=method))  # type: ignore[arg-type]
    return parts


def _job_parts(scenario: Scenario, kind: MeasuredKind) -> list[PlanPart]:
    parts = []
    if scenario.size.buffer_bytes:
        method = "the model's registered buffers"
        parts.append(PlanPart(part="buffers", space="device", bytes=scenario.size.buffer_bytes, method=method))
    if kind.input_bytes:
        method = f"the batch of {kind.name}"
        parts.append(PlanPart(part="inputs", space="device", bytes=kind.input_bytes, method=method))
    return parts


def with_job(scenario: Scenario, **changes: object) -> Scenario:
    """The same model and activations, trained otherwise."""
    job: Job = replace(scenario.job, **changes)  # type: ignore[arg-type]
    return replace(scenario, job=job)
