"""The device's time of one rank: compute, exposed communication and copies, idle by cause. The parts add up exactly."""

from dataclasses import dataclass

import numpy as np

from agprof.analysis.trace_activities import COMMUNICATION, COMPUTE, MEMCPY, MEMSET, Device
from agprof.analysis.trace_idle import CAUSES, HostWaits, idle_by_cause
from agprof.analysis.trace_intervals import Disjoint, Ints, both, gaps, together, without
from agprof.analysis.trace_steps import DeviceStep
from agprof.model.trace_answers import IdleCause, TraceBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Disjoint sets that tile a device's window, and what communication they hide."""

    start: int
    end: int
    compute: Disjoint
    exposed_communication: Disjoint
    exposed_memcpy: Disjoint
    exposed_memset: Disjoint
    idle: Disjoint
    idle_by_cause: dict[IdleCause, Disjoint]
    communication: Disjoint
    overlapped: Disjoint


def parts_of(device: Device, waits: HostWaits) -> Parts:
    """The parts of the window from the first activity's begin to the last one's end."""
    start, end = int(device.start[0]), int(device.end.max())
    compute, communication = device.by_class[COMPUTE], device.by_class[COMMUNICATION]
    kernels = together(compute, communication)
    copies = together(kernels, device.by_class[MEMCPY])
    busy = together(copies, device.by_class[MEMSET])
    return Parts(
        start=start,
        end=end,
        compute=compute,
        exposed_communication=without(communication, compute),
        exposed_memcpy=without(device.by_class[MEMCPY], kernels),
        exposed_memset=without(device.by_class[MEMSET], copies),
        idle=gaps(busy, start, end),
        idle_by_cause=idle_by_cause(device, waits, start, end),
        communication=communication,
        overlapped=both(communication, compute),
    )


def breakdowns(
    rank: int, parts: Parts, steps: list[DeviceStep], origin: int
) -> tuple[TraceBreakdown, list[TraceBreakdown]]:
    """The whole window's breakdown and one per step; times since `origin`."""
    starts = np.array([parts.start, *(step.start for step in steps)], dtype=np.int64)
    ends = np.array([parts.end, *(step.end for step in steps)], dtype=np.int64)
    numbers = [None, *(step.number for step in steps)]
    columns = {
        "compute_ns": parts.compute,
        "exposed_communication_ns": parts.exposed_communication,
        "exposed_memcpy_ns": parts.exposed_memcpy,
        "exposed_memset_ns": parts.exposed_memset,
        "idle_ns": parts.idle,
        "communication_ns": parts.communication,
        "overlapped_communication_ns": parts.overlapped,
    }
    figures = {name: _within(part, starts, ends) for name, part in columns.items()}
    causes = {cause: _within(parts.idle_by_cause[cause], starts, ends) for cause in CAUSES}
    rows = [
        TraceBreakdown(
            rank=rank,
            step=number,
            start_ns=int(starts[row]) - origin,
            window_ns=int(ends[row] - starts[row]),
            overlap_ratio=_ratio(figures["overlapped_communication_ns"][row], figures["communication_ns"][row]),
            idle_by_cause_ns={cause: values[row] for cause, values in causes.items()},
            **{name: values[row] for name, values in figures.items()},
        )
        for row, number in enumerate(numbers)
    ]
    return rows[0], rows[1:]


def _within(part: Disjoint, starts: Ints, ends: Ints) -> list[int]:
    return [int(value) for value in part.between(starts, ends)]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
