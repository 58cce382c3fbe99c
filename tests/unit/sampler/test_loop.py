"""When samples are taken, and what happens when they cost too much. Time is a number that the tests move."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from agprof.sampler.loop import BUDGET_SAMPLES, Clock, Sampler, Schedule
from agprof.sampler.states import SECOND_NS, Backoff, Probe, Rate, States

MS = 1_000_000


class Time:
    def __init__(self) -> None:
        self.now = 1_000 * SECOND_NS
        self.cpu = 0
        self.delay = 0

    def clock(self) -> Clock:
        return Clock(
            monotonic_ns=lambda: self.now,
            cpu_ns=lambda: self.cpu,
            run_delay_ns=lambda: self.delay,
            resident_bytes=lambda: 123,
        )


class Part:
    def __init__(self, action: Callable[[], int] = lambda: 0) -> None:
        self.times: list[int] = []
        self.action = action

    def sample(self, now_ns: int) -> int:
        self.times.append(now_ns)
        return self.action()


class Rig:
    def __init__(self, action: Callable[["Rig"], int] = lambda rig: 0, period_s: float = 1.0) -> None:
        self.time = Time()
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        self.flushed: list[int] = []
        self.lost = 0
        self.part = Part(lambda: action(self))
        self.other = Part()
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.sampler = Sampler(
            append=append,
            flush=lambda: self.flushed.append(len(self.rows)),
            lost_rows=lambda: self.lost,
            states=States(append),
            parts={"host": self.part, "gpu.sampling": self.other},
            schedule=Schedule(period_s, Random(1)),
            clock=self.time.clock(),
        )

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.sampler.tick()
            self.time.now = max(self.time.now, self.sampler.due_ns)

    def states(self, field: str) -> list[tuple[str, str]]:
        return [(row[2], row[3]) for table, row in self.rows if table == "sampler_state" and row[1] == field]


def test_the_grid_does_not_drift_and_each_point_is_moved_by_at_most_a_fifth() -> None:
    rig = Rig()
    rig.run(500)
    begin = rig.part.times[0]
    offsets = [(time - begin - number * SECOND_NS) / SECOND_NS for number, time in enumerate(rig.part.times)]
    assert offsets[0] == 0
    assert max(map(abs, offsets)) <= 0.2
    assert min(offsets) < -0.15
    assert max(offsets) > 0.15


def test_times_that_were_missed_are_left_out() -> None:
    rig = Rig()
    rig.run(3)
    rig.time.now += 100 * SECOND_NS
    rig.run(2)
    assert rig.part.times[-1] - rig.part.times[-2] < 1.5 * SECOND_NS


def test_two_seeds_give_two_schedules() -> None:
    first, second = Schedule(1.0, Random(1)), Schedule(1.0, Random(2))
    assert first.next_ns(0) != second.next_ns(0)


def test_a_part_that_fails_is_a_row_once_and_the_other_parts_go_on() -> None:
    failing = [True, True, True, False, False]

    def action(rig: Rig) -> int:
        if failing.pop(0):
            raise RuntimeError("broken")
        return 0

    rig = Rig(action)
    rig.run(5)
    assert rig.states("host") == [("retry", "RuntimeError: broken"), ("ok", "")]
    assert len(rig.other.times) == 5


def test_a_slow_read_doubles_the_period_up_to_ten_seconds() -> None:
    def action(rig: Rig) -> int:
        rig.time.now += 60 * MS
        return 0

    rig = Rig(action)
    rig.run(8)
    assert rig.sampler.schedule.period_s == 10
    slowed = [reason for state, reason in rig.states("self") if state == "slowed"]
    assert slowed == [f"reading host took 60 ms; the period is {period} s from here on" for period in (2, 4, 8, 10)]


@pytest.mark.parametrize("excused", ["own budget", "no free CPU"])
def test_time_that_is_not_the_reads_own_does_not_slow_it_down(excused: str) -> None:
    def action(rig: Rig) -> int:
        rig.time.now += 60 * MS
        if excused == "no free CPU":
            rig.time.delay += 20 * MS
        return 20 * MS if excused == "own budget" else 0

    rig = Rig(action)
    rig.run(8)
    assert rig.sampler.schedule.period_s == 1


@pytest.mark.parametrize(("cpu_ms", "periods"), [(9, {1.0}), (15, {1.0, 2.0}), (30, {1.0, 2.0, 4.0})])
def test_more_than_one_percent_of_a_core_doubles_the_period(cpu_ms: int, periods: set[float]) -> None:
    def action(rig: Rig) -> int:
        rig.time.cpu += cpu_ms * MS
        return 0

    rig = Rig(action)
    found = set()
    for _ in range(6 * BUDGET_SAMPLES):
        rig.run(1)
        found.add(rig.sampler.schedule.period_s)
    assert found == periods


def test_it_accounts_for_itself_every_ten_seconds_and_at_the_end() -> None:
    rig = Rig()
    rig.run(31)
    rig.sampler.finish()
    own = [row for table, row in rig.rows if table == "sampler_state"]
    assert len(own) in (4, 5)
    assert all(row[1:] == ("self", "ok", "", 0, 123) for row in own)
    assert rig.flushed[-1] == len(rig.rows)


def test_lost_rows_are_said() -> None:
    rig = Rig()
    rig.run(1)
    rig.lost = 5
    rig.sampler.finish()
    assert rig.states("store") == [("retry", "5 rows could not be written")]


def test_what_was_read_first_is_flushed_before_the_next_part_runs() -> None:
    flushed_before: list[int] = []

    def action(rig: Rig) -> int:
        rig.sampler.append("host_samples", ())
        return 0

    rig = Rig(action)
    rig.other.action = lambda: flushed_before.append(len(rig.flushed)) or 0  # type: ignore[func-returns-value]
    rig.run(1)
    assert flushed_before == [1]


def test_a_rate_is_none_at_first_and_where_the_counter_went_backwards() -> None:
    rate = Rate()
    values = [rate.update(n * SECOND_NS, value) for n, value in enumerate([5, 7, None, 17, 3, 4, 4])]
    assert values == [None, 2, None, 5, None, 1, 0]
    assert rate.update(6 * SECOND_NS, 9) is None


def test_the_back_off_doubles_to_a_minute_and_starts_again_after_success() -> None:
    backoff, now, waits = Backoff(), 0, []
    for _ in range(9):
        backoff.failed(now)
        begin = now
        while not backoff.due(now):
            now += SECOND_NS
        waits.append((now - begin) // SECOND_NS)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    backoff.succeeded()
    backoff.failed(now)
    assert backoff.due(now + SECOND_NS)


def test_a_probe_goes_from_ok_to_retry_to_ok_and_to_unsupported_with_a_row_each() -> None:
    rows: list[tuple[Any, ...]] = []
    states = States(lambda table, row: rows.append(row))
    probe = Probe(states, "x", lambda error: "unsupported" if isinstance(error, PermissionError) else "retry")
    outcomes: list[Any] = [1, OSError("a"), OSError("b"), 2, PermissionError("no"), 3]

    def function() -> Any:
        value = outcomes.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    values = [probe.read(second * SECOND_NS, function) for second in range(8)]
    assert values == [1, None, None, None, 2, None, None, None]
    assert outcomes == [3]
    assert [(row[2], row[3]) for row in rows] == [
        ("retry", "OSError: a"),
        ("ok", ""),
        ("unsupported", "PermissionError: no"),
    ]
