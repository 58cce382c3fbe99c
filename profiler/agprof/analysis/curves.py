"""Curves over time, thinned so that no peak and no dip is lost."""

from collections.abc import Iterator, Sequence
from math import isfinite

from agprof.model.figure import Curve

Points = Sequence[tuple[int, float | None]]


def thin(points: Points, most: int) -> list[tuple[int, float | None]]:
    """At most `most` (>= 5) points: of each slice in time order its lowest, its highest, and a gap if it has one.

    The first and the last point stay. What has `most` points or fewer comes back unchanged.
    """
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    slices = max(1, (most - 2) // 3)
    kept = [points[0]]
    for begin, end in _slices(len(inner), slices):
        part = range(begin, end)
        known = [i for i in part if inner[i][1] is not None]
        keep = {next(i for i in part if inner[i][1] is None)} if len(known) < len(part) else set()
        if known:
            keep |= {min(known, key=lambda i: (inner[i][1], i)), max(known, key=lambda i: (inner[i][1], -i))}
        kept.extend(inner[i] for i in sorted(keep))
    return [*kept, points[-1]]


def _slices(length: int, count: int) -> Iterator[tuple[int, int]]:
    for i in range(count):
        begin, end = length * i // count, length * (i + 1) // count
        if end > begin:
            yield begin, end


def with_gaps(points: Points, longest_ns: int) -> list[tuple[int, float | None]]:
    """Put a point without value into the middle of every stretch longer than `longest_ns`."""
    result: list[tuple[int, float | None]] = []
    for time_ns, value in points:
        if result and time_ns - result[-1][0] > longest_ns > 0:
            result.append(((time_ns + result[-1][0]) // 2, None))
        result.append((time_ns, value if value is not None and isfinite(value) else None))
    return result


def curve(
    label: str, unit: str, points: Points, most: int, *, rank: int | None = None, node: int | None = None
) -> Curve | None:
    """A thinned curve; None when no point has a value."""
    if all(value is None for _, value in points):
        return None
    kept = thin(points, most)
    return Curve(
        label=label,
        unit=unit,
        x_ns=tuple(time_ns for time_ns, _ in kept),
        y=tuple(value for _, value in kept),
        rank=rank,
        node=node,
    )
