"""When samples are taken, and what happens when they cost too much. Time is a number that the tests move."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from agprof.sampler.loop import Clock, Lane, tier
from agprof.sampler.schedule import Schedule
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
            thread_cpu_ns=lambda: self.cpu,
            process_cpu_ns=lambda: self.cpu,
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
    """A lane of two tiers: `part` and `other` in `medium`, `cores` in `slow`."""

    def __init__(self, action: Callable[["Rig"], int] = lambda rig: 0) -> None:
        self.time = Time()
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        self.flushed: list[int] = []
        self.lost = 0
        self.part = Part(lambda: action(self))
        self.other = Part()
        self.cores = Part()
        self.medium = tier("medium", 1.0, {"host": self.part, "network": self.other}, Random(1))
        self.slow = tier("slow", 5.0, {"cores": self.cores}, Random(2))
        self.lane = Lane(
            name="host",
            tiers=(self.medium, self.slow),
            append=self.append,
            states=States(self.append),
            flush=lambda: self.flushed.append(len(self.rows)),
            clock=self.time.clock(),
        )

    def append(self, table: str, row: tuple[Any, ...]) -> None:
        self.rows.append((table, row))

    def run(self, seconds: float) -> None:
        end_ns = self.time.now + int(seconds * SECOND_NS)
        while self.time.now < end_ns:
            self.lane.run_due()
            self.time.now = max(self.time.now, self.lane.due_ns)

    def states(self, field: str) -> list[tuple[str, str]]:
        return [(row[2], row[3]) for table, row in self.rows if table == "sampler_state" and row[1] == field]


def offsets(times: list[int], period_s: float) -> list[float]:
    return [(time - times[0] - number * period_s * SECOND_NS) / SECOND_NS for number, time in enumerate(times)]


def test_each_tier_has_a_grid_that_does_not_drift_and_points_moved_by_at_most_a_fifth() -> None:
    rig = Rig()
    rig.run(1000)
    for times, period_s in ((rig.part.times, 1.0), (rig.cores.times, 5.0)):
        moved = offsets(times, period_s)
        assert len(moved) == pytest.approx(1000 / period_s, abs=2)
        assert moved[0] == 0
        assert max(map(abs, moved)) <= 0.2 * period_s
        assert min(moved) < -0.15 * period_s
        assert max(moved) > 0.15 * period_s
    assert rig.other.times == rig.part.times


def test_times_that_were_missed_are_left_out() -> None:
    rig = Rig()
    rig.run(3)
    rig.time.now += 100 * SECOND_NS
    count = len(rig.part.times)
    rig.run(2)
    assert len(rig.part.times) <= count + 4
    assert rig.part.times[-1] - rig.part.times[-2] < 1.5 * SECOND_NS


def test_two_seeds_give_two_schedules() -> None:
    first, second = Schedule(1.0, 10.0, Random(1)), Schedule(1.0, 10.0, Random(2))
    assert first.next_ns(0) != second.next_ns(0)


def test_a_part_that_fails_is_a_row_once_and_the_other_parts_go_on() -> None:
    failing = [True, True, True, False, False]

    def action(rig: Rig) -> int:
        if failing.pop(0):
            raise RuntimeError("broken")
        return 0

    rig = Rig(action)
    while failing:
        rig.run(0.1)
    assert rig.states("host") == [("retry", "RuntimeError: broken"), ("ok", "")]
    assert len(rig.other.times) == 5


def test_a_slow_read_doubles_the_period_of_its_tier_up_to_ten_seconds_and_of_no_other() -> None:
    def action(rig: Rig) -> int:
        rig.time.now += 60 * MS
        return 0

    rig = Rig(action)
    rig.run(80)
    assert (rig.medium.schedule.period_s, rig.slow.schedule.period_s) == (10, 5)
    slowed = [reason for state, reason in rig.states("tier.medium") if state == "slowed"]
    assert slowed == [
        f"host: reading host took 60 ms; the period is {period} s from here on" for period in (2, 4, 8, 10)
    ]
    assert rig.states("tier.slow") == []


def test_a_tier_that_was_asked_to_be_slower_than_the_cap_stays_as_it_is() -> None:
    asked = tier("fast", 30.0, {}, Random(1))
    assert not asked.schedule.slow_down(0)
    assert asked.schedule.period_s == 30


def test_the_first_sample_of_a_part_may_be_slow_because_it_loads_and_opens() -> None:
    def action(rig: Rig) -> int:
        rig.time.now += 900 * MS if len(rig.part.times) == 1 else 0
        return 0

    rig = Rig(action)
    rig.run(20)
    assert rig.medium.schedule.period_s == 1


@pytest.mark.parametrize("excused", ["own budget", "no free CPU"])
def test_time_that_is_not_the_reads_own_does_not_slow_it_down(excused: str) -> None:
    def action(rig: Rig) -> int:
        rig.time.now += 60 * MS
        if excused == "no free CPU":
            rig.time.delay += 20 * MS
        return 20 * MS if excused == "own budget" else 0

    rig = Rig(action)
    rig.run(8)
    assert rig.medium.schedule.period_s == 1


@pytest.mark.parametrize(("cpu_ms", "periods"), [(9, {1.0}), (15, {1.0, 2.0}), (30, {1.0, 2.0, 4.0})])
def test_more_than_one_percent_of_a_core_doubles_the_period(cpu_ms: int, periods: set[float]) -> None:
    def action(rig: Rig) -> int:
        rig.time.cpu += cpu_ms * MS
        return 0

    rig = Rig(action)
    found = set()
    for _ in range(300):
        rig.run(1)
        found.add(rig.medium.schedule.period_s)
    assert found == periods
    assert rig.slow.schedule.period_s == 5
    assert rig.lane.costs_ns() == {"host.medium": len(rig.part.times) * cpu_ms * MS, "host.slow": 0}
    if cpu_ms == 15:
        ((state, reason),) = rig.states("tier.medium")
        assert state == "slowed"
        assert reason == ("host: sampling it took 1.5% of a core over the last 30 s; the period is 2 s from here on")


def test_cpu_time_with_a_budget_of_its_own_is_not_held_against_the_tier() -> None:
    def action(rig: Rig) -> int:
        rig.time.cpu += 30 * MS
        return 25 * MS

    rig = Rig(action)
    rig.run(200)
    assert rig.medium.schedule.period_s == 1


def test_one_moment_of_much_work_slows_nothing_down() -> None:
    def action(rig: Rig) -> int:
        rig.time.cpu += 200 * MS if len(rig.part.times) == 40 else MS
        return 0

    rig = Rig(action)
    rig.run(200)
    assert rig.medium.schedule.period_s == 1


@pytest.mark.parametrize("period_s", [0.2, 1.0, 5.0, 30.0])
def test_a_budget_needs_half_a_minute_and_six_periods(period_s: float) -> None:
    budget, now_ns, samples = tier("fast", period_s, {}, Random(1)).budget, 0, 0
    while budget.excess(now_ns, int(0.02 * period_s * SECOND_NS)) is None:
        now_ns += int(period_s * SECOND_NS)
        samples += 1
    assert now_ns / SECOND_NS == pytest.approx(max(30, 6 * period_s), abs=period_s)


def test_what_was_read_first_is_flushed_before_the_next_part_runs() -> None:
    flushed_before: list[int] = []

    def action(rig: Rig) -> int:
        rig.append("host_samples", ())
        return 0

    rig = Rig(action)
    rig.other.action = lambda: flushed_before.append(len(rig.flushed)) or 0  # type: ignore[func-returns-value]
    rig.run(0.1)
    assert flushed_before == [1]


def test_a_watchdog_can_see_what_is_being_sampled_and_since_when() -> None:
    seen: list[object] = []

    def action(rig: Rig) -> int:
        seen.append(rig.lane.sampling)
        return 0

    rig = Rig(action)
    begin_ns = rig.time.now
    rig.run(0.1)
    assert seen == [("host", begin_ns)]
    assert rig.lane.sampling is None


def test_the_last_sample_is_taken_of_everything() -> None:
    rig = Rig()
    rig.run(1)
    counts = [len(part.times) for part in (rig.part, rig.other, rig.cores)]
    rig.lane.finish()
    assert [len(part.times) for part in (rig.part, rig.other, rig.cores)] == [count + 1 for count in counts]


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
