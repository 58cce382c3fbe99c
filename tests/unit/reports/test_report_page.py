"""A page as data: its order, its sentences, what its charts and tables hold. No HTML is read."""

from dataclasses import replace

import pytest

from agprof_reports.charts.curves import DRAWN_POINTS
from agprof_reports.charts.pieces import PHASES
from agprof_reports.data import Cell
from agprof_reports.page import TITLES, build
from agprof_reports.tables import evenly, group_steps
from sample_answers import missing, sample_answers


def charts_of(page):
    return {chart.key: chart for section in page.sections for chart in section.charts}


def tables_of(page):
    found = {table.key: table for section in page.sections for table in section.tables}
    return found | {chart.table.key: chart.table for chart in charts_of(page).values() if chart.table}


def section_of(page, key):
    return next(section for section in page.sections if section.key == key)


def test_sections_stand_in_order_and_open_with_a_sentence():
    page = build(sample_answers())
    assert [section.key for section in page.sections] == list(TITLES)
    assert all(section.sentence.endswith(".") for section in page.sections)


def test_findings_are_ordered_by_saving_and_those_without_come_last():
    answers = sample_answers()
    page = build(replace(answers, findings=answers.findings[::-1]))
    assert [finding.key for finding in page.findings] == ["small-buckets", "frozen-text-tower", "memory-headroom"]
    assert page.findings[0].saving_share == "8.8 % of a step"
    assert page.findings[2].saving is None


def test_a_finding_links_only_to_a_section_that_is_there():
    answers = sample_answers()
    odd = replace(answers.findings[0], section="<script>")
    assert build(replace(answers, findings=(odd,))).findings[0].section == ""


@pytest.mark.parametrize("ranks", [1, 2, 7, 64])
def test_phases_add_up_to_the_step_in_bars_chart_and_table(ranks):
    answers = sample_answers(ranks)
    chart = charts_of(build(answers))["phases"]
    for bar, rank in zip(chart.bars, answers.time.ranks, strict=True):
        assert sum(value for _, value in bar.parts) == pytest.approx(rank.step_ns / 1e6)
    drawn = [sum(trace["x"][row] for trace in chart.spec["data"]) for row in range(ranks)]
    assert drawn == pytest.approx([rank.step_ns / 1e6 for rank in answers.time.ranks], rel=1e-3)
    assert len(chart.table.rows) == ranks


def test_steps_are_those_of_the_slowest_rank_and_marked():
    answers = sample_answers(4, 20)
    page = build(answers)
    chart = charts_of(page)["steps"]
    assert [trace["name"] for trace in chart.spec["data"]][-1] == "step"
    assert len(chart.spec["data"]) == len(PHASES) + 1
    notes = [note["text"] for note in chart.spec["layout"]["annotations"]]
    assert "warm-up" in notes
    assert any("profiled" in note for note in notes)
    kinds = [row[1] for row in tables_of(page)["table-steps"].rows]
    assert kinds[:5] == ["warm-up"] * 3 + ["steady", "profiled"]


def test_charts_over_the_run_share_axis_range_and_margins():
    charts = [chart for chart in charts_of(build(sample_answers())).values() if chart.axis == "run"]
    assert {"steps", "memory-curves"} < {chart.key for chart in charts}
    assert len({tuple(chart.spec["layout"]["xaxis"]["range"]) for chart in charts}) == 1
    assert len({chart.spec["layout"]["margin"]["r"] for chart in charts}) == 1


def test_every_chart_has_a_table_a_description_and_no_colour_of_its_own():
    page = build(sample_answers())
    for section in page.sections:
        for chart in section.charts:
            assert chart.table or section.tables
            assert chart.description.endswith(".")
            assert "'#" not in str(chart.spec)


def test_many_ranks_become_a_heat_map_and_few_get_labels_on_their_lines():
    few = charts_of(build(sample_answers(3)))["own-work"].spec
    assert {note["text"] for note in few["layout"]["annotations"]} == {"rank 0", "rank 1", "rank 2"}
    many = charts_of(build(sample_answers(64, 30)))
    assert many["own-work"].spec["data"][0]["type"] == "heatmap"
    assert many["memory-curves"].spec["data"][0]["type"] == "heatmap"


def test_allocated_and_reserved_memory_are_told_apart():
    answers = sample_answers(6, 20)
    curve = answers.memory.curves[0]
    both = [
        replace(curve, label=f"rank {rank} {kind}", rank=rank)
        for rank in range(6)
        for kind in ("allocated", "reserved")
    ]
    many = charts_of(build(replace(answers, memory=replace(answers.memory, curves=tuple(both)))))
    assert [len(many[key].spec["data"][0]["z"]) for key in ("memory-curves", "memory-curves-1")] == [6, 6]
    assert many["memory-curves-1"].title == "Resident memory over the run: reserved, GiB"
    few = charts_of(build(replace(answers, memory=replace(answers.memory, curves=tuple(both[:4])))))["memory-curves"]
    notes = [note["text"] for note in few.spec["layout"]["annotations"]]
    assert set(notes) == {f"rank {rank} {kind}" for rank in (0, 1) for kind in ("allocated", "reserved")}


def test_the_sentence_of_ranks_names_the_slowest_five():
    sentence = section_of(build(sample_answers(64, 30)), "ranks").sentence
    assert sentence.startswith("All 64 ranks ended cleanly; rank 1 has the most work of its own")
    assert sentence.count("ms)") == 4


