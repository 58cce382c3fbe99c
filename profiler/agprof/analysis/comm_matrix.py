"""Which ranks pass how many bytes to which: a model of the algorithms, over what was counted.

Sent by each rank, n the size of the group, S as nccl-tests counts it: all-reduce 2 (n - 1) / n S to the next in the
ring of the group's ranks, all-gather and reduce-scatter (n - 1) / n S to the next; broadcast S along the ring from the
root, reduce S along the ring to it; gather, scatter and all-to-all straight, S / n to each; point-to-point as recorded.
"""

from collections.abc import Iterator, Mapping

import polars as pl

from agprof.analysis.comm_calls import group_ranks
from agprof.analysis.view import View
from agprof.model.comm_answers import TalkMatrix

MOST_RANKS = 128
"""Above it no matrix is made: nobody could look at it."""

Sent = Iterator[tuple[int, int, float]]
"""(source, target, bytes)"""


def talk_matrix(view: View, calls: pl.DataFrame) -> TalkMatrix | None:
    """Mean bytes per steady step; None without a steady step or a call whose size and ranks are known."""
    lines = group_ranks(view)
    ranks = tuple(sorted({*view.ranks, *(rank for line in lines for rank in line)}))
    steps = dict(view.steady.group_by("rank").len().iter_rows())
    if not steps or len(ranks) > MOST_RANKS:
        return None
    sums = calls.filter(pl.col("own_bytes") > 0).group_by("rank", "op", "line", "peers").agg(pl.col("own_bytes").sum())
    sent: dict[tuple[int, int], float] = {}
    sums = sums.sort("rank", "op", "line", "peers")
    recorded = {(source, target) for source, target, _ in _direct(calls, receives=False)}
    for rank, op, line, peers, size in sums.iter_rows():
        if line is None:
            continue
        for source, target, bytes_ in _of_call(rank, op, lines[line], peers, float(size)):
            sent[source, target] = sent.get((source, target), 0.0) + bytes_ / steps[rank]
    for receives in (False, True):
        for source, target, bytes_ in _direct(calls, receives=receives):
            # What was received counts only where the rank that sent it left no rows.
            if not receives or (source, target) not in recorded:
                teller = target if receives else source
                sent[source, target] = sent.get((source, target), 0.0) + bytes_ / steps[teller]
    if not sent:
        return None
    return _matrix(view, ranks, sent)


def _matrix(view: View, ranks: tuple[int, ...], sent: Mapping[tuple[int, int], float]) -> TalkMatrix:
    known = set(ranks)
    sent = {pair: size for pair, size in sent.items() if pair[0] in known and pair[1] in known and pair[0] != pair[1]}
    node = {rank: view.node_of.get(rank, 0) for rank in ranks}
    between = sum(size for (source, target), size in sent.items() if node[source] != node[target])
    total = sum(sent.values())
    return TalkMatrix(
        ranks=ranks,
        bytes_per_step=tuple(tuple(sent.get((source, target), 0.0) for target in ranks) for source in ranks),
        between_nodes=between / total if total else 0.0,
    )


def _of_call(rank: int, op: str, line: tuple[int, ...], peers: str | None, size: float) -> Sent:
    """What `rank` sends in a collective of S = `size` on a group of these ranks."""
    n = len(line)
    if n < 2 or rank not in line:
        return
    after = line[(line.index(rank) + 1) % n]
    root = int(peers) if peers is not None and peers.isdecimal() else line[0]
    if op.startswith("all_reduce"):
        yield rank, after, 2 * (n - 1) / n * size
    elif op.startswith(("all_gather", "reduce_scatter")):
        yield rank, after, (n - 1) / n * size
    elif op.startswith("all_to_all"):
        yield from ((rank, other, size / n) for other in line if other != rank)
    elif op.startswith("broadcast"):
        if after != root:
            yield rank, after, size
    elif op.startswith("reduce"):
        if rank != root:
            yield rank, after, size
    elif op.startswith("gather"):
        if rank != root:
            yield rank, root, size / n
    elif op.startswith("scatter") and rank == root:
        yield from ((rank, other, size / n) for other in line if other != rank)


def _direct(calls: pl.DataFrame, *, receives: bool) -> Sent:
    """Point-to-point: (source, target, bytes) of what was sent, or of what was received."""
    op = "recv" if receives else "send"
    alone = calls.filter(pl.col("op").is_in([op, f"{op}_object"]) & (pl.col("own_bytes") > 0)).drop_nulls("peers")
    for rank, peers, size in alone.group_by("rank", "peers").agg(pl.col("own_bytes").sum()).sort("rank").iter_rows():
        if peers.isdecimal():
            yield (int(peers), rank, size) if receives else (rank, int(peers), size)
    batches = calls.filter(pl.col("op") == "send_recv").drop_nulls("peers")
    for rank, peers, count in batches.group_by("rank", "peers").len().sort("rank", "peers").iter_rows():
        for peer, size in batch(peers, "<" if receives else ">"):
            yield (peer, rank, size * count) if receives else (rank, peer, size * count)


def batch(peers: str, way: str) -> Iterator[tuple[int, int]]:
    """(peer, bytes) of one way of a batch.

    >>> list(batch(">3:64,<1:32,>0:8", ">"))
    [(3, 64), (0, 8)]
    """
    for part in peers.split(","):
        peer, _, size = part[1:].partition(":")
        if part[:1] == way and peer.isdecimal() and size.isdecimal():
            yield int(peer), int(size)
