"""Waterfalls and intervals of changes as inline SVG: there without JavaScript, and in print."""

from markupsafe import Markup

from agprof_reports.compare_data import Fall, FallRow, Interval
from agprof_reports.svg import STROKES, patterns

_HEIGHT, _TOP, _BOTTOM = 28, 4, 24
"""Of a row, and where its bar begins and ends, in pixels."""
_LEAST_PERCENT = 0.2
"""Width of a bar that would not be seen."""
_HALF = 44.0
"""Per cent of the width from zero to either end of an axis of changes."""


def hatches_of(fall: Fall) -> dict[str, str]:
    """Colour -> id of its hatch."""
    names = sorted({row.colour for row in fall.rows if row.colour in STROKES})
    return {name: f"h-{fall.key}-{i}" for i, name in enumerate(names)}


def fall_patterns(fall: Fall) -> Markup:
    """The hatches of one waterfall, drawn once; nothing where it has none."""
    hatches = hatches_of(fall)
    if not hatches:
        return Markup()
    head = Markup('<svg class="defs" width="0" height="0" aria-hidden="true">')
    return head + Markup("").join(patterns(hatches)) + Markup("</svg>")


def fall_row_svg(fall: Fall, index: int) -> Markup:
    """The bar of one row, and the lines that join it with the rows above and below."""
    row = fall.rows[index]
    out = [Markup('<svg class="fall-bar" width="100%" height="{}" aria-hidden="true">').format(_HEIGHT)]
    if fall.zero is not None:
        out.append(_line("zero", fall.zero, 0, _HEIGHT))
    if index > 0:
        out.append(_line("join", fall.rows[index - 1].end, 0, _TOP))
    if index < len(fall.rows) - 1:
        out.append(_line("join", row.end, _BOTTOM, _HEIGHT))
    out.append(_bar(row, hatches_of(fall)))
    if fall.cut and row.is_total:
        out.append(Markup('<path class="cut" d="M10 2l5 6l-5 5l5 6l-5 5h4l5-5l-5-6l5-5l-5-6z"/>'))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _bar(row: FallRow, hatches: dict[str, str]) -> Markup:
    if row.low == row.high:
        return Markup()
    width = max(row.high - row.low, _LEAST_PERCENT)
    if row.colour in hatches:
        fill = Markup('fill="url(#{})"').format(hatches[row.colour])
    else:
        fill = Markup('class="fill-{}"').format(row.colour or "total")
    return Markup('<rect {} x="{:.3f}%" width="{:.3f}%" y="{}" height="{}"/>').format(
        fill, min(row.low, 100 - width), width, _TOP, _BOTTOM - _TOP
    )


def _line(name: str, at: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="{0}" x1="{1:.3f}%" x2="{1:.3f}%" y1="{2}" y2="{3}"/>').format(name, at, top, bottom)


def interval_svg(interval: Interval) -> Markup:
    """A change as a point and its interval as a bar, about zero."""
    out = [
        Markup('<svg class="interval" width="100%" height="12" aria-hidden="true">'),
        Markup('<line class="axis" x1="{}%" x2="{}%" y1="6" y2="6"/>').format(50 - _HALF, 50 + _HALF),
        _line("zero", 50.0, 0, 12),
    ]
    if interval.low is not None and interval.high is not None:
        low, high = _place(interval.low), _place(interval.high)
        bar = Markup('<rect class="range" x="{:.2f}%" width="{:.2f}%" y="4" height="4"/>')
        out.append(bar.format(low, max(high - low, 0.5)))
    out.append(Markup('<circle class="point" cx="{:.2f}%" cy="6" r="3.5"/>').format(_place(interval.at)))
    if interval.cut_low:
        out.append(Markup('<text x="0" y="10">◂</text>'))
    if interval.cut_high:
        out.append(Markup('<text x="100%" y="10" text-anchor="end">▸</text>'))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _place(value: float) -> float:
    return 50 + _HALF * value
