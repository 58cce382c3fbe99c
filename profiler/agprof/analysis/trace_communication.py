"""Communication kernels: which, how large, how fast, and how long they wait for the last rank. docs/trace-analysis.md.

Calls are matched across ranks without trusting the ranks' clocks: by the number that the trace gives them within their
group, else by their order, and then only where that order can be right.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.comm import bus_factor
from agprof.analysis.trace_activities import COMMUNICATION, Device
from agprof.model.communication_kernels import operation
from agprof.model.format import format_value
from agprof.model.trace_answers import TraceCollectiveRow
from agprof.store.traces import RankTrace

_KIND = ["library", "op", "group", "group_size", "dtype", "bytes"]
"""What makes calls one row."""
_SAME = ["library", "op", "group"]
"""Within which calls are numbered."""
MAX_ROWS = 2000
"""Rows of collectives that are kept, those that take most: sizes that differ from call to call make one each."""
OVERLAPPING = 0.9
"""Share of calls matched by order that must run at one time on all ranks for the order to be believed."""
_ITEM_BYTES = {
    "byte": 1, "char": 1, "bool": 1, "int8": 1, "uint8": 1, "half": 2, "bfloat16": 2, "short": 2, "float16": 2,
    "int16": 2, "uint16": 2, "float": 4, "int": 4, "float32": 4, "int32": 4, "uint32": 4, "long": 8, "double": 8,
    "int64": 8, "uint64": 8, "float64": 8, "complexhalf": 4, "complexfloat": 8, "complexdouble": 16,
}  # fmt: skip
_POINT_TO_POINT = ("send", "recv", "isend", "irecv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """All communication of the ranks, and what could be matched of it."""

    calls: pl.DataFrame
    """Columns of `communication_calls`, transfer_ns (null where not matched) and call: the number of the match."""
    notes: tuple[str, ...]
    """Why some could not be matched."""


def communication_calls(trace: RankTrace, device: Device) -> pl.DataFrame:
    """One row per communication kernel of a rank, in order: rank, start_ns, duration_ns, library, op, group,
    group_size, dtype, bytes, sequence."""
    mine = np.flatnonzero(device.kind == COMMUNICATION)
    ids = device.name[mine].tolist()
    said = {i: operation(device.text.get(i, "")) for i in set(ids)}
    kernels = pl.DataFrame(
        {
            "rank": np.full(len(mine), device.rank, dtype=np.int64),
            "start_ns": device.start[mine],
            "duration_ns": (device.end - device.start)[mine],
            "library": pl.Series([device.library[i] for i in ids], dtype=pl.String),
            "named": pl.Series([said[i] for i in ids], dtype=pl.String),
            "correlation": device.correlation[mine],
            "external_id": device.external_id[mine],
        }
    )
    args = trace.table("comm_args").with_columns(bytes=_total_bytes())
    told = ["op", "group", "group_size", "dtype", "bytes", "sequence"]
    own = args.drop_nulls("correlation").unique("correlation", keep="first", maintain_order=True)
    host = args.drop_nulls("external_id").filter(pl.col("correlation").is_null() & (pl.col("op") != "wait"))
    host = host.unique("external_id", keep="first", maintain_order=True)
    joined = kernels.join(own.select("correlation", *told), on="correlation", how="left", maintain_order="left").join(
        host.select("external_id", *told), on="external_id", how="left", suffix="_host", maintain_order="left"
    )
    known = pl.col("op").is_not_null()
    joined = joined.with_columns(
        pl.when(known).then(name).otherwise(f"{name}_host").alias(name) for name in told
    ).with_columns(pl.col("op").fill_null(pl.col("named")))
    return joined.select("rank", "start_ns", "duration_ns", "library", *told)


def _total_bytes() -> pl.Expr:
    """S of nccl-tests: all ranks' data for what gathers and scatters, one rank's for the rest."""
    width = pl.col("dtype").str.to_lowercase().str.strip_prefix("nccl").replace_strict(
        _ITEM_BYTES, default=pl.when(pl.col("dtype").str.contains("(?i)float8|fp8")).then(1), return_dtype=pl.Int64
    )  # fmt: skip
    op, n = pl.col("op"), pl.col("group_size")
    one, all_ = pl.col("elements_in"), pl.col("elements_out")
    gathers = op.str.starts_with("all_gather") | op.str.starts_with("gather")
    scatters = op.str.starts_with("reduce_scatter") | op.str.starts_with("scatter")
    elements = (
        pl.when(gathers)
        .then(pl.max_horizontal(all_, one * n))
        .when(scatters)
        .then(pl.max_horizontal(one, all_ * n))
        .otherwise(pl.max_horizontal(one, all_))
    )
    return pl.when(elements > 0).then(elements * width)


def match(calls: Iterable[pl.DataFrame], world: int | None = None) -> Matches:
    """Match all ranks' calls. What is matched has the shortest duration over the ranks as transfer_ns.

    `world` is the number of ranks of the job; without all ranks of a group nothing of it is matched, since the last to
    come may be one that is not here.
    """
    parts = sorted((part for part in calls if part.height), key=lambda part: int(part["rank"][0]))
    if not parts:
        return Matches(calls=pl.DataFrame(), notes=())
    table = pl.concat(parts).with_columns(ordinal=pl.int_range(pl.len()).over("rank", *_SAME))
    notes: list[str] = []
    matched = [_match_one(key, rows, world, notes) for key, rows in _groups(table)]
    return Matches(
        calls=pl.concat(matched).sort("rank", "start_ns", maintain_order=True).drop("ordinal"),
        notes=tuple(dict.fromkeys(notes)),
    )


def _groups(table: pl.DataFrame) -> list[tuple[tuple[object, ...], pl.DataFrame]]:
    parts = table.partition_by(_SAME, as_dict=True, maintain_order=True)
    return sorted(parts.items(), key=lambda item: tuple(str(each) for each in item[0]))


def _match_one(key: tuple[object, ...], rows: pl.DataFrame, world: int | None, notes: list[str]) -> pl.DataFrame:
    """The calls of one operation on one group, with transfer_ns, ranks and call; nulls where they are not matched."""
    numbered = rows["sequence"].null_count() == 0 and not rows.select("rank", "sequence").is_duplicated().any()
    number = "sequence" if numbered else "ordinal"
    rows = rows.with_columns(call=pl.col(number))
    ranks = rows["rank"].n_unique()
    same = rows.group_by("call").agg(
        transfer_ns=pl.col("duration_ns").min(),
        ranks=pl.col("rank").n_unique().cast(pl.Int64),
        last_begin=pl.col("start_ns").max(),
        first_end=(pl.col("start_ns") + pl.col("duration_ns")).min(),
    )
    reason = _refusal(key, rows, same, world, numbered)
    if reason:
        notes.append(f"{_label(key)}: {reason}: not matched.")
    if reason is not None:
        same = same.clear()
    whole = same.filter(pl.col("ranks") == ranks).select("call", "transfer_ns", "ranks")
    return rows.join(whole, on="call", how="left", maintain_order="left")


def _label(key: tuple[object, ...]) -> str:
    library, op, group = (str(each)[:100] if each is not None else "" for each in key)
    return f"{library} {op}" + (f" of group {group}" if group else "")


def _refusal(
    key: tuple[object, ...], rows: pl.DataFrame, same: pl.DataFrame, world: int | None, numbered: bool
) -> str | None:
    """Why the calls can't be matched; empty where that needs no word, None where they can."""
    ranks = rows["rank"].n_unique()
    if ranks < 2 or key[1] in _POINT_TO_POINT:
        return ""
    size = rows["group_size"].max() if rows["group_size"].count() else world
    if isinstance(size, int) and ranks < size:
        return f"{ranks:,} of {size:,} ranks are here, and the last to come may be another"
    if numbered:
        return None
    counts = rows.group_by("rank").len()["len"].sort().to_list()
    if counts[0] != counts[-1]:
        return (
            f"the ranks made different numbers of calls ({counts[0]:,} to {counts[-1]:,}), and the trace does not "
            "number them"
        )
    together = same.filter(pl.col("last_begin") <= pl.col("first_end")).height
    if together < OVERLAPPING * same.height:
        return (
            "calls of the same order do not run at the same time on all ranks (other calls, or clocks that differ), "
            "and the trace does not number them"
        )
    return None


