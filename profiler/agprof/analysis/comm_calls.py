"""The collectives of a run, matched across ranks: how long the transfer took, who waited for whom, how long."""

from typing import Any

import polars as pl

from agprof.analysis.view import View

SYNCHRONISING = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier")
"""How operations begin in which no rank is done before the last one has entered."""
_KEY = ["group", "line", "op", "group_size", "match_bytes", "ordinal"]


def matched_calls(view: View) -> pl.DataFrame:
    """All collectives with duration_ns (call to completion), transfer_ns, skew_ns, waited_ns, stood_ns and line.

    The k-th call of an operation on a group is the same on all its ranks. Where all of the group are here, transfer_ns
    is the shortest duration over them (the last to enter waits for nobody), skew_ns the longest minus that, and
    waited_ns this rank's own duration minus that. A send is matched with the recv of its peer in the same way.

    `line`: number of the set of ranks that the group is, by `group_ranks`; null where they are not known. `stood_ns`:
    how long the caller stood in the call or waited for it. `bytes` of an uneven all-to-all becomes the most of its
    ranks (nccl-tests' S); `own_bytes` is what this rank gave.
    """
    calls = _with_lines(view, view.tables["collectives"])
    duration = pl.max_horizontal("issue_end_ns", "end_ns") - pl.col("start_ns")
    uneven = pl.col("op").str.starts_with("all_to_all")
    calls = calls.sort("rank", "start_ns", maintain_order=True).with_columns(
        duration_ns=pl.when(pl.col("async_op") & pl.col("end_ns").is_null()).then(None).otherwise(duration),
        ordinal=pl.int_range(pl.len()).over("rank", "group", "op"),
        own_bytes=pl.col("bytes"),
        match_bytes=pl.when(~uneven).then("bytes"),
        stood_ns=pl.col("issue_end_ns") - pl.col("start_ns") + pl.col("wait_ns"),
    )
    matches = calls.group_by(_KEY).agg(
        present=pl.col("rank").n_unique(),
        lead=pl.col("rank").min(),
        known=pl.col("duration_ns").count(),
        shortest=pl.col("duration_ns").min(),
        longest=pl.col("duration_ns").max(),
        most_bytes=pl.col("bytes").max(),
    )
    whole = (pl.col("present") == pl.col("group_size")) & (pl.col("known") == pl.col("group_size"))
    whole &= pl.col("group_size") > 1
    matched = calls.join(matches, on=_KEY, how="left", nulls_equal=True, maintain_order="left").with_columns(
        transfer_ns=pl.when(whole).then("shortest"),
        skew_ns=pl.when(whole).then(pl.col("longest") - pl.col("shortest")),
        bytes=pl.when(whole & uneven).then("most_bytes").otherwise("bytes"),
    )
    return _with_pairs(matched).with_columns(waited_ns=pl.col("duration_ns") - pl.col("transfer_ns"))


def _with_pairs(calls: pl.DataFrame) -> pl.DataFrame:
    """Sends and recvs matched by their peers: the k-th from one rank to another, where there are as many of both."""
    kind = pl.col("op").str.extract("^(?:send|recv)(|_object)$")
    sends = pl.col("op").str.starts_with("send")
    if not calls.select(kind.is_not_null().any()).item():
        return calls
    calls = calls.with_row_index("row")
    sides = (
        calls.with_columns(kind=kind, peer=pl.col("peers").cast(pl.Int64, strict=False))
        .drop_nulls(["kind", "peer"])
        .with_columns(
            source=pl.when(sends).then("rank").otherwise("peer"), target=pl.when(sends).then("peer").otherwise("rank")
        )
        .with_columns(
            pair_ordinal=pl.int_range(pl.len()).over("rank", "group", "op", "peer"),
            alike=sends.sum().over("group", "kind", "source", "target") * 2
            == pl.len().over("group", "kind", "source", "target"),
        )
        .filter("alike")
    )
    key = ["group", "kind", "source", "target", "bytes", "pair_ordinal"]
    pairs = sides.group_by(key).agg(
        sides=pl.len(), known=pl.col("duration_ns").count(), low=pl.col("duration_ns").min(),
        high=pl.col("duration_ns").max(),
    )  # fmt: skip
    pairs = pairs.filter((pl.col("sides") == 2) & (pl.col("known") == 2))
    found = sides.join(pairs, on=key, how="inner", nulls_equal=True).select("row", "low", "high")
    return (
        calls.join(found, on="row", how="left", maintain_order="left")
        .with_columns(
            transfer_ns=pl.coalesce("transfer_ns", "low"),
            skew_ns=pl.coalesce("skew_ns", pl.col("high") - pl.col("low")),
            lead=pl.when(pl.col("low").is_not_null()).then("rank").otherwise("lead"),
        )
        .drop("row", "low", "high")
    )


def steady_calls(view: View, calls: pl.DataFrame) -> pl.DataFrame:
    """Those of steady steps."""
    return calls.join(view.steady.select("rank", "step"), on=["rank", "step"], how="semi", maintain_order="left")


# -- the ranks of a group ---------------------------------------------------------------------------------------------


def group_ranks(view: View) -> tuple[tuple[int, ...], ...]:
    """The sets of ranks that talk, in the group's own order, numbered as column `line` of `matched_calls`."""
    return _lines(view)[1]


def _with_lines(view: View, collectives: pl.DataFrame) -> pl.DataFrame:
    rows, _ = _lines(view)
    schema = {"rank": pl.Int64, "group": pl.String, "group_size": pl.Int64, "line": pl.Int64}
    lines = pl.DataFrame(rows, schema=schema, orient="row")
    return collectives.join(lines, on=["rank", "group", "group_size"], how="left", maintain_order="left")


def _lines(view: View) -> tuple[list[tuple[int, str, int, int]], tuple[tuple[int, ...], ...]]:
    """(rank, group, group_size, line) per rank and group whose ranks are known, and the ranks of each line.

    The ranks told them (fact comm.group.NAME), or they are all ranks, or as many as the group has ranks used its name.
    """
    used = view.tables["collectives"].select("rank", "group", "group_size").unique().sort("group", "group_size", "rank")
    world = view.fact("dist.world_size")
    seen: dict[tuple[str, int], list[int]] = {}
    for rank, group, size in used.iter_rows():
        seen.setdefault((group, size), []).append(rank)
    numbers: dict[tuple[int, ...], int] = {}
    rows = []
    for rank, group, size in used.iter_rows():
        ranks = _told(view.facts.get(rank, {}).get(f"comm.group.{group}"), rank, size)
        if ranks is None and size == world:
            ranks = tuple(range(size))
        if ranks is None and len(seen[group, size]) == size:
            ranks = tuple(seen[group, size])
        if ranks is not None:
            rows.append((rank, group, size, numbers.setdefault(ranks, len(numbers))))
    return rows, tuple(numbers)


def _told(value: Any, rank: int, size: int) -> tuple[int, ...] | None:
    """A fact as ranks; None where it is not what the group's rows say."""
    if not isinstance(value, list) or len(value) != size or rank not in value:
        return None
    if not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in value):
        return None
    return tuple(value)
