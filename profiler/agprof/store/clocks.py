"""The clocks of this node, read together: what turns monotonic times into wall time. Standard library only."""

import time

_LOOKS = 5


def read_clocks() -> dict[str, int]:
    """realtime_ns, monotonic_ns and boottime_ns of one instant.

    A thread may lose its core between two readings, and every wall time of the stream would be off by that. So the
    clocks are read several times, and the reading that took least counts.
    """
    best, shortest = (0, 0, 0), None
    for _ in range(_LOOKS):
        before = time.monotonic_ns()
        realtime = time.time_ns()
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        took = time.monotonic_ns() - before
        if shortest is None or took < shortest:
            best, shortest = (realtime, before + took // 2, boottime), took
    return dict(zip(("realtime_ns", "monotonic_ns", "boottime_ns"), best, strict=True))
