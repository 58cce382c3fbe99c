"""The section on the nodes' clocks as data."""

from dataclasses import replace

import pytest

from agprof.model.clock_answers import ClockAnswer
from agprof_reports.data import Section, Table
from agprof_reports.page import build
from agprof_reports.run import render
from sample_answers import HOSTILE, sample_answers
from sample_clock_answers import clock_answer, refused_answer, wall_clock_answer


def section_of(clocks: ClockAnswer) -> Section:
    page = build(replace(sample_answers(), clocks=clocks))
    return next(section for section in page.sections if section.key == "clocks")


def column(table: Table, name: str) -> list[str]:
    at = [held.label for held in table.columns].index(name)
    return [cell if isinstance(cell, str) else cell.text for cell in (row[at] for row in table.rows)]


def test_one_node_has_no_such_section() -> None:
    assert "clocks" not in [section.key for section in build(sample_answers()).sections]


def test_it_stands_before_the_configuration_and_says_how_sure_it_is() -> None:
    keys = [section.key for section in build(replace(sample_answers(), clocks=clock_answer())).sections]
    assert keys[keys.index("clocks") + 1] == "configuration"
    section = section_of(clock_answer())
    assert section.sentence == (
        "Times are on the clock of node 0, by 12 bursts of pings to within ±52.0 µs. 3,120 collectives agree with it."
    )
    assert section.lines == ()


def test_the_table_has_offset_drift_and_uncertainty_per_node() -> None:
    (table,) = section_of(clock_answer(3)).tables
    assert column(table, "known by") == ["it is the reference", "pings", "pings"]
    assert column(table, "drift")[1:] == ["-200", "-200"]
    offset = next(held for held in table.columns if held.label == "offset")
    assert offset.unit == "s"
    assert column(table, "offset")[1:] == ["-7,200", "-14,400"]
    assert column(table, "bursts") == ["0", "12", "12"]
    assert column(table, "wall clock set") == ["0", "0", "1"]


def test_residuals_are_drawn_with_what_each_ping_leaves_open() -> None:
    clocks = clock_answer()
    (chart,) = section_of(clocks).charts
    (line,) = chart.spec["data"]
    points = clocks.nodes[1].points
    divisor = 1e6 if chart.title.endswith("ms") else 1e3
    assert line["y"] == pytest.approx([point.residual_ns / divisor for point in points], rel=1e-3)
    assert line["error_y"]["array"] == pytest.approx([point.uncertainty_ns / divisor for point in points], rel=1e-3)
    low, high = chart.spec["layout"]["yaxis"]["range"]
    assert all(low < y - u and y + u < high for y, u in zip(line["y"], line["error_y"]["array"], strict=True))
    assert chart.spec["layout"]["xaxis"]["range"][0] < min(line["x"])


def test_of_many_nodes_the_least_sure_are_drawn_and_all_are_told() -> None:
    section = section_of(clock_answer(40))
    assert len(section.charts[0].spec["data"]) == 5
    assert "5 of 39 nodes" in section.charts[0].note
    assert len(section.tables[0].rows) == 40


def test_wall_clocks_are_doubted() -> None:
    section = section_of(wall_clock_answer())
    assert section.charts == ()
    assert [mark for mark, _ in section.lines] == ["watch"]
    assert "wall clocks, whose error is not known" in section.sentence
    assert column(section.tables[0], "uncertainty")[1] == "–"


def test_refused_clocks_show_what_contradicts_them() -> None:
    section = section_of(refused_answer())
    assert [mark for mark, _ in section.lines] == ["bad"]
    assert section.charts == ()
    assert "in 2,870 of 3,120 collectives over several nodes a rank left before the last one had entered" in (
        section.sentence
    )
    conflicts = section.tables[1]
    assert column(conflicts, "left early") == ["rank 3"] * 8
    assert column(conflicts, "by")[0] == "9.00"


def test_hostile_names_are_text() -> None:
    clocks = refused_answer(HOSTILE)
    clocks = replace(clocks, nodes=tuple(replace(node, host=HOSTILE) for node in clocks.nodes))
    html = render(replace(sample_answers(), clocks=clocks))
    assert HOSTILE.encode() not in html.split(b"<main", 1)[1]
