"""Counters that wrap and reset, against closed forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.sampler.nvml_counters import Counter
from agprof.sampler.states import SECOND_NS

FIFTH = SECOND_NS // 5


@given(
    bits=st.sampled_from([16, 32, 64]),
    begin=st.integers(0, 2**64 - 1),
    steps=st.lists(st.integers(0, 2**14), min_size=1, max_size=50),
)
def test_what_was_added_is_what_comes_out_however_often_it_wraps(bits: int, begin: int, steps: list[int]) -> None:
    # At most 2^14 per fifth of a second: no 16 bits are passed twice.
    counter, value = Counter(most_per_s=5 * 2**14), begin % 2**bits
    assert counter.change(0, value, bits) is None
    for index, step in enumerate(steps, 1):
        value = (value + step) % 2**bits
        assert counter.change(index * FIFTH, value, bits) == step
        assert counter.rate(index * FIFTH, value, bits) is None  # no time has passed since


@pytest.mark.parametrize(("bits", "rate"), [(32, 1_000_000_000), (64, 900_000_000_000)])
def test_a_constant_rate_through_a_wrap_stays_what_it_is(bits: int, rate: int) -> None:
    counter, value = Counter(most_per_s=2e12), 2**bits - rate
    rates = []
    for index in range(20):
        rates.append(counter.rate(index * FIFTH, value, bits))
        value = (value + rate // 5) % 2**bits
    assert rates == [None] + [rate] * 19


@pytest.mark.parametrize(
    ("bits", "before", "after"),
    [
        (64, 10**15, 0),  # the driver was loaded again
        (64, 2**32 - 1, 5),  # a wrap at 32 bits of a value of 64 is no wrap
        (32, 3 * 10**9, 1000),  # 1.3e9 more in 0.2 s is more than 1e9 per second
        (32, 0, 3 * 10**9),  # forwards, but by more than can be
    ],
)
def test_a_step_that_cannot_be_is_a_reset_and_one_sample_is_left_out(bits: int, before: int, after: int) -> None:
    counter = Counter(most_per_s=1e9)
    counter.change(0, before, bits)
    assert counter.change(FIFTH, after, bits) is None
    assert counter.change(2 * FIFTH, after + 100, bits) == 100


def test_no_change_is_0_and_not_none() -> None:
    counter = Counter(most_per_s=1e9)
    counter.change(0, 7, 64)
    assert counter.rate(FIFTH, 7, 64) == 0.0


def test_a_gap_has_no_change_and_neither_has_the_sample_behind_it() -> None:
    counter = Counter(most_per_s=1e9)
    changes = [counter.change(index * FIFTH, value, 64) for index, value in enumerate([1, 2, None, 4, 5])]
    assert changes == [None, 1, None, None, 1]


def test_a_long_time_over_which_it_may_have_wrapped_twice_tells_nothing() -> None:
    fast, slow = Counter(most_per_s=6e10), Counter(most_per_s=1e6)
    for counter in (fast, slow):
        counter.change(0, 0, 32)
    assert fast.change(10 * SECOND_NS, 5, 32) is None
    assert slow.change(10 * SECOND_NS, 5, 32) == 5