def collective_rows(matches: Matches) -> tuple[TraceCollectiveRow, ...]:
    """The table of collectives, those that take most time first."""
    if not matches.calls.height:
        return ()
    rows = (
        matches.calls.group_by(_KIND)
        .agg(
            count=pl.len(),
            sum_ns=pl.col("duration_ns").sum(),
            min_ns=pl.col("duration_ns").min(),
            max_ns=pl.col("duration_ns").max(),
            median_ns=pl.col("duration_ns").median(),
            transfer_ns=pl.col("transfer_ns").mean(),
            wait_ns=(pl.col("duration_ns") - pl.col("transfer_ns")).mean(),
        )
        .sort(["sum_ns", *_KIND], descending=[True, *[False] * len(_KIND)])
    )
    return tuple(_row(row) for row in rows.head(MAX_ROWS).iter_rows(named=True))


def _row(row: Mapping[str, object]) -> TraceCollectiveRow:
    size, n, op = row["bytes"], row["group_size"], str(row["op"])
    time = row["transfer_ns"] if row["transfer_ns"] is not None else row["median_ns"]
    known = isinstance(size, int) and isinstance(time, int | float) and time > 0
    bandwidth = float(size) / float(time) * 1e9 if known else None  # type: ignore[arg-type]
    factor = bus_factor(op, n) if isinstance(n, int) else None
    count, total = int(str(row["count"])), int(str(row["sum_ns"]))
    return TraceCollectiveRow(
        library=str(row["library"]),
        op=op,
        group=_text(row["group"]),
        group_size=n if isinstance(n, int) else None,
        dtype=_text(row["dtype"]),
        bytes_per_call=size if isinstance(size, int) else None,
        count=count,
        sum_ns=total,
        mean_ns=total / count,
        min_ns=int(str(row["min_ns"])),
        max_ns=int(str(row["max_ns"])),
        transfer_ns=_number(row["transfer_ns"]),
        wait_ns=_number(row["wait_ns"]),
        algorithm_bandwidth=bandwidth,
        bus_bandwidth=bandwidth * factor if bandwidth is not None and factor is not None else None,
    )


