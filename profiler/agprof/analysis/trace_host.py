"""A host thread's time, cut into pieces by the innermost event open in each; for millions of events."""

from dataclasses import dataclass
from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

MAX_DEPTH = 512
"""Events nested deeper than this are counted to the one above them."""
_CLIP_PASSES = 16


@dataclass(frozen=True, slots=True)
class Pieces:
    """Disjoint pieces that tile a window, ascending. `event`: row of the innermost event, -1 where none is open."""

    start_ns: IntArray
    end_ns: IntArray
    event: IntArray


def innermost_pieces(start_ns: IntArray, end_ns: IntArray, first_ns: int, last_ns: int) -> Pieces:
    """Cut [first, last) by the innermost of one thread's events, which come sorted by begin, then longest first.

    An event that outlives the one it began in (times are rounded) ends there with it.
    """
    start = np.clip(start_ns, first_ns, last_ns)
    levels, end = nesting(start, np.clip(end_ns, first_ns, last_ns))
    points = np.sort(np.concatenate([[first_ns, last_ns], start, end]).astype(np.int64))
    # Not np.unique: on millions of values its hashing is ten times as slow as sorting.
    points = points[np.concatenate([[True], points[1:] != points[:-1]])]
    inner = np.full(max(points.size - 1, 0), -1, dtype=np.int64)
    for members in levels:
        low = np.searchsorted(points, start[members])
        counts = np.searchsorted(points, end[members]) - low
        before = np.cumsum(counts) - counts
        inner[np.repeat(low - before, counts) + np.arange(int(counts.sum()))] = np.repeat(members, counts)
    if not inner.size:
        empty = np.zeros(0, dtype=np.int64)
        return Pieces(empty, empty, empty)
    changes = np.flatnonzero(np.concatenate([[True], inner[1:] != inner[:-1]]))
    borders = np.append(points[changes], points[-1])
    return Pieces(borders[:-1], borders[1:], inner[changes])


def nesting(start_ns: IntArray, end_ns: IntArray) -> tuple[list[IntArray], IntArray]:
    """Rows by depth of nesting (outermost first), and the ends, cut off where an event outlives its container.

    Rows come sorted by begin, then longest first. Those without duration, and those deeper than MAX_DEPTH, have no
    depth.
    """
    end = end_ns.copy()
    levels: list[IntArray] = []
    rest = np.flatnonzero(end > start_ns)
    while rest.size and len(levels) < MAX_DEPTH:
        outermost = _outermost(start_ns[rest], end, rest)
        levels.append(rest[outermost])
        rest = rest[~outermost]
        rest = rest[end[rest] > start_ns[rest]]
    return levels, end


def _outermost(start: IntArray, end: IntArray, rows: IntArray) -> BoolArray:
    """Which of the rows lie in none before them. Cuts, in `end`, those that outlive their container."""
    for _ in range(_CLIP_PASSES):
        ends = end[rows]
        reach = np.maximum.accumulate(ends)
        outermost = np.concatenate([[True], start[1:] >= reach[:-1]])
        limit = ends[np.flatnonzero(outermost)][np.cumsum(outermost) - 1]
        outlives = ~outermost & (ends > limit) & (start < limit)
        if not outlives.any():
            break
        end[rows[outlives]] = limit[outlives]
    # What begins after the container's end is no part of it; only badly nested events that took more passes than
    # there are come here, and they are cut to nothing.
    stray = ~outermost & (start >= limit)
    end[rows[stray]] = start[stray]
    return outermost
