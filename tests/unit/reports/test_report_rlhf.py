"""The section on RLHF as data, and that the page has a colour for every part."""

import re
from dataclasses import replace
from importlib.resources import files

import pytest

from agprof.analysis.run import analyse
from agprof.store.reader import read_run
from agprof_reports import rlhf
from agprof_reports.charts.rlhf import COLOURS
from agprof_reports.page import build
from agprof_reports.run import render
from sample_answers import sample_answers
from synthetic import build_run


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return analyse(read_run(build_run(tmp_path_factory.mktemp("rlhf") / "run", rlhf=True, ranks=3)))


@pytest.fixture(scope="module")
def section(answers):
    return rlhf.section(answers.rlhf)


def test_the_section_stands_behind_time_and_only_where_there_is_something(answers):
    assert [section.key for section in build(answers).sections][:3] == ["time", "rlhf", "communication"]
    assert "rlhf" not in [section.key for section in build(sample_answers()).sections]
    assert '<section id="rlhf"' in render(answers).decode()


def test_it_opens_with_its_sentence(section, answers):
    assert section.sentence == answers.rlhf.sentence
    assert [card.key for card in section.cards][:3] == ["iteration", "generation", "latency"]


def test_parts_add_up_to_the_iteration_in_bars_chart_and_table(section, answers):
    (chart,) = section.charts
    for row, (bar, rank) in enumerate(zip(chart.bars, answers.rlhf.ranks, strict=True)):
        assert sum(value for _, value in bar.parts) == pytest.approx(rank.iteration_ns / 1e6)
        drawn = sum(trace["x"][row] for trace in chart.spec["data"])
        assert drawn == pytest.approx(rank.iteration_ns / 1e6, rel=1e-3)
    assert len(chart.table.rows) == 3


def test_metrics_stand_in_two_columns_with_flaws_as_footnotes(section):
    table = next(table for table in section.tables if table.key == "table-rlhf-metrics")
    assert [column.label for column in table.columns][1:] == ["as printed upstream", "corrected"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["end to end"][0].text.endswith(" ⁴")
    assert rows["generation, parameters read"][0].text == "-1.00\u00a0GB/s ³"
    assert rows["scoring"][0].text == "–"
    notes = table.note.split("\n")
    assert [note[0] for note in notes] == ["¹", "²", "³", "⁴"]
    assert [note.endswith("Changes figures of this run.") for note in notes] == [False, False, True, True]


def test_without_steady_iterations_there_is_the_sentence_alone(tmp_path):
    found = analyse(read_run(build_run(tmp_path / "run", rlhf=True, steps=1, warmup_steps=1))).rlhf
    section = rlhf.section(found)
    assert (section.charts, section.tables) == ((), ())
    assert section.sentence.endswith(".")


def test_every_part_has_a_colour_of_its_own_on_the_page():
    css = (files("agprof_reports") / "assets" / "report.css").read_text(encoding="utf-8")
    phases = ("data", "forward", "backward", "communication", "optimizer", "other", "overlapped")
    own = [name for name in COLOURS.values() if name not in phases]
    found = {}
    for name in own:
        found[name] = re.search(rf"--{name}: (#\w{{6}});", css)[1]
        for pattern in (f".chip-{name} ", f".fill-{name} ", f".bars .on-{name} ", f"--on-{name}:"):
            assert pattern in css, pattern
    others = {re.search(rf"--{name}: (#\w{{6}});", css)[1] for name in phases}
    assert not others & set(found.values())
    # an engine whose role is not known trains; it never stands beside the actor
    assert found.pop("train") == found["train-actor"]
    assert len(set(found.values())) == len(found)


def test_names_from_outside_stay_text(answers):
    hostile = "train/</script><b>"
    part = replace(answers.rlhf.parts[0], name=hostile, group="train")
    ranks = tuple(replace(rank, parts_ns={**rank.parts_ns, hostile: 1.0}) for rank in answers.rlhf.ranks)
    changed = replace(answers, rlhf=replace(answers.rlhf, parts=(*answers.rlhf.parts, part), ranks=ranks))
    assert hostile not in render(changed).decode()
