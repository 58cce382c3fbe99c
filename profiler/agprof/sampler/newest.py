"""The newest rows of the node's tables, kept while they are written, for whoever asks for current values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agprof.model.tables import BY_NAME
from agprof.sampler.loop import MAX_PERIOD_S, TierName
from agprof.sampler.metrics import SOURCES, Metric, Source
from agprof.sampler.states import SECOND_NS, Append

STALE_PERIODS = 3

Key = tuple[Any, ...]


@dataclass(slots=True)
class _Last:
    time_ns: int
    gap_ns: int
    """Time to the row before it: a tier that was slowed down has longer periods than it was given."""
    row: tuple[Any, ...]


@dataclass(slots=True)
class _Sparse:
    time_ns: int
    value: float


class _Watched:
    """One table's columns by position."""

    def __init__(self, source: Source) -> None:
        names = [column.name for column in BY_NAME[source.table].columns]
        self.source = source
        self.keys = tuple(names.index(name) for name in source.keys)
        self.columns = {metric: names.index(metric.column) for metric in source.metrics}
        self.sums = tuple((metric, at) for metric, at in self.columns.items() if metric.kind == "sum")
        self.sparse = tuple((metric, at) for metric, at in self.columns.items() if metric.sparse is not None)


class Newest:
    """Passes rows on to `append` and remembers the newest of each GPU, interface, rank ...

    Rows come from several threads, and `values` may be asked on another.
    """

    def __init__(self, append: Append, periods_s: Mapping[TierName, float]) -> None:
        self._append = append
        self._periods_ns = {name: int(period_s * SECOND_NS) for name, period_s in periods_s.items()}
        self._watched = {source.table: _Watched(source) for source in SOURCES}
        self._last: dict[tuple[str, Key], _Last] = {}
        self._sums: dict[tuple[Metric, Key], float] = {}
        self._sparse: dict[tuple[Metric, Key], _Sparse] = {}
        self._gpus: dict[int, tuple[Any, ...]] = {}
        self._own: tuple[Any, ...] | None = None
        self._events: dict[tuple[str, str], int] = {}

    def append(self, table: str, row: tuple[Any, ...]) -> None:
        self._append(table, row)
        watched = self._watched.get(table)
        if watched is not None:
            self._keep(watched, row)
        elif table == "gpus":
            self._gpus[row[0]] = row
        elif table == "gpu_events":
            event = ("" if row[1] is None else str(row[1]), row[2])
            self._events[event] = self._events.get(event, 0) + 1
        elif table == "sampler_state" and row[1] == "self" and row[2] == "ok":
            self._own = row

    def _keep(self, watched: _Watched, row: tuple[Any, ...]) -> None:
        time_ns, key = row[0], tuple([row[at] for at in watched.keys])
        last = self._last.get((watched.source.table, key))
        gap_ns = 0 if last is None else time_ns - last.time_ns
        self._last[(watched.source.table, key)] = _Last(time_ns, gap_ns, row)
        for metric, at in watched.sums:
            if at < len(row) and row[at] is not None:
                self._sums[(metric, key)] = self._sums.get((metric, key), 0.0) + row[at]
        for metric, at in watched.sparse:
            if at < len(row) and row[at] is not None:
                self._sparse[(metric, key)] = _Sparse(time_ns, row[at])

    def values(self, now_ns: int) -> Iterator[tuple[Source, Metric, Key, float]]:
        """What is known now, in base units. What is None, or older than three periods of its tier, is left out."""
        for (table, key), last in list(self._last.items()):
            watched = self._watched[table]
            if now_ns - last.time_ns > self._stale_ns(watched.source.tier, last.gap_ns):
                continue
            for metric, at in watched.columns.items():
                value = self._value(metric, key, last.row[at] if at < len(last.row) else None, now_ns)
                if value is not None:
                    yield watched.source, metric, key, float(value) * metric.factor

    def _value(self, metric: Metric, key: Key, newest: Any, now_ns: int) -> float | None:
        if metric.kind == "sum":
            return self._sums.get((metric, key))
        if metric.sparse is None:
            return newest  # type: ignore[no-any-return]
        kept = self._sparse.get((metric, key))
        return None if kept is None or now_ns - kept.time_ns > self._stale_ns(metric.sparse, 0) else kept.value

    def _stale_ns(self, tier: TierName, gap_ns: int) -> int:
        longest_ns = int(MAX_PERIOD_S[tier] * SECOND_NS)
        return STALE_PERIODS * max(self._periods_ns[tier], min(gap_ns, longest_ns))

    def gpus(self) -> dict[int, dict[str, Any]]:
        """The newest row of each GPU by its number, as name -> value."""
        names = [column.name for column in BY_NAME["gpus"].columns]
        return {gpu: dict(zip(names, row, strict=False)) for gpu, row in list(self._gpus.items())}

    def events(self) -> dict[tuple[str, str], int]:
        """How many events of (GPU, kind) there were so far."""
        return dict(self._events)

    def own(self) -> tuple[int | None, int | None]:
        """(CPU time in ns, resident bytes) of the sampler, by its newest row about itself."""
        return (None, None) if self._own is None else (self._own[4], self._own[5])
