"""A curve that never has more than so many points and never loses its highest or lowest one."""

from collections.abc import Callable

Point = tuple[int, int, str, str]
"""time_ns, live_bytes, phase, module"""

MAX_POINTS = 4096
"""While it is written; what is kept at the end may be less."""


class Curve:
    """Points in the order of time."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def add(
        self, time_ns: int, live_bytes: int, phase: Callable[[], str] | None, module: Callable[[], str] | None = None
    ) -> None:
        points = self._points
        if points and points[-1][1] == live_bytes:
            return
        points.append((time_ns, live_bytes, phase() if phase else "", module() if module else ""))
        if len(points) > MAX_POINTS:
            self._points = thinned(points, MAX_POINTS // 2)

    def points(self, at_most: int) -> list[Point]:
        return thinned(self._points, at_most)


def thinned(points: list[Point], at_most: int) -> list[Point]:
    """At most so many of `points`: of each of equally long runs the first, lowest, highest and last one.

    >>> thinned([(t, 10 if t == 37 else 1 + t % 2, "", "") for t in range(100)], 8)[-4:-2]
    [(50, 1, '', ''), (51, 2, '', '')]
    """
    if len(points) <= at_most:
        return points
    runs = max(1, at_most // 4)
    length = -(-len(points) // runs)
    kept = []
    for begin in range(0, len(points), length):
        run = range(begin, min(begin + length, len(points)))
        lowest = min(run, key=lambda index: points[index][1])
        highest = max(run, key=lambda index: points[index][1])
        kept += [points[index] for index in sorted({run[0], lowest, highest, run[-1]})]
    return kept
