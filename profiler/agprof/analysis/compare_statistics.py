"""Is a difference between two samples more than chance: permutation of repeats, block bootstrap of steps, Holm.

Deterministic: the seed of a sample's resamples is made of its own values, so that swapping two samples mirrors every
result, and the same sample twice differs by nothing. Definitions: docs/compare.md.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist, median, variance
from typing import Literal

import numpy as np

from agprof.analysis.student import t_beyond, two_sided_p

RESAMPLES = 1999
"""An interval's ends are then whole order statistics: the 50th from each end."""
LEVEL = 0.05
MIN_STEPS = 6
"""Steps of a single run below which its steps are not resampled."""
_MOST_PERMUTATIONS = 20_000
_WIDEST = 600.0
"""Of an interval on the scale of logarithms: e to it times any ratio is still a number."""

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Statistic = Literal["median", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Candidate against baseline, with a 95 % interval of each."""

    absolute: tuple[float, float, float]
    """Difference, low, high."""
    relative: tuple[float, float, float] | None
    """candidate / baseline - 1, low, high; None where the baseline is 0."""
    p: float
    least_p: float
    """The smallest p that so few values can give."""
    method: str


def permutation_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the difference of means under all ways to deal the values to the two sides.

    Exact up to 20,000 ways, beyond that by as many random ones.

    >>> permutation_p([1, 2, 3], [11, 12, 13])
    0.1
    """
    if len(a) > len(b):
        a, b = b, a
    values = sorted([*a, *b])
    ways = math.comb(len(values), len(a))
    total, size, others = math.fsum(values), len(a), len(b)
    seen = abs(math.fsum(a) / size - math.fsum(b) / others)
    tolerance = 1e-12 * max(map(abs, values), default=0.0)

    def far(chosen: Sequence[float]) -> bool:
        mine = math.fsum(chosen)
        return abs(mine / size - (total - mine) / others) >= seen - tolerance

    if ways <= _MOST_PERMUTATIONS:
        hits = sum(far(chosen) for chosen in combinations(values, size))
        return hits / ways
    drawn = np.random.default_rng(_seed(values))
    hits = sum(far(drawn.permutation(values)[:size].tolist()) for _ in range(_MOST_PERMUTATIONS))
    return (hits + 1) / (_MOST_PERMUTATIONS + 1)


def least_permutation_p(a: int, b: int) -> float:
    """The smallest p that `permutation_p` can give for so many values.

    >>> least_permutation_p(3, 3), round(least_permutation_p(4, 4), 4), least_permutation_p(1, 3)
    (0.1, 0.0286, 0.25)
    """
    ways = math.comb(a + b, a)
    return (2 if a == b else 1) / ways if ways <= _MOST_PERMUTATIONS else 1 / (_MOST_PERMUTATIONS + 1)


def difference_of_repeats(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Means of two or more repeats a side: permutation test, and an interval.

    From five repeats on the interval is Hesterberg's expanded percentile interval over resampled repeats (2015, section
    5.3: percentiles moved out to what Student's t and n - 1 ask for). Fewer can't be resampled to that: theirs is
    Welch's t interval, of the ratio on the scale of logarithms.
    """
    p, least = permutation_p(a, b), least_permutation_p(len(a), len(b))
    means = math.fsum(a) / len(a), math.fsum(b) / len(b)
    told = f"means over {len(a)} and {len(b)} repeats; permutation test, least possible p {least:.2g}; 95 % interval: "
    tail = _tail(min(len(a), len(b)))
    if tail * (RESAMPLES + 1) < 1:
        return _welch(a, b, p=p, least=least, method=f"{told}Welch's t over repeats")
    resampled = [_means(values) for values in (a, b)]
    return _from_resamples(*means, resampled, tail=tail, p=p, least=least, method=f"{told}bootstrap over repeats")


def _welch(a: Sequence[float], b: Sequence[float], *, p: float, least: float, method: str) -> Difference:
    means = math.fsum(a) / len(a), math.fsum(b) / len(b)
    shares = [variance(values) / len(values) for values in (a, b)]
    half = _half_width(shares, (len(a), len(b)))
    relative = _ratio(*means)
    ends = None
    if relative is not None and means[1] > 0:
        on_logs = [share / mean**2 for share, mean in zip(shares, means, strict=True)]
        wide = min(_half_width(on_logs, (len(a), len(b))), _WIDEST)
        ends = (means[1] / means[0] * math.exp(-wide) - 1, means[1] / means[0] * math.exp(wide) - 1)
    shown = means[1] - means[0]
    return Difference(
        absolute=(shown, shown - half, shown + half),
        relative=None if relative is None or ends is None else (relative, *ends),
        p=p,
        least_p=least,
        method=method,
    )


def _half_width(shares: Sequence[float], counts: Sequence[int]) -> float:
    """Student's t times the standard error, with the degrees of freedom of Welch and Satterthwaite.

    `shares`: the variance of each side's mean.
    """
    total = math.fsum(shares)
    if total <= 0:
        return 0.0
    parts = [(share / total) ** 2 / (n - 1) for share, n in zip(shares, counts, strict=True)]
    return t_beyond(LEVEL, 1 / math.fsum(parts)) * math.sqrt(total)


def _means(values: Sequence[float]) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(_seed(values)).integers(0, len(sample), (RESAMPLES, len(sample)))
    found: Floats = sample[drawn].mean(axis=1)
    return found


def block_length(values: Sequence[float]) -> int:
    """Steps per block: ceil((2|r| / (1 - r²))^(2/3) n^(1/3)), r the autocorrelation of neighbours (Carlstein 1986).

    At least 1, at most a quarter of the steps. Independent steps give 1.
    """
    n = len(values)
    mean = math.fsum(values) / n
    off = [value - mean for value in values]
    variance = math.fsum(x * x for x in off)
    r = abs(math.fsum(x * y for x, y in pairwise(off)) / variance) if variance > 0 else 0.0
    r = 0.0 if r < 2 / math.sqrt(n) else min(r, 0.99)  # within what independent steps show by chance
    length = math.ceil((2 * r / (1 - r * r)) ** (2 / 3) * n ** (1 / 3))
    return int(max(1, min(length, n // 4)))


def block_resamples(values: Sequence[float], statistic: Statistic) -> tuple[Floats, int]:
    """The statistic over `RESAMPLES` moving-block resamples of a series, and the block's length."""
    sample = np.asarray(values, dtype=np.float64)
    n, length = len(sample), block_length(values)
    blocks = -(-n // length)
    starts = np.random.default_rng(_seed(values)).integers(0, n - length + 1, (RESAMPLES, blocks))
    of: Callable[..., Floats] = np.median if statistic == "median" else np.mean
    found = np.empty(RESAMPLES)
    within = np.arange(length)
    rows = max(1, 2_000_000 // max(1, n))  # bounded memory for long runs
    for first in range(0, RESAMPLES, rows):
        some = starts[first : first + rows]
        places = (some[:, :, None] + within).reshape(len(some), -1)[:, :n]
        found[first : first + rows] = of(sample[places], axis=1)
    return found, length


def statistic_of(values: Sequence[float], statistic: Statistic) -> float:
    return float(median(values)) if statistic == "median" else math.fsum(values) / len(values)


def difference_of_steps(a: Sequence[float], b: Sequence[float], statistic: Statistic) -> Difference:
    """Two single runs by their steps (at least MIN_STEPS each): moving-block bootstrap.

    It knows how much the steps of these two runs vary and nothing of how much a run varies from the next. p: the
    difference over the bootstrap's standard error, on the scale of logarithms where all is above 0 (so that a time and
    its rate have the same), against Student's t with (blocks - 1) degrees of freedom.
    """
    (of_a, length_a), (of_b, length_b) = block_resamples(a, statistic), block_resamples(b, statistic)
    at_a, at_b = statistic_of(a, statistic), statistic_of(b, statistic)
    blocks = min(len(a) // length_a, len(b) // length_b)
    p = _bootstrap_p((at_a, of_a), (at_b, of_b), blocks - 1)
    lengths = sorted({length_a, length_b})
    method = (
        f"{statistic} over {len(a)} and {len(b)} steady steps of single runs; moving-block bootstrap, blocks of "
        f"{' and '.join(map(str, lengths))}: how runs vary among themselves is not in it"
    )
    return _from_resamples(at_a, at_b, [of_a, of_b], tail=_tail(blocks), p=p, least=0.0, method=method)


def _bootstrap_p(a: tuple[float, Floats], b: tuple[float, Floats], freedom: int) -> float:
    """`a`, `b`: the statistic and its resamples."""
    (at_a, of_a), (at_b, of_b) = a, b
    if min(at_a, at_b, float(of_a.min()), float(of_b.min())) > 0:
        (at_a, of_a), (at_b, of_b) = ((math.log(at), np.log(of)) for at, of in (a, b))
    error = math.sqrt(float(of_a.var()) + float(of_b.var()))
    seen = abs(at_b - at_a)
    if error <= 1e-12 * max(abs(at_a), abs(at_b)):
        return 0.0 if seen > 0 else 1.0
    return two_sided_p(seen / error, freedom)


def interval_of_steps(values: Sequence[float], statistic: Statistic) -> tuple[float, float] | None:
    """95 % interval of one run's statistic by the same bootstrap; None with fewer than MIN_STEPS steps."""
    if len(values) < MIN_STEPS:
        return None
    resampled, length = block_resamples(values, statistic)
    return _ends(np.sort(resampled).tolist(), _tail(len(values) // length))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = highest
    return corrected


def _seed(values: Sequence[float]) -> int:
    return zlib.crc32(np.asarray(values, dtype=np.float64).tobytes())


def _tail(n: int) -> float:
    """Share beyond each end of the expanded percentile interval of n independent values."""
    if n < 2:
        return 0.0
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_beyond(LEVEL, n - 1))


def _ratio(a: float, b: float) -> float | None:
    return b / a - 1 if a > 0 else None


def _from_resamples(
    at_a: float, at_b: float, resampled: list[Floats], *, tail: float, p: float, least: float, method: str
) -> Difference:
    of_a, of_b = resampled
    ratios = (of_b / of_a - 1).tolist() if (of_a > 0).all() else []
    return _difference(
        at_a, at_b, sorted((of_b - of_a).tolist()), sorted(ratios), tail=tail, p=p, least=least, method=method
    )


def _difference(
    at_a: float,
    at_b: float,
    absolutes: list[float],
    ratios: list[float],
    *,
    tail: float | None,
    p: float,
    least: float,
    method: str,
) -> Difference:
    """Both intervals hold the value itself, which percentiles of few resamples may not."""
    ratio = _ratio(at_a, at_b)
    return Difference(
        absolute=(at_b - at_a, *_around(at_b - at_a, _ends(absolutes, tail))),
        relative=None if ratio is None or not ratios else (ratio, *_around(ratio, _ends(ratios, tail))),
        p=p,
        least_p=least,
        method=method,
    )


def _ends(ordered: list[float], tail: float | None) -> tuple[float, float]:
    """Order statistics as far from both ends, so that a mirrored sample has the mirrored interval."""
    k = 0 if tail is None else max(0, math.floor(tail * (len(ordered) + 1)) - 1)
    return ordered[k], ordered[len(ordered) - 1 - k]


def _around(value: float, ends: tuple[float, float]) -> tuple[float, float]:
    return min(ends[0], value), max(ends[1], value)
