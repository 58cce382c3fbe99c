"""Which part of a trace an answer looks at: one profiler step, or the whole of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from agprof.analysis.trace_activities import load_device
from agprof.analysis.trace_steps import device_steps, host_steps
from agprof.model.communication_kernels import Communication
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

_NOT_WORK = (int(CpuKind.ANNOTATION), int(CpuKind.OVERHEAD))


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of one rank's time, on the clock of its tables. `step` is None for the whole trace."""

    step: int | None
    start_ns: int
    end_ns: int


def step_windows(trace: RankTrace) -> tuple[Window, ...]:
    """The profiler steps of a trace: on the device where it has one, else on the host."""
    steps = host_steps(trace)
    device = load_device(trace, Communication.with_user()) if steps else None
    on_device = device_steps(device, steps) if device is not None else []
    return tuple(
        Window(step=step.number, start_ns=step.start, end_ns=step.end)
        for step in on_device or steps
        if step.end > step.start
    )


def host_window(trace: RankTrace, step: int) -> Window | None:
    """A step as the host saw it."""
    found = (each for each in host_steps(trace) if each.number == step)
    return next((Window(step=step, start_ns=each.start, end_ns=each.end) for each in found), None)


def whole_window(trace: RankTrace) -> Window | None:
    """From the first to the last event of host and device; ranges only count where there is nothing else."""
    work = _bounds(trace, annotations=False)
    bounds = work if work is not None else _bounds(trace, annotations=True)
    return None if bounds is None else Window(step=None, start_ns=bounds[0], end_ns=bounds[1])


def typical_window(trace: RankTrace, step: int | None = None) -> Window | None:
    """The window of a step; without a number the step of median duration, and the whole trace where it has no steps.

    None when there is no such step, or nothing at all.
    """
    steps = step_windows(trace)
    if step is not None:
        return next((window for window in steps if window.step == step), None)
    return typical_of(steps) or whole_window(trace)


def typical_of(windows: Iterable[Window]) -> Window | None:
    """The one of median duration; of two the shorter. None of none."""
    by_duration = sorted(windows, key=lambda window: (window.end_ns - window.start_ns, window.start_ns))
    return by_duration[(len(by_duration) - 1) // 2] if by_duration else None


def origin_ns(trace: RankTrace) -> int:
    """The earliest event of this rank: what `start_ns` of an answer counts from, unless other ranks began earlier."""
    if trace.meta.first_ns is not None:
        return trace.meta.first_ns
    bounds = _bounds(trace, annotations=True)
    return 0 if bounds is None else bounds[0]


def _bounds(trace: RankTrace, *, annotations: bool) -> tuple[int, int] | None:
    gpu, cpu = trace.tables["gpu"], trace.tables["cpu"]
    if not annotations:
        gpu = gpu.filter(~pl.col("kind").is_in([int(GpuKind.ANNOTATION), int(GpuKind.SYNC)]))
        cpu = cpu.filter(~pl.col("kind").is_in(_NOT_WORK))
    ends = (pl.col("start_ns") + pl.col("duration_ns")).max()
    rows = [frame.select(pl.col("start_ns").min(), ends.alias("end_ns")).collect().row(0) for frame in (gpu, cpu)]
    known = [(start, end) for start, end in rows if start is not None]
    if not known or max(end for _, end in known) <= min(start for start, _ in known):
        return None
    return min(start for start, _ in known), max(end for _, end in known)
