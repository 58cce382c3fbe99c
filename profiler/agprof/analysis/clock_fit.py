"""Lines through pings within their bounds. Pure arithmetic on numbers; which node they are of does not matter here.

An exchange says that the offset (reference minus local) lay within +- uncertainty of what it measured, however unequal
its two ways were. All lines that keep every bound of a stretch form a polygon in the plane (offset, drift). Of it we
take the line through the middle of what is possible at both ends of the run: no other has a smaller largest error
there, and it lies in the polygon itself. How far the polygon reaches from it is the uncertainty.

Where no line keeps all bounds, the clock's rate changed: the longest stretches that one line fits follow one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_DRIFT = 1e-3
"""Largest rate of one clock against another: Linux slews a clock by up to 500 ppm (MAXFREQ of adjtimex), each way."""
_SLACK_NS = 0.5
"""Measured offsets are whole numbers."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Ping:
    """Reference minus local at a local time, within +- uncertainty."""

    local_ns: int
    offset_ns: int
    uncertainty_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The best line of a stretch, and all that its bounds allow. Offsets are relative to `base_ns`."""

    first: int
    last: int
    """Numbers of the first and the last ping of the stretch."""
    zero_ns: int
    """Local time at which `at_zero_ns` holds."""
    base_ns: int
    at_zero_ns: float
    drift: float
    corners: tuple[Point, ...]
    """(offset at zero, drift) of the polygon of possible lines."""

    def offset_at(self, local_ns: int) -> int:
        return self.base_ns + round(self.at_zero_ns + self.drift * (local_ns - self.zero_ns))

    def bounds_at(self, local_ns: int) -> tuple[int, int]:
        """Least and largest offset that the stretch allows then."""
        low, high = _reach(self.corners, local_ns - self.zero_ns)
        return self.base_ns + int(low // 1), self.base_ns + int(-(-high // 1))

    def uncertainty_ns(self, local_ns: int) -> int:
        """Largest distance from the truth then, if the rate was constant."""
        low, high = self.bounds_at(local_ns)
        offset = self.offset_at(local_ns)
        return max(offset - low, high - offset)


def fit(pings: Sequence[Ping], begin_ns: int, end_ns: int) -> list[Line]:
    """The lines of the longest stretches, in order; one where one line does. `pings` are in order of time.

    The run reaches from begin to end, in local time.
    """
    lines: list[Line] = []
    first = 0
    while first < len(pings):
        last, corners = _longest(pings, first)
        zero = pings[first].local_ns
        begin = begin_ns if first == 0 else zero
        end = max(end_ns, begin) if last == len(pings) - 1 else pings[last].local_ns
        at_zero, drift = _middle(corners, begin - zero, end - zero)
        lines.append(
            Line(
                first=first, last=last, zero_ns=zero, base_ns=pings[first].offset_ns,
                at_zero_ns=at_zero, drift=drift, corners=tuple(corners),
            )
        )  # fmt: skip
        first = last + 1
    return lines


def _longest(pings: Sequence[Ping], first: int) -> tuple[int, list[Point]]:
    """The last ping up to which one line keeps all bounds, and the polygon of such lines."""
    start = pings[first]
    reach = start.uncertainty_ns + _SLACK_NS
    corners = [(-reach, -MAX_DRIFT), (reach, -MAX_DRIFT), (reach, MAX_DRIFT), (-reach, MAX_DRIFT)]
    for number in range(first + 1, len(pings)):
        ping = pings[number]
        since = ping.local_ns - start.local_ns
        offset = ping.offset_ns - start.offset_ns
        reach = ping.uncertainty_ns + _SLACK_NS
        narrowed = _cut(_cut(corners, since, offset + reach, 1.0), since, offset - reach, -1.0)
        if not narrowed:
            return number - 1, corners
        corners = narrowed
    return len(pings) - 1, corners


def _cut(corners: Sequence[Point], since: float, border: float, sign: float) -> list[Point]:
    """The part of a convex polygon where sign x (offset + drift x since - border) <= 0."""
    beyond = [sign * (offset + drift * since - border) for offset, drift in corners]
    if all(value <= 0 for value in beyond):
        return list(corners)
    kept: list[Point] = []
    for at, corner in enumerate(corners):
        before, here = beyond[at - 1], beyond[at]
        if (before < 0 < here) or (here < 0 < before):
            share = before / (before - here)
            previous = corners[at - 1]
            kept.append(
                (previous[0] + share * (corner[0] - previous[0]), previous[1] + share * (corner[1] - previous[1]))
            )
        if here <= 0:
            kept.append(corner)
    return kept


def _reach(corners: Sequence[Point], since: float) -> tuple[float, float]:
    offsets = [offset + drift * since for offset, drift in corners]
    return min(offsets), max(offsets)


def _middle(corners: Sequence[Point], begin: float, end: float) -> tuple[float, float]:
    """(offset at zero, drift) of the line through the middle of what is possible at both ends."""
    at_begin, at_end = (sum(_reach(corners, since)) / 2 for since in (begin, end))
    if end <= begin:
        slopes = [drift for _, drift in corners]
        drift = (min(slopes) + max(slopes)) / 2
        return at_begin - drift * begin, drift
    drift = (at_end - at_begin) / (end - begin)
    return at_begin - drift * begin, drift
