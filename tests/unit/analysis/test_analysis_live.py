"""The running job at a glance."""

import pytest

from agprof.analysis.live import RECENT_STEPS, LiveRank
from agprof.model.tables import BY_NAME, PHASES

MS = 1_000_000


def row(table: str, **values):
    """A row with the given columns, the others None."""
    return tuple(values.get(column.name) for column in BY_NAME[table].columns)


def step(number: int, duration_ms: int = 100, loss: float | None = None):
    start = number * duration_ms * MS
    return row("steps", step=number, start_ns=start, end_ns=start + duration_ms * MS, micro_steps=1, loss=loss)


def phase(number: int, name: str, start_ms: int, end_ms: int):
    return row("spans", step=number, category="phase", name=name, start_ns=start_ms * MS, end_ns=end_ms * MS)


def test_nothing_is_known_before_the_first_step():
    live = LiveRank(3)
    assert (live.steps_done, live.steps_per_s(), live.eta_s(10), live.shares()) == (0, None, None, {})


def test_rate_and_time_left():
    live = LiveRank(0)
    live.fold("steps", [step(n) for n in range(4)])
    assert live.steps_done == 4
    assert live.steps_per_s() == pytest.approx(10)
    assert live.eta_s(24) == pytest.approx(2)
    assert live.eta_s(None) is None
    assert live.eta_s(4) == 0
    assert live.eta_s(2) is None, "it went past what was asked for"


def test_communication_is_taken_out_of_the_phase_that_issued_it_and_shares_add_up():
    live = LiveRank(0)
    live.fold("spans", [phase(0, "forward", 0, 30), phase(0, "backward", 30, 80)])
    live.fold(
        "collectives",
        [row("collectives", step=0, start_ns=40 * MS, issue_end_ns=55 * MS, wait_ns=5 * MS, caller="backward")],
    )
    live.fold("steps", [step(0)])
    shares = live.shares()
    assert set(shares) == set(PHASES)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["forward"] == pytest.approx(0.3)
    assert shares["backward"] == pytest.approx(0.3)
    assert shares["communication"] == pytest.approx(0.2)
    assert shares["other"] == pytest.approx(0.2)


def test_only_recent_steps_count():
    live = LiveRank(0)
    for number in range(3 * RECENT_STEPS):
        live.fold("spans", [phase(number, "forward" if number < RECENT_STEPS else "data", 0, 100)])
        live.fold("steps", [step(number)])
    assert live.shares()["forward"] == 0
    assert live.shares()["data"] == pytest.approx(1)


def test_the_last_loss_and_memory_stay():
    live = LiveRank(0)
    live.fold("micro_steps", [row("micro_steps", step=0, loss=2.5), row("micro_steps", step=0, loss=None)])
    live.fold("memory", [row("memory", step=0, rss_bytes=7, allocated_bytes=None)])
    live.fold("marks", [row("marks", name="ignored")])
    assert (live.loss, live.rss_bytes, live.allocated_bytes) == (2.5, 7, None)
