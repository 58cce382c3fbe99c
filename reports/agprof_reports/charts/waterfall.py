"""From the baseline's value to the candidate's: bars that begin where the last one ended, totals at both ends."""

import math
from collections.abc import Sequence

from agprof.model.compare_answers import Waterfall, WaterfallPart
from agprof_reports.compare_data import Fall, FallRow
from agprof_reports.data import Column, Table
from agprof_reports.text import scale, with_unit

_GROUPS = {
    "compute": ("forward", "compute"),
    "communication": ("communication", "exposed communication"),
    "data": ("data", "data wait"),
    "optimizer": ("optimizer", "optimizer"),
    "other": ("other", "host, other"),
}
"""Group of parts of a step -> class of its colour and word."""
_OWN_COLOURS = frozenset(
    (
        "forward", "backward", "parameters", "gradients", "optimizer-states", "master-weights", "activations",
        "temporary", "buckets", "buffers", "kv-cache", "inputs", "context", "fragmentation", "unexplained",
    )
)  # fmt: skip
"""Parts that have a colour of their own everywhere, by the last piece of their key."""
_CUT_BELOW = 0.25
"""Where the parts move over less than this share of the total, the axis does not begin at zero."""
_AIR = 0.04


def colour(part: WaterfallPart) -> str:
    own = part.key.rsplit(".", 1)[-1].replace("_", "-")
    if own in _OWN_COLOURS:
        return own
    return _GROUPS.get(part.group, _GROUPS["other"])[0]


def signed(value: float, unit: str) -> str:
    """`+438 ms`, `−1.20 MiB`, `0 ns`.

    >>> signed(-2e6, "ns").replace(chr(160), " ")
    '−2.00 ms'
    """
    sign = "+" if value > 0 else "\u2212" if value < 0 else ""
    return sign + with_unit(abs(value), unit)


def waterfall(found: Waterfall, key: str, title: str, names: tuple[str, str]) -> Fall:
    """`names` are those of the baseline and the candidate."""
    ends = _running(found)
    begin, span = _axis([*ends, found.candidate])
    rows = [_total(names[0], found.baseline, found.unit, begin, span)]
    for part, start, end in zip(found.parts, ends, ends[1:], strict=False):
        rows.append(
            FallRow(
                label=part.label,
                value=signed(part.change, found.unit),
                colour=colour(part),
                is_total=False,
                low=_at(min(start, end), begin, span),
                high=_at(max(start, end), begin, span),
                end=_at(end, begin, span),
                tip=_tip(part, found.unit),
            )
        )
    rows.append(_total(names[1], found.candidate, found.unit, begin, span))
    mark, sentence = _sum(found)
    return Fall(
        key=key,
        title=title,
        sentence=found.sentence,
        description=f"Waterfall of the {found.quantity} from {names[0]} to {names[1]}. "
        "Each bar begins where the one above it ends; the first and the last bar are the totals.",
        rows=tuple(rows),
        zero=_at(0.0, begin, span) if begin <= 0 else None,
        cut=with_unit(begin, found.unit) if begin > 0 else "",
        legend=_legend(found),
        sum_mark=mark,
        sum_sentence=sentence,
        table=_table(found, key, title, names),
    )


