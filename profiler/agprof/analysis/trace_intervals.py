"""Sets of time intervals as numpy arrays: union, coverage up to a point, cut and rest. For millions of intervals.

An interval set is two int64 arrays `start` and `end` (half open, nanoseconds). `Disjoint` is one whose intervals are
sorted, not empty and do not touch. Nothing here changes its inputs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

NO_INTS: Ints = np.zeros(0, dtype=np.int64)
NO_INTS.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Disjoint:
    """Disjoint, sorted intervals."""

    start: Ints
    end: Ints

    @property
    def total_ns(self) -> int:
        """Time covered."""
        return int((self.end - self.start).sum())

    def until(self, at: Ints) -> Ints:
        """Time covered before each point."""
        if not len(self.start):
            return np.zeros(len(at), dtype=np.int64)
        lengths = self.end - self.start
        before = np.cumsum(lengths) - lengths
        last = np.searchsorted(self.start, at, side="right") - 1
        found = np.maximum(last, 0)
        inside = before[found] + np.minimum(at, self.end[found]) - self.start[found]
        return np.where(last < 0, 0, inside)

    def between(self, start: Ints, end: Ints) -> Ints:
        """Time covered in each interval [start, end)."""
        return self.until(np.maximum(start, end)) - self.until(start)

    def holds(self, at: Ints) -> Bools:
        """Whether each point lies in an interval."""
        if not len(self.start):
            return np.zeros(len(at), dtype=np.bool_)
        last = np.searchsorted(self.start, at, side="right") - 1
        return (last >= 0) & (at < self.end[np.maximum(last, 0)])


NOTHING = Disjoint(NO_INTS, NO_INTS)


def union(start: Ints, end: Ints) -> Disjoint:
    """The time that any of the intervals covers. Empty and negative ones vanish; touching ones merge.

    >>> union(np.array([5, 0, 2, 9]), np.array([7, 3, 5, 9]))
    Disjoint(start=array([0]), end=array([7]))
    """
    kept = end > start
    if not kept.all():
        start, end = start[kept], end[kept]
    if not len(start):
        return NOTHING
    if (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
    reach = np.maximum.accumulate(end)
    begins = np.empty(len(start), dtype=np.bool_)
    begins[0] = True
    np.greater(start[1:], reach[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    return Disjoint(start[first], reach[np.append(first[1:] - 1, len(start) - 1)])


def both(one: Disjoint, other: Disjoint) -> Disjoint:
    """The time that both cover.

    It begins where one begins inside the other, and ends where one ends inside the other; both lists are as long.
    """
    if not len(one.start) or not len(other.start):
        return NOTHING
    begins = np.concatenate((one.start[other.holds(one.start)], other.start[_holds_inside(one, other.start)]))
    ends = np.concatenate((one.end[_holds_end(other, one.end)], other.end[_holds_inside(one, other.end)]))
    # Two sorted runs each: a stable sort merges them.
    return Disjoint(np.sort(begins, kind="stable"), np.sort(ends, kind="stable"))


def _holds_inside(intervals: Disjoint, at: Ints) -> Bools:
    """Whether each point lies in an interval, not at its border: what begins or ends with it is counted once."""
    last = np.searchsorted(intervals.start, at, side="left") - 1
    return (last >= 0) & (at < intervals.end[np.maximum(last, 0)])


def _holds_end(intervals: Disjoint, at: Ints) -> Bools:
    """Whether each point lies in an interval or at its end."""
    last = np.searchsorted(intervals.start, at, side="left") - 1
    return (last >= 0) & (at <= intervals.end[np.maximum(last, 0)])


def gaps(covered: Disjoint, start: int, end: int) -> Disjoint:
    """The rest of [start, end)."""
    begins = np.concatenate((np.array([start], dtype=np.int64), covered.end))
    ends = np.concatenate((covered.start, np.array([end], dtype=np.int64)))
    return union(np.clip(begins, start, end), np.clip(ends, start, end))


def without(one: Disjoint, other: Disjoint) -> Disjoint:
    """The time that `one` covers and `other` does not."""
    if not len(one.start) or not len(other.start):
        return one
    return both(one, gaps(other, int(one.start[0]), int(one.end[-1])))


def together(*sets: Disjoint) -> Disjoint:
    """The time that any of the sets covers."""
    solid = [each for each in sets if len(each.start)]
    if len(solid) < 2:
        return solid[0] if solid else NOTHING
    sets = tuple(solid)
    return union(np.concatenate([each.start for each in sets]), np.concatenate([each.end for each in sets]))
