"""Rows of process_samples from readings of processes."""

from collections.abc import Mapping

from agprof.sampler.process_files import TICKS_PER_S, Reading
from agprof.sampler.states import SECOND_NS

Readings = Mapping[int, Reading]
Pairs = list[tuple[Reading, Reading]]
"""(now, at the sample before) of each process that was there then."""

_CPU, _READ, _WRITTEN, _VOLUNTARY, _INVOLUNTARY, _WAIT = (
    Reading._fields.index(name)
    for name in ("cpu_ticks", "read_bytes", "write_bytes", "voluntary", "involuntary", "wait_ns")
)


def row_of(
    now_ns: int,
    period_ns: int,
    rank: int | None,
    role: str,
    now: Readings,
    last: Readings,
    pss_bytes: int | None,
    may_be_loaders: bool,
) -> tuple[object, ...]:
    """The row for these processes. `may_be_loaders`: among them are some that can't be told from DataLoader workers.

    Rates are over the processes that were there before too: for the others the beginning of the count is not known.
    """
    pairs = [(reading, last[pid]) for pid, reading in now.items() if pid in last]
    per_s = SECOND_NS / period_ns if period_ns > 0 else None
    loaders = sum(reading.is_loader for reading in now.values())
    ticks = _rate(pairs, _CPU, per_s)
    loader_ticks = _rate([pair for pair in pairs if pair[0].is_loader], _CPU, per_s) if loaders else None
    return (
        now_ns,
        period_ns,
        rank,
        role,
        len(now),
        None if ticks is None else ticks / TICKS_PER_S,
        sum(reading.rss_bytes for reading in now.values()),
        pss_bytes,
        sum(reading.threads for reading in now.values()),
        _rate(pairs, _READ, per_s),
        _rate(pairs, _WRITTEN, per_s),
        _rate(pairs, _VOLUNTARY, per_s),
        _rate(pairs, _INVOLUNTARY, per_s),
        None if loaders == 0 and may_be_loaders else loaders,
        None if loader_ticks is None else loader_ticks / TICKS_PER_S,
        _wait_ratio(pairs, per_s),
    )


def _rate(pairs: Pairs, counter: int, per_s: float | None) -> float | None:
    """Per second, over all pairs that have both; None where there is none, or one went backwards."""
    if per_s is None:
        return None
    total, counted = 0, False
    for now, before in pairs:
        value, last = now[counter], before[counter]
        if value is not None and last is not None:
            if value < last:
                return None
            total += value - last
            counted = True
    return total * per_s if counted else None


def _wait_ratio(pairs: Pairs, per_s: float | None) -> float | None:
    """Mean over the processes: where all of them wait half of the time it is 0.5."""
    known = [pair for pair in pairs if pair[0].wait_ns is not None and pair[1].wait_ns is not None]
    total = _rate(known, _WAIT, per_s)
    # Read a moment after the clock: a little more than the whole is the whole.
    return None if total is None else min(1.0, total / SECOND_NS / len(known))
