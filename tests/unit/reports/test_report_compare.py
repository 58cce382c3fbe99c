"""The comparison page: order, what is shown of each answer, sums, baselines, hostile names, size."""

import re
from dataclasses import replace

import pytest
from test_report_render import Reader

from agprof.model.compare_answers import WaterfallPart
from agprof_reports.charts.waterfall import adding_up, colour, waterfall
from agprof_reports.compare import LIMIT_BYTES, render_compare
from agprof_reports.compare_page import build
from sample_answers import HOSTILE
from sample_compare_answers import compare_answer, energy_fall, hostile_compare, memory_fall, step_fall

NAMES = ("a", "b")


@pytest.fixture(scope="module")
def text():
    return render_compare(compare_answer(2))


def falls(page, key):
    return [fall for group in page.against[0].falls if group.key == key for fall in group.falls]


def test_sections_stand_in_their_order(text):
    order = [attributes["id"] for tag, attributes in Reader(text).tags if tag == "section"]
    assert order == [
        "verdict", "differences", "kpis", "fall-step", "moved", "scaling", "forecast", "fall-memory", "fall-energy",
        "overlays", "gates", "method",
    ]  # fmt: skip
    links = [attributes["href"][1:] for tag, attributes in Reader(text).tags if tag == "a"]
    assert [link for link in dict.fromkeys(links) if link in order] == order


def test_ids_are_unique_and_links_lead_somewhere():
    read = Reader(render_compare(compare_answer(4), [compare_answer(4, 2)]))
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in read.tags if tag == "a"} <= set(ids)


def test_what_an_answer_lacks_is_not_drawn():
    bare = replace(
        compare_answer(2), scaling=None, forecast=None, gates=(), overlays=((), ()), waterfalls=(), moved=(),
        configuration=(), kpis=(), reasons=(), comparable="comparable",
    )  # fmt: skip
    read = Reader(render_compare(bare))
    assert [attributes["id"] for tag, attributes in read.tags if tag == "section"] == [
        "verdict", "differences", "kpis", "moved", "method",
    ]  # fmt: skip
    assert not [attributes for attributes, _ in read.scripts if attributes.get("id") == "plotly"]
    assert "The sides have the same configuration" in "".join(read.text)


@pytest.mark.parametrize("make", [step_fall, memory_fall, energy_fall])
def test_bars_begin_where_the_last_one_ended(make):
    found = make(1)
    rows = waterfall(found, "k", "title", NAMES).rows
    assert [row.is_total for row in rows] == [True, *[False] * len(found.parts), True]
    for before, row, part in zip(rows, rows[1:], found.parts, strict=False):
        began = row.low if part.change >= 0 else row.high
        assert began == pytest.approx(before.end, abs=1e-9)
        assert row.end == pytest.approx(row.high if part.change >= 0 else row.low, abs=1e-9)
    assert rows[-1].end == pytest.approx(rows[-2].end, abs=1e-6)


def test_lengths_of_bars_are_as_the_changes():
    found = step_fall(1)
    rows = waterfall(found, "k", "title", NAMES).rows
    per_ns = (rows[0].high - rows[0].low) / found.baseline
    for row, part in zip(rows[1:-1], found.parts, strict=True):
        assert row.high - row.low == pytest.approx(abs(part.change) * per_ns)


@pytest.mark.parametrize("make", [step_fall, memory_fall, energy_fall])
def test_the_sums_shown_are_those_of_the_answer(make):
    found = make(1)
    fall = waterfall(found, "k", "title", NAMES)
    exact = f"{abs(found.candidate - found.baseline):,.6f}".rstrip("0").rstrip(".")
    assert fall.sum_mark == "good"
    assert exact in fall.sum_sentence
    for column in (1, 2, 3):
        cells = [row[column].replace(",", "").replace("\u2212", "-") for row in fall.table.rows]
        decimals = len(cells[-1].partition(".")[2])
        quanta = [round(float(cell) * 10**decimals) for cell in cells]
        assert sum(quanta[:-1]) == quanta[-1]
    first = fall.table.rows[-1][1]
    assert fall.table.rows[-1][0] == "sum of the parts"
    assert float(first.replace(",", "")) == pytest.approx(
        found.baseline / {"ns": 1e6, "bytes": 2**30, "J": 1}[found.unit], abs=0.051
    )


def test_parts_that_do_not_add_up_are_called_out():
    found = step_fall(1)
    wrong = replace(found, candidate=found.candidate + 1)
    fall = waterfall(wrong, "k", "title", NAMES)
    assert fall.sum_mark == "bad"
    assert "and not to the difference" in fall.sum_sentence


