"""The terminal's lines with a device trace: one more, that fits and adds up."""

import re
from dataclasses import replace

import pytest

from agprof.analysis.summary import terminal_lines
from sample_answers import sample_answers
from sample_trace_answers import with_trace


def device_line(lines):
    return next((line for line in lines if line.startswith("device: ")), None)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_one_line_says_where_the_devices_time_goes(width):
    lines = terminal_lines(with_trace(), width)
    assert all(len(line) <= width for line in lines)
    assert device_line(lines)
    assert len(lines) == len(terminal_lines(sample_answers(), width)) + 1


def test_its_shares_add_up():
    shares = re.findall(r"([\d.]+) %", device_line(terminal_lines(with_trace(), 200)))
    assert len(shares) == 4
    assert sum(map(float, shares)) == pytest.approx(100, abs=1.5)


def test_it_speaks_of_the_same_time_as_the_cards():
    """The whole window may hold what the device still did for a step before the trace."""
    answers = with_trace()
    earlier = tuple(replace(row, compute_ns=9 * row.compute_ns) for row in answers.trace.windows)
    other = replace(answers, trace=replace(answers.trace, windows=earlier))
    assert answers.trace.steps
    assert device_line(terminal_lines(other, 200)) == device_line(terminal_lines(answers, 200))


def test_without_a_trace_there_is_none():
    assert device_line(terminal_lines(sample_answers())) is None


def test_the_bar_stands_above_its_legend_also_when_nothing_was_found():
    lines = terminal_lines(with_trace())
    assert lines[-2].startswith("[")
