"""Rows of an Nsight Systems export on their way to the ranks they belong to: clock, sanity, names."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from agprof.importers.nsys_ranks import NsysRank
from agprof.store.traces import TraceWriter

MAX_DURATION_NS = 30 * 86_400 * 10**9
"""Thirty days: what claims to last longer is damage."""
_FURTHEST_NS = 2**61
NAMELESS = "(no name)"


@dataclass(slots=True, kw_only=True)
class Target:
    """A rank and what was written of it so far."""

    rank: NsysRank
    writer: TraceWriter
    events: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first_ns: int | None = None
    last_ns: int | None = None

    def append(self, table: str, rows: pl.DataFrame) -> None:
        """Write rows that have the table's columns, with a column `text` in place of `name`."""
        if not rows.height:
            return
        columns = {name: rows[name] for name in rows.columns if name != "text"}
        if "text" in rows.columns:
            columns["name"] = self.names(rows["text"])
        self.writer.append(table, columns)
        begin = next((name for name in ("start_ns", "time_ns") if name in columns), None)
        if begin is None:
            return
        ends = columns[begin] + columns["duration_ns"] if "duration_ns" in columns else columns[begin]
        first, last = int(columns[begin].min() or 0), int(ends.max() or 0)  # type: ignore[arg-type]
        self.first_ns = first if self.first_ns is None else min(first, self.first_ns)
        self.last_ns = last if self.last_ns is None else max(last, self.last_ns)

    def names(self, texts: pl.Series) -> pl.Series:
        """Ids of names."""
        known = texts.fill_null(NAMELESS)
        unique = known.unique().to_list()
        return known.replace_strict(unique, [self.writer.name(text) for text in unique], return_dtype=pl.Int64)


class Targets:
    """All ranks of an export."""

    def __init__(
        self, ranks: Sequence[Target], *, base_ns: int, limit_ns: int | None, tell: Callable[[int], None]
    ) -> None:
        self.all = tuple(ranks)
        self.tell = tell
        """Is told how many rows were read."""
        self._base_ns = base_ns
        self._limit_ns = min(limit_ns or _FURTHEST_NS, _FURTHEST_NS)
        self._by_process: dict[int, list[int]] = {}
        for number, target in enumerate(self.all):
            if target.rank.process is not None:
                self._by_process.setdefault(target.rank.process, []).append(number)

    @property
    def several_devices(self) -> frozenset[int]:
        """Processes that have a rank per device."""
        return frozenset(process for process, ranks in self._by_process.items() if len(ranks) > 1)

    def of_devices(self, rows: pl.DataFrame, what: str) -> list[tuple[Target, pl.DataFrame]]:
        """Rows with columns `process` and `device`, by the rank they are of; the others are counted and left out."""
        keys = pl.DataFrame(
            {
                "process": pl.Series([t.rank.process for t in self.all], dtype=pl.Int64),
                "device": pl.Series([t.rank.device for t in self.all], dtype=pl.Int64),
                "target": pl.Series(range(len(self.all)), dtype=pl.Int64),
            }
        )
        if all(target.rank.process is None or rows["process"].null_count() == rows.height for target in self.all):
            return self._parts(rows.join(keys.drop("process"), on="device", how="left"), what)
        return self._parts(rows.join(keys, on=["process", "device"], how="left", nulls_equal=True), what)

    def of_processes(self, rows: pl.DataFrame, what: str) -> list[tuple[Target, pl.DataFrame]]:
        """Rows with a column `process`, by the rank; those of a process with several ranks go to each of them."""
        if len(self.all) == 1 and self.all[0].rank.process is None:
            return [(self.all[0], rows)]
        pairs = [(process, number) for process, numbers in self._by_process.items() for number in numbers]
        keys = pl.DataFrame(pairs, schema={"process": pl.Int64, "target": pl.Int64}, orient="row")
        return self._parts(rows.join(keys, on="process", how="left"), what)

    def _parts(self, rows: pl.DataFrame, what: str) -> list[tuple[Target, pl.DataFrame]]:
        lost = rows["target"].null_count()
        if lost:
            for target in self.all[:1]:
                target.left_out[f"{what} of other processes or devices"] += lost
        known = rows.drop_nulls("target")
        return [(self.all[int(key[0])], part) for key, part in known.partition_by("target", as_dict=True).items()]

    def timed(self, target: Target, rows: pl.DataFrame, what: str) -> pl.DataFrame:
        """Rows with `start` and `end` as start_ns and duration_ns; impossible ones are counted and left out."""
        target.events[what] += rows.height
        bad: Mapping[str, pl.Expr] = {
            "no time": pl.col("start").is_null() | pl.col("end").is_null(),
            "negative duration": pl.col("end") < pl.col("start"),
            "outside the session": (pl.col("start").abs() > self._limit_ns) | (pl.col("end").abs() > self._limit_ns),
            "impossible duration": pl.col("end") - pl.col("start") > MAX_DURATION_NS,
        }
        for reason, wrong in bad.items():
            keep = rows.filter(~wrong.fill_null(value=False))
            if keep.height < rows.height:
                target.left_out[reason] += rows.height - keep.height
                rows = keep
        return rows.with_columns(start_ns=pl.col("start") + self._base_ns, duration_ns=pl.col("end") - pl.col("start"))
