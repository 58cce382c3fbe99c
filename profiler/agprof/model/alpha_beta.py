"""Fits t(S) = alpha + beta S to measured times of a collective over sizes."""

import math
from collections.abc import Sequence

from agprof.model.comm_ceiling import AlphaBeta, CommPoint

MIN_POINTS = 3


def fit(points: Sequence[tuple[float, float]]) -> AlphaBeta | None:
    """The fit of (bytes, ns) by least squares of relative errors; None with fewer than three different sizes.

    Each point weighs 1 / t^2, so that 1 KB counts as much as 1 GB. Neither parameter is below 0: where the best would
    be, it is 0 and the other one is fitted alone. Standard errors are those of weighted least squares, with the
    residuals' own variance (n - 2 degrees of freedom).

    >>> found = fit([(1e3, 11e3), (1e6, 1010e3), (1e7, 10010e3)])
    >>> round(found.alpha_ns), round(found.beta_ns_per_byte, 3)
    (10000, 1.0)
    """
    usable = [(size, time) for size, time in points if size >= 0 and time > 0 and math.isfinite(time)]
    if len({size for size, _ in usable}) < MIN_POINTS:
        return None
    weights = [1 / time**2 for _, time in usable]
    w = sum(weights)
    mean_x = sum(weight * size for weight, (size, _) in zip(weights, usable, strict=True)) / w
    mean_y = sum(weight * time for weight, (_, time) in zip(weights, usable, strict=True)) / w
    # About the means: sums of squares of sizes would cancel.
    sxx = sum(weight * (size - mean_x) ** 2 for weight, (size, _) in zip(weights, usable, strict=True))
    sxy = sum(weight * (size - mean_x) * (time - mean_y) for weight, (size, time) in zip(weights, usable, strict=True))
    if not sxx > 0:
        return None
    beta = sxy / sxx
    alpha = mean_y - beta * mean_x
    if alpha < 0:
        wxx = sxx + w * mean_x**2
        alpha, beta = 0.0, (sxy + w * mean_x * mean_y) / wxx
    elif beta < 0:
        alpha, beta = mean_y, 0.0
    relative = [(time - alpha - beta * size) / time for size, time in usable]
    variance = sum(error**2 for error in relative) / max(1, len(usable) - 2)
    against = [(time - alpha - beta * size) / (alpha + beta * size) for size, time in usable if alpha + beta * size > 0]
    return AlphaBeta(
        alpha_ns=alpha,
        alpha_error_ns=math.sqrt(variance * (1 / w + mean_x**2 / sxx)),
        beta_ns_per_byte=beta,
        beta_error_ns_per_byte=math.sqrt(variance / sxx),
        relative_rms=math.sqrt(sum(error**2 for error in against) / len(against)),
        worst=max(map(abs, against)),
    )


def fit_points(points: Sequence[CommPoint]) -> AlphaBeta | None:
    """The fit of a curve's medians."""
    return fit([(point.bytes, point.median_ns) for point in points])


def predict_ns(model: AlphaBeta, size_bytes: float) -> float:
    """Time of a collective of that many total bytes."""
    return model.alpha_ns + model.beta_ns_per_byte * size_bytes