def _text(value: object) -> str | None:
    return value[:300] if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def communication_sentence(rows: tuple[TraceCollectiveRow, ...], matches: Matches, ranks: int) -> str:
    """What communicates, and how much of that is waiting."""
    if not rows:
        return "No kernel communicates."
    total, count = int(matches.calls["duration_ns"].sum()), matches.calls.height
    libraries = ", ".join(sorted({row.library for row in rows}))
    top = rows[0]
    words = (
        f"{count:,} communication kernels ({libraries}) run {format_value(total / max(1, ranks), 'ns')} per rank, most "
        f"of it {top.op.replace('_', '-')}: {top.count:,} calls of {format_value(top.mean_ns, 'ns')}."
    )
    known = matches.calls.drop_nulls("transfer_ns")
    if known.height:
        spent = int(known["duration_ns"].sum())
        waited = spent - int(known["transfer_ns"].sum())
        share = format_value(waited / spent if spent else 0.0, "ratio")
        words += (
            f" Of the {format_value(spent, 'ns')} in calls that could be matched, {share} is waiting for the last rank."
        )
    elif ranks == 1:
        words += " With one rank's trace, waiting can't be told from transfer."
    if len(rows) == MAX_ROWS:
        words += f" The table holds the {MAX_ROWS:,} combinations of operation, group and size that take most."
    return words + "".join(f" {note}" for note in matches.notes)
