"""Rows of process_samples from readings of processes."""

from collections.abc import Iterable, Mapping
from operator import attrgetter

from agprof.sampler.process_files import TICKS_PER_S, Reading
from agprof.sampler.states import SECOND_NS

Readings = Mapping[int, Reading]

_CPU, _READ, _WRITTEN = attrgetter("cpu_ticks"), attrgetter("read_bytes"), attrgetter("write_bytes")
_VOLUNTARY, _INVOLUNTARY, _WAIT = attrgetter("voluntary"), attrgetter("involuntary"), attrgetter("wait_ns")


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


def _rate(pairs: Iterable[tuple[Reading, Reading]], counter: attrgetter, per_s: float | None) -> float | None:  # type: ignore[type-arg]
    """Per second, over all pairs that have both; None where there is none, or one went backwards."""
    if per_s is None:
        return None
    total, counted = 0, False
    for now, before in pairs:
        value, last = counter(now), counter(before)
        if value is not None and last is not None:
            if value < last:
                return None
            total += value - last
            counted = True
    return total * per_s if counted else None


def _wait_ratio(pairs: list[tuple[Reading, Reading]], per_s: float | None) -> float | None:
    """Mean over the processes: where all of them wait half of the time it is 0.5."""
    known = [pair for pair in pairs if pair[0].wait_ns is not None and pair[1].wait_ns is not None]
    total = _rate(known, _WAIT, per_s)
    # Read a moment after the clock: a little more than the whole is the whole.
    return None if total is None else min(1.0, total / SECOND_NS / len(known))