def test_an_axis_is_cut_only_where_the_parts_would_not_be_seen():
    whole, cut = waterfall(step_fall(1), "k", "t", NAMES), waterfall(energy_fall(1), "k", "t", NAMES)
    assert (whole.zero, whole.cut) == (0.0, "")
    assert cut.zero is None
    assert cut.cut.endswith("J")
    assert "The axis begins at" in render_compare(compare_answer(2))


def test_a_comparison_with_itself_is_drawn():
    part = WaterfallPart(
        key="data", label="data", group="data", baseline=5.0, candidate=5.0, change=0.0, evidence="", method="measured"
    )
    same = replace(step_fall(1), baseline=5.0, candidate=5.0, parts=(part,))
    fall = waterfall(same, "k", "t", NAMES)
    assert fall.rows[1].low == fall.rows[1].high
    assert fall.rows[1].value == "0\u00a0ns"
    nothing = waterfall(replace(same, baseline=0.0, candidate=0.0, parts=()), "k", "t", NAMES)
    assert all(0 <= row.low <= row.high <= 100 for row in nothing.rows)


@pytest.mark.parametrize("values", [[1 / 3] * 3, [-0.05, 0.05], [1e-9, 2.0], [], [99.96, 0.04, -33.333]])
def test_rounded_parts_add_up_to_the_rounded_sum(values):
    *parts, total = (float(cell.replace(",", "").replace("\u2212", "-")) for cell in adding_up(values, 1))
    assert round(sum(parts), 1) == total
    assert total == round(sum(values), 1)
    assert all(abs(part - value) <= 0.1 for part, value in zip(parts, values, strict=True))


def test_colours_are_those_of_every_page():
    parts = step_fall(1).parts
    assert [colour(part) for part in parts] == [
        "data", "forward", "backward", *["communication"] * 5, "optimizer", "other",
    ]  # fmt: skip
    assert [colour(part) for part in memory_fall(1).parts] == [
        "parameters", "gradients", "optimizer-states", "activations", "buckets", "unexplained",
    ]  # fmt: skip


def test_figures_carry_change_interval_p_verdict_and_n():
    answer = compare_answer(3)
    lines = build(answer).against[0].kpis
    assert [line.key for line in lines] == [row.key for row in answer.kpis]
    step = lines[0].cells
    assert step[0].is_baseline
    assert (step[0].verdict, step[0].change, step[0].interval) == ("", "", None)
    assert (step[1].mark, step[1].verdict) == ("bad", "worse")
    assert "n = 138" in step[1].shown.interval
    assert step[1].p == "p\u00a0<\u00a00.001"
    assert step[1].interval.cut_high
    power = next(line for line in lines if line.key == "gpu.power").cells[1]
    assert (power.mark, power.verdict, power.p) == ("", "not tested", "")
    words = "".join(Reader(render_compare(answer)).text)
    assert "bad: " in words  # the mark's word, for who does not see it
    assert "the device's peak is not known" in words


def test_the_baseline_can_be_chosen_among_those_given():
    answers = [compare_answer(3, i) for i in range(3)]
    text = render_compare(answers[0], answers[1:])
    read = Reader(text)
    choices = [attributes for tag, attributes in read.tags if tag == "input"]
    assert [choice["value"] for choice in choices] == ["1", "2", "3"]
    assert ["checked" in choice for choice in choices] == [True, False, False]
    for choice in choices:
        assert f"body:has(#{choice['id']}:checked)" in text
    assert "--baseline" not in "".join(read.text)


def test_without_others_the_page_says_how_to_choose(text):
    assert "agprof compare … --baseline 2" in "".join(Reader(text).text)
    assert not [tag for tag, _ in Reader(text).tags if tag == "input"]


def test_hostile_names_stay_text():
    text = render_compare(hostile_compare(HOSTILE))
    read = Reader(text)
    assert not {tag for tag, _ in read.tags} & {"img", "iframe", "object", "embed"}
    assert len([text for attributes, text in read.scripts if "type" not in attributes]) == 1
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,"
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "PWNED" in "".join(read.text)


def test_names_of_a_megabyte_keep_the_bound():
    answer = hostile_compare("x" * 1_000_000)
    assert len(render_compare(answer).encode()) <= LIMIT_BYTES


def test_sixteen_sides_keep_the_bound_and_baselines_that_do_not_fit_are_left_out():
    answers = [compare_answer(16, i) for i in range(16)]
    many = [replace(answer, moved=answer.moved * 40) for answer in answers]
    text = render_compare(many[0], many[1:])
    assert len(text.encode()) <= LIMIT_BYTES == 4_000_000
    assert text == render_compare(many[0], many[1:])


def test_nothing_reaches_out(text):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src &#39;none&#39;" in policy
    assert "connect-src &#39;none&#39;" in policy
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_no_colour_stands_outside_the_variables():
    from agprof_reports import embed

    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(", embed.asset("compare.css"))
