"""The grammar of gates, its errors, and what passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.compare_gates import change_words, gate_rows, read_gate
from agprof.errors import ConfigError
from agprof.model.compare_answers import Change, KpiRow
from agprof.model.figure import Figure


def figure(value: float | None, unit: str = "ns", low: float | None = None, high: float | None = None) -> Figure:
    reason = "no steady step" if value is None else None
    return Figure(value=value, unit=unit, source="measured", n=9, low=low, high=high, reason=reason)


def row(a: float | None, b: float | None, key: str = "step_time", unit: str = "ns") -> KpiRow:
    """A row of two sides whose change has an interval of a hundredth each way."""
    change = None
    if a is not None and b is not None:
        ratio = b / a - 1
        change = Change(
            absolute=figure(b - a, unit), relative=figure(ratio, "ratio", ratio - 0.01, ratio + 0.01), p_value=None,
            test="none", verdict="not tested",
        )  # fmt: skip
    values = (figure(a, unit), figure(b, unit))
    return KpiRow(key=key, label=key, direction="lower is better", values=values, changes=(None, change))


def outcome(condition: str, *rows: KpiRow) -> tuple[bool | None, str]:
    found = gate_rows([read_gate(condition)], rows, 0, ["one", "two", "three"])
    assert [gate.condition for gate in found] == [condition]
    return found[0].passed, found[0].found


@pytest.mark.parametrize(
    ("text", "key", "bound", "against"),
    [
        ("step_time<=+5%", "step_time", 0.05, "baseline, relative"),
        ("step_time < -2.5 %", "step_time", -0.025, "baseline, relative"),
        (" step_time  >=  400ms ", "step_time", 400e6, "itself"),
        ("step_time<=+20us", "step_time", 20e3, "baseline, absolute"),
        ("memory.peak<=2GiB", "memory.peak", 2 * 2**30, "itself"),
        ("memory.peak<=1.5GB", "memory.peak", 1.5e9, "itself"),
        ("communication.share<=40%", "communication.share", 0.4, "itself"),
        ("communication.share<=0.4", "communication.share", 0.4, "itself"),
        ("communication.share<=+40%", "communication.share", 0.4, "baseline, relative"),
        ("throughput.tokens>1200", "throughput.tokens", 1200, "itself"),
        ("energy.per_step<=.5kJ", "energy.per_step", 500, "itself"),
    ],
)
def test_conditions_are_read(text: str, key: str, bound: float, against: str) -> None:
    gate = read_gate(text)
    assert (gate.text, gate.key, gate.against) == (text, key, against)
    assert gate.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no condition"),
        ("step_time", "is no condition"),
        ("step_time==5%", "is no condition"),
        ("step_time<=five", "is no condition"),
        ("step_time<=+5%<=", "in '%<='"),
        ("step_tim<=+5%", "'step_tim', which is no figure of a comparison; did you mean step_time?"),
        ("qqq<=+5%", "there are step_time, throughput.samples"),
        ("step_time<=5%", "a percentage without a sign"),
        ("step_time<=5", "a number without a unit; add one of ns, us"),
        ("step_time<=5GiB", "in 'GiB'; it is measured in ns"),
        ("memory.peak<=+5ms", "in 'ms'; it is measured in B"),
    ],
)
def test_what_is_no_condition_says_which_rule_it_breaks(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_gate(text)
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=300))
def test_no_text_is_anything_but_read_or_refused(text: str) -> None:
    try:
        read_gate(text)
    except ConfigError as error:
        assert len(str(error)) < 700


@pytest.mark.parametrize(
    ("condition", "passed"),
    [
        ("step_time<=+5%", True),
        ("step_time<+5%", False),
        ("step_time<=+4.9%", False),
        ("step_time>=+5%", True),
        ("step_time>+5%", False),
        ("step_time<=105ns", True),
        ("step_time<105ns", False),
        ("step_time<=+5ns", True),
        ("step_time<=+4ns", False),
        ("step_time<=-1%", False),
    ],
)
def test_the_bound_itself_passes_with_equality_only(condition: str, passed: bool) -> None:
    assert outcome(condition, row(100.0, 105.0))[0] is passed


def test_what_was_found_has_its_interval() -> None:
    assert outcome("step_time<=+9%", row(100.0, 105.0))[1] == "+5.0 % [+4.0, +6.0]"


def test_a_bound_within_the_interval_asks_for_repeats() -> None:
    passed, found = outcome("step_time<=+4.5%", row(100.0, 105.0))
    assert passed is False
    assert "repeat the runs" in found


def test_what_was_not_measured_neither_passes_nor_fails() -> None:
    assert outcome("step_time<=+5%") == (None, "not measured on any side")
    assert outcome("step_time<=+5%", row(None, 3.0)) == (None, "not measured: no steady step")
    assert outcome("step_time<=5ns", row(None, 3.0)) == (True, "3 ns")
    assert outcome("step_time<=5ns", row(3.0, None)) == (None, "not measured: no steady step")


def test_every_candidate_must_pass() -> None:
    two = row(100.0, 102.0)
    worse = row(100.0, 120.0)
    three = KpiRow(
        key="step_time", label="", direction="lower is better", values=(*two.values, worse.values[1]),
        changes=(*two.changes, worse.changes[1]),
    )  # fmt: skip
    passed, found = outcome("step_time<=+5%", three)
    assert passed is False
    assert found == "two: +2.0 % [+1.0, +3.0]; three: +20 % [+19, +21]"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (figure(-2e6), "-2.00 ms"),
        (figure(2e6, low=1e6, high=3e6), "+2.00 ms [+1.00 ms, +3.00 ms]"),
        (figure(0.0, "ratio"), "0 %"),
        (figure(None), "–"),
    ],
)
def test_changes_in_words(value: Figure, words: str) -> None:
    assert change_words(value) == words
