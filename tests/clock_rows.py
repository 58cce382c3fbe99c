"""Rows of the table `clocks` for runs of `synthetic.py`, and other clocks for its nodes.

Node k of a synthetic run has a monotonic clock that is 7,000 s x k ahead; `Clock` gives it any other one, and bursts of
pings over a link whose two ways take as long as they like.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from agprof.model.tables import BY_NAME
from agprof.store.reader import Run, Stream
from synthetic import BOOT_NS

APART_NS = 7_000_000_000_000
TIMES = ("time_ns", "start_ns", "end_ns", "issue_end_ns")
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What a node's clock shows when the reference shows so many ns."""

    offset_ns: int = 0
    drift: float = 0.0
    zero_ns: int = BOOT_NS
    jump_ns: int = 0
    """Added from `jump_at_ns` on."""
    jump_at_ns: int = 2**62

    def shown(self, true_ns: int) -> int:
        jump = self.jump_ns if true_ns >= self.jump_at_ns else 0
        return true_ns + self.offset_ns + round((true_ns - self.zero_ns) * self.drift) + jump


def ping(
    clock: Clock, true_ns: int, forth_ns: int, back_ns: int, turn_ns: int = 20_000, *, real_ns: int | None = None
) -> tuple[Any, ...]:
    """The row of an exchange that began then, as a client on that clock would write it."""
    sent = clock.shown(true_ns)
    received = true_ns + forth_ns
    answered = received + turn_ns
    back = clock.shown(answered + back_ns)
    middle = (sent + back) // 2
    offset = ((received - sent) + (answered - back)) // 2
    half = (back - sent - turn_ns) // 2 + 1
    return (middle, middle + offset, half + half // 1000 + 1, 0, real_ns, 64)


def bursts(clock: Clock, at: Iterable[int], delay_ns: Callable[[], int] = lambda: 10_000) -> list[tuple[Any, ...]]:
    """One exchange at each of these true times; each way takes what `delay_ns` says."""
    return [ping(clock, true_ns, delay_ns(), delay_ns()) for true_ns in at]


def uneven(seed: int, least_ns: int = 5_000, most_ns: int = 2_000_000) -> Callable[[], int]:
    """Ways that differ by a factor of up to a few hundred, and not by chance around a middle."""
    random_ = random.Random(seed)
    return lambda: round(least_ns * (most_ns / least_ns) ** random_.random())


def with_pings(run: Run, rows: Sequence[tuple[Any, ...]], node: int = 1) -> Run:
    """The run with these rows of one node in its table `clocks`."""
    table = BY_NAME["clocks"]
    columns = ["node", *(column.name for column in table.columns)]
    frame = pl.DataFrame([(node, *row) for row in rows], schema=run.tables["clocks"].schema, orient="row")
    assert frame.columns == columns
    return replace(run, tables={**run.tables, "clocks": pl.concat([run.tables["clocks"], frame])})


def with_clock(run: Run, clock: Clock, node: int = 1) -> Run:
    """The run as if that node of it had had this clock: its records and its headers."""
    ranks = [s.number for s in run.streams if s.scope == "rank" and s.header.get("node") == node]
    tables = dict(run.tables)
    for name, table in BY_NAME.items():
        numbers = ranks if table.scope == "rank" else [node]
        moved = [
            pl.when(pl.col(table.scope).is_in(numbers))
            .then(pl.col(column).map_elements(lambda t: clock.shown(t - APART_NS * node), return_dtype=pl.Int64))
            .otherwise(pl.col(column))
            .alias(column)
            for column in TIMES
            if column in tables[name].columns and name != "clocks"
        ]
        tables[name] = tables[name].with_columns(moved)
    return replace(run, tables=tables, streams=tuple(_moved(stream, clock, node) for stream in run.streams))


def _moved(stream: Stream, clock: Clock, node: int) -> Stream:
    if stream.header.get("node") != node:
        return stream
    told = dict(stream.header["clock"])
    told["monotonic_ns"] = clock.shown(told["monotonic_ns"] - APART_NS * node)
    return replace(stream, header={**stream.header, "clock": told})
