"""The terminal's lines on memory that ran out and on utilisation."""

from dataclasses import replace

import pytest

from agprof.analysis.summary import terminal_lines
from sample_answers import HOSTILE, sample_answers
from sample_compute_answers import cpu_compute, h100_compute, no_compute, unknown_device_compute
from sample_memory_answers import out_of_memory


def utilisation_of(compute, width=80):
    lines = terminal_lines(replace(sample_answers(), compute=compute), width)
    return [line for line in lines if "MFU" in line]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_memory_that_ran_out_is_one_line_right_below_the_verdict(width):
    answers = sample_answers()
    lines = terminal_lines(replace(answers, memory=out_of_memory()), width)
    without = terminal_lines(answers, width)
    assert len(lines) == len(without) + 1
    line = next(line for line in lines if line not in without)
    assert line.startswith("Rank 1 ran out of memory in forward")
    assert len(line) <= width
    assert lines[lines.index(line) + 1].startswith("MFU")
    assert [other for other in lines if other != line] == without


def test_mfu_and_hfu_are_given_of_what_is_known():
    assert utilisation_of(h100_compute()) == [
        "MFU 27 %, HFU 36 % of data sheet; 34 %, 45 % of achievable; full attention",
    ]
    assert utilisation_of(cpu_compute()) == ["MFU 31 %, HFU 31 % of achievable; full attention"]


def test_without_a_ceiling_of_the_device_there_is_no_mfu():
    assert utilisation_of(unknown_device_compute()) == []
    assert utilisation_of(no_compute()) == []


def test_an_errors_text_cannot_break_the_line():
    memory = out_of_memory()
    memory = replace(memory, oom=replace(memory.oom, sentence=HOSTILE + "\x1b[31m\n" + "x" * 1_000_000))
    lines = terminal_lines(replace(sample_answers(), memory=memory))
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
