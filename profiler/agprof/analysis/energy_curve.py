"""Energy over time of one GPU or one host, as a curve whose differences are the energy of a window.

The curve is made of segments that tile the time from the first to the last sample; in each the power is a straight
line. Between two readings of an energy counter it is their difference over their distance. Where there is no counter,
or it went backwards (it begins anew when the driver is loaded again), it is the trapezoid of two readings of power.
Where neither is known, the segment is left out: it holds no energy, and widens the interval upwards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

IntegralKind = Literal["instant", "average"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NS = 1e-9
AVERAGED_NS = 1_000_000_000
"""What NVML's average of power is taken over, ending at its reading."""
MOST_PERIODS = 3
"""Readings of power further apart than this many periods are not joined by a line."""
MOST_PLAUSIBLE_W = 10_000.0
"""A counter that rose faster than this between two readings did not count energy in between: it began anew."""
_NEIGHBOURS = 9
_NONE, _COUNTER, _INTEGRAL = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """What an instrument's makers or measurements of it say of its errors."""

    sensor_ratio: float
    """Of all energy."""
    refresh_ns: int
    """The counter is up to so much older than its reading."""


NVML = Accuracy(sensor_ratio=0.05, refresh_ns=100_000_000)
"""5 %: NVML's documentation of nvmlDeviceGetPowerUsage gives it for Fermi and Kepler, and nothing for later GPUs.
100 ms: "Part-time Power Measurements", arXiv:2312.02741."""
RAPL = Accuracy(sensor_ratio=0.0, refresh_ns=1_000_000)
"""About 1 ms: Intel's Software Developer's Manual, volume 3, on RAPL, which gives no error of the energy itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Energy of one window, or of several."""

    joules: float
    error_j: float
    """Either way."""
    missing_j: float
    """At most what was left out could have held."""
    counter_ns: int
    integral_ns: int
    left_out_ns: int
    samples: int
    resets: int

    @property
    def low(self) -> float:
        return max(0.0, self.joules - self.error_j)

    @property
    def high(self) -> float:
        return self.joules + self.error_j + self.missing_j

    @property
    def duration_ns(self) -> int:
        return self.counter_ns + self.integral_ns + self.left_out_ns


def total(parts: Iterable[Measured]) -> Measured:
    """Of windows or instruments together. Errors add up: one sensor's are not independent of one another."""
    rows = list(parts)
    return Measured(
        joules=sum(row.joules for row in rows),
        error_j=sum(row.error_j for row in rows),
        missing_j=sum(row.missing_j for row in rows),
        counter_ns=sum(row.counter_ns for row in rows),
        integral_ns=sum(row.integral_ns for row in rows),
        left_out_ns=sum(row.left_out_ns for row in rows),
        samples=sum(row.samples for row in rows),
        resets=sum(row.resets for row in rows),
    )


@dataclass(frozen=True, slots=True)
class _Segments:
    """Straight lines of power; each begins where the one before ends."""

    start_ns: Ints
    end_ns: Ints
    begin_w: Floats
    finish_w: Floats
    kind: Ints

    @classmethod
    def join(cls, parts: Sequence["_Segments"]) -> "_Segments":
        """One after the other, without those that have no length."""
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__]
        keep = columns[1] > columns[0]
        return cls(*(column[keep] for column in columns))


def _segments(start_ns: Any, end_ns: Any, begin_w: Any, finish_w: Any, kind: Any) -> _Segments:
    start = np.asarray(start_ns, dtype=np.int64)
    return _Segments(
        start,
        np.asarray(end_ns, dtype=np.int64),
        np.asarray(begin_w, dtype=np.float64),
        np.asarray(finish_w, dtype=np.float64),
        np.broadcast_to(np.asarray(kind, dtype=np.int64), start.shape),
    )


def _left_out(start_ns: int, end_ns: int) -> _Segments:
    return _segments([start_ns], [end_ns], [0.0], [0.0], _NONE)


