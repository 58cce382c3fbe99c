"""A plan from what one run measured, for a workload that names no model function. Nothing of it is scaled."""

from agprof.analysis.plan import CONTEXT_BYTES, FRAGMENTATION_RATIO, MARGIN_METHOD, needed_bytes
from agprof.errors import ConfigError
from agprof.model.answers import RunAnswers
from agprof.model.compute_answers import ComputeAnswer
from agprof.model.format import format_value
from agprof.model.memory_answers import MemoryAccount, ZeroRow
from agprof.model.plan_answers import GPU_SIZES_GB, PLAN_VERSION, ModelSize, PlanAnswer, PlanPart, PlanRow, Varied

BESIDE_STATES = ("activations", "temporary", "inputs", "kv_cache")
"""Parts that another ZeRO stage would not change. Communication buckets it would, and the formulas leave them out."""
NOT_SCALED = (
    "the workload names no model function (`plan.model`), so this plan is made of the run's own account: ZeRO's "
    "formulas, which leave communication buckets out, with the activations that the run had; micro-batch, sequence "
    "length, checkpointing and LoRA can't be varied (docs/plan.md says how to name a model function)"
)


def plan_of_run(workload: str, answers: RunAnswers) -> PlanAnswer:
    """Raises ConfigError when the run measured too little."""
    compute, memory = answers.compute, answers.memory
    params, trainable = compute.params.value, compute.trainable_params.value
    peaks = [account for account in memory.accounts if account.at == "peak" and account.total.value is not None]
    if params is None or trainable is None or not peaks:
        raise ConfigError(
            "the workload names no function that builds its model without data, and the run has no account of its "
            "memory to plan from; add `plan: {model: package.module:function}` (docs/plan.md)"
        )
    account = max(peaks, key=lambda one: one.total.value or 0.0)
    flops = _flops(compute)
    beside = sum(part.bytes for part in account.parts if part.part in BESIDE_STATES)
    written = _row("as written", "as written, as measured", _measured_parts(account), None, int(trainable), flops)
    rows = tuple(
        _row(
            "offload" if row.offload_optimizer or row.offload_param else "zero_stage",
            _label(row),
            (*_formula_parts(row), _beside(beside, account)),
            row,
            int(trainable),
            flops,
        )
        for row in memory.zero
    )
    return PlanAnswer(
        version=PLAN_VERSION,
        workload=workload,
        sentence=(
            f"{int(params):,} parameters, {int(trainable):,} trained: the run's highest rank had "
            f"{format_value(written.device_bytes + written.host_bytes, 'bytes')} at the peak."
        ),
        basis="run",
        framework=answers.identity.framework or "",
        ranks=answers.identity.world_size or 1,
        accumulation=compute.profiled_micro_steps or 1,
        dtype=compute.dtype or answers.identity.dtype or "",
        optimizer="",
        model=ModelSize(
            params=int(params),
            trainable_params=int(trainable),
            frozen_params=int(params - trainable),
            by_dtype=(),
            buffer_bytes=0,
            largest_layer_params=0,
        ),
        micro_steps=(),
        as_written=written,
        rows=rows,
        gpu_sizes_gb=GPU_SIZES_GB,
        margin_context_bytes=CONTEXT_BYTES,
        margin_fragmentation_ratio=FRAGMENTATION_RATIO,
        margin_method=MARGIN_METHOD,
        notes=(NOT_SCALED,),
        run="",
        predictions=(),
    )


def _row(
    varied: Varied,
    label: str,
    parts: tuple[PlanPart, ...],
    zero: ZeroRow | None,
    trainable: int,
    flops: tuple[float, float, float],
) -> PlanRow:
    on_device = sum(part.bytes for part in parts if part.space == "device")
    return PlanRow(
        varied=varied,
        label=label,
        zero_stage=zero.stage if zero is not None else 0,
        offload_optimizer=zero.offload_optimizer if zero is not None else False,
        offload_param=zero.offload_param if zero is not None else False,
        micro_batch=None,
        sequence_length=None,
        checkpointing=None,
        lora=None,
        trainable_params=trainable,
        parts=parts,
        device_bytes=on_device,
        host_bytes=sum(part.bytes for part in parts if part.space == "host"),
        forward_flops=flops[0],
        backward_flops=flops[1],
        recomputed_flops=flops[2],
        fits_gb=tuple(size for size in GPU_SIZES_GB if needed_bytes(on_device) <= size * 1e9),
        note=zero.method if zero is not None else "",
    )


def _label(row: ZeroRow) -> str:
    offload = {(False, False): "", (True, False): " + offload", (True, True): " + offload of all"}
    return f"ZeRO-{row.stage}{offload.get((row.offload_optimizer, row.offload_param), ' + offload of parameters')}"


def _measured_parts(account: MemoryAccount) -> tuple[PlanPart, ...]:
    """On a CPU the host is the device of the plan."""
    return tuple(
        PlanPart(part=part.part, space="device", bytes=part.bytes, method=f"measured: {part.method}")
        for part in account.parts
    )


def _formula_parts(row: ZeroRow) -> tuple[PlanPart, ...]:
    return (
        PlanPart(part="model states", space="device", bytes=row.device_total, method=row.method),
        PlanPart(part="model states", space="host", bytes=row.host_total, method=row.method),
    )


def _beside(amount: float, account: MemoryAccount) -> PlanPart:
    method = f"as measured in rank {account.rank}: activations, temporary tensors and inputs"
    return PlanPart(part="activations", space="device", bytes=amount, method=method)


def _flops(compute: ComputeAnswer) -> tuple[float, float, float]:
    counted = next((way for way in compute.ways if way.way == "counted" and way.scope == "step"), None)
    if counted is None:
        return compute.flops_per_step.value or 0.0, 0.0, 0.0
    return counted.forward.value or 0.0, counted.backward.value or 0.0, counted.recomputed.value or 0.0
