"""Bars of parts as inline SVG: there without JavaScript, in print, and until plotly takes over."""

from markupsafe import Markup

from agprof_reports.data import Bar
from agprof_reports.text import clean, rounded

_LABEL_PERCENT = 8.0
_TALL, _LOW = 24, 12
_TALL_ROWS = 16
_NUMBER_PERCENT, _LETTER_PERCENT, _NARROW_PERCENT = 5.5, 0.95, 10.0
"""Width from which on a part carries its share, and what each letter of its name takes beside it;
below the last the share is left out on a narrow screen."""


def bars_svg(bars: tuple[Bar, ...], unit: str, description: str) -> Markup:
    """Stacked horizontal bars on one scale, a row per bar, each part with its share where it fits.

    Positions are per cent of the width, so that the drawing follows the page and its text is never stretched.
    """
    height = _TALL if len(bars) <= _TALL_ROWS else _LOW
    left = _LABEL_PERCENT if any(bar.label for bar in bars) else 0.0
    longest = max((sum(value for _, value in bar.parts) for bar in bars), default=0.0) or 1.0
    head = Markup('<svg class="bars" width="100%" height="{0}" role="img" aria-label="{1}"><desc>{1}</desc>')
    rows = [_row(bar, i * height, height, left, (100 - left) / longest, unit) for i, bar in enumerate(bars)]
    return Markup("\n").join([head.format(height * len(bars), clean(description)), *rows, Markup("</svg>")])


def _row(bar: Bar, top: int, height: int, left: float, per_unit: float, unit: str) -> Markup:
    out = []
    if bar.label:
        out.append(Markup('<text x="0" y="{:.1f}">{}</text>').format(top + height / 2 + 4, clean(bar.label, 10)))
    at = left
    total = sum(value for _, value in bar.parts) or 1.0
    for name, value in bar.parts:
        if value > 0:
            out.append(_part(name, value, value / total, at, value * per_unit, top, height, unit))
            at += value * per_unit
    return Markup("").join(out)


def _part(name: str, value: float, share: float, at: float, width: float, top: int, height: int, unit: str) -> Markup:
    shown = width >= _NUMBER_PERCENT and height >= _TALL
    named = shown and width >= _NUMBER_PERCENT + _LETTER_PERCENT * len(name)
    return Markup(
        '<svg x="{at:.3f}%" y="{top}" width="{width:.3f}%" height="{height}"><title>{name}: {value} {unit} '
        '({share:.1%})</title><rect class="fill-{name}" width="100%" height="100%"/>'
        '<text class="on-{name}{small}" x="6" y="{base:.1f}">'
        '<tspan class="name">{text}</tspan>{percent}</text></svg>'
    ).format(
        at=at,
        top=top + 1,
        width=width,
        height=height - 2,
        name=name,
        value=rounded(value),
        unit=unit,
        share=share,
        base=height / 2 + 3,
        small="" if width >= _NARROW_PERCENT else " small",
        text=f"{name} " if named else "",
        percent=f"{share:.0%}" if shown else "",
    )
