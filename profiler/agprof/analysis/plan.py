"""From what the process of planning counted to a plan. Pure."""

from collections.abc import Iterator, Sequence
from typing import Literal

from agprof.analysis.plan_memory import peak_memory, with_job
from agprof.model.format import format_value
from agprof.model.plan_answers import GPU_SIZES_GB, PLAN_VERSION, MicroStepPlan, PlanAnswer, PlanRow, Varied
from agprof.model.plan_measure import MeasuredKind, PlannedDevice, Scenario

GB = 1e9
CONTEXT_BYTES = 1_000_000_000
"""CUDA context and the communication library's buffers: 0.5 to 1 GB on today's GPUs."""
FRAGMENTATION_RATIO = 0.05
"""What torch's allocator holds over what tensors need; of training with steady shapes."""
MARGIN_METHOD = (
    f"modelled: a GPU fits when it has 1.05 x the device bytes + {CONTEXT_BYTES / GB:g} GB "
    "(fragmentation of the allocator; CUDA context and communication buffers), GB of 10^9 bytes"
)
ON_CPU = "planned for a CPU, whose memory is the device's here: GPUs are for comparison"


def make_plan(
    workload: str,
    scenarios: Sequence[Scenario],
    *,
    device: PlannedDevice,
    notes: Sequence[str] = (),
    basis: Literal["meta", "run"] = "meta",
) -> PlanAnswer:
    """`scenarios`: the first is the job as written, each other one changes one thing of it."""
    written = scenarios[0]
    as_written = row(written, "as written", "as written", device)
    rows = (
        *zero_rows(written, device),
        *(row(scenario, scenario.varied, scenario.label, device) for scenario in scenarios[1:]),
    )
    job = written.job
    return PlanAnswer(
        version=PLAN_VERSION,
        workload=workload,
        sentence=sentence(written, as_written, device),
        basis=basis,
        framework=job.framework,
        ranks=job.ranks,
        accumulation=job.accumulation,
        dtype=job.dtype,
        optimizer=job.optimizer,
        model=written.size,
        micro_steps=tuple(map(micro_step, written.kinds)),
        as_written=as_written,
        rows=rows,
        gpu_sizes_gb=GPU_SIZES_GB,
        margin_context_bytes=CONTEXT_BYTES,
        margin_fragmentation_ratio=FRAGMENTATION_RATIO,
        margin_method=MARGIN_METHOD if device == "gpu" else f"{ON_CPU}; {MARGIN_METHOD}",
        notes=(*notes, *bucket_notes(rows)),
        run="",
        predictions=(),
    )


def zero_rows(written: Scenario, device: PlannedDevice) -> Iterator[PlanRow]:
    """Stages 0-3 under DeepSpeed without offload, then what offload gives."""
    for stage in range(4):
        changed = with_job(
            written, framework="deepspeed", zero_stage=stage, offload_optimizer=False, offload_param=False
        )
        yield row(changed, "zero_stage", f"ZeRO-{stage}", device)
    for stage, param, label in (
        (2, False, "ZeRO-2 + offload"),
        (3, False, "ZeRO-3 + offload"),
        (3, True, "ZeRO-3 + offload of all"),
    ):
        changed = with_job(
            written,
            framework="deepspeed",
            zero_stage=stage,
            offload_optimizer=True,
            offload_param=param,
            optimizer_kernel="fused",
        )
        yield row(changed, "offload", label, device)


def row(scenario: Scenario, varied: Varied, label: str, device: PlannedDevice) -> PlanRow:
    job = scenario.job
    peak = peak_memory(scenario, device)
    forward, backward, recomputed = flops_per_step(scenario.kinds)
    on_device = peak.total("device")
    return PlanRow(
        varied=varied,
        label=label,
        zero_stage=job.zero_stage,
        offload_optimizer=job.offload_optimizer,
        offload_param=job.offload_param,
        micro_batch=job.micro_batch,
        sequence_length=job.sequence_length,
        checkpointing=job.checkpointing,
        lora=job.lora,
        trainable_params=scenario.size.trainable_params,
        parts=peak.parts,
        device_bytes=on_device,
        host_bytes=peak.total("host"),
        forward_flops=forward,
        backward_flops=backward,
        recomputed_flops=recomputed,
        fits_gb=tuple(size for size in GPU_SIZES_GB if needed_bytes(on_device) <= size * GB),
        note="; ".join(peak.notes),
    )


def needed_bytes(device_bytes: float) -> float:
    """What a GPU must have for tensors of so many bytes."""
    return device_bytes * (1 + FRAGMENTATION_RATIO) + CONTEXT_BYTES


def flops_per_step(kinds: Sequence[MeasuredKind]) -> tuple[float, float, float]:
    """Forward, backward and recomputed FLOPs of an optimizer step of one rank; expected values where chance decides."""
    return (
        sum(kind.per_step * kind.forward_flops for kind in kinds),
        sum(kind.per_step * kind.backward_flops for kind in kinds),
        sum(kind.per_step * kind.recomputed_flops for kind in kinds),
    )


def micro_step(kind: MeasuredKind) -> MicroStepPlan:
    return MicroStepPlan(
        name=kind.name,
        per_step=kind.per_step,
        by_chance=kind.by_chance,
        forward_flops=kind.forward_flops,
        backward_flops=kind.backward_flops,
        recomputed_flops=kind.recomputed_flops,
        activation_bytes=kind.activation_bytes,
        peak_at=kind.peak_at,
    )


def bucket_notes(rows: Sequence[PlanRow]) -> Iterator[str]:
    """Where DeepSpeed's buckets are most of what a ZeRO stage needs, a small model seems to need gigabytes."""
    labels: dict[str, list[str]] = {}
    for plan_row in rows:
        buckets = sum(part.bytes for part in plan_row.parts if part.part == "buckets" and part.space == "device")
        if plan_row.varied == "zero_stage" and buckets > plan_row.device_bytes / 2:
            labels.setdefault(format_value(buckets, "bytes"), []).append(plan_row.label)
    for size, of in labels.items():
        yield f"of {', '.join(of)} {size} are DeepSpeed's bucket, made whole for any model (`reduce_bucket_size`)"


def sentence(written: Scenario, as_written: PlanRow, device: PlannedDevice) -> str:
    size, ranks = written.size, written.job.ranks
    flops = format_value(as_written.forward_flops + as_written.backward_flops, "FLOP")
    on_device = format_value(as_written.device_bytes, "bytes")
    host = f" and {format_value(as_written.host_bytes, 'bytes')} of the host's memory" if as_written.host_bytes else ""
    fits = f"fits {as_written.fits_gb[0]} GB" if as_written.fits_gb else f"does not fit {GPU_SIZES_GB[-1]} GB"
    if device == "cpu":
        needed = f"{format_value(as_written.device_bytes + as_written.host_bytes, 'bytes')} of memory at the peak"
    else:
        needed = f"{on_device} of device memory{host} at the peak ({fits})"
    who = f"each of {ranks} ranks needs" if ranks > 1 else "its rank needs"
    return (
        f"{size.params:,} parameters, {size.trainable_params:,} trained: as written {who} {needed} "
        f"and makes {flops} a step."
    )
