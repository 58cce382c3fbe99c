"""Student's t distribution: the share beyond a value, and the value at a share. Plain Python."""

import math

_ITERATIONS = 300
_TINY = 1e-300


def two_sided_p(t: float, freedom: float) -> float:
    """Probability of |T| >= |t| with that many degrees of freedom (> 0): I_x(f/2, 1/2) at x = f / (f + t²).

    >>> round(two_sided_p(1.0, 1), 12), round(two_sided_p(4.302652729749464, 2), 9)
    (0.5, 0.05)
    """
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_beyond(p: float, freedom: float) -> float:
    """The t >= 0 that `two_sided_p` gives `p` (0 < p < 1), by bisection.

    >>> round(t_beyond(0.05, 2), 6), round(t_beyond(0.05, 30), 4)
    (4.302653, 2.0423)
    """
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > p else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), regularised, by its continued fraction (DLMF 8.17.22), on the side where that converges fast."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return front * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz's evaluation of the continued fraction."""
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1) or _TINY)
    value = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or _TINY)
            c = 1.0 + term / c or _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value