class EnergyCurve:
    """One instrument's energy; all times in ns of its node's monotonic clock."""

    def __init__(
        self,
        segments: _Segments,
        accuracy: Accuracy,
        *,
        times: Ints,
        power: Floats | None = None,
        integral: IntegralKind | None = None,
        resets_ns: Sequence[int] = (),
    ) -> None:
        """`times` are those of the samples; `power` the readings that integrals are made of."""
        self.integral = integral
        self.resets_ns = tuple(resets_ns)
        self._s = segments
        self._accuracy = accuracy
        self._times = times
        seconds = (segments.end_ns - segments.start_ns) * NS
        self._joules = _cumulated((segments.begin_w + segments.finish_w) / 2 * seconds)
        span = segments.end_ns - segments.start_ns
        self._counter_ns = _cumulated_ns(np.where(segments.kind == _COUNTER, span, 0))
        self._none_ns = _cumulated_ns(np.where(segments.kind == _NONE, span, 0))
        self.period_ns = int(np.median(np.diff(times))) if len(times) > 1 else 0
        self._spread_w = float(np.std(power)) if power is not None and len(power) else 0.0
        self.highest_w = max((float(x.max()) for x in (segments.begin_w, segments.finish_w) if len(x)), default=0.0)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of its energy is known at any time."""
        return not (self._s.kind != _NONE).any()

    @property
    def start_ns(self) -> int:
        return int(self._s.start_ns[0])

    @property
    def end_ns(self) -> int:
        return int(self._s.end_ns[-1])

    def window(self, start_ns: int, end_ns: int) -> Measured:
        """Energy from `start_ns` to `end_ns`; what lies outside the samples is left out."""
        low, high = max(start_ns, self.start_ns), min(end_ns, self.end_ns)
        if high <= low:
            return self._nothing(max(0, end_ns - start_ns))
        first, last = self._at(low), self._at(high, before=True)
        joules = max(0.0, self._energy(last, high) - self._energy(first, low))
        counter_ns = self._length(self._counter_ns, _COUNTER, last, high)
        counter_ns -= self._length(self._counter_ns, _COUNTER, first, low)
        none_ns = self._length(self._none_ns, _NONE, last, high) - self._length(self._none_ns, _NONE, first, low)
        integral_ns = high - low - counter_ns - none_ns
        left_out_ns = none_ns + (low - start_ns) + (end_ns - high)
        error = self._accuracy.sensor_ratio * joules + self._sampling_error(integral_ns)
        error += self._border_error(first, low) + self._border_error(last, high)
        begin, end = np.searchsorted(self._times, (low, high), side="left")
        return Measured(
            joules=joules,
            error_j=error,
            missing_j=left_out_ns * NS * self.highest_w,
            counter_ns=counter_ns,
            integral_ns=integral_ns,
            left_out_ns=left_out_ns,
            samples=int(end - begin),
            resets=sum(low < at <= high for at in self.resets_ns),
        )

    def _nothing(self, left_out_ns: int) -> Measured:
        return Measured(
            joules=0.0,
            error_j=0.0,
            missing_j=left_out_ns * NS * self.highest_w,
            counter_ns=0,
            integral_ns=0,
            left_out_ns=left_out_ns,
            samples=0,
            resets=0,
        )

    def _at(self, time_ns: int, *, before: bool = False) -> int:
        """The segment that holds a time; at a border the later one, or with `before` the earlier."""
        side: Literal["left", "right"] = "left" if before else "right"
        return max(0, int(np.searchsorted(self._s.start_ns, time_ns, side=side)) - 1)

    def _energy(self, index: int, time_ns: int) -> float:
        """Energy from the curve's begin to a time in that segment."""
        s = self._s
        seconds = (time_ns - int(s.start_ns[index])) * NS
        whole = (int(s.end_ns[index]) - int(s.start_ns[index])) * NS
        begin, finish = float(s.begin_w[index]), float(s.finish_w[index])
        there = begin + (finish - begin) * seconds / whole
        return float(self._joules[index]) + (begin + there) / 2 * seconds

    def _length(self, cumulated: Ints, kind: int, index: int, time_ns: int) -> int:
        inside = time_ns - int(self._s.start_ns[index]) if int(self._s.kind[index]) == kind else 0
        return int(cumulated[index]) + inside

    def _border_error(self, index: int, time_ns: int) -> float:
        """Of a window's end: the counter's age; in a long stretch between two readings, where its energy fell."""
        s = self._s
        kind = int(s.kind[index])
        power = max(float(s.begin_w[index]), float(s.finish_w[index]))
        if kind == _INTEGRAL:
            return power * AVERAGED_NS * NS / 4 if self.integral == "average" else 0.0
        if kind == _NONE:
            return 0.0
        start, end = int(s.start_ns[index]), int(s.end_ns[index])
        is_inside = start < time_ns < end
        long_ns = end - start if is_inside and end - start > MOST_PERIODS * self.period_ns else 0
        return power * (self._accuracy.refresh_ns + long_ns) * NS

    def _sampling_error(self, integral_ns: int) -> float:
        """1.96 standard errors of the mean of as many readings as fell into the time that was integrated."""
        if not integral_ns or not self.period_ns:
            return 0.0
        readings = max(1.0, integral_ns / self.period_ns)
        return float(1.96 * self._spread_w / np.sqrt(readings) * integral_ns * NS)


