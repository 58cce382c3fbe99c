"""Tables of communication beyond the collectives, and of stragglers."""

from collections.abc import Sequence
from itertools import pairwise

from agprof.model.comm_answers import ArrivalRow, CeilingRow, GroupRow, SizeBin
from agprof.model.format import percent
from agprof.model.straggler_answers import StragglerRow
from agprof_reports.columns import Field, table
from agprof_reports.data import Cell, Table
from agprof_reports.text import with_unit

_SPELLED_RANKS = 24


def sizes(bins: Sequence[SizeBin]) -> Table:
    def size(value: int) -> Cell:
        return Cell(with_unit(value, "bytes"), value=value)

    return table(
        "table-sizes",
        "Sizes of messages, per rank and steady step",
        sorted(bins, key=lambda item: (item.op, item.low_bytes)),
        [
            Field(label="operation", get=lambda r: r.op, code=True),
            Field(label="from", get=lambda r: size(r.low_bytes), unit="", base_unit="bytes"),
            Field(label="to below", get=lambda r: size(r.high_bytes), unit="", base_unit="bytes"),
            Field(label="calls", get=lambda r: r.calls_per_step, unit="1", source="counted"),
            Field(label="size", get=lambda r: r.bytes_per_step, unit="bytes", source="counted"),
            Field(label="exposed", get=lambda r: r.exposed_ns_per_step, unit="ns", source="measured"),
        ],
        filter_by="operation",
    )


def groups(rows: Sequence[GroupRow]) -> Table:
    return table(
        "table-groups",
        "Groups of ranks",
        rows,
        [
            Field(label="group", get=lambda r: r.group, code=True),
            Field(label="kind", get=lambda r: r.kind),
            Field(label="size", get=lambda r: len(r.ranks), unit="1"),
            Field(label="nodes", get=lambda r: r.nodes, unit="1"),
            Field(label="ranks", get=lambda r: ranks_words(r.ranks)),
            Field(label="sent per step", get=lambda r: r.bytes_per_step, unit="bytes", source="counted"),
            Field(label="taken for that kind because", get=lambda r: r.evidence),
        ],
        filter_by="kind" if len({row.kind for row in rows}) > 1 else "",
    )


def ranks_words(ranks: Sequence[int]) -> str:
    """Runs and even strides in short: `0–7`, `0, 4, 8`, `0–124 by 4`.

    >>> ranks_words([0, 1, 2, 3]), ranks_words([0, 2]), ranks_words(range(0, 128, 4))
    ('0–3', '0, 2', '0–124 by 4')
    """
    ranks = sorted(ranks)
    if len(ranks) > 2:
        strides = {b - a for a, b in pairwise(ranks)}
        if strides == {1}:
            return f"{ranks[0]}–{ranks[-1]}"
        if len(strides) == 1 and len(ranks) > 4:
            return f"{ranks[0]}–{ranks[-1]} by {strides.pop()}"
    words = ", ".join(str(rank) for rank in ranks[:_SPELLED_RANKS])
    rest = len(ranks) - _SPELLED_RANKS
    return f"{words} and {rest:,} more" if rest > 0 else words


def ceilings(rows: Sequence[CeilingRow]) -> Table:
    return table(
        "table-link-ceilings",
        "Calls against the ceiling of their link",
        sorted(rows, key=lambda row: -row.saving_ns_per_step),
        [
            Field(label="operation", get=lambda r: r.op, code=True),
            Field(label="size", get=lambda r: r.bytes, unit="bytes"),
            Field(label="group", get=lambda r: r.group, code=True),
            Field(label="ranks", get=lambda r: r.group_size, unit="1"),
            Field(label="measured", get=lambda r: r.measured, unit="ns", source="measured"),
            Field(label="predicted", get=lambda r: r.predicted, unit="ns", source="modelled"),
            Field(label="reached", get=_reached, unit="", tip="predicted over measured: 100 % is the ceiling"),
            Field(label="would save", get=lambda r: r.saving_ns_per_step, unit="ns", source="modelled", tip="per step"),
        ],
    )


def _reached(row: CeilingRow) -> Cell:
    if row.reached.value is None:
        return Cell("–", row.reached.reason or "not measured")
    text = percent(row.reached.value)
    return Cell(
        f"{text} far below" if row.far_below else text, mark="bad" if row.far_below else "", value=row.reached.value
    )


def arrivals(rows: Sequence[ArrivalRow]) -> Table:
    return table(
        "table-arrivals",
        "How ranks come to their collectives",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="collectives", get=lambda r: r.matched, unit="1", source="counted"),
            Field(label="came first", get=lambda r: r.first, unit="1", source="counted"),
            Field(label="came last", get=lambda r: r.last, unit="1", source="counted"),
            Field(
                label="lateness", get=lambda r: r.lateness, unit="ns", source="measured",
                tip="median, behind the first of the group",
            ),
        ],
    )  # fmt: skip


def stragglers(rows: Sequence[StragglerRow]) -> Table:
    return table(
        "table-stragglers",
        "Ranks by how much the others wait for them",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="node", get=lambda r: r.node, unit="1"),
            Field(label="host", get=lambda r: r.host or "–", code=True),
            Field(label="slowest in", get=lambda r: r.slowest_share, unit="ratio", tip="share of steady steps"),
            Field(label="own time", get=lambda r: r.own_time, unit="ns", source="measured"),
            Field(label="above median", get=lambda r: r.excess, unit="ns", source="measured"),
            Field(label="likely cause", get=lambda r: Cell(r.cause, mark="" if r.cause == "not known" else "watch")),
            Field(label="evidence", get=lambda r: r.evidence),
            Field(label="how sure", get=lambda r: r.confidence),
        ],
    )
