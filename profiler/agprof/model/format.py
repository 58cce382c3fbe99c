"""Figures as text: three significant digits, scaled units, thousands separators. The terminal and the pages share it.

>>> format_value(374_400_000, "ns")
'374 ms'
>>> format_value(4_404_019, "bytes")
'4.20 MiB'
>>> format_value(0.384, "ratio")
'38 %'
>>> format_value(112_663_480, "1")
'112,663,480'
"""

import math
from decimal import Decimal

from agprof.model.figure import Figure

DASH = "–"

_DECIMAL = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"), (1e18, "E"))
_BINARY = ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB"))
_TIME = ((1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s"))


def _prefixed(name: str) -> tuple[tuple[float, str], ...]:
    return tuple((factor, prefix + name) for factor, prefix in _DECIMAL)


_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "ns": _TIME,
    "bytes": _BINARY,
    "bytes/s": _prefixed("B/s"),
    "FLOP": _prefixed("FLOP"),
    "FLOP/s": _prefixed("FLOP/s"),
    "Hz": _prefixed("Hz"),
    "J": _prefixed("J"),
    "W": _prefixed("W"),
}


def significant(value: float) -> str:
    """Three significant digits with thousands separators, never in exponent form.

    >>> significant(1234.5), significant(12.345), significant(0.0012345), significant(0)
    ('1,230', '12.3', '0.00123', '0')
    """
    return f"{_rounded(value, 3):,f}"


def _rounded(value: float, digits: int) -> Decimal:
    """`value` with that many significant digits; trailing ones before the point are zeros, as in 1,230."""
    if value == 0:
        return Decimal(0)
    rounded = Decimal(f"{value:.{digits - 1}e}")
    return rounded if rounded.as_tuple().exponent != 0 else rounded.to_integral()


def percent(ratio: float) -> str:
    """A ratio as per cent, to two significant digits.

    >>> percent(0.384), percent(0.0384), percent(1.2), percent(0)
    ('38 %', '3.8 %', '120 %', '0 %')
    """
    digits = 2 if abs(ratio) < 1 else 3
    return f"{_rounded(ratio, digits).scaleb(2):,f} %"


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """Divisor and unit in which `value` is printed: the largest unit in which it rounds to at least 1.

    >>> scale_of(999_600, "ns")
    (1000000.0, 'ms')
    """
    steps = _SCALES.get(unit)
    if steps is None:
        return 1.0, "" if unit == "1" else unit
    chosen = steps[0]
    for step in steps:
        if float(f"{abs(value) / step[0]:.3g}") >= 1:
            chosen = step
    return chosen


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float, unit: str, divisor: float) -> str:
    """Whole numbers that need no scaling are given whole: `1,234,567` parameters, `4 B`, `40 ns`."""
    scaled = value / divisor
    if float(scaled).is_integer() and (unit == "1" or (divisor == 1 and abs(scaled) < 1000)):
        return f"{int(scaled):,}"
    return significant(scaled)


def format_value(value: float | None, unit: str) -> str:
    """A value in a base unit of `answers.Figure` as text; a dash when it is None or not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    if unit == "ratio":
        return percent(value)
    divisor, name = scale_of(value, unit)
    return f"{_number(value, unit, divisor)} {name}".rstrip()


def format_interval(figure: Figure) -> str:
    """The figure's interval in the unit in which its value is printed: `[371, 379]`; empty when there is none."""
    value, low, high = figure.value, figure.low, figure.high
    if value is None or low is None or high is None or not all(map(_is_number, (value, low, high))):
        return ""
    if figure.unit == "ratio":
        return f"[{percent(low)}, {percent(high)}]"
    divisor, _ = scale_of(value, figure.unit)
    return f"[{_number(low, figure.unit, divisor)}, {_number(high, figure.unit, divisor)}]"


def format_figure(figure: Figure) -> str:
    """A figure with its interval and n: `374 ms [371, 379], n = 46`; `– (why)` when it has no value."""
    if not _is_number(figure.value):
        return f"{DASH} ({figure.reason})" if figure.reason else DASH
    text = format_value(figure.value, figure.unit)
    if interval := format_interval(figure):
        text += f" {interval}"
    return f"{text}, n = {figure.n:,}"
