"""Medians with intervals that assume no distribution, modes and trends. Plain Python over short lists."""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

from agprof.model.figure import Figure, Source

_EXACT_UP_TO = 5000
_MIN_FOR_INTERVAL = 6
"""Below six values no pair of order statistics covers the median with 95 %."""


@lru_cache(maxsize=256)
def median_rank(n: int) -> int | None:
    """The k for which [x_(k), x_(n+1-k)] (1-based order statistics) covers the median with at least 95 %.

    Exact binomial: coverage = 1 - 2 P(Bin(n, 1/2) <= k - 1). None when even the extremes cover less (n < 6).

    >>> median_rank(5), median_rank(6), median_rank(20), median_rank(46)
    (None, 1, 6, 16)
    """
    if n < _MIN_FOR_INTERVAL:
        return None
    if n > _EXACT_UP_TO:
        return math.floor(n / 2 - 0.98 * math.sqrt(n))
    budget = 2**n // 40  # 2.5 % of all outcomes on each side
    term, total, k = 1, 1, 0
    while total <= budget:
        k += 1
        term = term * (n - k + 1) // k
        total += term
    return k


def median_figure(
    values: Sequence[float], unit: str, *, method: str, reason: str, source: Source = "measured"
) -> Figure:
    """Median of `values` with its 95 % interval; `reason` says why there is none when `values` is empty."""
    ordered = sorted(values)
    if not ordered:
        return nothing(unit, reason, method=method, source=source)
    n = len(ordered)
    k = median_rank(n)
    low, high = (ordered[0], ordered[-1]) if k is None else (ordered[k - 1], ordered[n - k])
    kind = "min..max: fewer than 6 values" if k is None else "95 % interval of order statistics"
    return Figure(
        value=float(median(ordered)),
        unit=unit,
        source=source,
        n=n,
        low=float(low),
        high=float(high),
        method=f"{method}; median, {kind}",
    )


def nothing(unit: str, reason: str, *, method: str = "", source: Source = "measured") -> Figure:
    """A figure that could not be had, and why."""
    return Figure(value=None, unit=unit, source=source, n=0, method=method, reason=reason)


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation from the median; 0 for no values."""
    if not values:
        return 0.0
    middle = median(values)
    return float(median(abs(value - middle) for value in values))


def two_modes(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The two modes (medians of the parts) and the slow part's share when the values fall into two clear clusters.

    Otsu's split: the cut that leaves the least variance inside the parts. Two modes are clear when each part holds at
    least 20 % of at least 8 values, the modes differ by 10 % or more, and 90 % of the variance is between the parts
    (a uniform spread gives 75 %, a normal one 64 %). From 20 values on, a twentieth at each end is not looked at.
    """
    ordered = sorted(values)
    trim = len(ordered) // 20
    ordered = ordered[trim : len(ordered) - trim]
    n = len(ordered)
    if n < 8:
        return None
    total = sum(ordered)
    mean = total / n
    variance = sum((value - mean) ** 2 for value in ordered)
    if variance <= 0 or not math.isfinite(variance):
        return None
    best, cut, left = 0.0, 0, 0.0
    for count in range(1, n):
        left += ordered[count - 1]
        between = count * (left / count - mean) ** 2 + (n - count) * ((total - left) / (n - count) - mean) ** 2
        if between > best:
            best, cut = between, count
    fast, slow = median(ordered[:cut]), median(ordered[cut:])
    clear = min(cut, n - cut) >= 0.2 * n and slow >= 1.1 * fast and best / variance >= 0.9
    share = sum(value >= ordered[cut] for value in values) / len(values)
    return (float(fast), float(slow), share) if clear else None


def growth(values: Sequence[float]) -> float | None:
    """Slope per position when the values rise significantly (Mann-Kendall, one-sided 99 %), else None.

    The slope is Theil-Sen's: the median over pairs. At most 200 evenly spaced values are compared; fewer than 8 say
    nothing.
    """
    if len(values) < 8:
        return None
    stride = max(1, len(values) // 200)
    picked = values[::stride]
    n = len(picked)
    slopes = [(picked[j] - picked[i]) / ((j - i) * stride) for i in range(n) for j in range(i + 1, n)]
    score = sum((slope > 0) - (slope < 0) for slope in slopes)
    deviation = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    if (score - 1) / deviation < 2.33:
        return None
    slope = float(median(slopes))
    return slope if slope > 0 else None
