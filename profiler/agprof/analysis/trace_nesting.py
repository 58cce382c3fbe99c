"""Innermost of nested host events at given times, per thread. Vectorised over millions of events and questions."""

import numpy as np

from agprof.analysis.trace_intervals import Ints

_DEEPEST = 256


def innermost_at(start: Ints, end: Ints, thread: Ints, at: Ints, at_thread: Ints) -> Ints:
    """Index of the innermost event that holds each time on its thread, or -1.

    Events of a thread nest; one that outlives the event it began in is taken as ended with it by its depth only, so
    that a question right after that border may find none. Deeper than 256 counts as the 256th.
    """
    found = np.full(len(at), -1, dtype=np.int64)
    if not len(start) or not len(at):
        return found
    order = np.lexsort((-end, start, thread))
    threads, first = np.unique(thread[order], return_index=True)
    events = np.split(order, first[1:])
    question_order = np.argsort(at_thread, kind="stable")
    asked = at_thread[question_order]
    for number, mine in zip(threads, events, strict=True):
        low, high = np.searchsorted(asked, number, side="left"), np.searchsorted(asked, number, side="right")
        if low < high:
            questions = question_order[low:high]
            found[questions] = _innermost(start, end, mine, at[questions])
    return found


def _innermost(start: Ints, end: Ints, mine: Ints, at: Ints) -> Ints:
    """The same for one thread, whose events come sorted by begin, then longest first."""
    solid = mine[end[mine] > start[mine]]
    begins, ends = start[solid], np.sort(end[solid])
    depth = np.arange(len(solid)) - np.searchsorted(ends, begins, side="right")
    depth = np.minimum(depth, _DEEPEST)
    before = np.searchsorted(begins, at, side="right")
    asked_depth = np.minimum(before - np.searchsorted(ends, at, side="right") - 1, _DEEPEST)
    found = np.full(len(at), -1, dtype=np.int64)
    for level in np.unique(asked_depth[asked_depth >= 0]):
        members = np.flatnonzero(depth == level)
        questions = np.flatnonzero(asked_depth == level)
        if not len(members):
            continue
        last = np.searchsorted(begins[members], at[questions], side="right") - 1
        event = solid[members[np.maximum(last, 0)]]
        good = (last >= 0) & (end[event] > at[questions])
        found[questions] = np.where(good, event, -1)
    return found
