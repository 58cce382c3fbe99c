"""The pair of clocks in a stream's header."""

import time

import pytest

from agprof.store.clocks import read_clocks


def test_the_clocks_are_of_one_instant():
    clocks = read_clocks()
    assert list(clocks) == ["realtime_ns", "monotonic_ns", "boottime_ns"]
    offset = clocks["realtime_ns"] - clocks["monotonic_ns"]
    apart = min(abs(time.time_ns() - time.monotonic_ns() - offset) for _ in range(20))
    assert apart < 100_000


def test_a_thread_that_loses_its_core_between_two_clocks_does_not_shift_the_stream(monkeypatch: pytest.MonkeyPatch):
    now = [1_000]
    readings = iter(range(100))
    realtime_is = 5_000_000

    def tick() -> int:
        # The core is lost for a millisecond at some readings, and never within the fourth look.
        now[0] += 1_000_000 if next(readings) in {1, 3, 8, 13} else 10
        return now[0]

    monkeypatch.setattr(time, "monotonic_ns", tick)
    monkeypatch.setattr(time, "time_ns", lambda: tick() + realtime_is)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _clock: tick())
    clocks = read_clocks()
    assert abs(clocks["realtime_ns"] - realtime_is - clocks["monotonic_ns"]) <= 20
