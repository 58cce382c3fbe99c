"""The device's time of one rank: compute, exposed communication and copies, idle by cause. The parts add up exactly."""

from dataclasses import dataclass

import numpy as np

from agprof.analysis.trace_activities import COMMUNICATION, COMPUTE, MEMCPY, MEMSET, Device
from agprof.analysis.trace_idle import CAUSES, HostWaits, idle_by_cause
from agprof.analysis.trace_intervals import Disjoint, gaps, together
from agprof.analysis.trace_steps import DeviceStep
from agprof.model.trace_answers import IdleCause, TraceBreakdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A device's window as nested sets: each class of activity added to those that hide it, and idle time by cause.

    What a class shows is what its set has beyond the one before it, so that the parts add up exactly.
    """

    start: int
    end: int
    communication: Disjoint
    compute: Disjoint
    kernels: Disjoint
    """compute and communication."""
    with_copies: Disjoint
    busy: Disjoint
    idle_by_cause: dict[IdleCause, Disjoint]


def parts_of(device: Device, waits: HostWaits, steps: list[DeviceStep]) -> Parts:
    """The parts of the window from the first activity's begin to the last one's end.

    Idle time is known from the first step's begin on, where that comes before the window.
    """
    start, end = int(device.start[0]), int(device.end.max())
    kernels = together(device.by_class[COMPUTE], device.by_class[COMMUNICATION])
    with_copies = together(kernels, device.by_class[MEMCPY])
    busy = together(with_copies, device.by_class[MEMSET])
    return Parts(
        start=start,
        end=end,
        communication=device.by_class[COMMUNICATION],
        compute=device.by_class[COMPUTE],
        kernels=kernels,
        with_copies=with_copies,
        busy=busy,
        idle_by_cause=idle_by_cause(device, waits, gaps(busy, min([start, *(step.start for step in steps)]), end)),
    )


def breakdowns(
    rank: int, parts: Parts, steps: list[DeviceStep], origin: int
) -> tuple[TraceBreakdown, list[TraceBreakdown]]:
    """The whole window's breakdown and one per step; times since `origin`."""
    starts = np.array([parts.start, *(step.start for step in steps)], dtype=np.int64)
    ends = np.array([parts.end, *(step.end for step in steps)], dtype=np.int64)
    numbers = [None, *(step.number for step in steps)]
    compute, communication, kernels, with_copies, busy = (
        part.between(starts, ends)
        for part in (parts.compute, parts.communication, parts.kernels, parts.with_copies, parts.busy)
    )
    figures = {
        "compute_ns": compute,
        "exposed_communication_ns": kernels - compute,
        "exposed_memcpy_ns": with_copies - kernels,
        "exposed_memset_ns": busy - with_copies,
        "idle_ns": ends - starts - busy,
        "communication_ns": communication,
        "overlapped_communication_ns": compute + communication - kernels,
    }
    causes = {cause: parts.idle_by_cause[cause].between(starts, ends) for cause in CAUSES}
    rows = [
        TraceBreakdown(
            rank=rank,
            step=number,
            start_ns=int(starts[row]) - origin,
            window_ns=int(ends[row] - starts[row]),
            overlap_ratio=_ratio(int(figures["overlapped_communication_ns"][row]), int(communication[row])),
            idle_by_cause_ns={cause: int(values[row]) for cause, values in causes.items()},
            **{name: int(values[row]) for name, values in figures.items()},
        )
        for row, number in enumerate(numbers)
    ]
    return rows[0], rows[1:]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
