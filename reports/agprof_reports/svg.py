"""Bars of parts as inline SVG: there without JavaScript, in print, and until plotly takes over."""

import zlib
from collections.abc import Mapping

from markupsafe import Markup

from agprof_reports.data import Bar, Mark
from agprof_reports.text import clean, rounded

_LABEL_PERCENT = 8.0
_TALL, _LOW = 24, 12
_TALL_ROWS = 16
_NUMBER_PERCENT, _LETTER_PERCENT, _NARROW_PERCENT = 5.5, 0.95, 10.0
"""Width from which on a part carries its share, and what each letter of its name takes beside it;
below the last the share is left out on a narrow screen."""
STROKES = {
    "overlapped": "M0 6L6 0",
    "idle-launch": "M0 6L6 0",
    "idle-kernel-wait": "M0 0L6 6",
    "idle-synchronisation": "M0 6L6 0M0 0L6 6",
    "idle-data": "M0 6L6 0",
    "idle-unknown": "M0 6L6 0",
    "recomputed": "M0 6L6 0",
    "master-weights": "M0 6L6 0",
    "temporary": "M0 6L6 0",
    "buffers": "M0 6L6 0",
    "fragmentation": "M0 6L6 0",
    "inputs": "M0 6L6 0M0 0L6 6",
    "tenant": "M0 6L6 0M0 0L6 6",
    "reserved": "M2 3L4 3",
    "unexplained": "M0 6L6 0",
    "excess": "M0 6L6 0",
}
"""Colours that are hatched, and how."""
_EXCESS = "excess"
"""Hatched over the colours: they stay to be seen."""
_LONGEST_LABEL = 10
"""Characters; where one is longer, labels stand above their bars."""
_LINE = 18


def bars_svg(bars: tuple[Bar, ...], unit: str, description: str) -> Markup:
    """Stacked horizontal bars on one scale, a row per bar, each part with its share where it fits.

    Positions are per cent of the width, so that the drawing follows the page and its text is never stretched.
    """
    height = _TALL if len(bars) <= _TALL_ROWS else _LOW
    above = _LINE if any(len(bar.label) > _LONGEST_LABEL for bar in bars) else 0
    left = _LABEL_PERCENT if not above and any(bar.label for bar in bars) else 0.0
    longest = max((_length(bar) for bar in bars), default=0.0) or 1.0
    head = Markup('<svg class="bars" width="100%" height="{0}" role="img" aria-label="{1}"><desc>{1}</desc>')
    hatches = _hatches(bars, description)
    rows = [
        _row(bar, i * (height + above), height, above, left, (100 - left) / longest, unit, hatches)
        for i, bar in enumerate(bars)
    ]
    head = head.format((height + above) * len(bars), clean(description))
    return Markup("\n").join([head, *patterns(hatches), *rows, Markup("</svg>")])


def _length(bar: Bar) -> float:
    ends = [mark.end for mark in bar.marks]
    return max([sum(value for _, value in bar.parts if value > 0), *ends])


def _hatches(bars: tuple[Bar, ...], description: str) -> dict[str, str]:
    """Colour -> id of its pattern, one of its own in each drawing."""
    names = {name for bar in bars for name, value in bar.parts if value > 0 and name in STROKES}
    if any(mark.begin != mark.end for bar in bars for mark in bar.marks):
        names.add(_EXCESS)
    own = zlib.crc32(f"{description}{bars}".encode("utf-8", "replace"))
    return {name: f"h{own:08x}-{i}" for i, name in enumerate(sorted(names))}


def patterns(hatches: Mapping[str, str]) -> list[Markup]:
    """Definitions of the hatches: colour -> id."""
    if not hatches:
        return []
    inside = [
        Markup('<pattern id="{}" width="6" height="6" patternUnits="userSpaceOnUse">{}{}</pattern>').format(
            ident,
            "" if name == _EXCESS else Markup('<rect class="fill-{}" width="6" height="6"/>').format(name),
            Markup('<path class="hatch{}" d="{}"/>').format(" over" if name == _EXCESS else "", STROKES[name]),
        )
        for name, ident in hatches.items()
    ]
    return [Markup("<defs>"), *inside, Markup("</defs>")]


def _row(
    bar: Bar, top: int, height: int, above: int, left: float, per_unit: float, unit: str, hatches: Mapping[str, str]
) -> Markup:
    out = []
    if bar.label and above:
        out.append(Markup('<text x="0" y="{}">{}</text>').format(top + above - 4, clean(bar.label, 40)))
    elif bar.label:
        text = Markup('<text x="0" y="{:.1f}">{}</text>')
        out.append(text.format(top + height / 2 + 4, clean(bar.label, _LONGEST_LABEL)))
    at = left
    out.append(Markup('<svg y="{}" height="{}">').format(top + above + 1, height - 2))
    total = sum(value for _, value in bar.parts if value > 0) or 1.0
    for name, value in bar.parts:
        if value > 0:
            out.append(_part(name, value, value / total, at, value * per_unit, height, unit, hatches.get(name)))
            at += value * per_unit
    out.extend(_mark(mark, left, per_unit, hatches) for mark in bar.marks)
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _mark(mark: Mark, left: float, per_unit: float, hatches: Mapping[str, str]) -> Markup:
    begin, end = left + mark.begin * per_unit, left + mark.end * per_unit
    title = Markup("<title>{}</title>").format(clean(mark.title))
    if begin == end:
        line = Markup('<line class="tick" x1="{0:.3f}%" x2="{0:.3f}%" y1="0" y2="100%">{1}</line>')
        return line.format(begin, title)
    area = Markup('<rect class="outlined" fill="url(#{})" x="{:.3f}%" width="{:.3f}%" height="100%">{}</rect>')
    return area.format(hatches[_EXCESS], begin, end - begin, title)


def _part(
    name: str, value: float, share: float, at: float, width: float, height: int, unit: str, hatch: str | None
) -> Markup:
    word = name.replace("-", " ")
    shown = width >= _NUMBER_PERCENT and height >= _TALL
    named = shown and width >= _NUMBER_PERCENT + _LETTER_PERCENT * len(word)
    title = Markup("<title>{}: {} {} ({:.1%})</title>").format(word, rounded(value), unit, share)
    place = Markup('x="{:.3f}%" width="{:.3f}%" height="100%"').format(at, width)
    fill = Markup('fill="url(#{})"').format(hatch) if hatch else Markup('class="fill-{}"').format(name)
    if name == "unexplained":
        fill += Markup(' class="outlined"')
    if not shown:
        return Markup("<rect {} {}>{}</rect>").format(fill, place, title)
    return Markup(
        '<svg {place}>{title}<rect {fill} width="100%" height="100%"/>'
        '<text class="on-{name}{small}" x="6" y="{base:.1f}">'
        '<tspan class="name">{text}</tspan>{percent}</text></svg>'
    ).format(
        place=place,
        title=title,
        name=name,
        fill=fill,
        base=height / 2 + 3,
        small="" if width >= _NARROW_PERCENT else " small",
        text=f"{word} " if named else "",
        percent=f"{share:.0%}",
    )