def _running(found: Waterfall) -> list[float]:
    """Where each bar ends: the baseline, then after each part."""
    ends = [found.baseline]
    for part in found.parts:
        ends.append(ends[-1] + part.change)
    return ends


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Where the drawing begins and how much it spans: from zero, unless the parts would be too thin to see."""
    low, high = min(values), max(values)
    begin = low - (high - low) / 2
    if begin > 0 and 0 < high - low < _CUT_BELOW * high:
        return begin, (high - begin) * (1 + _AIR)
    begin = min(0.0, low)
    return begin, ((high - begin) or 1.0) * (1 + _AIR)


def _at(value: float, begin: float, span: float) -> float:
    share = 100 * (value - begin) / span
    return min(max(share, 0.0), 100.0) if math.isfinite(share) else 0.0


def _total(name: str, value: float, unit: str, begin: float, span: float) -> FallRow:
    zero = _at(max(0.0, begin), begin, span)
    at = _at(value, begin, span)
    text = with_unit(value, unit)
    return FallRow(
        label=name, value=text, colour="", is_total=True, low=min(zero, at), high=max(zero, at), end=at,
        tip=f"{name}: {text}",
    )  # fmt: skip


def _tip(part: WaterfallPart, unit: str) -> str:
    words = f"{part.label}: {with_unit(part.baseline, unit)} → {with_unit(part.candidate, unit)}"
    return f"{words} ({signed(part.change, unit)})" + (f"; {part.evidence}" if part.evidence else "")


def _sum(found: Waterfall) -> tuple[str, str]:
    """Mark and sentence: do the parts add up?"""
    parts = math.fsum(part.change for part in found.parts)
    difference = found.candidate - found.baseline
    if math.isclose(parts, difference, rel_tol=1e-12, abs_tol=1e-9):
        words = f"The parts add up to {signed(parts, found.unit)}, the difference of the totals"
        return "good", f"{words} ({_exact(parts)} {found.unit}): {found.note}."
    return "bad", (
        f"The parts add up to {_exact(parts)} {found.unit}, and not to the difference of the totals, "
        f"{_exact(difference)} {found.unit}: {found.note}."
    )


def _exact(value: float) -> str:
    """Whole quanta as they are, else six digits behind the point.

    >>> _exact(-438123456.0), _exact(0.25)
    ('−438,123,456', '0.25')
    """
    text = f"{abs(value):,.6f}".rstrip("0").rstrip(".")
    return f"\u2212{text}" if value < 0 else text


def _legend(found: Waterfall) -> tuple[tuple[str, str], ...]:
    """Groups of a step and what each adds; parts of memory and energy carry their names beside the bars."""
    if found.quantity != "step time":
        return ()
    sums: dict[str, float] = {}
    for part in found.parts:
        sums[part.group] = sums.get(part.group, 0.0) + part.change
    words = []
    for group, change in sums.items():
        name, word = _GROUPS.get(group, _GROUPS["other"])
        words.append((name, f"{word} {signed(change, found.unit)}"))
    return tuple(words)


def _table(found: Waterfall, key: str, title: str, names: tuple[str, str]) -> Table:
    """Parts with their sum; what each column shows adds up to what its last row shows."""
    divisor, unit = scale([found.baseline, found.candidate], found.unit)
    decimals = _decimals(max(abs(found.baseline), abs(found.candidate)) / divisor)
    numbers = [
        adding_up([value / divisor for value in values], decimals)
        for values in (
            [part.baseline for part in found.parts],
            [part.candidate for part in found.parts],
            [part.change for part in found.parts],
        )
    ]
    words = [(part.label, part.evidence, part.method) for part in found.parts] + [("sum of the parts", "", "")]
    rows = tuple(
        (name, *cells, evidence, method)
        for (name, evidence, method), cells in zip(words, zip(*numbers, strict=True), strict=True)
    )
    columns = (
        Column(label="part", numeric=False),
        *(Column(label=name, unit=unit) for name in (names[0], names[1], "change")),
        Column(label="evidence", numeric=False),
        Column(label="how it is known", numeric=False),
    )
    return Table(key=f"table-{key}", caption=f"{title}: parts and their evidence", columns=columns, rows=rows)


def _decimals(largest: float) -> int:
    """As many digits behind the point as show the largest value with four digits.

    >>> _decimals(812.0), _decimals(8.1), _decimals(3742.0)
    (1, 3, 0)
    """
    return min(max(4 - len(str(int(largest))), 0), 6)


def adding_up(values: Sequence[float], decimals: int) -> list[str]:
    """The values with so many decimals, then their sum: rounded so that what is shown adds up (largest remainders).

    >>> adding_up([0.25, 0.25, 0.5], 1)
    ['0.3', '0.2', '0.5', '1.0']
    """
    factor = 10**decimals
    whole = [math.floor(value * factor) for value in values]
    total = round(math.fsum(values) * factor)
    order = sorted(range(len(values)), key=lambda i: whole[i] - values[i] * factor)
    for i in order[: total - sum(whole)]:
        whole[i] += 1
    return [_minus(f"{amount / factor:,.{decimals}f}") for amount in (*whole, total)]


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")
