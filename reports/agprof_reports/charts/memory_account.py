"""What held memory: parts per rank and moment as stacked bars, and one account as a waterfall with its formulas."""

from collections.abc import Sequence

from agprof.model.memory_answers import MemoryAccount
from agprof_reports import memory_tables
from agprof_reports.charts.memory_parts import (
    PARTS,
    StackRow,
    bar_of,
    colour_of,
    layout_of,
    legend_of,
    marker_of,
    stacked,
    word_of,
)
from agprof_reports.charts.pieces import row_axis, short
from agprof_reports.data import Chart, Spec
from agprof_reports.text import label, scale, with_unit

ALL_RANKS = 4
"""Up to so many ranks all are drawn; of more the highest, the median and the lowest."""
MOMENTS = {
    "standing": "between steps",
    "peak": "at the peak",
    "generation": "at the highest of generation",
    "oom": "when memory ran out",
}


def size_of(account: MemoryAccount) -> float:
    return account.total.value or 0.0


def chosen_ranks(accounts: Sequence[MemoryAccount]) -> dict[int, str]:
    """Rank -> word beside it; ordered by rank when all are drawn, else from the highest to the lowest peak."""
    tops: dict[int, float] = {}
    for item in accounts:
        tops[item.rank] = max(tops.get(item.rank, 0.0), size_of(item))
    if len(tops) <= ALL_RANKS:
        return dict.fromkeys(sorted(tops), "")
    order = sorted(tops, key=lambda rank: (-tops[rank], rank))
    return {order[0]: "highest", order[len(order) // 2]: "median", order[-1]: "lowest"}


def drawn_accounts(accounts: Sequence[MemoryAccount]) -> list[MemoryAccount]:
    """Those of the chosen ranks: per rank the device before the host, standing before the peak."""
    ranks = list(chosen_ranks(accounts))
    moments = list(MOMENTS)
    kept = [item for item in accounts if item.rank in ranks]
    return sorted(kept, key=lambda a: (ranks.index(a.rank), a.space == "host", moments.index(a.at)))


def account_bars(key: str, accounts: Sequence[MemoryAccount]) -> Chart:
    """`accounts` are all there are; a few ranks of them are drawn, the table has all."""
    words = chosen_ranks(accounts)
    drawn = drawn_accounts(accounts)
    spaces = len({item.space for item in drawn}) > 1
    rows = [_row(item, words[item.rank], spaces=spaces) for item in drawn]
    divisor, unit = scale((size for row in rows for size in (row.tick, sum(row.parts.values()))), "bytes")
    every = len({item.rank for item in accounts})
    note = "The tick is the total, measured on its own; unexplained is what the parts leave of it."
    if any(row.excess for row in rows):
        note = (
            "The tick is the total, measured on its own. Hatched beyond it: the parts say more than was measured, so "
            "one of them is too large."
        )
    if len(words) < every:
        note += f" Drawn: the ranks with the highest, the median and the lowest peak of {every}; the table has all."
    return Chart(
        key=key,
        title="Memory account per rank and moment" if len(accounts) > 1 else "Memory account",
        description="Stacked bars, one per rank and moment: what held its memory. The parts, with what is unexplained, "
        "add up to the total that was measured on its own.",
        height=56 + 30 * len(rows),
        spec={"data": stacked(rows, divisor, unit), "layout": layout_of(rows, divisor, unit, 168)},
        table=memory_tables.accounts(f"table-{key}", accounts),
        legend=legend_of(rows),
        note=note,
        bars=tuple(bar_of(row, divisor, unit) for row in rows),
        bars_unit=unit,
    )


def _row(account: MemoryAccount, word: str, *, spaces: bool) -> StackRow:
    parts: dict[str, float] = {}
    for part in account.parts:
        if part.part != "unexplained":
            name = colour_of(part.part)
            parts[name] = parts.get(name, 0.0) + part.bytes
    if account.unexplained_bytes > 0:
        parts["unexplained"] = parts.get("unexplained", 0.0) + account.unexplained_bytes
    where = f", {account.space}" if spaces else ""
    return StackRow(
        label=f"rank {account.rank}{f' {word}' if word else ''}, {account.at}{where}",
        parts=parts,
        tick=account.total.value,
        tick_words="total, measured",
        hover=f"; {_rest(account)}",
        excess=max(-account.unexplained_bytes, 0.0),
    )


def _rest(account: MemoryAccount) -> str:
    rest = account.unexplained_bytes
    if rest < 0:
        return f"the parts say {with_unit(-rest, 'bytes')} more"
    return f"{with_unit(rest, 'bytes')} unexplained"


def waterfall(key: str, account: MemoryAccount) -> Chart:
    """One account: each part begins where the one before it ends; a tick shows where the formula says it ends."""
    order = list(PARTS)
    parts = sorted(
        (part for part in account.parts if part.bytes or part.formula_bytes),
        key=lambda part: (part.part == "unexplained", order.index(colour_of(part.part))),
    )
    divisor, unit = scale((size_of(account), *(part.bytes for part in parts)), "bytes")
    bases: list[float] = []
    at = 0.0
    for part in parts:
        bases.append(at)
        at += part.bytes
    names = [label(word_of(part.part), 40) for part in parts]
    data: list[Spec] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": names[i],
            "y": [i],
            "base": [short(bases[i] / divisor, 6)],
            "x": [short(part.bytes / divisor)],
            "text": [with_unit(part.bytes, "bytes")],
            "textposition": "outside",
            "cliponaxis": False,
            "textfont": {"color": "$text"},
            "customdata": [
                [label(f"{names[i]}, {part.source}"), label(part.method, 120), f"{part.share or 0:.1%}"],
            ],
            "hovertemplate": "%{text}, %{customdata[2]}<br>%{customdata[0]}: %{customdata[1]}<extra></extra>",
            "marker": marker_of(colour_of(part.part)),
        }
        for i, part in enumerate(parts)
    ]
    known = [(i, part) for i, part in enumerate(parts) if part.formula_bytes is not None]
    if known:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "formula",
                "y": [i for i, _ in known],
                "x": [short((bases[i] + (part.formula_bytes or 0.0)) / divisor, 6) for i, part in known],
                "customdata": [with_unit(part.formula_bytes, "bytes") for _, part in known],
                "marker": {"color": "$ink", "symbol": "line-ns-open", "size": 20, "line": {"width": 2}},
                "hovertemplate": "formula: %{customdata}<extra></extra>",
            }
        )
    longest = max([size_of(account), *(base + max(part.bytes, 0.0) for base, part in zip(bases, parts, strict=True))])
    layout: Spec = {
        "barmode": "overlay",
        "bargap": 0.24,
        "hovermode": "closest",
        "xaxis": {"title": {"text": unit}, "range": [0, short((longest or 1.0) / divisor * 1.1)], "fixedrange": True},
        "yaxis": row_axis(names),
        "margin": {"l": 136, "r": 56},
        "shapes": [
            {
                "type": "line",
                "x0": short(size_of(account) / divisor, 6),
                "x1": short(size_of(account) / divisor, 6),
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "layer": "below",
                "line": {"color": "$ink", "width": 1, "dash": "dash"},
            }
        ],
    }
    return Chart(
        key=key,
        title=f"Rank {account.rank} {MOMENTS[account.at]}: what adds up to {with_unit(size_of(account), 'bytes')}",
        description="Waterfall: each part of the account begins where the one above it ends; the dashed line is the "
        "total, measured on its own. A tick shows where the formula of this run's ZeRO stage says that the part ends.",
        height=64 + 26 * len(parts),
        spec={"data": data, "layout": layout},
        table=memory_tables.parts(f"table-{key}", [account]),
        legend=(("tick", "by the formula of this run's ZeRO stage"),) if known else (),
        note="Dashed: the total, measured on its own.",
    )