def test_a_rank_that_died_is_marked():
    answers = sample_answers()
    dead = replace(answers.ranks[1], ended="killed (SIGKILL)")
    page = build(replace(answers, ranks=(answers.ranks[0], dead)))
    assert section_of(page, "ranks").sentence.startswith("1 of 2 ranks ended cleanly")
    rows = tables_of(page)["table-ranks"].rows
    assert Cell("killed (SIGKILL)", mark="bad") in rows[1]


def test_curves_are_thinned_for_drawing_only_and_keep_their_peaks_and_gaps():
    answers = sample_answers(2, 400)
    curve = answers.memory.curves[0]
    spiked = replace(curve, y=(*curve.y[:1000], 9e9, None, *curve.y[1002:]))
    chart = charts_of(build(replace(answers, memory=replace(answers.memory, curves=(spiked,)))))["memory-curves"]
    drawn = chart.spec["data"][0]["y"]
    assert len(drawn) <= DRAWN_POINTS * 1.5 < len(curve.y)
    assert max(y for y in drawn if y is not None) == pytest.approx(9e9 / 2**30, rel=1e-3)
    assert None in drawn
    assert "lowest and highest" in chart.note
    assert chart.table.rows[0][1] == f"{len(curve.y) - 1:,}"


def test_sizes_far_apart_keep_units_of_their_own_and_sort_by_value():
    table = tables_of(build(sample_answers()))["table-collectives"]
    column = [column.label for column in table.columns].index("size of a call")
    assert [row[column].text for row in table.rows] == ["4.20\u00a0MiB", "25.2\u00a0MiB", "4\u00a0B", "–"]
    assert table.columns[column].base_unit == "bytes"
    assert table.rows[2][column].value == 4.0


def test_curves_with_nothing_to_see_are_told_and_not_drawn():
    answers = sample_answers()
    curve = replace(answers.system.curves[0], rank=None)
    length = len(curve.y)
    zero = replace(curve, label="host swap", y=(0.0,) * length)
    absent = replace(curve, label="disk read", y=(None,) * length)
    even = [replace(curve, label=f"rank {i} threads", unit="1", rank=i, y=(12.0,) * length) for i in range(8)]
    page = build(replace(answers, system=replace(answers.system, curves=(curve, zero, absent, *even))))
    assert [line for _, line in section_of(page, "system").lines] == [
        "Not measured: disk read.",
        "Zero throughout, hence not drawn: host swap.",
        "The same within 1 % everywhere and throughout, hence not drawn: threads per rank 12.",
    ]
    assert [chart.title for chart in section_of(page, "system").charts] == ["CPU, cores"]


def test_network_in_and_out_share_a_chart():
    answers = sample_answers()
    sent = next(curve for curve in answers.system.curves if curve.label == "network sent")
    both = (sent, replace(sent, label="network received"))
    chart, *others = section_of(build(replace(answers, system=replace(answers.system, curves=both))), "system").charts
    assert (chart.title, others) == ("network, MB/s", [])
    assert [trace["name"] for trace in chart.spec["data"]] == ["network sent", "network received"]


def test_a_run_without_steps_says_so_instead_of_drawing():
    page = build(sample_answers(1, 0))
    for key in ("time", "communication", "compute", "ranks"):
        section = section_of(page, key)
        assert section.charts == ()
        assert section.sentence
    assert page.step_bar is None


def test_one_rank_has_no_communication_to_draw():
    section = section_of(build(sample_answers(1, 20)), "communication")
    assert (section.charts, section.tables, section.cards) == ((), (), ())
    assert section.sentence == "No collective was seen: one rank has nobody to talk to."


def test_no_finding_is_said():
    page = build(replace(sample_answers(), findings=()))
    assert page.findings_sentence == "Nothing was found that is worth changing."


def test_a_kpi_that_was_not_measured_gives_its_reason():
    answers = sample_answers()
    kpi = replace(answers.kpis[0], figure=missing("ns", "no steady step"))
    card = build(replace(answers, kpis=(kpi,))).kpis[0]
    assert (card.shown.number, card.shown.reason) == ("–", "no steady step")


def test_numbers_that_are_not_finite_do_not_reach_the_charts():
    answers = sample_answers(2, 20)
    nan = float("nan")
    curves = tuple(replace(curve, y=(nan, float("inf"), *curve.y[2:])) for curve in answers.memory.curves)
    rows = tuple(replace(row, loss=nan) for row in answers.time.steps)
    broken = replace(answers, memory=replace(answers.memory, curves=curves), time=replace(answers.time, steps=rows))
    page = build(broken)
    assert "nan" not in str([chart.spec for chart in charts_of(page).values()])


def test_long_runs_give_a_bounded_table_and_say_so():
    kept, note = evenly(range(10_000), 1_000)
    assert len(kept) == 1_000
    assert note == "1,000 of 10,000 rows, at even distances; report.json has all."


def test_the_steps_of_ranks_are_grouped_in_order():
    groups = group_steps(reversed(sample_answers(3, 5).time.steps))
    assert [group.step for group in groups] == [0, 1, 2, 3, 4]
    assert all(len(group.rows) == 3 for group in groups)


def test_answers_are_left_as_they_were():
    answers = sample_answers()
    before = repr(answers)
    build(answers)
    assert repr(answers) == before