def _cumulated(values: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values)))


def _cumulated_ns(values: Ints) -> Ints:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(values, dtype=np.int64)))


def gpu_curve(times: Ints, energy_mj: Floats, power_mw: Floats, average_mw: Floats) -> EnergyCurve | None:
    """Of a GPU's samples in order of time: its counter, power at the instant, power averaged over the second before.

    NaN stands for what was not read. None when there are fewer than two samples.
    """
    at = times
    if len(at) < 2:
        return None
    kind, power_at, power = _power(at, _readings(power_mw), _readings(average_mw))
    lines = _lines(power_at, power)
    counter = _readings(energy_mj)
    known = ~np.isnan(counter)
    segments, resets = _with_counter(at, at[known], counter[known] / 1e3, lines)
    was_read = known | ~np.isnan(_readings(power_mw)) | ~np.isnan(_readings(average_mw))
    return EnergyCurve(
        segments, NVML, times=at[was_read], power=power, integral=kind if len(power) else None, resets_ns=resets
    )


def host_curve(times: Sequence[int], periods_ns: Sequence[int], joules: Sequence[float]) -> EnergyCurve | None:
    """Of a host's RAPL: energy of the `periods_ns` before each time. None when there is no reading."""
    ends, lengths = np.asarray(times, dtype=np.int64), np.asarray(periods_ns, dtype=np.int64)
    keep = lengths > 0
    ends, starts, energy = ends[keep], ends[keep] - lengths[keep], np.asarray(joules, dtype=np.float64)[keep]
    if not len(ends):
        return None
    power = energy / ((ends - starts) * NS)
    starts = np.maximum(starts, np.concatenate((starts[:1], ends[:-1])))
    parts: list[_Segments] = []
    holes = np.flatnonzero(starts[1:] > ends[:-1]) + 1
    for begin, end in zip((0, *holes), (*holes, len(ends)), strict=True):
        if begin:
            parts.append(_left_out(int(ends[begin - 1]), int(starts[begin])))
        parts.append(_segments(starts[begin:end], ends[begin:end], power[begin:end], power[begin:end], _COUNTER))
    return EnergyCurve(_Segments.join(parts), RAPL, times=ends)


def _readings(values: Floats) -> Floats:
    """Without what no reading can be."""
    return np.where(np.isfinite(values) & (values >= 0), values, np.nan)


def _power(at: Ints, instant: Floats, average: Floats) -> tuple[IntegralKind, Ints, Floats]:
    """The readings to integrate, in W: instant ones unless the averages are more. Averages lie in their middle."""
    has_instant, has_average = ~np.isnan(instant), ~np.isnan(average)
    if has_instant.sum() >= has_average.sum():
        return "instant", at[has_instant], instant[has_instant] / 1e3
    return "average", at[has_average] - AVERAGED_NS // 2, average[has_average] / 1e3


