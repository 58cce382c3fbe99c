"""The row of cards."""

import polars as pl

from agprof.analysis.identity import imported_from
from agprof.analysis.statistics import median_figure, nothing
from agprof.analysis.trace_kpis import device_kpis
from agprof.analysis.view import View
from agprof.model.answers import CommunicationAnswer, TimeAnswer
from agprof.model.compute_answers import ComputeAnswer
from agprof.model.figure import Figure, Kpi
from agprof.model.memory_answers import MemoryAnswer
from agprof.model.trace_answers import TraceAnswer


def kpi_row(
    view: View,
    time: TimeAnswer,
    communication: CommunicationAnswer,
    compute: ComputeAnswer,
    memory: MemoryAnswer,
    trace: TraceAnswer | None,
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
        Kpi(key="samples_per_s", label="Samples per second", figure=_throughput(view, "samples"), note="all ranks"),
        Kpi(key="tokens_per_s", label="Tokens per second", figure=_throughput(view, "tokens"), note="all ranks"),
        Kpi(key="flops_per_s", label="FLOP/s", figure=compute.flops_per_second, note="per rank, modelled backward"),
        Kpi(key="memory_peak", label="Memory peak", figure=memory.peak, note=_memory_note(memory)),
        Kpi(
            key="exposed_communication_share",
            label="Exposed communication",
            figure=communication.exposed_share,
            note="of the step",
        ),
        Kpi(key="data_wait_share", label="Data wait", figure=_data_share(view), note="of the step"),
    )


def _steps_note(time: TimeAnswer) -> str:
    return f"median of {time.steady_steps} steady steps, slowest rank"


def _memory_note(memory: MemoryAnswer) -> str:
    return "allocator, highest rank" if memory.kind == "device" else "resident set, highest rank"


def _throughput(view: View, what: str) -> Figure:
    """Sum over ranks per step / the slowest rank's duration; median over steady steps."""
    method = f"{what} of all ranks / the slowest rank's step"
    steady = view.steady
    if not steady.height:
        return nothing(f"{what}/s", "no steady step", method=method)
    if steady[what].null_count():
        reason = f"the {what} of a step could not be seen: tell them with agprof.step({what}=...)"
        return nothing(f"{what}/s", reason, method=method)
    sums = steady.group_by("step").agg(pl.col(what).sum(), pl.col("duration_ns").max()).sort("step")
    rates = sums.filter(pl.col("duration_ns") > 0).select(rate=pl.col(what) * 1e9 / pl.col("duration_ns"))["rate"]
    return median_figure(rates.to_list(), f"{what}/s", method=method, reason="steps have no duration")


def _data_share(view: View) -> Figure:
    method = "phase `data` over the step's duration, sums over ranks and steady steps"
    rows = view.steady
    total = int(rows["duration_ns"].sum())
    if not total:
        return nothing("ratio", "no steady step", method=method)
    return Figure(value=int(rows["data"].sum()) / total, unit="ratio", source="measured", n=rows.height, method=method)
