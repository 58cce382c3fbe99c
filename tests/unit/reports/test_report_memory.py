"""The section on memory as data: accounts that close, formulas beside them, few ranks drawn of many; and OOM."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from agprof_reports import memory, memory_tables, oom
from agprof_reports.charts.memory_account import account_bars, chosen_ranks, drawn_accounts, waterfall
from agprof_reports.page import build
from sample_answers import HOSTILE, sample_answers
from sample_figures import GIB, MIB
from sample_memory_answers import (
    account,
    hostile_memory,
    memory_answer,
    out_of_memory,
    peft_on_device,
    too_much_explained,
)

SAMPLES = (lambda: memory_answer(2, ()), peft_on_device, too_much_explained, out_of_memory)


def section_of(answer):
    answers = sample_answers(2, 20)
    return memory.section(answer, answers.time, (), (0.0, 1.0))


def parts_of(answer):
    return {part.key: part for part in section_of(answer).parts}


def charts_of(answer):
    return {chart.key: chart for part in parts_of(answer).values() for chart in part.charts}


def drawn_length(chart, row, *, excess=False):
    """What the stacked bar of a row adds up to, without ticks and outlines."""
    bars = [trace for trace in chart.spec["data"] if trace["type"] == "bar" and ("base" in trace) == excess]
    return sum(trace["x"][row] for trace in bars)


@pytest.mark.parametrize("make", SAMPLES)
def test_accounts_of_the_samples_close_exactly(make):
    for item in make().accounts:
        assert sum(part.bytes for part in item.parts) == item.total.value
        assert sum(part.share for part in item.parts) == pytest.approx(1)


@pytest.mark.parametrize("make", [SAMPLES[0], peft_on_device])
def test_bars_add_up_to_the_total_that_was_measured(make):
    answer = make()
    chart = charts_of(answer)["memory-account"]
    drawn = drawn_accounts(answer.accounts)
    divisor = MIB if chart.bars_unit == "MiB" else GIB
    assert len(chart.bars) == len(drawn) == 4
    for row, item in enumerate(drawn):
        assert drawn_length(chart, row) == pytest.approx(item.total.value / divisor, rel=0.002)
        assert sum(value for _, value in chart.bars[row].parts) == pytest.approx(item.total.value / divisor)
    (ticks,) = [trace for trace in chart.spec["data"] if trace["type"] == "scatter"]
    assert ticks["x"] == pytest.approx([item.total.value / divisor for item in drawn], rel=0.001)


def test_parts_that_say_too_much_are_drawn_beyond_the_total_and_hatched_from_it():
    answer = too_much_explained()
    chart = charts_of(answer)["memory-account"]
    (over,) = [trace for trace in chart.spec["data"] if trace["name"] == "more than measured"]
    peaks = [item for item in drawn_accounts(answer.accounts) if item.at == "peak"]
    assert len(over["x"]) == len(peaks) == 2
    for base, length, item in zip(over["base"], over["x"], peaks, strict=True):
        assert base * MIB == pytest.approx(item.total.value, rel=0.001)
        assert length == pytest.approx(14, rel=0.001)
    marks = [mark for bar in chart.bars for mark in bar.marks if mark.begin != mark.end]
    assert [mark.title for mark in marks] == ["the parts say 14.0 MiB more than was measured"] * 2
    sentence = parts_of(answer)["memory-account"].sentence
    assert "the parts say 7.2\u00a0% more than was measured" in sentence


def test_the_waterfall_ends_at_the_total_and_marks_the_formulas():
    item = next(a for a in memory_answer(1, ()).accounts if a.at == "peak")
    chart = waterfall("w", item)
    bars = [trace for trace in chart.spec["data"] if trace["type"] == "bar"]
    end = bars[-1]["base"][0] + bars[-1]["x"][0]
    assert bars[-1]["name"] == "unexplained"
    assert end * MIB == pytest.approx(item.total.value, rel=0.001)
    for before, after in pairwise(bars):
        assert after["base"][0] == pytest.approx(before["base"][0] + before["x"][0], rel=0.001)
    (marks,) = [trace for trace in chart.spec["data"] if trace["type"] == "scatter"]
    formulas = {part.part: part.formula_bytes for part in item.parts if part.formula_bytes is not None}
    assert len(marks["x"]) == len(formulas) == 4
    assert marks["x"][0] * MIB == pytest.approx(formulas["parameters"], rel=0.001)


def test_a_negative_rest_goes_back_to_the_total_in_the_waterfall():
    item = account({"parameters": 100.0 * MIB, "activations": 40.0 * MIB}, unexplained=-30.0 * MIB)
    *_, rest = [trace for trace in waterfall("w", item).spec["data"] if trace["type"] == "bar"]
    assert (rest["base"][0], rest["x"][0]) == pytest.approx((140, -30))


def test_a_part_has_the_same_colour_in_bars_waterfall_and_legend():
    answer = peft_on_device()
    charts = charts_of(answer)
    bars = {t["name"]: t["marker"]["color"] for t in charts["memory-account"].spec["data"] if t["type"] == "bar"}
    fall = {t["name"]: t["marker"]["color"] for t in charts["memory-waterfall"].spec["data"] if t["type"] == "bar"}
    assert fall == bars
    assert {f"${name}": word for name, word in charts["memory-account"].legend} == {
        colour: name for name, colour in bars.items()
    }
    assert bars["activations"] == "$activations"
    assert bars["KV cache"] == "$kv-cache"


def test_of_64_ranks_the_highest_the_median_and_the_lowest_are_drawn_and_the_table_has_all():
    answer = memory_answer(64, ())
    chart = charts_of(answer)["memory-account"]
    tops = {item.rank: item.total.value for item in answer.accounts if item.at == "peak"}
    chosen = chosen_ranks(answer.accounts)
    assert list(chosen.values()) == ["highest", "median", "lowest"]
    highest, median, lowest = chosen
    assert tops[highest] == max(tops.values())
    assert tops[lowest] == min(tops.values())
    assert sorted(tops.values())[31] <= tops[median] <= sorted(tops.values())[32]
    assert [bar.label for bar in chart.bars][:2] == [
        f"rank {highest} highest, standing",
        f"rank {highest} highest, peak",
    ]
    assert len(chart.bars) == 6
    assert len(chart.table.rows) == 128
    assert "of 64; the table has all" in chart.note
    step = charts_of(answer)["memory-step"]
    lines = [trace for trace in step.spec["data"] if trace["mode"] == "lines"]
    assert len(lines) == 3
    assert len(step.table.rows) == 64


def test_device_and_host_are_told_apart_where_both_are_accounted():
    device = account({"parameters": 10.0 * MIB}, space="device")
    host = account({"optimizer_states": 30.0 * MIB}, space="host")
    labels = [bar.label for bar in account_bars("a", (host, device)).bars]
    assert labels == ["rank 0, peak, device", "rank 0, peak, host"]


def test_details_and_formulas_stand_in_the_table_of_parts():
    item = next(a for a in memory_answer(1, ()).accounts if a.at == "standing")
    table = memory_tables.parts("t", [item])
    assert [column.label for column in table.columns][:5] == [
        "part",
        "size",
        "share",
        "by formula",
        "measured / formula",
    ]
    first, trainable, frozen, *_ = table.rows
    assert first[0] == "parameters"
    assert [row[0].strip("\u00a0") for row in (trainable, frozen)] == ["trainable", "frozen"]
    assert float(trainable[1]) + float(frozen[1]) == pytest.approx(float(first[1]), abs=0.1)
    assert first[4] == "1.00"
    without = memory_tables.parts("t", [account({"context": 1.0 * MIB})])
    assert "by formula" not in {column.label for column in without.columns}


def test_accounts_that_close_are_good_and_others_are_to_watch():
    good = parts_of(memory_answer(2, ()))["memory-account"].lines
    assert good[0][0] == "good"
    bad = parts_of(memory_answer(2, (), unexplained=60.0 * MIB))["memory-account"].lines
    assert bad[0][0] == "watch"


def test_a_rest_of_a_few_bytes_is_not_given_digits():
    part = parts_of(memory_answer(2, (), unexplained=40.0))["memory-account"]
    assert "less than 0.1\u00a0% of it is unexplained" in part.sentence
    assert part.lines[0][1].startswith("The accounts close to less than 0.1\u00a0% of the peak")


def test_without_an_account_its_reason_is_said():
    answer = replace(memory_answer(2, ()), accounts=(), account_hint="No account: the profile step was not reached.")
    section = section_of(answer)
    assert ("", "No account: the profile step was not reached.") in section.lines
    assert "memory-account" not in {part.key for part in section.parts}


def test_the_peak_of_the_step_is_labelled_with_its_phase_and_phases_are_shaded():
    answer = memory_answer(2, ())
    chart = charts_of(answer)["memory-step"]
    layout = chart.spec["layout"]
    (peak,) = [note for note in layout["annotations"] if note["text"].startswith("peak")]
    highest = max(y for curve in answer.step_curves for y in curve.y)
    assert peak["text"].endswith("MiB, backward")
    assert peak["y"] * MIB == pytest.approx(highest, rel=0.001)
    assert [shape["fillcolor"] for shape in layout["shapes"]] == [
        "$data", "$forward", "$backward", "$communication", "$optimizer",
    ]  # fmt: skip
    assert layout["shapes"][0]["x0"] == 0
    assert all(a["x1"] == b["x0"] for a, b in pairwise(layout["shapes"]))


def test_a_step_without_known_phases_is_drawn_without_shades():
    chart = charts_of(replace(memory_answer(1, ()), step_phases=()))["memory-step"]
    assert chart.spec["layout"]["shapes"] == []
    assert chart.legend == ()


def test_a_step_whose_rows_begin_late_is_drawn_from_there_and_it_is_said():
    answer = memory_answer(1, ())
    late = tuple(replace(curve, x_ns=tuple(x + 600_000_000 for x in curve.x_ns)) for curve in answer.step_curves)
    chart = charts_of(replace(answer, step_curves=late))["memory-step"]
    low, high = chart.spec["layout"]["xaxis"]["range"]
    assert (low, high) == pytest.approx((late[0].x_ns[0] / 1e9, late[0].x_ns[-1] / 1e9))
    assert chart.note.endswith("The first 600\u00a0ms of the step, before any operation was seen, are left out.")


def test_zero_has_all_stages_with_and_without_offload_and_marks_this_run_once():
    answer = memory_answer(2, ())
    chart = charts_of(answer)["memory-zero"]
    assert len(chart.bars) == 8
    assert [bar.label for bar in chart.bars if "this run" in bar.label] == ["ZeRO-2 · this run"]
    here = [row[1] for row in chart.table.rows]
    assert here.count("this run") == 1
    for bar, row in zip(chart.bars, answer.zero, strict=True):
        assert sum(value for _, value in bar.parts) * MIB == pytest.approx(row.device_total + row.host_total)
    ticks = {trace["name"]: trace["x"] for trace in chart.spec["data"] if trace["type"] == "scatter"}
    assert ticks["of it on the device"] == pytest.approx(
        [row.device_total / MIB for row in answer.zero if row.host_total], rel=0.001
    )


def test_the_plan_stands_beside_the_measurement_each_in_its_unit():
    table = parts_of(memory_answer(2, ()))["memory-plan"].tables[0]
    assert [cell.text for cell in table.rows[0][1:3]] == ["201\u00a0MiB", "208\u00a0MiB"]
    assert [cell.text for cell in table.rows[1][1:3]] == ["9.70\u00a0GFLOP", "9.69\u00a0GFLOP"]
    assert table.rows[2][2].text == "–"
    sentence = parts_of(memory_answer(2, ()))["memory-plan"].sentence
    assert sentence.startswith("2 of 2 planned figures are within 10\u00a0% of what was measured")
    assert sentence.endswith("the furthest, memory peak per rank, is 0.97 times it.")


def test_largest_tensors_are_sorted_and_stacks_stand_innermost_first():
    table = parts_of(memory_answer(2, ()))["memory-allocations"].tables[0]
    sizes = [float(row[0]) for row in table.rows]
    assert sizes == sorted(sizes, reverse=True)
    stack = table.rows[1][-1]
    assert stack.splitlines()[0] == "nn/functional.py:2134 softmax"
    assert table.columns[-1].fold
    assert table.caption == "Largest tensors at the peak, rank 1"
    other = replace(memory_answer(2, ()).allocations[0], rank=0)
    both = memory_tables.allocations("t", "Largest", (*memory_answer(2, ()).allocations, other))
    assert (both.columns[0].label, both.caption) == ("rank", "Largest")


def test_memory_that_ran_out_stands_right_below_the_verdict():
    answers = sample_answers()
    page = build(replace(answers, memory=replace(out_of_memory(), curves=answers.memory.curves)))
    (urgent,) = page.urgent
    assert (urgent.key, urgent.title) == ("oom", "Out of memory")
    assert [chart.key for chart in urgent.charts] == ["oom-curve", "oom-account", "oom-waterfall"]
    assert [table.key for table in urgent.tables] == ["table-would-fit", "table-oom-allocations"]
    assert [(card.key, card.shown.number) for card in urgent.cards] == [
        ("oom_wanted", "3.05"), ("oom_held", "39.8"), ("oom_limit", "42.0"),
    ]  # fmt: skip
    assert urgent.lines[0] == ("bad", out_of_memory().oom.error)
    assert build(answers).urgent == ()


def test_the_limit_is_drawn_when_it_is_near_and_said_when_it_is_far():
    answers = sample_answers()
    found = replace(out_of_memory(), curves=answers.memory.curves)

    def curve_of(limit):
        held = replace(found, oom=replace(found.oom, limit_bytes=limit))
        return oom.section(held, (), (0.0, 20.0)).charts[0]

    near = curve_of(int(1.5 * GIB))
    assert near.spec["layout"]["shapes"][-1]["y0"] == pytest.approx(1.5)
    assert near.spec["layout"]["yaxis"]["range"][1] >= 1.5
    far = curve_of(42 * GIB)
    assert all(shape.get("y0") != 42 for shape in far.spec["layout"]["shapes"])
    assert far.note.endswith("The limit, 42 GiB, is far above the chart.")


def test_a_killed_rank_has_no_account_and_the_page_says_what_it_lacks():
    section = oom.section(out_of_memory("host"), (), (0.0, 1.0))
    assert {card.key: card.shown.reason for card in section.cards} == {
        "oom_wanted": "the error does not say", "oom_held": "no account was made", "oom_limit": "",
    }  # fmt: skip
    assert section.charts == ()


def test_what_is_only_likely_is_not_called_known():
    found = out_of_memory("host")
    likely = replace(found, oom=replace(found.oom, certainty="likely"))
    marks = [mark for mark, _ in oom.section(likely, (), (0.0, 1.0)).lines]
    assert marks == ["watch", ""]


def test_an_account_of_the_moment_is_not_drawn_twice():
    charts = charts_of(out_of_memory())
    assert all("oom" not in bar.label for bar in charts["memory-account"].bars)


def test_a_finding_may_point_to_it_only_when_it_is_there():
    answers = sample_answers()
    finding = replace(answers.findings[0], section="oom")
    assert build(replace(answers, findings=(finding,))).findings[0].section == ""
    with_oom = replace(answers, findings=(finding,), memory=out_of_memory())
    assert build(with_oom).findings[0].section_title == "Out of memory"


def test_names_reach_plotly_escaped_and_unknown_parts_are_unexplained():
    answers = sample_answers()
    found = hostile_memory(HOSTILE, answers.memory.curves)
    page = build(replace(answers, memory=found))
    for section in (*page.urgent, *page.sections):
        for chart in (*section.charts, *(chart for part in section.parts for chart in part.charts)):
            assert "<img" not in json.dumps(chart.spec)
    odd = account({"<script>": 5.0 * MIB})
    assert dict(account_bars("a", (odd,)).bars[0].parts).keys() == {"unexplained"}


def test_answers_are_left_as_they_were():
    answer = out_of_memory()
    before = repr(answer)
    section_of(answer)
    oom.section(answer, (), (0.0, 1.0))
    assert repr(answer) == before