def _lines(at: Ints, power: Floats) -> _Segments:
    """Between readings of power; the first and the last reading hold for up to three periods beyond."""
    if len(at) < 2:
        return _segments([], [], [], [], _INTEGRAL)
    steps = np.diff(at)
    # The sampler doubles its period where it costs too much: what is a gap depends on the readings around.
    around = np.pad(steps, _NEIGHBOURS // 2, mode="edge")
    local = np.median(np.lib.stride_tricks.sliding_window_view(around, _NEIGHBOURS), axis=1)
    limits = MOST_PERIODS * np.maximum(local, np.median(steps))
    near = steps <= limits
    before, after = max(int(limits[0]), AVERAGED_NS // 2), max(int(limits[-1]), AVERAGED_NS // 2)
    inner = _Segments(
        at[:-1],
        at[1:],
        np.where(near, power[:-1], 0.0),
        np.where(near, power[1:], 0.0),
        np.where(near, _INTEGRAL, _NONE),
    )
    head = _segments([at[0] - before], [at[0]], [power[0]], [power[0]], _INTEGRAL)
    tail = _segments([at[-1]], [at[-1] + after], [power[-1]], [power[-1]], _INTEGRAL)
    return _Segments.join([head, inner, tail])


def _with_counter(at: Ints, read_at: Ints, joules: Floats, lines: _Segments) -> tuple[_Segments, list[int]]:
    """Segments over all samples, and the times of the readings before which the counter began anew."""
    first, last = int(at[0]), int(at[-1])
    if len(read_at) < 2 or _stands_still(read_at, joules, lines):
        return _Segments.join(_clip(lines, first, last)), []
    steps_s, risen = np.diff(read_at) * NS, np.diff(joules)
    power = risen / steps_s
    broken = np.flatnonzero((risen < 0) | (power > MOST_PLAUSIBLE_W))
    parts = [*_clip(lines, first, int(read_at[0]))]
    begin = 0
    for hole in (*broken, len(power)):
        stretch = slice(begin, hole)
        parts.append(_segments(read_at[:-1][stretch], read_at[1:][stretch], power[stretch], power[stretch], _COUNTER))
        if hole < len(power):
            parts.extend(_clip(lines, int(read_at[hole]), int(read_at[hole + 1])))
        begin = hole + 1
    parts.extend(_clip(lines, int(read_at[-1]), last))
    return _Segments.join(parts), [int(read_at[hole + 1]) for hole in broken]


def _stands_still(read_at: Ints, joules: Floats, lines: _Segments) -> bool:
    """A counter that does not move for a second while power is drawn counts nothing."""
    is_long = int(read_at[-1]) - int(read_at[0]) >= 1_000_000_000
    return is_long and float(joules.max()) == float(joules.min()) and bool((lines.begin_w > 0).any())


def _clip(lines: _Segments, start_ns: int, end_ns: int) -> list[_Segments]:
    """The lines between two times, cut at them; left out where there are none."""
    if end_ns <= start_ns:
        return []
    if not len(lines.start_ns) or int(lines.end_ns[-1]) <= start_ns or int(lines.start_ns[0]) >= end_ns:
        return [_left_out(start_ns, end_ns)]
    begin = int(np.searchsorted(lines.end_ns, start_ns, side="right"))
    end = int(np.searchsorted(lines.start_ns, end_ns, side="left"))
    low, high = lines.start_ns[begin:end], lines.end_ns[begin:end]
    cut_low, cut_high = np.maximum(low, start_ns), np.minimum(high, end_ns)
    slope = (lines.finish_w[begin:end] - lines.begin_w[begin:end]) / (high - low)
    inner = _Segments(
        cut_low,
        cut_high,
        lines.begin_w[begin:end] + slope * (cut_low - low),
        lines.begin_w[begin:end] + slope * (cut_high - low),
        lines.kind[begin:end],
    )
    return [
        _left_out(start_ns, int(cut_low[0])),
        inner,
        _left_out(int(cut_high[-1]), end_ns),
    ]
