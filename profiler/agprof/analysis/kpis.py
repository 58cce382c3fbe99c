"""The row of cards."""

from agprof.analysis.compute import best_mfu
from agprof.analysis.identity import imported_from
from agprof.analysis.statistics import nothing
from agprof.analysis.throughput import throughput
from agprof.analysis.trace_kpis import device_kpis
from agprof.analysis.view import View
from agprof.model.answers import CommunicationAnswer, TimeAnswer
from agprof.model.compute_answers import ComputeAnswer
from agprof.model.energy_answers import EnergyAnswer
from agprof.model.figure import Figure, Kpi
from agprof.model.format import percent
from agprof.model.memory_answers import MemoryAnswer
from agprof.model.system_answers import SystemAnswer
from agprof.model.trace_answers import TraceAnswer


def kpi_row(
    view: View,
    time: TimeAnswer,
    communication: CommunicationAnswer,
    compute: ComputeAnswer,
    memory: MemoryAnswer,
    system: SystemAnswer,
    trace: TraceAnswer | None,
    energy: EnergyAnswer | None = None,
) -> tuple[Kpi, ...]:
    """The KPIs in the order in which they are shown.

    An imported run has those of its devices, where it has any, in place of what only instruments measure.
    """
    if imported_from(view) is not None and (of_devices := device_kpis(trace)):
        return (
            Kpi(key="step_time", label="Step time", figure=time.step_time, note=_steps_note(time)),
            *of_devices,
            Kpi(key="memory_peak", label="Memory peak", figure=memory.peak, note=_memory_note(memory)),
        )
    return (
        Kpi(key="step_time", label="Step time", figure=time.step_time, note=_steps_note(time)),
        Kpi(
            key="samples_per_s",
            label="Samples per second",
            figure=throughput(view, "samples", "samples/s"),
            note="all ranks",
        ),
        Kpi(
            key="tokens_per_s", label="Tokens per second", figure=compute.tokens_per_second, note=_padding_note(compute)
        ),
        Kpi(key="flops_per_s", label="FLOP/s", figure=compute.flops_per_second, note="per rank, without recomputation"),
        _mfu(compute),
        Kpi(key="memory_peak", label="Memory peak", figure=memory.peak, note=_memory_note(memory)),
        Kpi(
            key="exposed_communication_share",
            label="Exposed communication",
            figure=communication.exposed_share,
            note="of the step",
        ),
        Kpi(key="data_wait_share", label="Data wait", figure=_data_share(view), note="of the step"),
        *_of_gpus(system),
        *_of_energy(energy),
    )


def _of_gpus(system: SystemAnswer) -> tuple[Kpi, ...]:
    """Utilisation and power of the GPUs, where they were measured."""
    return tuple(
        kpi for kpi in system.figures if kpi.key in ("gpu_utilization", "gpu_power") and kpi.figure.value is not None
    )


def _of_energy(energy: EnergyAnswer | None) -> tuple[Kpi, ...]:
    """Energy per step and per token, where it was measured."""
    if energy is None:
        return ()
    scope = energy.scope.partition(" (")[0]
    kpis = (
        Kpi(key="energy_per_step", label="Energy per step", figure=energy.per_step, note=scope),
        Kpi(key="energy_per_token", label="Energy per token", figure=energy.per_token, note=scope),
    )
    return tuple(kpi for kpi in kpis if kpi.figure.value is not None)


def _steps_note(time: TimeAnswer) -> str:
    return f"median of {time.steady_steps} steady steps, slowest rank"


def _memory_note(memory: MemoryAnswer) -> str:
    return "allocator, highest rank" if memory.kind == "device" else "resident set, highest rank"


def _padding_note(compute: ComputeAnswer) -> str:
    every, unpadded = compute.tokens_per_second.value, compute.tokens_per_second_without_padding.value
    if not every or unpadded is None or unpadded >= every:
        return "all ranks"
    return f"all ranks; {percent(1 - unpadded / every)} of them padding"


def _mfu(compute: ComputeAnswer) -> Kpi:
    """MFU with its convention; without a ceiling a dash, and how to get one."""
    found = best_mfu(compute.utilisation)
    if found is not None:
        figure, whole = found
        return Kpi(key="mfu", label="MFU, attention counted full", figure=figure, note=f"{whole}, {compute.dtype}")
    full = next((share for share in compute.utilisation if share.key == "mfu_full"), None)
    reason = compute.flops_per_second.reason or compute.peak_hint or (full.of_datasheet.reason if full else None)
    note = "no ceiling to hold it against" if compute.flops_per_second.value is not None else ""
    missing = nothing("ratio", reason or "not known", source="counted")
    return Kpi(key="mfu", label="MFU, attention counted full", figure=missing, note=note)


def _data_share(view: View) -> Figure:
    method = "phase `data` over the step's duration, sums over ranks and steady steps"
    rows = view.steady
    total = int(rows["duration_ns"].sum())
    if not total:
        return nothing("ratio", "no steady step", method=method)
    return Figure(value=int(rows["data"].sum()) / total, unit="ratio", source="measured", n=rows.height, method=method)
