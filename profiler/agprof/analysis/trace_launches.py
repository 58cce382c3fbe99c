"""How one rank's host feeds its device: launch delay, queue length, activities without a launch, graphs."""

import numpy as np

from agprof.analysis.trace_activities import Device
from agprof.analysis.trace_intervals import Ints
from agprof.model.trace_answers import LaunchRow


def launch_row(device: Device) -> LaunchRow:
    """The rank's row. Activities of a graph wait for one another inside it and count for neither delay nor queue."""
    own = device.known & ~device.graph
    launched, begun = device.launched_at()[own], device.start[own]
    delay = np.sort(np.maximum(begun - launched, 0))
    return LaunchRow(
        rank=device.rank,
        activities=len(device.start),
        without_launch=int((~device.known).sum()),
        graph_kernels=int(device.graph.sum()),
        delay_median_ns=_quantile(delay, 0.5),
        delay_p95_ns=_quantile(delay, 0.95),
        delay_max_ns=_quantile(delay, 1.0),
        queue_mean=_queue_mean(launched, begun),
        queue_max=_queue_max(launched, begun),
    )


def _quantile(ordered: Ints, q: float) -> int | None:
    """The value that at least the share q does not exceed; None for no values."""
    return int(ordered[max(0, int(np.ceil(q * len(ordered))) - 1)]) if len(ordered) else None


def _queue_mean(launched: Ints, begun: Ints) -> float | None:
    """Little's law: the delays' sum over the time from the first launch to the last begin."""
    if not len(launched):
        return None
    span = int(begun.max() - launched.min())
    return float(np.maximum(begun - launched, 0).sum()) / span if span > 0 else None


def _queue_max(launched: Ints, begun: Ints) -> int | None:
    """Most activities launched and not begun at once: right after some launch."""
    if not len(launched):
        return None
    waits = begun > launched
    starts, ends = np.sort(launched[waits]), np.sort(begun[waits])
    if not len(starts):
        return 0
    return int((np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")).max())
