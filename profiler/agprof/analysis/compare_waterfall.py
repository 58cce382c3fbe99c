"""Waterfalls: a total on both sides broken into the same parts, which add up exactly, and the sentence on it.

Everything is computed in exact fractions and rounded once: each side's parts to whole quanta by largest remainders, so
that they still add up to the side's total. Quanta are whole nanoseconds and bytes, and 2^-20 J: sums of them are exact
in the floats of compare.json too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from agprof.model.compare_answers import Quantity, Waterfall, WaterfallPart
from agprof.model.format import format_value, percent

_QUANTA = {"ns": Fraction(1), "bytes": Fraction(1), "J": Fraction(1, 2**20)}
_NAMED = 0.05
"""A part is named in the sentence from this share of the total change on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part before it is rounded."""

    key: str
    label: str
    group: str
    baseline: Fraction
    candidate: Fraction
    evidence: str = ""
    method: str = "measured"


def apportion(parts: Sequence[Fraction], quantum: Fraction = Fraction(1)) -> list[int]:
    """Parts in whole quanta that add up to their sum, itself rounded (half to even): by largest remainders.

    >>> apportion([Fraction(1, 3)] * 3), apportion([Fraction(-1, 2), Fraction(5, 2)])
    ([1, 0, 0], [0, 2])
    """
    scaled = [part / quantum for part in parts]
    floors = [part.numerator // part.denominator for part in scaled]
    missing = round(sum(scaled, Fraction(0))) - sum(floors)
    order = sorted(range(len(parts)), key=lambda at: (floors[at] - scaled[at], at))
    for at in order[:missing]:
        floors[at] += 1
    return floors


def build(
    quantity: Quantity, unit: str, side: int, parts: Sequence[Part], note: str, names: tuple[str, str]
) -> Waterfall:
    """The waterfall of some parts; those that are zero on both sides are left out."""
    quantum = _QUANTA[unit]
    baseline = apportion([part.baseline for part in parts], quantum)
    candidate = apportion([part.candidate for part in parts], quantum)
    scale = float(quantum)
    rows = tuple(
        WaterfallPart(
            key=part.key,
            label=part.label,
            group=part.group,
            baseline=a * scale,
            candidate=b * scale,
            change=(b - a) * scale,
            evidence=part.evidence,
            method=part.method,
        )
        for part, a, b in zip(parts, baseline, candidate, strict=True)
        if a or b
    )
    total_a, total_b = sum(baseline) * scale, sum(candidate) * scale
    return Waterfall(
        quantity=quantity,
        unit=unit,
        side=side,
        baseline=total_a,
        candidate=total_b,
        parts=rows,
        sentence=_sentence(quantity, unit, total_a, total_b, rows, names),
        note=note,
    )


def by_group(parts: Sequence[WaterfallPart]) -> dict[str, float]:
    """Change of each group."""
    changes: dict[str, float] = {}
    for part in parts:
        changes[part.group] = changes.get(part.group, 0.0) + part.change
    return changes


def signed(value: float, unit: str) -> str:
    """`+438 ms`, `-1.20 MiB`."""
    return f"{'-' if value < 0 else '+' if value else ''}{format_value(abs(value), unit)}"


GROUP_WORDS: Mapping[str, str] = {
    "communication": "exposed communication",
    "compute": "compute",
    "data": "waiting for data",
    "optimizer": "the optimizer",
    "other": "host and other",
}


def explained(waterfall: Waterfall, least: float = _NAMED) -> str:
    """`+401 ms exposed communication (bandwidth +380 ms, skew +20.5 ms), -3.10 ms compute`, largest first.

    Empty when nothing changed.
    """
    total = abs(waterfall.candidate - waterfall.baseline)
    if waterfall.quantity != "step time":
        return _parts_explained(waterfall, least * total)
    changes = by_group(waterfall.parts)
    whole = max(total, *(abs(change) for change in changes.values()), 0.0)
    named = sorted((item for item in changes.items() if abs(item[1]) >= least * whole and item[1]), key=_by_size)
    words = []
    for group, change in named:
        inner = [part for part in waterfall.parts if part.group == group and abs(part.change) >= least * whole]
        inner.sort(key=lambda part: -abs(part.change))
        many = len([part for part in waterfall.parts if part.group == group]) > 1
        label = GROUP_WORDS.get(group, group)
        of_it = ", ".join(
            f"{part.label.lower()} {signed(part.change, waterfall.unit)}" for part in inner if part.change
        )
        words.append(f"{signed(change, waterfall.unit)} {label}{f' ({of_it})' if many and of_it else ''}")
    return ", ".join(words)


def _parts_explained(waterfall: Waterfall, least: float) -> str:
    """Groups of other quantities are colours: their parts speak for themselves."""
    parts = sorted((part for part in waterfall.parts if part.change), key=lambda part: (-abs(part.change), part.key))
    named = [part for part in parts if abs(part.change) >= least]
    return ", ".join(f"{signed(part.change, waterfall.unit)} {part.label.lower()}" for part in named)


def _by_size(item: tuple[str, float]) -> tuple[float, str]:
    return -abs(item[1]), item[0]


def _sentence(
    quantity: Quantity, unit: str, a: float, b: float, parts: tuple[WaterfallPart, ...], names: tuple[str, str]
) -> str:
    bare = Waterfall(quantity=quantity, unit=unit, side=0, baseline=a, candidate=b, parts=parts, sentence="", note="")
    if not any(part.change for part in parts):
        return f"{quantity.capitalize()} is {format_value(a, unit)} in both, part by part."
    how = explained(bare)
    if a == b:
        return f"{quantity.capitalize()} is {format_value(a, unit)} in both; within it {how}."
    relative = f" ({'+' if b >= a else '-'}{percent(abs(b - a) / a)})" if a > 0 else ""
    return (
        f"{quantity.capitalize()} of {names[1]} is {format_value(b, unit)} against {format_value(a, unit)} of "
        f"{names[0]}{relative}: {how}."
    )
