"""Names from outside and figures as a reader sees them."""

import html
import math
import re
import unicodedata
from collections.abc import Iterable

from agprof.model.format import DASH, format_value, scale_of, significant

_BAD = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
NAME_LIMIT = 4_000
"""Longest text of one cell or sentence, in characters."""
LABEL_LIMIT = 48
"""Longest label inside a chart, in characters."""


def clean(text: str, limit: int = NAME_LIMIT) -> str:
    """Return the text with control, bidi and unpaired characters made visible, cut at `limit`.

    >>> clean("a" + chr(0x202e) + "b" + chr(10) + "c")
    'a\ufffdb\\nc'
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _BAD else "\ufffd" for c in text)


def label(text: str, limit: int = LABEL_LIMIT) -> str:
    """Return the text for a label that plotly draws: plotly reads markup in labels, so it is escaped here.

    >>> label("<b>")
    '&lt;b&gt;'
    """
    return html.escape(clean(text, limit).replace("\n", " "), quote=False)


def slug(text: str) -> str:
    """Return the text as an HTML id.

    >>> slug("rank 0 CPU")
    'rank-0-cpu'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:LABEL_LIMIT]


def scale(values: Iterable[float | None], unit: str) -> tuple[float, str]:
    """Return divisor and unit in which the largest of the values reads well: one for a column or an axis.

    >>> scale([3.74e8, 1e6, None], "ns")
    (1000000.0, 'ms')
    >>> scale([0.2], "ratio")
    (0.01, '%')
    """
    if unit == "ratio":
        return 0.01, "%"
    return scale_of(max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0), unit)


def rounded(value: float | None) -> str:
    """Return three significant digits; a dash for what was not measured.

    >>> rounded(0.01234), rounded(374.2), rounded(6.0), rounded(None)
    ('0.0123', '374', '6.00', '–')
    """
    return DASH if value is None or not math.isfinite(value) else significant(value)


def digits(value: float | None) -> str:
    """Return a count: whole numbers as they are, others with three significant digits.

    >>> digits(6.0), digits(1.5), digits(112663480), digits(None)
    ('6', '1.50', '112,663,480', '–')
    """
    if value is not None and math.isfinite(value) and float(value).is_integer():
        return f"{int(value):,}"
    return rounded(value)


def amount(value: float | None, unit: str) -> tuple[str, str]:
    """Return number and unit of one figure.

    >>> amount(3.742e8, "ns"), amount(0.384, "ratio"), amount(None, "ns")
    (('374', 'ms'), ('38', '%'), ('–', ''))
    """
    number, _, name = format_value(value, unit).partition(" ")
    return number, name


def with_unit(value: float | None, unit: str) -> str:
    """Return one figure as text that does not break over lines."""
    return format_value(value, unit).replace(" ", "\u00a0")
