"""Microseconds as a Kineto file writes them become whole nanoseconds, exactly.

A file holds times as decimal text with up to three digits after the point. Whole numbers are exact as they are. A
decimal read as a double is exact to the nanosecond below 2**43 us, where doubles lie less than a nanosecond apart;
files whose times count from 2024 or so stay below it. Above it (microseconds since the epoch with decimals, as PyTorch
wrote for some weeks of 2024) only the text has the nanoseconds, and the file is read again as decimals. Digits below a
nanosecond are rounded half to even.
"""

from array import array
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

MAX_INT = 2**63 - 1
EXACT_BELOW_US = float(2**43)


def array_ns(microseconds: list[Any]) -> Int64s | None:
    """Nanoseconds of times that are int or float; None where that is not exact, or where some are something else."""
    try:
        integers: Int64s = np.frombuffer(array("q", microseconds), np.int64)
    except (TypeError, OverflowError):
        return _rounded_ns(microseconds)
    limit = MAX_INT // 1000
    return integers * 1000 if not len(integers) or (-limit <= integers.min() and integers.max() <= limit) else None


def _rounded_ns(microseconds: list[Any]) -> Int64s | None:
    try:
        values = np.frombuffer(array("d", microseconds), np.float64)
    except (TypeError, OverflowError):
        return None
    if not np.abs(values).max() < EXACT_BELOW_US:  # NaN is not below
        return None
    whole = np.floor(values)
    part = (values - whole) * 1000.0
    nearest = np.rint(part)
    if (np.abs(part - nearest) > np.spacing(np.abs(values)) * 501.0 + 1e-6).any():
        return None  # digits below a nanosecond
    exact: Int64s = whole.astype(np.int64) * 1000 + nearest.astype(np.int64)
    return exact


def exact_ns(microseconds: Any) -> int | None:
    """Nanoseconds of one time: an int, a Decimal, or a number as text. None for what is no finite number or lies
    outside of 64 bits."""
    if isinstance(microseconds, bool) or not isinstance(microseconds, str | int | Decimal):
        return None
    try:
        value = Decimal(microseconds)
        if not value.is_finite() or value.adjusted() > 18:
            return None
        found = int((value * 1000).to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, ValueError):
        return None
    return found if abs(found) <= MAX_INT else None
